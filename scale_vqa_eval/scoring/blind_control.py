"""Controls of a score: validity of the blind run, flip rate, truncation, text-only ceiling, leak-weighted accuracy.

``control_problems`` is the rule for blind runs in ``score``, ``report``, cards and the leaderboard.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict import WITHOUT_IMAGES
from scale_vqa_eval.scale_vqa_acc.clustered import clustered_interval
from scale_vqa_eval.scale_vqa_acc.summary import MAX_BLIND_UNPARSED, blind_values, interval_figures
from scale_vqa_eval.scoring.predictions import Answers, Predictions, check_same_rotations
from scale_vqa_eval.store import decode_record

MIN_EFFECTIVE: Final = 30.0
"""Minimum effective sample size; a leak-weighted score below it is marked ``too_small``."""


def control_problems(location: str, results: Mapping[str, Any]) -> list[Problem]:
    """Returns why the blind run of a score is not a valid control; an empty list if it is valid or there is none.

    The blind file must state its ablation, and both files their model: two text-only baselines could otherwise be
    presented as a model with and without images.

    Args:
        location: file for messages.
        results: a score as written by ``scale-vqa score --json``: ``provenance`` of the run, with that of the blind
            run under ``blind``, and the figures of the blind run in ``blind`` or ``blind_withheld``.
    """
    run = results["provenance"]
    blind = run.get("blind")
    if not blind:
        return []
    problems = [*_not_blind(location, run, blind), *_not_alike(location, run, blind)]
    figures = results.get("blind") or results.get("blind_withheld") or {}
    rate = (figures.get("unparsed") or {}).get("rate", 0.0)
    if rate > MAX_BLIND_UNPARSED:
        expected = f"a blind run with at most {100 * MAX_BLIND_UNPARSED:.0f}% unparsed responses"
        hint = "request an answer without images (predict --ablate guess), or allow more tokens"
        problems.append(Problem(location, expected, f"{100 * rate:.1f}%", hint))
    return problems


def _not_blind(location: str, run: Mapping[str, Any], blind: Mapping[str, Any]) -> list[Problem]:
    """Returns signs that the blind file is not a run without images, or the scored run not one with images."""
    problems = []
    if blind.get("predictions_hash") is not None and blind["predictions_hash"] == run.get("predictions_hash"):
        found = "the scored file itself"
        problems.append(Problem(location, "a separate run as the blind control", found, "give the blind run"))
    if blind.get("ablation") not in WITHOUT_IMAGES:
        found = f"the ablation {preview(blind.get('ablation'))}"
        hint = "run predict --ablate blind (or state the ablation in the first line of the file), and score again"
        problems.append(Problem(location, f"a run of the ablation {' or '.join(WITHOUT_IMAGES)}", found, hint))
    if run.get("ablation") not in (None, ""):
        found = f"the ablation {preview(run['ablation'])}"
        problems.append(Problem(location, "a scored run that saw all images", found, "score the run with images"))
    return problems


def _not_alike(location: str, run: Mapping[str, Any], blind: Mapping[str, Any]) -> list[Problem]:
    """Returns the differences between the blind run and the scored run besides the images."""
    problems = []
    same = ["model", "sampling"] + ["prompt_id"] * (blind.get("ablation") != "guess")  # guess has its own prompt
    for field in same:
        ours, theirs = run.get(field), blind.get(field)
        missing = field == "model" and None in (ours, theirs)
        if missing or (None not in (ours, theirs) and ours != theirs):
            shown = ("not stated" if value is None else preview(value) for value in (theirs, ours))
            found = " instead of ".join(shown)
            hint = "use the same settings for both runs, and state the model in both files"
            problems.append(Problem(location, f"a blind control with the same {field}", found, hint))
    digest = blind.get("data_hash")
    if None not in (digest, run.get("data_hash")) and digest != run["data_hash"]:
        found = "another data hash"
        problems.append(Problem(location, "a blind control of the same questions", found, "run it on the same data"))
    return problems


@dataclass(frozen=True)
class BlindControl:
    """The blind run chosen as the control of a score.

    Attributes:
        answers: answers of the blind run, or None if there is none.
        provenance: provenance of the blind run, for ``provenance.blind`` of a results file, or None.
        reasons: why it is not a valid control; empty if it is valid.
        runs: for each blind run, its file, ablation, accuracy, blind score b*, share of its most frequent answer
            (``one_letter``) and problems.
    """

    answers: Answers | None
    provenance: Mapping[str, Any] | None
    reasons: tuple[str, ...]
    runs: tuple[Mapping[str, Any], ...]


def choose_control(
    run: Mapping[str, Any], answers: Answers, blind: Sequence[tuple[Predictions, Answers]]
) -> BlindControl:
    """Chooses the valid blind run with the largest blind score; if none is valid, the one with the largest score."""
    candidates = []
    for predictions, joined in blind:
        check_same_rotations(answers, joined)
        stated = {
            "predictions": str(predictions.path),
            "predictions_hash": predictions.digest,
            **predictions.settings,
            "data_hash": predictions.provenance.get("data_hash"),
        }
        figures = {"unparsed": {"rate": float((joined.parsed.reasons > 0).mean())}}
        problems = control_problems(stated["predictions"], {"provenance": {**run, "blind": stated}, "blind": figures})
        score = float(blind_values(joined.parsed, joined.gold, 1.0 / joined.options).mean())
        reasons = tuple(f"expected {problem.expected}, found {problem.found}" for problem in problems)
        shown = {
            "predictions": stated["predictions"],
            "ablation": stated["ablation"],
            "accuracy": float(joined.correct.mean()),
            "guess_corrected": score,
            "one_letter": float(np.bincount(joined.parsed.letters).max() / len(joined.gold)),
            "problems": list(reasons),
        }
        candidates.append((not reasons, score, joined, stated, reasons, shown))
    if not candidates:
        return BlindControl(None, None, (), ())
    _, _, joined, stated, reasons, _ = max(candidates, key=lambda one: one[:2])
    return BlindControl(joined, stated, reasons, tuple(one[-1] for one in candidates))


def flip_rate(answers: Answers, shuffled: Answers) -> dict[str, Any]:
    """Returns the share of answers that change with another patient's images (arXiv:2603.03437).

    An answer that is parsed in only one of the runs counts as changed.
    """
    check_same_rotations(answers, shuffled)
    changed = (answers.parsed.letters != shuffled.parsed.letters).astype(np.float64)
    figures = interval_figures(clustered_interval(changed, answers.clusters))
    return {"rate": figures["accuracy"], "interval": figures["interval"], "n": figures["n"]}


def truncation(run: Predictions) -> dict[str, Any] | None:
    """Returns number and rate of responses that ended at the token limit, or None if no finish reason is stated."""
    stated = [row.finish for row in run.rows if row.finish is not None]
    if not stated:
        return None
    count = sum(finish == "length" for finish in stated)
    return {"n": count, "rate": count / len(run.rows)}


def bare_letter_warnings(run: Predictions, answers: Answers) -> list[str]:
    """Returns a warning if more than half of the responses are bare letters, which no parsing rule accepts."""
    if answers.bare * 2 <= len(answers.questions):
        return []
    return [
        f"{run.path}: {answers.bare} of {len(answers.questions)} responses are a bare letter such as 'B'. They count "
        "as unparsed: the published rule reads <answer>B</answer> only. Use a prompt that asks for these tags"
    ]


def text_only_ceiling(path: str | Path, data_hash: str) -> dict[str, Any]:
    """Returns the strongest text-only probe in an audit of the same questions.

    The blind score measures what this model can answer from text; the ceiling measures what the text reveals.

    Raises:
        InputError: if the file is not an audit, or the audit is of other questions.
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
    """Returns the data hash of the audited questions, or None if it is not stated."""
    return _data_hash(_audit(path))


