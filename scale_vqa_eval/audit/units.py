"""What goes together in an audit: exchange groups, else patients, else slides; and the folds made of them.

A probe that is fitted must not be scored on near-copies of what it was fitted to, and an interval must not count
questions of one slide as if they were independent. Both use the same unit:

- an *exchange set*: questions with the same stem and the same options in the same order, in which every option is gold
  equally often. Its members stay in one fold: then the fitted probe is one fixed function of one text there, and is
  right on exactly 1/k of the set, whatever it has learned. Were the set cut, each member would be scored by a fit
  that has seen the same text with the other golds, and the accuracy would fall *below* chance. Sets are found by
  their text, with or without a ``group`` column;
- else the patient, else the slide, else the question itself (``Question.cluster``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.questions import Question

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Units:
    """The unit of each question.

    Attributes:
        ids: (n,) a number per question, equal for questions of one unit; numbered in order of appearance.
        balanced: (n,) whether the question is a member of an exchange set.
    """

    ids: IntArray
    balanced: npt.NDArray[np.bool_]

    def take(self, rows: IntArray) -> Units:
        """Returns the units of some questions."""
        return Units(self.ids[rows], self.balanced[rows])


@dataclass(frozen=True)
class UnitSummary:
    """How the questions of a file hang together.

    Attributes:
        kind: ``patient``, ``slide``, ``question`` or ``exchange set``: what most questions are clustered by.
        clusters: number of units.
        exchange_sets: number of exchange sets among them.
        unnamed: questions outside of exchange sets that name neither patient nor slide, each a unit of its own.
        note: what that costs; empty where it costs nothing.
    """

    kind: str
    clusters: int
    exchange_sets: int
    unnamed: int
    note: str


def units_of(questions: Sequence[Question]) -> Units:
    """Finds the unit of each question: its exchange set, else its patient, its slide, or itself."""
    exchange = exchange_sets(questions)
    seen: dict[tuple[str, object], int] = {}
    ids = np.empty(len(questions), dtype=np.int64)
    for row, question in enumerate(questions):
        if exchange[row] >= 0:
            key: tuple[str, object] = ("exchange", int(exchange[row]))
        elif question.patient or question.slide:
            key = ("cluster", question.cluster)
        else:
            key = ("question", row)
        ids[row] = seen.setdefault(key, len(seen))
    return Units(ids, exchange >= 0)


def exchange_sets(questions: Sequence[Question]) -> IntArray:
    """Returns (n,): number of the exchange set of each question, -1 outside of one."""
    same_text: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for row, question in enumerate(questions):
        same_text.setdefault((question.question, question.options), []).append(row)
    out = np.full(len(questions), -1, dtype=np.int64)
    number = 0
    for (_, options), rows in same_text.items():
        if len(rows) < len(options):
            continue
        times = np.bincount([questions[row].answer for row in rows], minlength=len(options))
        if times.min() == times.max():
            out[rows] = number
            number += 1
    return out


def describe_units(questions: Sequence[Question], units: Units) -> UnitSummary:
    """Says what the units of a file are, and what missing patients and slides cost."""
    loose = [question for question, balanced in zip(questions, units.balanced, strict=True) if not balanced]
    unnamed = sum(question.patient is None and question.slide is None for question in loose)
    clusters = int(units.ids.max(initial=-1)) + 1
    sets = len(np.unique(units.ids[units.balanced]))
    kind = "exchange set"
    if 2 * len(loose) >= len(questions):
        patients = any(question.patient for question in loose)
        kind = "question" if 2 * unnamed > len(loose) else "patient" if patients else "slide"
    return UnitSummary(kind, clusters, sets, unnamed, _cost(len(loose), unnamed, clusters))


def _cost(loose: int, unnamed: int, clusters: int) -> str:
    if unnamed:
        which = "No question names" if unnamed == loose else f"{unnamed} of {loose} questions do not name"
        return (
            f"{which} its patient or slide: each is taken for a unit of its own. Near-copies may then lie on both "
            "sides of a fold, which flatters the trained probes, and intervals are too narrow where slides are shared."
        )
    if clusters == 1:
        return (
            "All questions come from one unit: folds and intervals are by question, too narrow for other slides, "
            "and near-copies may lie on both sides of a fold."
        )
    if clusters < 10:
        return f"{clusters} units only: intervals are wide, and a leak has to be large to be shown."
    return ""
