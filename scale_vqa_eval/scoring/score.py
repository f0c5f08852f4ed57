"""Joins responses with their questions, scores them with the metric's own code, and compares two models."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval import __version__
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.scale_vqa_acc.clustered import (
    Codes,
    cluster_codes,
    clustered_interval,
    holm,
    mcnemar_exact,
    minimum_detectable_effect,
    paired_difference,
)
from scale_vqa_eval.scale_vqa_acc.parsing import Mode, ParsedBatch, parse_batch
from scale_vqa_eval.scale_vqa_acc.summary import Numbers, summarise
from scale_vqa_eval.schema import ALL_DIMENSIONS
from scale_vqa_eval.scoring.predictions import Prediction, Predictions, read_predictions

MAX_NAMED: Final = 1000
"""Most ids of one kind that an error names one by one; the rest is counted."""


@dataclass(frozen=True)
class Answers:
    """Questions and the responses to them, in the order of the questions.

    Attributes:
        questions: n questions; one that was asked with rotated options occurs once per rotation.
        gold: (n,) ASCII code of the right letter under the rotation.
        options: (n,) number of options.
        parsed: letters and parse outcomes of the responses.
        failed: number of responses that the run marked as failed calls (they are among the unparsed).
        circular: whether every question was asked under every rotation of its options.
    """

    questions: tuple[Question, ...]
    gold: npt.NDArray[np.uint8]
    options: npt.NDArray[np.int64]
    parsed: ParsedBatch
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
        parsed=parse_batch([row.response for _, row in rows], mode, options),
        failed=sum(row.error is not None for _, row in rows),
        circular=any(row.rotation is not None for _, row in rows),
    )


def score_files(
    predictions: str | Path,
    data: str,
    split: str | None,
    config: str | None,
    mode: Mode,
    blind: Sequence[str | Path] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Scores a predictions file, beside its blind run if one is given.

    Returns:
        The results as ``scale-vqa score --json`` writes them, and warnings.

    Raises:
        InputError: with every problem of the files, and of their ids against those of the questions.
    """
    run, *blind_runs = read_each(read_predictions, [predictions, *blind])
    questions = read_questions(data, split, config)
    answers, *blind_answers = read_each(lambda one: join(one, questions, mode), [run, *blind_runs])
    results = score_answers(answers, *blind_answers)
    results["provenance"] = provenance(run, questions, data, split, config, mode)
    for one in blind_runs:
        files = {"predictions": str(one.path), "predictions_hash": one.digest}
        results["provenance"]["blind"] = files | dict(one.settings)
    return results, consistency_warnings(run, questions, *blind_runs)


def read_each(read: Callable[[Any], Any], inputs: Sequence[Any]) -> list[Any]:
    """Reads every input and raises the problems of all together."""
    problems: list[Problem] = []
    found: list[Any] = []
    for one in inputs:
        try:
            found.append(read(one))
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(problems)
    return found


def score_answers(answers: Answers, blind: Answers | None = None) -> dict[str, Any]:
    """Scores joined answers, beside a blind run of the same model if there is one.

    Returns:
        The figures of the metric, with ``failed`` calls and, for a circular run, ``circular``: the share of questions
        that are right under every rotation of their options (CircularEval; Liu et al. 2023, arXiv:2307.06281).

    Raises:
        InputError: if the blind run was asked under other rotations of the options.
    """
    if blind is not None:
        check_same_rotations(answers, blind)
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
    figures["clustered"] = answers.clustered
    return {**figures, "failed": answers.failed, "circular": _circular(answers) if answers.circular else None}


