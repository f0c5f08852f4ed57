"""Joins responses with their questions and scores them with the metric's own code."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval import __version__
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import clustered_interval
from scale_vqa_eval.scale_vqa_acc.parsing import Mode, ParsedBatch, parse_batch
from scale_vqa_eval.scale_vqa_acc.summary import summarise
from scale_vqa_eval.schema import ALL_DIMENSIONS
from scale_vqa_eval.scoring.predictions import Prediction, Predictions

NAMED: Final = 1000
"""Most ids of one kind that an error names one by one; the rest is counted."""


@dataclass(frozen=True)
class Answers:
    """Questions and the responses to them, in the order of the questions.

    Attributes:
        questions: n questions; one that was asked with its options turned occurs once per turn.
        gold: (n,) ASCII code of the letter that was right as the options stood.
        options: (n,) number of options.
        parsed: what the responses say.
        failed: responses that the run noted as failed calls (among the unparsed).
        circular: whether every question was asked under every turn of its options.
    """

    questions: tuple[Question, ...]
    gold: npt.NDArray[np.uint8]
    options: npt.NDArray[np.int64]
    parsed: ParsedBatch
    failed: int
    circular: bool

    @property
    def correct(self) -> npt.NDArray[np.float64]:
        """(n,) 1.0 where the response is right."""
        right: npt.NDArray[np.bool_] = self.parsed.letters == self.gold
        return right.astype(np.float64)

    @property
    def clusters(self) -> list[str]:
        """(n,) patient of each question, else its slide, else itself."""
        return [question.cluster for question in self.questions]

    @property
    def dimensions(self) -> list[str | None] | None:
        """(n,) dimension of each question; None where the data names none."""
        names = [question.dimension for question in self.questions]
        return names if any(name is not None for name in names) else None


def join(predictions: Predictions, questions: Sequence[Question], mode: Mode = "reference") -> Answers:
    """Finds the response to each question.

    Raises:
        InputError: naming every question without a response, every response without a question, every id that the
            data has twice; and turns of the options that are missing.
    """
    by_id = {question.id: question for question in questions}
    asked: dict[str, dict[int | None, Prediction]] = {}
    for row in predictions.rows:
        asked.setdefault(row.id, {})[row.rotation] = row
    problems = [*_mismatches(predictions, questions, asked), *_turns(predictions, by_id, asked)]
    if problems:
        raise InputError(problems)
    rows = [(question, row) for question in questions for _, row in sorted(asked[question.id].items(), key=_turn)]
    options = np.array([len(question.options) for question, _ in rows], np.int64)
    turned = np.array([row.rotation or 0 for _, row in rows], np.int64)
    gold = (np.array([question.answer for question, _ in rows], np.int64) - turned) % options + ord("A")
    return Answers(
        questions=tuple(question for question, _ in rows),
        gold=gold.astype(np.uint8),
        options=options,
        parsed=parse_batch([row.response for _, row in rows], mode, options),
        failed=sum(row.error is not None for _, row in rows),
        circular=any(row.rotation is not None for _, row in rows),
    )


def score_answers(answers: Answers, blind: Answers | None = None) -> dict[str, Any]:
    """Scores joined answers, beside a blind run of the same model where there is one.

    Returns:
        The figures of the metric, with ``failed`` calls and, for a circular run, ``circular``: the share of questions
        that are right under every turn of their options (CircularEval; Liu et al. 2023, arXiv:2307.06281).

    Raises:
        InputError: where the blind run was asked under other turns of the options.
    """
    if blind is not None:
        check_same_asks(answers, blind)
    groups = [question.group for question in answers.questions]
    figures = summarise(
        answers.parsed,
        answers.gold,
        dimension=answers.dimensions,
        cluster=answers.clusters,
        group=groups if any(groups) else None,
        blind=None if blind is None else blind.parsed,
        options=answers.options,
    )
    figures["by_dimension"] = dict(sorted(figures["by_dimension"].items(), key=lambda part: dimension_order(part[0])))
    figures["clustered"] = any(question.patient or question.slide for question in answers.questions)
    return {**figures, "failed": answers.failed, "circular": _circular(answers) if answers.circular else None}


def dimension_order(name: str | None) -> tuple[int, str]:
    """Sort key of dimensions: the paper's order, then others by name."""
    known = ALL_DIMENSIONS.index(name) if name in ALL_DIMENSIONS else len(ALL_DIMENSIONS)
    return known, name or ""


