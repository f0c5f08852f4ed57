"""Reads the answers that ``scale-vqa predict`` drew, all of them, and which letters a blind reader took."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.scale_vqa_acc.parsing import parse_response
from scale_vqa_eval.schema import LETTERS
from scale_vqa_eval.scoring.predictions import read_predictions


@dataclass(frozen=True)
class Rollouts:
    """Answers by question.

    Attributes:
        responses: row id -> the texts drawn.
        ablation: what was taken from the images, None for nothing.
        model: what answered, None where the file does not say.
    """

    responses: dict[str, tuple[str, ...]]
    ablation: str | None
    model: str | None


def read_rollouts(path: str | Path) -> Rollouts:
    """Reads a predictions file, every answer of a question where several were drawn.

    Raises:
        InputError: where it is none, or its options were turned.
    """
    predictions = read_predictions(path)
    turned = [row.id for row in predictions.rows if row.rotation is not None]
    if turned:
        hint = "name a run without --ablate circular"
        raise InputError(Problem(str(path), "options as released", f"turned ones, such as of {turned[0]!r}", hint))
    responses: dict[str, tuple[str, ...]] = {}
    # not splitlines: a text may hold other ends of a line (U+2028), which JSON leaves as they are
    for line in Path(path).read_text(encoding="utf-8-sig").split("\n"):
        row: dict[str, Any] = json.loads(line) if line.strip() else {}
        if "id" in row:
            drawn = row.get("responses") or [row.get("response")]
            responses[row["id"]] = tuple(text for text in drawn if isinstance(text, str))
    ablation, model = predictions.settings.get("ablation"), predictions.settings.get("model")
    return Rollouts(responses, ablation, None if model is None else str(model))


def blind_priors(path: str | Path, ids: Iterable[str], options: int = 4) -> list[list[float] | None]:
    """Returns each question's letter shares among blind answers, add-one smoothed; None where there is no answer.

    Add-one smoothing keeps a single greedy answer from counting as certainty: one answer of four options gives 2/5.

    Raises:
        InputError: where the answers were drawn with images, or no question has one.
    """
    rollouts = read_rollouts(path)
    if rollouts.ablation != "blind":
        expected, found = "answers without images (predict --ablate blind)", f"ablation {preview(rollouts.ablation)}"
        raise InputError(Problem(str(path), expected, found, "name the file of a blind run"))
    priors: list[list[float] | None] = []
    for identity in ids:
        texts = rollouts.responses.get(identity)
        if texts is None:
            priors.append(None)
            continue
        letters = [parse_response(text, "strict", options).letter for text in texts]
        read = [letter for letter in letters if letter is not None]
        priors.append([(read.count(letter) + 1) / (len(read) + options) for letter in LETTERS[:options]])
    if not any(priors):
        hint = "run it on the split that is trained on"
        raise InputError(Problem(str(path), "answers to questions of the training split", "none", hint))
    return priors
