"""Figures that stand beside an accuracy: flips, truncation, the text-only ceiling, and the leak-weighted score."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.scale_vqa_acc.clustered import clustered_interval
from scale_vqa_eval.scale_vqa_acc.summary import interval_figures
from scale_vqa_eval.scoring.answers import Answers, check_same_rotations
from scale_vqa_eval.scoring.predictions import Predictions

MIN_EFFECTIVE: Final = 30.0
"""Effective sample size below which a leak-weighted score is reported as too small."""


def flip_rate(answers: Answers, shuffled: Answers) -> dict[str, Any]:
    """Returns the share of answers that change with another patient's images (arXiv:2603.03437).

    An answer that is read in one run and not in the other counts as changed; one that is read in neither does not.
    """
    check_same_rotations(answers, shuffled)
    changed = (answers.parsed.letters != shuffled.parsed.letters).astype(np.float64)
    figures = interval_figures(clustered_interval(changed, answers.clusters))
    return {"rate": figures["accuracy"], "interval": figures["interval"], "n": figures["n"]}


def truncation(run: Predictions) -> dict[str, Any] | None:
    """Returns the responses that ended at the limit of tokens (``finish`` is ``length``); None if none is stated."""
    stated = [row.finish for row in run.rows if row.finish is not None]
    if not stated:
        return None
    count = sum(finish == "length" for finish in stated)
    return {"n": count, "rate": count / len(run.rows)}


def bare_letter_warnings(run: Predictions, answers: Answers) -> list[str]:
    """Returns one line if more than half of the responses are bare letters, which no parsing rule reads."""
    if answers.bare * 2 <= len(answers.questions):
        return []
    return [
        f"{run.path}: {answers.bare} of {len(answers.questions)} responses are a bare letter such as 'B'. They count "
        "as unparsed: the published rule reads <answer>B</answer> only. Ask with a prompt that requests these tags"
    ]


def text_only_ceiling(path: str | Path, data_hash: str) -> dict[str, Any]:
    """Returns the strongest text-only probe of an audit of the same questions.

    A model's own blind score says what it admits without images; the ceiling says what the text gives away.

    Raises:
        InputError: if the file is not an audit, or is the audit of other questions.
    """
    report = _audit(path)
    best = report.get("strongest")
    if not isinstance(best, Mapping) or not {"name", "accuracy", "ci_low", "ci_high"} <= best.keys():
        expected = "an audit with the field strongest"
        raise InputError(Problem(str(path), expected, preview(report), "run `scale-vqa audit --json`"))
    digest = audit_hash(path)
    if digest != data_hash:
        expected = f"an audit of these questions (data hash {data_hash[:12]})"
        hint = "audit the same data, config and split"
        raise InputError(Problem(str(path), expected, f"data hash {str(digest)[:12]}", hint))
    return {
        "probe": str(best["name"]),
        "accuracy": float(best["accuracy"]),
        "interval": [float(best["ci_low"]), float(best["ci_high"])],
        "verdict": report.get("verdict"),
    }


def audit_hash(path: str | Path) -> str | None:
    """Returns the data hash of the questions that an audit is of, or None if it does not state one."""
    made_from = _audit(path).get("provenance")
    return made_from.get("data_hash") if isinstance(made_from, Mapping) else None


def weighted_score(answers: Answers, path: str | Path) -> dict[str, Any]:
    """Returns the accuracy over all questions, each weighted by how little its text gives away.

    The weight is min_j p_j / p_gold, with p_j the cross-fitted probability that a text-only reader gives to option j:
    the chance to be kept by screening, so that the score estimates the accuracy on a screened subset without throwing
    questions away. The interval is that of a clustered ratio estimate.

    Args:
        answers: the joined answers.
        path: JSON object with ``weights`` (id -> weight) and ``method``, ``seed``, ``reader``; or JSONL with ``id``
            and ``weight`` a line, whose first line may have ``provenance``.

    Raises:
        InputError: naming a weight that is missing or not a number in (0, 1].
    """
    weights, provenance = _read_weights(path)
    missing = [question.id for question in answers.questions if question.id not in weights]
    if missing:
        hint = "make the weights from the same data, config and split"
        found = f"none for {missing[0]!r}" + f" and {len(missing) - 1} more" * (len(missing) > 1)
        raise InputError(Problem(str(path), "a weight for every question", found, hint))
    values = np.array([weights[question.id] for question in answers.questions])
    names = np.array([name or "none" for name in answers.dimensions or []])
    codes = np.array(answers.clusters)
    parts = {}
    for name in dict.fromkeys(names.tolist()):
        rows = np.flatnonzero(names == name)
        parts[name] = _weighted(answers.correct[rows], codes[rows].tolist(), values[rows])
    return {**_weighted(answers.correct, codes.tolist(), values), "by_dimension": parts, "weights": provenance}


def _weighted(correct: Any, clusters: list[str], weights: Any) -> dict[str, Any]:
    weights = weights / weights.max()  # the squares of tiny weights would vanish
    figures = interval_figures(clustered_interval(correct, clusters, weights=weights))
    size = float(weights.sum() ** 2 / (weights**2).sum())
    del figures["effective_n"]
    return figures | {"effective_size": size, "too_small": size < MIN_EFFECTIVE}


def _read_weights(path: str | Path) -> tuple[dict[str, float], dict[str, Any]]:
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(str(path), "a file of weights", preview(str(error)), "check the name")) from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict) and isinstance(content.get("weights"), dict):
        pairs: list[tuple[Any, Any]] = list(content["weights"].items())
        provenance: Any = {name: value for name, value in content.items() if name != "weights"}
    else:
        rows = [_json_line(path, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        provenance = rows[0].get("provenance") if rows else None
        pairs = [(row.get("id"), row.get("weight")) for row in rows if "id" in row]
    names = [str(name) for name, _ in pairs]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise InputError(Problem(str(path), "one weight for each id", f"several for {preview(twice[0])}", "keep one"))
    wrong = [pair for pair in pairs if not isinstance(pair[1], int | float) or not 0.0 < pair[1] <= 1.0]
    if wrong or not pairs:
        expected = "weights, numbers above 0 and at most 1, by question id"
        found = f"{preview(wrong[0][1])} for {preview(wrong[0][0])}" if wrong else "none"
        raise InputError(Problem(str(path), expected, found, "run `scale-vqa control --method screened` again"))
    provenance = dict(provenance) if isinstance(provenance, Mapping) else {}
    return {str(name): float(weight) for name, weight in pairs}, provenance | {"file": path.name}


def _json_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise InputError(Problem(f"{path}, line {number}", "one JSON object a line", preview(line), "fix the line"))
    return row


def _audit(path: str | Path) -> dict[str, Any]:
    expected, hint = "the JSON file of `scale-vqa audit --json`", "check the name"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(Problem(str(path), expected, preview(str(error)), hint)) from error
    if not isinstance(content, dict):
        raise InputError(Problem(str(path), expected, preview(content), hint))
    return content
