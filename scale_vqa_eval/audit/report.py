"""The report of an audit: values for JSON, a table for the terminal, and a self-contained HTML page.

The page sends no requests and runs no scripts. All text from the data is escaped, and characters that hide or reorder
text are displayed as their codes.
"""

from __future__ import annotations

import base64
import platform
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from scale_vqa_eval import __version__
from scale_vqa_eval.audit.battery import MEMBERS, TRAIN_CAP, label_permutation_test, read_features, run_battery
from scale_vqa_eval.audit.clusters import (
    ClusterSummary,
    clusters_of,
    describe_clusters,
    is_block_exchange,
    joint_clusters,
)
from scale_vqa_eval.audit.defects import KINDS, find_defects
from scale_vqa_eval.audit.joint_reader import FAMILY, joint_features, joint_probes
from scale_vqa_eval.audit.probe import ProbeAccuracy, ProbeScores, evaluate_probe, gold_probability, picked
from scale_vqa_eval.audit.text_features import TextFeatures
from scale_vqa_eval.audit.verdict import (
    MARGIN,
    AuditVerdict,
    find_evidence,
    learning_curve,
    minimum_detectable_leak,
    reach_verdict,
)
from scale_vqa_eval.files import atomic_write
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import holm
from scale_vqa_eval.schema import LETTERS
from scale_vqa_eval.scoring.score import questions_digest
from scale_vqa_eval.text import aligned, html_environment, p_value, percent

LEAKIEST: Final = 10
DIGITS: Final = 6
DIMENSIONS_IN_TABLE: Final = 20

MAX_LISTED: Final = 50
"""Maximum number of listed defects of a kind; counts are complete, and the JSON has all of them."""


def audit_questions(
    questions: Sequence[Question],
    seed: int = 0,
    extra: Sequence[ProbeScores] = (),
    overlap: Mapping[str, Any] | None = None,
    detailed: bool = True,
    progress: bool = False,
    margin: float = MARGIN,
) -> dict[str, Any]:
    """Audits questions: all probes, the verdict, the label-permutation test, evidence, and defects.

    Args:
        questions: the questions.
        seed: seed of folds, forests and random gold answers.
        extra: scores of further probes (embeddings, language models, chat), which count for the verdict.
        overlap: result of ``find_overlap``, or None.
        detailed: whether to add the learning curve, the blind score of every item and the evidence of the leakiest.
        progress: whether to show progress bars.
        margin: maximum of the minimum detectable leak for a clean verdict, as a share.

    Returns:
        The content of ``audit --json``.
    """
    features = read_features(questions) if len(questions) <= TRAIN_CAP else None
    joint = joint_features(questions) if features is not None else None
    results = [*run_battery(questions, seed, features=features, progress=progress), *extra]
    results += joint_probes(questions, seed, features=joint) if joint is not None else []
    ensemble = next(result for result in results if result.family == "ensemble")
    results += _with_embedding(ensemble, results)
    clusters, across, blocks = clusters_of(questions), joint_clusters(questions), is_block_exchange(questions)
    probes = [
        evaluate_probe(result, questions, across, blocks)
        if result.joint
        else evaluate_probe(result, questions, clusters)
        for result in results
    ]
    verdict = reach_verdict(probes, margin)
    adjusted = holm([probe.p_value for probe in probes])
    summary = describe_clusters(questions, clusters)
    whole = asdict(verdict.whole)
    report: dict[str, Any] = {
        "n": len(questions),
        "verdict": verdict.verdict,
        "unresolved": list(verdict.unresolved),
        "chance": verdict.whole.chance,
        "strongest": {
            "name": whole["strongest"],
            **{key: whole[key] for key in ("accuracy", "ci_low", "ci_high")},
        },
        "whole": whole,
        "dimensions": {name: asdict(part) for name, part in verdict.by_dimension.items()},
        "margin": margin,
        "units": asdict(summary),
        "probes": [
            asdict(probe)
            | {
                "p_holm": p,
                "minimum_detectable_leak": minimum_detectable_leak(probe, verdict.whole.level / len(probes)),
            }
            for probe, p in zip(probes, adjusted, strict=True)
        ],
        "null_check": label_permutation_test(
            questions,
            seed,
            features=features,
            progress=progress,
            further=lambda drawn, draw: [] if joint is None else joint_probes(drawn, draw, 1, joint),
        ),
        "overlap": dict(overlap or {}),
        "defects": [asdict(defect) for defect in find_defects(questions)],
        "notes": _notes(questions, summary, verdict, probes, margin, blocks),
    }
    if detailed:
        report["learning_curve"] = learning_curve(questions, ensemble, seed, features, progress)
        report["items"] = _items(questions, ensemble)
        report["leakiest"] = _leakiest(questions, ensemble, features, seed)
    versions = {"scale-vqa": __version__, "numpy": np.__version__, "python": platform.python_version()}
    report["provenance"] = {"seed": seed, "data_hash": questions_digest(questions), "versions": versions}
    rounded: dict[str, Any] = _rounded(report)
    return rounded


