"""Which questions are asked of which path, from which template, in which split: before any model is asked."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dataset_script.curate.asking.prompts import load_prompt
from dataset_script.curate.features.captions import CaptionedPath
from dataset_script.splits import patient_splits
from scale_vqa_eval.schema import QUESTION_TYPES

FREE: Final = "free"


@dataclass(frozen=True, slots=True)
class PathPlan:
    """What is asked of a path: its split, and question type -> id of a template, or ``free``."""

    split: str
    forms: Mapping[str, str]


def plan_questions(paths: Sequence[CaptionedPath], seed: int, linked: Mapping[str, str]) -> dict[str, PathPlan]:
    """Plans every path: half of the questions of each split and type from templates, half of those from either.

    The order of the input does not matter.

    Args:
        paths: every path of the input.
        seed: of splits and forms.
        linked: patient -> the patient whose split it shares, because they share an image; others stand for themselves.

    Returns:
        path key -> its plan.
    """
    together = {path.key: linked.get(path.patient, path.patient) for path in paths}
    splits = patient_splits(Counter(together.values()), seed)
    keys: dict[str, list[str]] = {}
    for path in sorted(paths, key=lambda one: one.key):
        keys.setdefault(splits[together[path.key]], []).append(path.key)
    forms: dict[str, dict[str, str]] = {path.key: {} for path in paths}
    for number, (question_type, about) in enumerate(load_prompt("generate")["types"].items()):
        names = [template["id"] for template in about["templates"]]
        for split, members in sorted(keys.items()):
            order = members.copy()
            random.Random(f"{seed}:{split}:{question_type}").shuffle(order)
            cycle = [names[0], FREE, names[1], FREE]
            for place, key in enumerate(order, number):  # where counts are odd, types begin at different forms
                forms[key][question_type] = cycle[place % len(cycle)]
    assert all(set(found) == set(QUESTION_TYPES) for found in forms.values())
    return {path.key: PathPlan(splits[together[path.key]], forms[path.key]) for path in paths}


def template_text(question_type: str, form: str) -> str | None:
    """Returns the fixed question of a template, None for a free one."""
    templates = load_prompt("generate")["types"][question_type]["templates"]
    return next((one["text"] for one in templates if one["id"] == form), None)