def check_same_asks(first: Answers, second: Answers) -> None:
    """Raises InputError where two runs were asked the same questions under different turns of their options."""
    if first.questions != second.questions or not np.array_equal(first.gold, second.gold):
        expected = "two runs asked under the same rotations of the options"
        found = "a circular run and one that is not" if first.circular != second.circular else "different ones"
        raise InputError(Problem("the two predictions files", expected, found, "ask both in the same way"))


def provenance(
    predictions: Predictions,
    questions: Sequence[Question],
    data: str,
    split: str | None,
    config: str | None,
    mode: Mode,
) -> dict[str, Any]:
    """Says what a score was made from; what is not known is None, never guessed."""
    return {
        "data": data,
        "config": config,
        "split": split,
        "data_hash": questions_digest(questions),
        "predictions": str(predictions.path),
        "predictions_hash": predictions.digest,
        **predictions.noted,
        "predicted_with": dict(predictions.account) or None,
        "parsing": mode,
        "versions": {"scale-vqa": __version__, "numpy": np.__version__, "python": platform.python_version()},
    }


def questions_digest(questions: Iterable[Question]) -> str:
    """Returns the SHA-256 over id, text, options and answer of the questions, whatever file they came in."""
    rows = sorted((item.id, item.question, item.options, item.answer) for item in questions)
    return hashlib.sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()


def doubts(run: Predictions, questions: Sequence[Question], blind: Predictions | None = None) -> list[str]:
    """Returns what the runs' own accounts say against the comparison that is being made."""
    found = []
    digest = questions_digest(questions)
    for one in (run, blind):
        if one is not None and one.account.get("data_hash", digest) != digest:
            found.append(f"{one.path} was made on other questions or answers than these (another data hash)")
    if blind is None:
        return found
    if blind.account.get("ablation", "blind") != "blind":
        found.append(f"{blind.path} is given as the blind run but notes the ablation {blind.account['ablation']!r}")
    for field in ("model", "prompt_id", "sampling"):
        ours, theirs = run.noted[field], blind.noted[field]
        if None not in (ours, theirs) and ours != theirs:
            found.append(
                f"the blind run differs in {field}: {theirs!r} instead of {ours!r}; the gain is not the images' alone"
            )
    return found


def _mismatches(
    predictions: Predictions, questions: Sequence[Question], asked: dict[str, dict[int | None, Prediction]]
) -> list[Problem]:
    location = str(predictions.path)
    known: set[str] = set()
    twice: list[str] = []
    for question in questions:
        if question.id in known:
            twice.append(question.id)
        known.add(question.id)
    missing = [question.id for question in questions if question.id not in asked]
    extra = [identity for identity in asked if identity not in known]
    one_split = "; if the file covers one split, name it with --split" if len({q.split for q in questions}) > 1 else ""
    return [
        *_named(missing, location, "a response to every question", "no response to", "answer it" + one_split),
        *_named(extra, location, "responses to questions of the data", "a response to", "score it on its own data"),
        *_named(twice, "the data", "each id once", "in more than one split:", "name one with --split"),
    ]


def _named(ids: list[str], location: str, expected: str, found: str, hint: str) -> list[Problem]:
    problems = [Problem(location, expected, f"{found} {identity!r}", hint) for identity in ids[:NAMED]]
    if len(ids) > NAMED:
        problems.append(Problem(location, expected, f"{found} {len(ids) - NAMED} more", hint))
    return problems


def _turns(
    predictions: Predictions, by_id: dict[str, Question], asked: dict[str, dict[int | None, Prediction]]
) -> list[Problem]:
    """Faults of a circular run: every turn of a question's options has to be there, or none."""
    if not any(row.rotation is not None for row in predictions.rows):
        return []
    problems = []
    for identity, turns in asked.items():
        wanted = set(range(len(by_id[identity].options))) if identity in by_id else set(turns)
        if set(turns) != wanted:
            found = f"{sorted(map(str, turns))} of {identity!r}"
            expected = f"a response under each rotation 0-{len(wanted) - 1}"
            problems.append(Problem(str(predictions.path), expected, found, "finish the run"))
    return problems


def _turn(item: tuple[int | None, Prediction]) -> int:
    return item[0] or 0


def _circular(answers: Answers) -> dict[str, Any]:
    right: dict[str, bool] = {}
    for question, correct in zip(answers.questions, answers.correct, strict=True):
        right[question.id] = right.get(question.id, True) and bool(correct)
    clusters = {question.id: question.cluster for question in answers.questions}
    figures = clustered_interval(list(right.values()), [clusters[identity] for identity in right]).as_dict()
    return {
        "accuracy": figures["mean"],
        "interval": [figures["ci_low"], figures["ci_high"]],
        "standard_error": figures["standard_error"],
        "n": figures["n"],
        "clusters": figures["clusters"],
    }