def _with_embedding(ensemble: ProbeScores, results: Sequence[ProbeScores]) -> list[ProbeScores]:
    """Returns the ensemble with the fitted embedding probe as a further member, if there is one."""
    joined = []
    for result in results:
        if result.family == "embedding" and result.sequential is not None and ensemble.sequential is not None:
            weights = (len(MEMBERS), 1)
            crossed = np.average([ensemble.scores, result.scores], axis=0, weights=weights)
            sequential = np.average([ensemble.sequential, result.sequential], axis=0, weights=weights)
            joined.append(ProbeScores("ensemble with embedding", "ensemble", True, crossed, sequential, votes=True))
    return joined


def audit_table(report: Mapping[str, Any]) -> str:
    """Returns an audit as text, in per cent: probes, dimensions, verdict, and limitations."""
    probes = [["probe", "fitted", "accuracy", "95% interval", "p (Holm)"]]
    for probe in sorted(report["probes"], key=lambda probe: -probe["accuracy"]):
        fitted = "yes" if probe["trained"] else ""
        probes.append([probe["name"], fitted, *_figures(probe), p_value(probe["p_holm"])])
    parts = [["dimension", "n", "strongest probe", "accuracy", "95% interval", "p (Holm)", "verdict"]]
    dimensions = report["dimensions"]
    kept = sorted(dimensions, key=lambda name: -dimensions[name]["accuracy"])[:DIMENSIONS_IN_TABLE]
    for name, part in [*((name, dimensions[name]) for name in dimensions if name in kept), ("all", report["whole"])]:
        figures = [part["strongest"], *_figures(part), p_value(part["p_value"])]
        parts.append([name, str(part["n"]), *figures, part["verdict"]])
    return "\n".join([aligned(probes), "", aligned(parts), "", *_summary(report)])


def _figures(part: Mapping[str, Any]) -> tuple[str, str]:
    return percent(part["accuracy"]), f"{percent(part['ci_low'])}-{percent(part['ci_high'])}"


def _summary(report: Mapping[str, Any]) -> list[str]:
    null, best, dimensions = report["null_check"], report["strongest"], len(report["dimensions"])
    highest = max(probe["accuracy"] for probe in null["probes"].values())
    shown_to_leak = "" if report["verdict"] == "leaks" else "No probe is shown to beat chance. "
    power = []
    for kind, across in (("one question at a time", False), ("the whole file", True)):
        leaks = [p["minimum_detectable_leak"] for p in report["probes"] if (p["family"] == FAMILY) == across]
        if leaks:
            by_construction = "" if any(leaks) else " (at chance by construction)"
            power.append(f"{percent(max(leaks))} points for a reader of {kind}{by_construction}")
    lines = [
        f"Verdict: {report['verdict']}. {shown_to_leak}Without images, {best['name']} is right on "
        f"{percent(best['accuracy'])}% of {report['n']} questions (chance {percent(report['chance'])}%).",
        f"Smallest leak that would have been detected with 80% probability: {'; '.join(power)}.",
        f"Label-permutation test {'passed' if null['passed'] else 'FAILED: do not trust the fitted probes'}: on "
        f"{null['draws']} draws of random gold answers the fitted probes reach {percent(highest)}% at most.",
    ]
    if dimensions > DIMENSIONS_IN_TABLE:
        lines.append(f"The table has the {DIMENSIONS_IN_TABLE} weakest of {dimensions} dimensions; --json has all.")
    lines += [*report["notes"], *report["overlap"].get("leaks", []), *report["overlap"].get("notes", [])]
    kinds = Counter(defect["kind"] for defect in report["defects"])
    return lines + ["Defects: " + ", ".join(f"{kind} {count}" for kind, count in kinds.items()) + "."] * bool(kinds)


