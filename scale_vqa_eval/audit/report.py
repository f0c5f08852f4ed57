"""The audit of a question set as one report: plain values for JSON and the page, and a table for the terminal."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from scale_vqa_eval import __version__
from scale_vqa_eval.audit.battery import MEMBERS, TRAIN_CAP, prepare, run_battery
from scale_vqa_eval.audit.defects import find_defects
from scale_vqa_eval.audit.evidence import find_evidence
from scale_vqa_eval.audit.learning_curve import learning_curve
from scale_vqa_eval.audit.null_check import null_check
from scale_vqa_eval.audit.prepared import Prepared
from scale_vqa_eval.audit.probe import ProbeAccuracy, ProbeResult, evaluate_probe, gold_probability, picked
from scale_vqa_eval.audit.units import UnitSummary, describe_units, units_of
from scale_vqa_eval.audit.verdict import MARGIN, Verdict, reach_verdict
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import holm
from scale_vqa_eval.schema import LETTERS
from scale_vqa_eval.scoring.score import questions_digest
from scale_vqa_eval.text import aligned

LEAKIEST: Final = 10
DIGITS: Final = 6
DIMENSIONS_SHOWN: Final = 20


def audit_questions(
    questions: Sequence[Question],
    seed: int = 0,
    extra: Sequence[ProbeResult] = (),
    overlap: Mapping[str, Any] | None = None,
    detailed: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Audits questions: every probe, the verdict, the null check, what gives items away, and the data's own defects.

    Args:
        questions: the questions.
        seed: of folds, forests, the null check's draws; the same seed gives the same report.
        extra: results of further probes (embeddings, language models, chat): they count in the verdict.
        overlap: what ``find_overlap`` found; None where it was not looked for.
        detailed: add the learning curve, the blind score of every item and the evidence of the leakiest.
        progress: show a bar on standard error.

    Returns:
        Plain values, by the contract of ``audit --json``.
    """
    prepared = prepare(questions) if len(questions) <= TRAIN_CAP else None
    results = [*run_battery(questions, seed, prepared=prepared, progress=progress), *extra]
    results += _joined(results)
    units = units_of(questions)
    reached = [evaluate_probe(result, questions, units) for result in results]
    verdict = reach_verdict(reached)
    adjusted = holm([probe.p_value for probe in reached])
    summary = describe_units(questions, units)
    best = verdict.whole
    report: dict[str, Any] = {
        "n": len(questions),
        "verdict": verdict.verdict,
        "unresolved": list(verdict.unresolved),
        "chance": best.chance,
        "strongest": {
            "name": best.strongest,
            "accuracy": best.accuracy,
            "ci_low": best.ci_low,
            "ci_high": best.ci_high,
        },
        "whole": asdict(best),
        "dimensions": {name: asdict(finding) for name, finding in verdict.by_dimension.items()},
        "margin": MARGIN,
        "units": asdict(summary),
        "probes": [_probe(probe, p) for probe, p in zip(reached, adjusted, strict=True)],
        "null_check": null_check(questions, seed, prepared=prepared),
        "overlap": dict(overlap or {}),
        "defects": [asdict(defect) for defect in find_defects(questions)],
        "notes": _notes(questions, summary, verdict, reached),
    }
    if detailed:
        ensemble = next(result for result in results if result.family == "ensemble")
        report["learning_curve"] = learning_curve(questions, seed, prepared)
        report["items"] = _items(questions, ensemble)
        report["leakiest"] = _leakiest(questions, ensemble, prepared, seed)
    versions = {"scale-vqa": __version__, "numpy": np.__version__, "python": platform.python_version()}
    report["provenance"] = {"seed": seed, "data_hash": questions_digest(questions), "versions": versions}
    rounded: dict[str, Any] = _rounded(report)
    return rounded


def _joined(results: Sequence[ProbeResult]) -> list[ProbeResult]:
    """The ensemble with the fitted embedding probe, as one member more, where that was run."""
    ensemble = next(result for result in results if result.family == "ensemble")
    joined = []
    for one in results:
        if one.family == "embedding" and one.sequential is not None and ensemble.sequential is not None:
            parts, weights = (ensemble, one), (len(MEMBERS), 1)
            crossed = np.average([part.scores for part in parts], axis=0, weights=weights)
            sequential = np.average([part.sequential for part in parts], axis=0, weights=weights)
            probability = np.where(np.isfinite(crossed), crossed, 0.0)
            joined.append(ProbeResult("ensemble with embedding", "ensemble", True, crossed, probability, sequential))
    return joined


def audit_table(report: Mapping[str, Any]) -> str:
    """Renders an audit for the terminal, in per cent: probes, dimensions, verdict, and what a reader has to know."""
    head = ["probe", "fitted", "accuracy", "95% interval", "p (Holm)"]
    probes = sorted(report["probes"], key=lambda probe: -probe["accuracy"])
    rows = [
        [
            probe["name"],
            "yes" if probe["trained"] else "",
            _percent(probe["accuracy"]),
            f"{_percent(probe['ci_low'])}-{_percent(probe['ci_high'])}",
            _p_value(probe["p_holm"]),
        ]
        for probe in probes
    ]
    head_2 = ["dimension", "n", "strongest probe", "accuracy", "95% interval", "p (Holm)", "verdict"]
    dimensions = report["dimensions"]
    worst = sorted(dimensions, key=lambda name: -dimensions[name]["accuracy"])[:DIMENSIONS_SHOWN]
    parts = [*((name, part) for name, part in dimensions.items() if name in worst), ("all", report["whole"])]
    rows_2 = [
        [
            name,
            str(part["n"]),
            part["strongest"],
            _percent(part["accuracy"]),
            f"{_percent(part['ci_low'])}-{_percent(part['ci_high'])}",
            _p_value(part["p_value"]),
            part["verdict"],
        ]
        for name, part in parts
    ]
    return "\n".join([aligned([head, *rows]), "", aligned([head_2, *rows_2]), "", *_lines(report)])


