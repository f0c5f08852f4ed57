"""The results of a control: audit figures, JSON report, and note for the dataset card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from scale_vqa_eval import __version__
from scale_vqa_eval.audit.battery import run_battery
from scale_vqa_eval.audit.clusters import IntArray
from scale_vqa_eval.audit.probe import Accuracy, FloatArray, ProbeAccuracy, ProbeScores, credit, evaluate_probe
from scale_vqa_eval.controls.exchange import ExchangeResult, ValidityLimits
from scale_vqa_eval.controls.exchange_group import GROUP_SIZE
from scale_vqa_eval.controls.findings import REASONS
from scale_vqa_eval.controls.screened import Readers, ScreenedRows, fresh_audit, prune
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import holm
from scale_vqa_eval.text import percent

NOT_CONFIRMED: Final = "not yet confirmed by experts"


def audited(questions: Sequence[Question], seed: int) -> dict[str, Any]:
    """Runs the battery on questions with one partition into folds, and returns its figures."""
    return figures([evaluate_probe(result, questions) for result in run_battery(questions, seed, 1)])


def figures(probes: Sequence[ProbeAccuracy]) -> dict[str, Any]:
    """Returns the accuracies of probes for a report: all, the extremes, and the strongest by dimension."""
    adjusted = holm([probe.p_value for probe in probes])
    best = max(probes, key=lambda probe: probe.accuracy)
    worst = min(probes, key=lambda probe: probe.accuracy)
    dimensions = sorted({name for probe in probes for name in probe.by_dimension})
    strongest = {name: max(probes, key=lambda probe: probe.by_dimension[name].accuracy) for name in dimensions}
    return {
        "n": best.n,
        "clusters": best.clusters,
        "chance": best.chance,
        "strongest": {"name": best.name, **_interval(best)},
        "weakest": {"name": worst.name, **_interval(worst)},
        "ceiling": max(probe.ci_high for probe in probes),
        "off_chance": [probe.name for probe, p in zip(probes, adjusted, strict=True) if p <= 0.05],
        "strongest_by_dimension": {
            name: {"name": probe.name, "n": probe.by_dimension[name].n, **_interval(probe.by_dimension[name])}
            for name, probe in strongest.items()
        },
        "probes": [
            {"name": probe.name, "family": probe.family, "trained": probe.trained, **_interval(probe), "p_holm": p}
            for probe, p in zip(probes, adjusted, strict=True)
        ],
    }


def held_out_figures(
    readers: Readers, rows: IntArray, done: Callable[[], object] = lambda: None
) -> dict[str, dict[str, Any]]:
    """Prunes without each family in turn, then tests that family on the remaining questions with new folds.

    Returns:
        Family -> number of questions kept, the family's strongest probe on them, whether its interval is above chance,
        and the probes off chance after Holm's correction over the probes of all families.
    """
    found: dict[str, dict[str, Any]] = {}
    tested: list[tuple[str, ProbeAccuracy]] = []
    for family in readers.families:
        pruned = prune(readers, rows, [other for other in readers.families if other != family])
        found[family] = {"kept": len(pruned.rows), "at_chance": pruned.at_chance, "off_chance": []}
        if pruned.at_chance:
            own = [probe for probe in fresh_audit(readers, pruned.rows) if probe.family == family]
            best = max(own, key=lambda probe: probe.accuracy)
            found[family]["strongest"] = {"name": best.name, **_interval(best)}
            found[family]["above_chance"] = best.ci_low > best.chance
            tested += [(family, probe) for probe in own]
        done()
    for (family, probe), p in zip(tested, holm([probe.p_value for _, probe in tested]), strict=True):
        if p <= 0.05:
            found[family]["off_chance"].append(probe.name)
    return found


def _interval(probe: ProbeAccuracy | Accuracy) -> dict[str, float]:
    return {"accuracy": probe.accuracy, "ci_low": probe.ci_low, "ci_high": probe.ci_high}


def exchange_report(
    method: str,
    questions: Sequence[Question],
    found: ExchangeResult,
    limits: ValidityLimits,
    settings: dict[str, Any],
    audit: dict[str, Any] | None,
    views_known: bool,
) -> dict[str, Any]:
    """Returns the report of an exchange or a block exchange.

    Args:
        method: ``exchange`` or ``block-exchange``.
        questions: the questions that were grouped.
        found: the groups.
        limits: limits of the groups.
        settings: options of the command, such as data, config, split and seed.
        audit: figures ``before`` and ``after``, or None.
        views_known: whether the file has the views of the questions.
    """
    members = GROUP_SIZE * len(found.groups)
    blocks: dict[str, dict[str, list[str]]] = {}
    for group in found.groups:
        if group.block:
            blocks.setdefault(group.block, {}).setdefault(group.quadruple, []).append(group.name)
    return {
        "method": method,
        "version": __version__,
        **settings,
        "limits": asdict(limits),
        "questions": len(questions),
        "kept": members,
        "groups": len(found.groups),
        "bound": found.bound,
        "parts": [
            {"split": split, "dimension": dimension, "kept": GROUP_SIZE * part.groups, **asdict(part)}
            for (split, dimension), part in found.parts.items()
        ],
        "ambiguity": {
            "estimate": sum(group.ambiguity for group in found.groups) / max(1, len(found.groups)),
            "groups": {
                group.name: round(group.ambiguity, 4)
                for group in sorted(found.groups, key=lambda group: (-group.ambiguity, group.name))
            },
        },
        "groups_of_four_organs": [group.name for group in found.groups if group.four_organs],
        "diagnosis_groups": sum(questions[group.members[0]].dimension == "Diagnosis" for group in found.groups),
        "contradicted": sum(group.contradicted for group in found.groups),
        "reasons": {name: sum(group.reasons.get(name, 0) for group in found.groups) for name in REASONS},
        "groups_with_unlike_views": [group.name for group in found.groups if not group.same_views]
        if views_known
        else None,
        "doubtful": [
            {"group": group.name, "item": questions[one].id, "other": questions[other].id}
            for group in found.groups
            for one, other in group.doubtful
        ],
        "blocks": blocks,
        "members": {group.name: [questions[row].id for row in group.members] for group in found.groups},
        "audit": audit,
        "expert_review": NOT_CONFIRMED,
    }


def weights_summary(
    questions: Sequence[Question], weights: FloatArray, probes: Sequence[ProbeScores]
) -> dict[str, Any]:
    """Returns effective sample sizes of weights, and the weighted accuracy of each probe.

    Args:
        questions: n questions.
        weights: (n,) weights above 0.
        probes: scores on these questions with other folds than those of the weights.
    """
    dimensions = np.array([question.dimension or "all" for question in questions])
    reached = {probe.name: float(np.average(credit(probe, questions), weights=weights)) for probe in probes}
    strongest = max(reached, key=lambda name: reached[name])
    return {
        "effective_size": _effective(weights),
        "effective_size_by_dimension": {
            str(name): _effective(weights[dimensions == name]) for name in sorted(set(dimensions.tolist()))
        },
        "strongest": {"name": strongest, "accuracy": reached[strongest]},
        "probes": reached,
    }


def _effective(weights: FloatArray) -> float:
    return round(float(weights.sum() ** 2 / (weights**2).sum()), 2)


def screened_report(parts: dict[str | None, dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the report of a screening, with the result of each split."""
    return {
        "method": "screened",
        "version": __version__,
        **settings,
        "questions": sum(part["questions"] for part in parts.values()),
        "kept": sum(part["kept"] for part in parts.values()),
        "reached": all(part["reached"] for part in parts.values()),
        "splits": [{"split": split, **part} for split, part in parts.items()],
        "expert_review": NOT_CONFIRMED,
    }