def _notes(
    questions: Sequence[Question],
    clusters: ClusterSummary,
    verdict: AuditVerdict,
    probes: Sequence[ProbeAccuracy],
    margin: float,
    blocks: bool,
) -> list[str]:
    """Returns the limitations of the figures, one sentence each."""
    notes = [clusters.note] if clusters.note else []
    if all(question.dimension is None for question in questions):
        notes.append(
            "No question names a dimension: there is no verdict by dimension, and the probes cannot learn that "
            "each kind of question leaks in its own way."
        )
    if clusters.exchange_sets:
        notes.append(
            f"{clusters.exchange_sets} exchange groups: identical text with every option gold equally often, so any "
            "probe that reads one question at a time is right on exactly 1/k of each; they are the clusters there."
        )
    if verdict.unresolved:
        parts = {"all": verdict.whole, **verdict.by_dimension}
        leaks = ", ".join(f"{name} {percent(parts[name].minimum_detectable_leak)}" for name in verdict.unresolved)
        notes.append(
            f"Inconclusive: {', '.join(verdict.unresolved)}. No leak was detected, but leaks of up to these sizes, "
            f"in points, could have been missed: {leaks} (clean needs {percent(margin)})."
        )
    if blocks:
        notes.append(
            "Block exchange: relabelling the slides and paths of a block leaves the texts unchanged, so any reader of "
            "the whole file, too, is right on 1/k of the items on average over the relabellings."
        )
    elif clusters.exchange_sets and any(probe.family == FAMILY for probe in probes):
        notes.append(
            "Exchange groups are at chance only for a reader of one question at a time: a reader of the whole file "
            "can use rows that share a slide. The joint probes test that; block exchange excludes it."
        )
    below = [p.name for p in probes if p.trained and p.ci_high < p.chance]
    if below:
        notes.append(
            f"Below chance: {', '.join(below)}. This is not a leak: balanced answers push cross-fitted probes there."
        )
    if len(questions) > TRAIN_CAP:
        notes.append(f"The joint reader was not run: it reads at most {TRAIN_CAP} questions.")
    if len(questions) < 50:
        notes.append(f"{len(questions)} questions are few: fitted probes have little to learn from.")
    return notes + [f"{probe.name}: {probe.note}" for probe in probes if probe.note]


