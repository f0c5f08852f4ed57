"""Audit figures as a control reports them: before, after, and of families that were held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scale_vqa_eval.audit.battery import run_battery
from scale_vqa_eval.audit.layout import IntArray
from scale_vqa_eval.audit.probe import Accuracy, ProbeAccuracy, evaluate_probe
from scale_vqa_eval.controls.screened import Readers, fresh_audit, prune
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import holm


def audited(questions: Sequence[Question], seed: int) -> dict[str, Any]:
    """Runs the battery once over some questions, one partition of the units into folds."""
    return figures([evaluate_probe(result, questions) for result in run_battery(questions, seed, 1)])


def figures(probes: Sequence[ProbeAccuracy]) -> dict[str, Any]:
    """Returns what a report has of the accuracies of some probes: the extremes (also by dimension), and all."""
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
    """Prunes without each family in turn, then lets that family try what stays, with new folds.

    Returns:
        Family -> how many questions its pruning kept, the strongest of its probes on them, whether the whole of that
        one's interval is above chance, and which are so after Holm's correction over the probes of all families.
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