def screened_part(
    questions: Sequence[Question],
    kept: Sequence[Question],
    pruned: ScreenedRows,
    before: dict[str, Any],
    after: dict[str, Any] | None,
    held_out: dict[str, Any] | None,
) -> dict[str, Any]:
    """Returns the result of one split.

    Args:
        questions: questions of the split.
        kept: remaining questions.
        pruned: the rounds.
        before: audit of the split, with folds that no pruning used.
        after: audit of the remaining questions, or None if there are too few.
        held_out: result of ``held_out_figures``, or None.
    """
    counts, left = (Counter(question.dimension or "all" for question in part) for part in (questions, kept))
    reached = pruned.at_chance and after is not None and not after["off_chance"]
    return {
        "questions": len(questions),
        "kept": len(kept),
        "reached": reached,
        "reason": None if reached else _why(pruned, after),
        "by_dimension": {name: {"questions": counts[name], "kept": left[name]} for name in sorted(counts)},
        "rounds": [asdict(found) for found in pruned.rounds],
        "audit": {"before": before, "after": after},
        "held_out": held_out,
    }


def note(report: dict[str, Any]) -> str:
    """Returns the Markdown on a control for the dataset card."""
    environment = Environment(
        loader=PackageLoader("scale_vqa_eval.controls", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{percent(share)}%"
    environment.filters["cell"] = lambda text: " ".join(str(text).replace("|", "/").split())
    return environment.get_template(f"{report['method'].replace('-', '_')}_note.md.j2").render(report=report).strip()


def _why(pruned: ScreenedRows, after: dict[str, Any] | None) -> str:
    left = len(pruned.rows)
    if after is None:
        before = f"; the strongest probe was {pruned.rounds[-1].strongest}" if pruned.rounds else ""
        return f"{left} left, too few questions or patients to tell a leak from luck{before}"
    off = ", ".join(after["off_chance"])
    strongest = f"strongest probe {after['strongest']['name']} at {100 * after['strongest']['accuracy']:.0f}%"
    return f"{left} left, {strongest}" + (f"; off chance: {off}" if off else "; the rounds came to an end")
