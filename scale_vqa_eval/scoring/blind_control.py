"""Decides whether a blind run is a valid control of a score: one rule for score, report, cards and leaderboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scale_vqa_eval.errors import Problem, preview
from scale_vqa_eval.predict import WITHOUT_IMAGES
from scale_vqa_eval.scale_vqa_acc.summary import MAX_BLIND_UNPARSED, blind_values
from scale_vqa_eval.scoring.answers import Answers, check_same_rotations
from scale_vqa_eval.scoring.predictions import Predictions


def control_problems(location: str, results: Mapping[str, Any]) -> list[Problem]:
    """Returns why the blind run of a score is not a valid control; an empty list if it is one, or there is none.

    A run without images is one that states so: a blind file without provenance is not a control, nor is a run whose
    model is not stated, because two text-only baselines could then stand for a model with and without images.

    Args:
        location: file that the problems name.
        results: a score as ``scale-vqa score --json`` writes it: ``provenance`` with what the run states of itself
            and, under ``blind``, what the blind run states; ``blind`` or ``blind_withheld`` with its figures.
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
        hint = "ask for an answer without images (predict --ablate guess), or allow more tokens"
        problems.append(Problem(location, expected, f"{100 * rate:.1f}%", hint))
    return problems


def _not_blind(location: str, run: Mapping[str, Any], blind: Mapping[str, Any]) -> list[Problem]:
    """Returns what shows that the blind file is not a run without images."""
    problems = []
    if blind.get("predictions_hash") is not None and blind["predictions_hash"] == run.get("predictions_hash"):
        found = "the scored file itself"
        problems.append(Problem(location, "a run of its own as the blind control", found, "give the blind run"))
    if blind.get("ablation") not in WITHOUT_IMAGES:
        found = f"the ablation {preview(blind.get('ablation'))}"
        hint = "predict it with --ablate blind (another program states that in the file's first line), score again"
        problems.append(Problem(location, f"a run of the ablation {' or '.join(WITHOUT_IMAGES)}", found, hint))
    if run.get("ablation") not in (None, ""):
        found = f"the ablation {preview(run['ablation'])}"
        problems.append(Problem(location, "a scored run that saw all images", found, "score the run with images"))
    return problems


def _not_alike(location: str, run: Mapping[str, Any], blind: Mapping[str, Any]) -> list[Problem]:
    """Returns in what the blind run differs from the scored run besides its images."""
    problems = []
    same = ["model", "sampling"] + ["prompt_id"] * (blind.get("ablation") != "guess")  # guess has a prompt of its own
    for field in same:
        ours, theirs = run.get(field), blind.get(field)
        missing = field == "model" and None in (ours, theirs)
        if missing or (None not in (ours, theirs) and ours != theirs):
            shown = ("not stated" if value is None else preview(value) for value in (theirs, ours))
            found = " instead of ".join(shown)
            hint = "run the control as the run itself, but for the images, and state the model in both files"
            problems.append(Problem(location, f"a blind control with the same {field}", found, hint))
    digest = blind.get("data_hash")
    if None not in (digest, run.get("data_hash")) and digest != run["data_hash"]:
        found = "another data hash"
        problems.append(Problem(location, "a blind control of the same questions", found, "run it on the same data"))
    return problems


@dataclass(frozen=True)
class BlindControl:
    """The blind run that a score is shown beside.

    Attributes:
        answers: its answers; None without a blind run.
        provenance: what the run states of itself, for ``provenance.blind`` of a results file.
        reasons: why it is not a valid control; empty if it is.
        runs: for each blind run its file, ablation, accuracy, blind score b*, share of its most frequent answer
            (``one_letter``) and problems.
    """

    answers: Answers | None
    provenance: Mapping[str, Any] | None
    reasons: tuple[str, ...]
    runs: tuple[Mapping[str, Any], ...]


def choose_control(
    run: Mapping[str, Any], answers: Answers, blind: Sequence[tuple[Predictions, Answers]]
) -> BlindControl:
    """Chooses among blind runs the valid one with the largest blind score, or if none is valid, the largest.

    Args:
        run: provenance of the scored run.
        answers: its answers.
        blind: the runs without images.
    """
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