def compare_answers(a: Answers, b: Answers) -> dict[str, Any]:
    """Compares A with B on the same questions, paired and clustered by patient, over all and by dimension.

    Returns:
        a_accuracy, b_accuracy, difference (A - B), interval, standard_error, p_value, n, clusters, mcnemar,
        minimum_detectable_effect (80% power, two-sided 5%; None if undefined) and by_dimension, each with the same
        figures and ``p_holm``, the p-value corrected over the dimensions (Holm 1979).

    Raises:
        InputError: if the two were not asked the same questions under the same rotations of their options.
    """
    check_same_rotations(a, b)
    codes, _ = cluster_codes(a.clusters)
    names = np.array([name or "none" for name in a.dimensions or []])
    parts = {}
    for name in sorted(set(names.tolist()), key=dimension_order):
        rows = np.flatnonzero(names == name)
        parts[name] = _compared(a.correct[rows], b.correct[rows], codes[rows])
    for part, corrected in zip(parts.values(), holm([part["p_value"] for part in parts.values()]), strict=True):
        part["p_holm"] = corrected
    return {**_compared(a.correct, b.correct, codes), "clustered": a.clustered, "by_dimension": parts}


def dimension_order(name: str | None) -> tuple[int, str]:
    """Sort key of dimensions: the paper's order, then others by name."""
    known = ALL_DIMENSIONS.index(name) if name in ALL_DIMENSIONS else len(ALL_DIMENSIONS)
    return known, name or ""


def check_same_rotations(first: Answers, second: Answers) -> None:
    """Raises InputError if two runs were asked the same questions under different rotations of their options."""
    if first.questions != second.questions or not np.array_equal(first.gold, second.gold):
        expected = "two runs asked under the same rotations of the options"
        found = "a circular run and one that is not" if first.circular != second.circular else "different ones"
        raise InputError(Problem("the two runs", expected, found, "run both with or without --ablate circular"))


def provenance(
    predictions: Predictions,
    questions: Sequence[Question],
    data: str,
    split: str | None,
    config: str | None,
    mode: Mode,
) -> dict[str, Any]:
    """Returns what a score was made from; what is not known is None, never guessed."""
    return {
        "data": data,
        "config": config,
        "split": split,
        "data_hash": questions_digest(questions),
        "predictions": str(predictions.path),
        "predictions_hash": predictions.digest,
        **predictions.settings,
        "predicted_with": dict(predictions.provenance) or None,
        "parsing": mode,
        "versions": {"scale-vqa": __version__, "numpy": np.__version__, "python": platform.python_version()},
    }


def questions_digest(questions: Iterable[Question]) -> str:
    """Returns the SHA-256 over id, text, options and answer of the questions, independent of their file format."""
    rows = sorted((item.id, item.question, item.options, item.answer) for item in questions)
    return hashlib.sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()


def consistency_warnings(
    run: Predictions, questions: Sequence[Question], blind: Predictions | None = None
) -> list[str]:
    """Returns how the statements of the runs contradict the score that is being computed."""
    found = []
    digest = questions_digest(questions)
    for one in (run, blind):
        if one is not None and one.provenance.get("data_hash", digest) != digest:
            found.append(f"{one.path} was made on other questions or answers than these (another data hash)")
    if blind is None:
        return found
    if blind.provenance.get("ablation", "blind") != "blind":
        ablation = blind.provenance["ablation"]
        found.append(f"{blind.path} is given as the blind run but notes the ablation {ablation!r}")
    for field in ("model", "prompt_id", "sampling"):
        ours, theirs = run.settings[field], blind.settings[field]
        if None not in (ours, theirs) and ours != theirs:
            found.append(
                f"the blind run differs in {field}: {theirs!r} instead of {ours!r}; the gain is not the images' alone"
            )
    return found


def _compared(left: Numbers, right: Numbers, codes: Codes) -> dict[str, Any]:
    paired = paired_difference(left, right, codes)
    figures = paired.as_dict()
    tested = mcnemar_exact(left, right)
    effect = minimum_detectable_effect(paired.standard_error, paired.clusters)
    return {
        "a_accuracy": float(left.mean()),
        "b_accuracy": float(right.mean()),
        "difference": figures["difference"],
        "interval": [figures["ci_low"], figures["ci_high"]],
        "interval_method": figures["method"],
        "standard_error": figures["standard_error"],
        "p_value": figures["p_value"],
        "n": figures["n"],
        "clusters": figures["clusters"],
        "mcnemar": {"only_a": tested.only_a, "only_b": tested.only_b, "p_value": tested.p_value},
        "minimum_detectable_effect": None if np.isnan(effect) else effect,
    }


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
