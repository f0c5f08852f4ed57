"""Scores runs with the metric's code, together with their controls, and compares two runs."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy import special

from scale_vqa_eval import __version__
from scale_vqa_eval.audit.clusters import is_block_exchange
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.scale_vqa_acc.clustered import (
    Codes,
    Numbers,
    cluster_codes,
    clustered_interval,
    holm,
    minimum_detectable_effect,
    paired_difference,
)
from scale_vqa_eval.scale_vqa_acc.parsing import Mode
from scale_vqa_eval.scale_vqa_acc.summary import interval_figures, summarise
from scale_vqa_eval.schema import ALL_DIMENSIONS, CONFIGS
from scale_vqa_eval.scoring.blind_control import (
    bare_letter_warnings,
    choose_control,
    flip_rate,
    text_only_ceiling,
    truncation,
    weighted_score,
)
from scale_vqa_eval.scoring.predictions import Answers, Predictions, check_same_rotations, join, read_predictions

DEFAULT_CONFIG: Final = "default"


def score_files(
    predictions: str | Path,
    data: str,
    split: str | None,
    config: str | None,
    mode: Mode,
    *,
    blind: Sequence[str | Path] = (),
    shuffled: str | Path | None = None,
    audit: str | Path | None = None,
    weights: str | Path | None = None,
    partial: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """Scores a predictions file together with its controls; the arguments are those of ``scale-vqa score``.

    Returns:
        The results as written by ``scale-vqa score --json``, and warnings.

    Raises:
        InputError: lists every problem of the files, and every id that does not match the questions.
    """
    paths = [predictions, *blind, *([] if shuffled is None else [shuffled])]
    runs = read_each(read_predictions, paths)
    questions = read_questions(data, split, config)
    asked = _answered(questions, runs[0]) if partial else questions
    if partial:
        ids = {question.id for question in asked}
        runs[1:] = [replace(run, rows=tuple(row for row in run.rows if row.id in ids)) for run in runs[1:]]
    run, answers = runs[0], read_each(lambda one: join(one, asked, mode), runs)
    about = provenance(run, questions, data, split, config, mode)
    control = choose_control(about, answers[0], list(zip(runs, answers, strict=True))[1 : 1 + len(blind)])
    results = score_answers(answers[0], control.answers, control.reasons)
    results["provenance"] = about | ({"blind": control.provenance} if control.provenance else {})
    results |= {
        "blind_runs": list(control.runs),
        "flips": None if shuffled is None else flip_rate(answers[0], answers[-1]),
        "truncated": truncation(run),
        "text_only_ceiling": None if audit is None else text_only_ceiling(audit, about["data_hash"]),
        "weighted": None if weights is None else weighted_score(answers[0], weights),
        "partial": {"answered": len(asked), "of": len(questions)} if partial else None,
    }
    warnings = [line for one in runs for line in consistency_warnings(one, questions, about["config"])]
    if shuffled is not None and (stated := runs[-1].settings["ablation"]) != "shuffled":
        warnings.append(f"{shuffled} states the ablation {stated!r}, not 'shuffled'; its flip rate is not comparable")
    return results, [*warnings, *bare_letter_warnings(run, answers[0])]


def read_each(read: Callable[[Any], Any], inputs: Sequence[Any]) -> list[Any]:
    """Applies ``read`` to every input; raises one InputError with the problems of all inputs."""
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


def score_answers(answers: Answers, blind: Answers | None = None, withheld: Sequence[str] = ()) -> dict[str, Any]:
    """Scores answers, together with a blind run of the same model if there is one.

    Args:
        answers: the run with images.
        blind: the run without images, or None.
        withheld: reasons why the blind run is not a valid control.

    Returns:
        The figures of the metric, ``failed`` calls, and ``circular`` (None unless the run is circular): the share of
        questions that are right under every rotation of their options (CircularEval; Liu et al. 2023,
        arXiv:2307.06281).

    Raises:
        InputError: if the blind run has other rotations of the options.
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
        withheld=withheld,
    )
    figures["by_dimension"] = dict(sorted(figures["by_dimension"].items(), key=lambda part: dimension_order(part[0])))
    figures["clustered"] = answers.clustered
    if figures["groups"] is not None:
        once = list({question.id: question for question in answers.questions}.values())
        figures["groups"]["block_exchange"] = is_block_exchange(once)
    return {**figures, "failed": answers.failed, "circular": _circular(answers) if answers.circular else None}


