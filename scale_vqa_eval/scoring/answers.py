"""Joins responses with their questions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import Numbers
from scale_vqa_eval.scale_vqa_acc.parsing import Mode, ParsedBatch, parse_batch
from scale_vqa_eval.scoring.predictions import Prediction, Predictions

MAX_NAMED: Final = 1000
"""Most ids of one kind that an error names one by one; the rest is counted."""
_BARE: Final = re.compile(r"[\s(\[*\"']*[A-Za-z][\s)\].:*\"']*")


@dataclass(frozen=True)
class Answers:
    """Questions and the responses to them, in the order of the questions.

    Attributes:
        questions: n questions; one that was asked with rotated options occurs once per rotation.
        gold: (n,) ASCII code of the right letter under the rotation.
        options: (n,) number of options.
        parsed: letters and parse outcomes of the responses.
        bare: number of responses that are a bare letter, such as ``B`` or ``(b)``, without tags.
        failed: number of responses that the run marked as failed calls (they are among the unparsed).
        circular: whether every question was asked under every rotation of its options.
    """

    questions: tuple[Question, ...]
    gold: npt.NDArray[np.uint8]
    options: npt.NDArray[np.int64]
    parsed: ParsedBatch
    bare: int
    failed: int
    circular: bool

    @property
    def correct(self) -> Numbers:
        """(n,) 1.0 for a right response, else 0.0."""
        right: npt.NDArray[np.bool_] = self.parsed.letters == self.gold
        return right.astype(np.float64)

    @property
    def clusters(self) -> list[str]:
        """(n,) patient of each question, else its slide, else its id."""
        return [question.cluster for question in self.questions]

    @property
    def clustered(self) -> bool:
        """Whether the data names a patient or slide of any question."""
        return any(question.patient or question.slide for question in self.questions)

    @property
    def dimensions(self) -> list[str | None] | None:
        """(n,) dimension of each question, or None if the data names none."""
        names = [question.dimension for question in self.questions]
        return names if any(name is not None for name in names) else None


def join(predictions: Predictions, questions: Sequence[Question], mode: Mode = "reference") -> Answers:
    """Finds the response to each question.

    Raises:
        InputError: naming every question without a response, every response without a question, every id that the
            data has twice, and missing rotations of a circular run.
    """
    by_id = {question.id: question for question in questions}
    asked: dict[str, dict[int | None, Prediction]] = {}
    for row in predictions.rows:
        asked.setdefault(row.id, {})[row.rotation] = row
    problems = [*_mismatches(predictions, questions, asked), *_missing_rotations(predictions, by_id, asked)]
    if problems:
        raise InputError(problems)
    rows = [(question, row) for question in questions for _, row in sorted(asked[question.id].items(), key=_rotation)]
    options = np.array([len(question.options) for question, _ in rows], np.int64)
    rotated = np.array([row.rotation or 0 for _, row in rows], np.int64)
    gold = (np.array([question.answer for question, _ in rows], np.int64) - rotated) % options + ord("A")
    return Answers(
        questions=tuple(question for question, _ in rows),
        gold=gold.astype(np.uint8),
        options=options,
        bare=sum(row.response is not None and _BARE.fullmatch(row.response) is not None for _, row in rows),
        parsed=parse_batch([row.response for _, row in rows], mode, options),
        failed=sum(row.error is not None for _, row in rows),
        circular=any(row.rotation is not None for _, row in rows),
    )


def check_same_rotations(first: Answers, second: Answers) -> None:
    """Raises InputError if two runs were asked the same questions under different rotations of their options."""
    if first.questions != second.questions or not np.array_equal(first.gold, second.gold):
        expected = "two runs asked under the same rotations of the options"
        found = "a circular run and one that is not" if first.circular != second.circular else "different ones"
        raise InputError(Problem("the two runs", expected, found, "run both with or without --ablate circular"))


def _mismatches(
    predictions: Predictions, questions: Sequence[Question], asked: dict[str, dict[int | None, Prediction]]
) -> list[Problem]:
    location = str(predictions.path)
    known: set[str] = set()
    repeated: list[str] = []
    for question in questions:
        if question.id in known:
            repeated.append(question.id)
        known.add(question.id)
    missing = [question.id for question in questions if question.id not in asked]
    extra = [identity for identity in asked if identity not in known]
    one_split = "; if the file covers one split, name it with --split" if len({q.split for q in questions}) > 1 else ""
    return [
        *_named(missing, location, "a response to every question", "no response to", "answer it" + one_split),
        *_named(extra, location, "responses to questions of the data", "a response to", "score it on its own data"),
        *_named(repeated, "the data", "each id once", "in more than one split:", "name one with --split"),
    ]


def _named(ids: list[str], location: str, expected: str, found: str, hint: str) -> list[Problem]:
    problems = [Problem(location, expected, f"{found} {identity!r}", hint) for identity in ids[:MAX_NAMED]]
    if len(ids) > MAX_NAMED:
        problems.append(Problem(location, expected, f"{found} {len(ids) - MAX_NAMED} more", hint))
    return problems


def _missing_rotations(
    predictions: Predictions, by_id: dict[str, Question], asked: dict[str, dict[int | None, Prediction]]
) -> list[Problem]:
    """Returns the questions of a circular run that lack a rotation of their options."""
    if not any(row.rotation is not None for row in predictions.rows):
        return []
    problems = []
    for identity, rotations in asked.items():
        wanted = set(range(len(by_id[identity].options))) if identity in by_id else set(rotations)
        if set(rotations) != wanted:
            found = f"{sorted(map(str, rotations))} of {identity!r}"
            expected = f"a response under each rotation 0-{len(wanted) - 1}"
            problems.append(Problem(str(predictions.path), expected, found, "finish the run"))
    return problems


def _rotation(item: tuple[int | None, Prediction]) -> int:
    return item[0] or 0
