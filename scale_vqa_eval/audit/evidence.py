"""What gives an item away: the words and the geometry by which models that have not seen it prefer its gold option."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from scale_vqa_eval.audit.layout import FloatArray, IntArray
from scale_vqa_eval.audit.listwise import fit_listwise
from scale_vqa_eval.audit.options_geometry import COLUMN, FEATURES
from scale_vqa_eval.audit.prepared import Prepared
from scale_vqa_eval.audit.trained import folds_of
from scale_vqa_eval.audit.units import units_of
from scale_vqa_eval.audit.wording import BLOCKS, HASH_COLUMNS, Columns, fit_columns, hash_of, terms_of
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import LETTERS

WORDINGS: Final = ("words", "contrast")


@dataclass(frozen=True)
class Evidence:
    """One thing that gives an item away.

    Attributes:
        kind: ``wording`` or ``geometry``.
        text: the word or phrase (lower case), or what the gold option is among the options.
        letters: the options that hold the word; the gold letter for geometry.
        weight: wording: log-odds that it adds to the gold option against the mean of the others, in models fitted to
            other units. Geometry: ln of how much more often than by chance the gold option has this place there.
    """

    kind: str
    text: str
    letters: str
    weight: float


def find_evidence(
    questions: Sequence[Question], prepared: Prepared, chosen: Sequence[int], seed: int = 0, most: int = 6
) -> dict[int, list[Evidence]]:
    """Returns row -> its evidence, heaviest first, at most ``most`` wordings and half as many geometry places.

    Args:
        questions: the questions that ``prepared`` is of.
        prepared: their texts, with the families ``words`` and ``contrast``.
        chosen: rows that evidence is wanted for.
        seed: of the folds.
        most: how many wordings.
    """
    folds = folds_of(units_of(questions), seed, 1)[0]
    gold = np.array([question.answer for question in questions], dtype=np.int64)
    columns = {family: fit_columns(prepared.wording[family], prepared.layout) for family in WORDINGS}
    ranks = prepared.layout.ranks(prepared.geometry.astype(np.float64))[prepared.layout.starts + gold]
    found: dict[int, list[Evidence]] = {}
    for fold in sorted({int(folds[row]) for row in chosen}):
        others = np.flatnonzero(folds != fold)
        if not len(others):
            continue
        weights = {family: _fit(prepared, family, columns[family], others, gold) for family in WORDINGS}
        for row in (row for row in chosen if folds[row] == fold):
            words = _wording(questions[row], prepared.take(np.array([row])), columns, weights)[:most]
            found[row] = words + _geometry(questions[row], ranks[row], ranks[others])[: most // 2]
    return found


def _fit(prepared: Prepared, family: str, columns: Columns, chosen: IntArray, gold: IntArray) -> FloatArray:
    presence = prepared.wording[family].take(prepared.layout.rows_of(chosen))
    return fit_listwise(columns.matrix(presence), prepared.layout.take(chosen), gold[chosen])


def _wording(
    question: Question, texts: Prepared, columns: dict[str, Columns], weights: dict[str, FloatArray]
) -> list[Evidence]:
    """The words that favour the gold option, summed over the blocks of both families."""
    margin: dict[tuple[str, int], float] = defaultdict(float)
    k = len(question.options)
    for family in WORDINGS:
        matrix: Any = columns[family].matrix(texts.wording[family]).tocoo()
        for option, column, value in zip(*matrix.coords, matrix.data, strict=True):
            number = int(columns[family].kept[column])
            block = number // HASH_COLUMNS
            kind = BLOCKS[family][block][0] if block < len(BLOCKS[family]) else "words"
            share = 1.0 if option == question.answer else -1.0 / (k - 1)
            margin[kind, number % HASH_COLUMNS] += share * float(value * weights[family][column]) / len(WORDINGS)
    holders: dict[tuple[str, str], list[int]] = defaultdict(list)
    for kind in ("words", "phrases"):
        for option, text in enumerate(question.options):
            for term in sorted(set(terms_of(text, kind))):
                holders[kind, term].append(option)
    found = [
        Evidence("wording", term, "".join(LETTERS[option] for option in options), margin[kind, hash_of(term)])
        for (kind, term), options in holders.items()
        if len(options) < k
    ]
    return _told_once(sorted(found, key=lambda one: (-one.weight, one.text)))


def _told_once(found: Sequence[Evidence]) -> list[Evidence]:
    """Drops what favours nothing, and a term that overlaps with a heavier one that the same options hold."""
    kept: list[Evidence] = []
    for one in found:
        among = [other.text for other in kept if other.letters == one.letters]
        if one.weight > 1e-6 and not any(one.text in text or text in one.text for text in among):
            kept.append(one)
    return kept


def _geometry(question: Question, ranks: FloatArray, others: FloatArray) -> list[Evidence]:
    """The features in which the gold option is the highest or lowest, and golds of other units often are too."""
    found: dict[str, Evidence] = {}
    for number, name in enumerate(FEATURES):
        aspect = "similarity" if number < COLUMN["characters"] else name  # one word on similarity is enough
        for place, end in (("highest", 1.0), ("lowest", 0.0)):
            rate = float((others[:, number] == end).mean())
            lift = float(np.log(max(rate, 1e-9) * len(question.options)))
            if ranks[number] == end and lift > max(0.05, found[aspect].weight if aspect in found else 0.0):
                text = f"{place} of the options in {name} (so is the gold of {rate:.0%} of other questions)"
                found[aspect] = Evidence("geometry", text, question.letter, lift)
    return sorted(found.values(), key=lambda one: (-one.weight, one.text))