def _items(questions: Sequence[Question], ensemble: ProbeScores) -> list[dict[str, Any]]:
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
    questions: Sequence[Question], ensemble: ProbeScores, features: TextFeatures | None, seed: int
) -> list[dict[str, Any]]:
    """Returns the items with the highest blind scores, with their text and evidence."""
    scores = gold_probability(ensemble, questions)
    rows = np.argsort(-scores, kind="stable")[:LEAKIEST].tolist()
    sample, kept = list(questions), np.arange(len(questions))
    if features is None:  # a large file: explain the leakiest within a sample that contains them
        rest = np.setdiff1d(kept, rows)
        drawn = np.random.default_rng([seed, 8]).choice(rest, TRAIN_CAP // 10, replace=False)
        kept = np.sort(np.concatenate([rows, drawn]))
        sample = [questions[row] for row in kept.tolist()]
        features = read_features(sample)
    evidence = find_evidence(sample, features, np.searchsorted(kept, rows).tolist(), seed)
    return [
        {
            "id": questions[row].id,
            "dimension": questions[row].dimension,
            "question": questions[row].question,
            "options": dict(zip(LETTERS, questions[row].options, strict=False)),
            "answer": questions[row].letter,
            "blind_score": float(scores[row]),
            "evidence": [asdict(item) for item in evidence.get(int(np.searchsorted(kept, row)), [])],
        }
        for row in rows
    ]


def _rounded(value: Any) -> Any:
    """Rounds floats to six decimals, small ones to six significant figures, so that reports are reproducible."""
    if isinstance(value, Mapping):
        return {str(key): _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    if isinstance(value, float | np.floating):
        number = float(value)
        return round(number, DIGITS) if abs(number) >= 10.0**-3 else float(f"{number:.{DIGITS - 1}e}")
    return value.item() if isinstance(value, np.generic) else value


def write_page(path: str | Path, report: Mapping[str, Any]) -> None:
    """Writes the page of a report from ``audit_questions`` (with ``chat`` and ``published``, if any) atomically.

    Raises:
        InputError: if the file cannot be written.
    """
    atomic_write(path, render_page(report), "name another --html")


def render_page(report: Mapping[str, Any]) -> str:
    """Returns the page of a report as HTML."""
    environment = html_environment("scale_vqa_eval.audit", trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "p": p_value, "marked": _marked}
    published = report.get("published") or {"source": None, "data": None, "models": {}}
    defects = defaultdict(list)
    for defect in report["defects"]:
        defects[defect["kind"]].append(defect)
    groups: dict[str, list[str]] = {"leaks": [], "clean": [], "inconclusive": []}
    for name, part in report["dimensions"].items():
        groups[part["verdict"]].append(name)
    return environment.get_template("page.html.j2").render(
        report=report,
        probes=sorted(report["probes"], key=lambda probe: (-probe["accuracy"], probe["name"])),
        splits=sorted({split for probe in report["probes"] for split in probe.get("by_split", {})}),
        groups=groups,
        published=published,
        plots=_plots(report, published["models"]),
        scores=_score_summary([item["blind_score"] for item in report.get("items") or []]),
        defects=dict(defects),
        kinds=KINDS,
        limit=MAX_LISTED,
        levels={"patients": "patients", "slides": "slides", "paths": "paths", "image_paths": "image paths"},
    )


def _plots(report: Mapping[str, Any], published: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Returns the plots of a report as data URIs by name."""
    from scale_vqa_eval.plots import dimension_plot, learning_plot, probe_plot, score_plot

    chance = report["chance"]
    plots = {"probes": probe_plot(report["probes"], chance)}
    parts = {**report["dimensions"], "all": report["whole"]}
    if len(parts) > 1 or published:
        plots["dimensions"] = dimension_plot(parts, published, chance)
    if report.get("items"):
        plots["scores"] = score_plot([item["blind_score"] for item in report["items"]], chance)
    if report.get("learning_curve"):
        plots["learning"] = learning_plot(report["learning_curve"], chance)
    return {
        name: "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode() for name, svg in plots.items()
    }


def _score_summary(scores: Sequence[float]) -> dict[str, float]:
    """Returns the mean of the blind scores, and the shares of items above one half and above 80%."""
    if not scores:
        return {}
    half, most = (sum(score > limit for score in scores) / len(scores) for limit in (0.5, 0.8))
    return {"mean": sum(scores) / len(scores), "half": half, "most": most}


def _marked(text: str, letter: str, evidence: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
    """Splits the text of an option into parts, with True for those that the item's evidence lists for its letter."""
    terms = [item["text"] for item in evidence if item["kind"] == "wording" and letter in item["letters"]]
    if not terms:
        return [(text, False)]
    patterns = [r"[\W_]+".join(map(re.escape, term.split())) for term in sorted(terms, key=len, reverse=True)]
    pieces = re.split(rf"(?<!\w)({'|'.join(patterns)})(?!\w)", text, flags=re.IGNORECASE)
    return [(piece, index % 2 == 1) for index, piece in enumerate(pieces) if piece]