def compare_answers(a: Answers, b: Answers) -> dict[str, Any]:
    """Compares A with B on the same questions by a paired test, clustered by patient, overall and by dimension.

    Returns:
        a_accuracy, b_accuracy, difference (A - B), interval, standard_error, p_value, n, clusters, mcnemar,
        minimum_detectable_effect (80% power, two-sided 5%; None if undefined), and by_dimension with the same figures
        and ``p_holm``, the p-value corrected over the dimensions (Holm 1979).

    Raises:
        InputError: if the runs do not have the same questions under the same rotations of their options.
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
    """Sort key of dimensions: the paper's order, then by name."""
    known = ALL_DIMENSIONS.index(name) if name in ALL_DIMENSIONS else len(ALL_DIMENSIONS)
    return known, name or ""


def provenance(
    predictions: Predictions,
    questions: Sequence[Question],
    data: str,
    split: str | None,
    config: str | None,
    mode: Mode,
) -> dict[str, Any]:
    """Returns the provenance of a score; unknown values are None."""
    return {
        "data": data,
        "config": config_of(data, config),
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
    """Returns the SHA-256 over id, text, options and answer of the questions, independent of order and file format."""
    rows = sorted((item.id, item.question, item.options, item.answer) for item in questions)
    return hashlib.sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()


def consistency_warnings(run: Predictions, questions: Sequence[Question], config: str | None = None) -> list[str]:
    """Returns contradictions between the provenance of a run and the questions that it is scored on."""
    found = []
    if run.provenance.get("data_hash", digest := questions_digest(questions)) != digest:
        found.append(f"{run.path} was made with other questions or answers than these (another data hash)")
    stated = run.provenance.get("config")
    if None not in (stated, config) and stated != config:
        found.append(f"{run.path} was made on the config {stated!r}, not on {config!r}")
    for name, values in run.mixed.items():
        found.append(f"{run.path} has rows of several runs: {name} {', '.join(map(preview, values[:3]))}")
    return found


def config_of(data: str, config: str | None) -> str | None:
    """Returns the config that the questions come from, or None if the data has no configs.

    For a release folder and ``config`` None it is the default config; for a Parquet file in a release folder, the
    config of its folder.
    """
    path = Path(data)
    if config is None and path.is_dir():
        configs = release_configs(path)
        return DEFAULT_CONFIG if DEFAULT_CONFIG in configs else next(iter(configs))
    return path.parent.name if config is None and path.is_file() and path.parent.name in CONFIGS else config


def _answered(questions: Sequence[Question], run: Predictions) -> list[Question]:
    """Returns the questions that a run answers, without the group of those whose group is not complete."""
    ids = {row.id for row in run.rows}
    asked = [question for question in questions if question.id in ids]
    torn = {question.group for question in questions if question.group and question.id not in ids}
    return [replace(question, group=None) if question.group in torn else question for question in asked]


def _compared(left: Numbers, right: Numbers, codes: Codes) -> dict[str, Any]:
    paired = paired_difference(left, right, codes)
    figures = paired.as_dict()
    effect = minimum_detectable_effect(paired.standard_error, paired.clusters)
    only_a, only_b = int((left > right).sum()), int((right > left).sum())
    independent = paired.clusters == paired.n
    exact = min(1.0, 2.0 * float(special.bdtr(min(only_a, only_b), only_a + only_b, 0.5)))
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
        # exact McNemar assumes independent questions; with several per patient it has far too many false alarms
        "mcnemar": {"only_a": only_a, "only_b": only_b, "p_value": exact if independent else None},
        "minimum_detectable_effect": None if np.isnan(effect) else effect,
    }


def _circular(answers: Answers) -> dict[str, Any]:
    right: dict[str, bool] = {}
    for question, correct in zip(answers.questions, answers.correct, strict=True):
        right[question.id] = right.get(question.id, True) and bool(correct)
    clusters = {question.id: question.cluster for question in answers.questions}
    figures = interval_figures(clustered_interval(list(right.values()), [clusters[identity] for identity in right]))
    return {name: figures[name] for name in ("accuracy", "interval", "standard_error", "n", "clusters")}
