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
class Unit:
    """How the questions of a file hang together.

    Attributes:
        kind: ``patient``, ``slide`` or ``question``: the coarsest that the file names for most of its questions.
        clusters: number of units.
        exchange_sets: number of exchange sets among them.
        unnamed: questions without patient and slide, each a unit of its own.
        note: what that costs; empty where it costs nothing.
    """

    kind: str
    clusters: int
    exchange_sets: int
    unnamed: int
    note: str


def cluster_ids(questions: Sequence[Question]) -> IntArray:
    """Returns (n,): a number per question, equal for questions of one unit; numbered in order of appearance."""
    exchange = exchange_sets(questions)
    seen: dict[tuple[str, object], int] = {}
    out = np.empty(len(questions), dtype=np.int64)
    for row, question in enumerate(questions):
        key: tuple[str, object] = ("exchange", exchange[row]) if exchange[row] >= 0 else ("cluster", question.cluster)
        out[row] = seen.setdefault(key, len(seen))
    return out


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


def describe_units(questions: Sequence[Question]) -> Unit:
    """Says what the units of a file are, and what missing patients and slides cost."""
    ids = cluster_ids(questions)
    exchange = exchange_sets(questions)
    loose = [question for row, question in enumerate(questions) if exchange[row] < 0]
    unnamed = sum(question.patient is None and question.slide is None for question in loose)
    clusters = int(ids.max(initial=-1)) + 1
    kind = "exchange group"
    if loose:
        kind = "question" if 2 * unnamed > len(loose) else "patient" if any(q.patient for q in loose) else "slide"
    return Unit(kind, clusters, int(exchange.max(initial=-1)) + 1, unnamed, _cost(len(loose), unnamed, clusters))


def _cost(loose: int, unnamed: int, clusters: int) -> str:
    if unnamed:
        which = "No question names" if unnamed == loose else f"{unnamed} of {loose} questions do not name"
        return (
            f"{which} its patient or slide: each is taken for a unit of its own. Near-copies may then lie on both "
            "sides of a fold, which flatters the trained probes, and intervals are too narrow where slides are shared."
        )
    if clusters == 1:
        return (
            "All questions come from one unit: folds are by question, intervals are by question and too narrow, and "
            "nothing is said about other slides."
        )
    if clusters < 10:
        return f"{clusters} units only: intervals are wide, and a leak has to be large to be shown."
    return ""