def _lines(report: Mapping[str, Any]) -> list[str]:
    null, overlap, best = report["null_check"], report["overlap"], report["strongest"]
    highest = max(probe["accuracy"] for probe in null["probes"].values())
    kinds: dict[str, int] = {}
    for defect in report["defects"]:
        kinds[defect["kind"]] = kinds.get(defect["kind"], 0) + 1
    preview = "" if report["verdict"] == "leaks" else "No probe is shown to beat chance. "
    lines = [
        f"Verdict: {report['verdict']}. {preview}Without images, {best['name']} is right on "
        f"{_percent(best['accuracy'])}% of {report['n']} questions (chance {_percent(report['chance'])}%).",
        f"Null check {'passed' if null['passed'] else 'FAILED: do not trust the trained probes'}: on {null['draws']} "
        f"draws of meaningless golds the trained probes reach {_percent(highest)}% at most.",
        *(
            [f"{DIMENSIONS_SHOWN} of {len(report['dimensions'])} dimensions are shown, the strongest; --json has all."]
            if len(report["dimensions"]) > DIMENSIONS_SHOWN
            else []
        ),
        *report["notes"],
        *overlap.get("leaks", []),
        *overlap.get("notes", []),
    ]
    if kinds:
        lines.append("Defects: " + ", ".join(f"{kind} {count}" for kind, count in kinds.items()) + ".")
    return lines


def _probe(probe: ProbeAccuracy, adjusted: float) -> dict[str, Any]:
    fields = asdict(probe)
    fields["p_holm"] = adjusted
    return fields


def _notes(
    questions: Sequence[Question], units: UnitSummary, verdict: Verdict, probes: Sequence[ProbeAccuracy]
) -> list[str]:
    """What a reader has to know before trusting the figures."""
    notes = [units.note] if units.note else []
    if all(question.dimension is None for question in questions):
        notes.append(
            "No question names a dimension: there is no verdict by dimension, and the probes cannot learn that "
            "each kind of question leaks in its own way."
        )
    if units.exchange_sets:
        notes.append(
            f"{units.exchange_sets} exchange sets: identical text with every option gold equally often, so any probe "
            "of the text alone is right on exactly 1/k of each; they are the units there."
        )
    if verdict.unresolved:
        notes.append(
            f"Unresolved: {', '.join(verdict.unresolved)}. No leak is shown, but the intervals reach more than "
            f"{100 * MARGIN:.0f} points above chance (up to {_percent(verdict.whole.ceiling)}% over all questions)."
        )
    below = [p.name for p in probes if p.trained and p.ci_high < p.chance]
    if below:
        notes.append(
            f"Below chance: {', '.join(below)}. That is no leak: near-balanced answers push cross-fitted probes there."
        )
    if len(questions) < 50:
        notes.append(f"{len(questions)} questions are few: trained probes have next to nothing to learn from.")
    return notes + [f"{probe.name}: {probe.note}" for probe in probes if probe.note]


def _items(questions: Sequence[Question], ensemble: ProbeResult) -> list[dict[str, Any]]:
    scores, picks = gold_probability(ensemble, questions), picked(ensemble)
    return [
        {
            "id": question.id,
            "split": question.split,
            "dimension": question.dimension,
            "answer": question.letter,
            "picked": LETTERS[pick],
            "blind_score": float(score),
        }
        for question, score, pick in zip(questions, scores, picks, strict=True)
    ]


def _leakiest(
    questions: Sequence[Question], ensemble: ProbeResult, prepared: Prepared | None, seed: int
) -> list[dict[str, Any]]:
    """The items with the highest blind score, with their text and what gives them away."""
    scores = gold_probability(ensemble, questions)
    rows = np.argsort(-scores, kind="stable")[:LEAKIEST].tolist()
    if prepared is None:  # beyond the cap the leakiest are explained within a sample that holds them
        rest = np.setdiff1d(np.arange(len(questions)), rows)
        drawn = np.random.default_rng([seed, 8]).choice(rest, TRAIN_CAP // 10, replace=False)
        kept = np.sort(np.concatenate([rows, drawn]))
        sample = [questions[row] for row in kept]
        found = find_evidence(sample, prepare(sample), np.searchsorted(kept, rows).tolist(), seed)
        evidence = {int(kept[row]): told for row, told in found.items()}
    else:
        evidence = find_evidence(questions, prepared, rows, seed)
    return [
        {
            "id": questions[row].id,
            "dimension": questions[row].dimension,
            "question": questions[row].question,
            "options": dict(zip(LETTERS, questions[row].options, strict=False)),
            "answer": questions[row].letter,
            "blind_score": float(scores[row]),
            "evidence": [asdict(one) for one in evidence.get(row, [])],
        }
        for row in rows
    ]


def _rounded(value: Any) -> Any:
    """Rounds every float, so that the last bits of a sum do not change the bytes of a report."""
    if isinstance(value, Mapping):
        return {str(key): _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    if isinstance(value, float | np.floating):
        return _figures(float(value))
    return value.item() if isinstance(value, np.generic) else value


def _figures(value: float) -> float:
    """Six decimals; six significant figures for what is smaller (p-values)."""
    return round(value, DIGITS) if abs(value) >= 10.0**-3 else float(f"{value:.{DIGITS - 1}e}")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
