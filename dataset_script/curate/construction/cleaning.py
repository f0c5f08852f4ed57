"""Duplicates that are removed, and contradictions that are flagged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from dataset_script.curate.features.containment import may_hold, stands_in
from dataset_script.curate.questions.items import Item
from scale_vqa_eval.audit.defects import normalised
from scale_vqa_eval.schema import LETTERS
from scale_vqa_eval.text import jaccard, tokens


def without_duplicates(
    items: Sequence[Item], twins: Mapping[str, str], threshold: float
) -> tuple[list[Item], list[tuple[str, str, str]]]:
    """Removes questions that stand twice: about the same images, in the same or nearly the same words.

    The same words about other images are no duplicate: templates recur, and exchange sets live of it.

    Args:
        items: the questions.
        twins: path key -> the path whose images it repeats, all of them; others stand for themselves.
        threshold: token Jaccard of question and options from which on two texts are nearly the same.

    Returns:
        What stays, and (row id, ``duplicate`` or ``near-duplicate``, of which row) of what goes.
    """
    by_images: dict[str, list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda one: (one.group is None, one.id)):  # a set that lost one would be none
        by_images[twins.get(item.draft.path, item.draft.path)].append(item)
    kept: list[Item] = []
    gone: list[tuple[str, str, str]] = []
    for members in by_images.values():
        here: list[tuple[Item, tuple[str, ...], frozenset[str]]] = []
        for item in members:
            text = (normalised(item.draft.question), *sorted(normalised(option) for option in item.options))
            said = tokens(" ".join(text))
            twin = next((other for other, words, _ in here if words == text), None)
            near = next((other for other, _, seen in here if jaccard(seen, said) >= threshold), None)
            if item.group is None and (twin or near):
                kind, other = ("duplicate", twin) if twin is not None else ("near-duplicate", near)
                assert other is not None
                gone.append((item.id, kind, f"of {other.id}"))
            else:
                here.append((item, text, said))
                kept.append(item)
    return sorted(kept, key=lambda one: one.id), sorted(gone)


def contradictions(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Flags options that the captions of their own path speak against: wrong ones that may hold, right ones denied."""
    found = []
    for item in items:
        for half, (pair, right) in enumerate(zip(item.values, item.truth, strict=True)):
            wrong, true = pair[1 - right], pair[right]
            if may_hold(wrong, item.place.texts):
                holding = [LETTERS[at] for at, number in enumerate(item.order) if _value_of(number, half) == 1 - right]
                found.append(_flag(item, "".join(holding), wrong, "is wrong here, but a caption of the path says it"))
            if any(stands_in(true, text) in ("negation-dropped", "negation-added") for text in item.place.texts):
                found.append(
                    _flag(item, LETTERS[item.answer], true, "is right here, but a caption of the path denies it")
                )
    return found


def _value_of(number: int, half: int) -> int:
    return number % 2 if half else number // 2


def _flag(item: Item, letters: str, value: str, why: str) -> dict[str, Any]:
    return {"id": item.id, "options": letters, "finding": value, "why": why}