def _data_hash(audit: Mapping[str, Any]) -> str | None:
    made_from = audit.get("provenance")
    return made_from.get("data_hash") if isinstance(made_from, Mapping) else None


def weighted_score(answers: Answers, path: str | Path) -> dict[str, Any]:
    """Returns the accuracy over all questions, with lower weights for questions whose text reveals the answer.

    The weight is min_j p_j / p_gold, where p_j is the cross-fitted probability of option j under a text-only model. It
    is the probability that screening keeps the question, so the score estimates the accuracy on a screened subset but
    uses all questions. The interval is that of a clustered ratio estimate.

    Args:
        answers: the answers.
        path: JSON object with ``weights`` (id -> weight) and ``method``, ``seed``, ``reader``; or JSONL with ``id``
            and ``weight`` in each line and an optional ``provenance`` in the first line.

    Raises:
        InputError: if a weight is missing or is not a number in (0, 1].
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
    content = decode_record(text.encode())
    if content is not None and isinstance(content.get("weights"), dict):
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
        expected = "weights above 0 and at most 1 by question id"
        found = f"{preview(wrong[0][1])} for {preview(wrong[0][0])}" if wrong else "none"
        raise InputError(Problem(str(path), expected, found, "run `scale-vqa control --method screened` again"))
    provenance = dict(provenance) if isinstance(provenance, Mapping) else {}
    return {str(name): float(weight) for name, weight in pairs}, provenance | {"file": path.name}


def _json_line(path: Path, number: int, line: str) -> dict[str, Any]:
    row = decode_record(line.encode())
    if row is None:
        raise InputError(Problem(f"{path}, line {number}", "one JSON object per line", preview(line), "fix the line"))
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
