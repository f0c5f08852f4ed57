"""The verdict of an audit: whether any probe beats chance, by dimension and as a whole, and what could be missed.

*Leaks*: some probe is above chance after Holm's correction. The level of 5% is split evenly: half for the probes over
all questions, half for the probes on every dimension (all of it for the former where there are less than two
dimensions), so that a file without a leak is called leaking in at most 5% of cases.

*Clean*, of a dimension, asks for more than the absence of proof: the upper end of every probe's 95% interval is within
``MARGIN`` of chance. What is neither is *unresolved*: too few questions to exclude a leak of that size.

Below chance is no leak for the verdict (balanced designs push cross-fitted probes there); it stands in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from scale_vqa_eval.audit.probe import Accuracy, ProbeAccuracy
from scale_vqa_eval.scale_vqa_acc.clustered import holm

ALPHA: Final = 0.05
MARGIN: Final = 0.10


@dataclass(frozen=True)
class Finding:
    """What is said of one dimension, or of all questions.

    Attributes:
        verdict: ``leaks``, ``clean`` or ``unresolved``.
        strongest: name of the probe with the highest accuracy.
        accuracy: of that probe.
        ci_low: lower end of its 95% interval.
        ci_high: upper end: what a reader without images may reach; a model counts as seeing above it only.
        p_value: smallest Holm-adjusted p-value of any probe.
        level: what ``p_value`` is held against.
        ceiling: highest upper end of any probe's 95% interval.
        chance: accuracy of an even guess.
        n: questions.
        leaking: names of the probes that are above chance, strongest first.
    """

    verdict: str
    strongest: str
    accuracy: float
    ci_low: float
    ci_high: float
    p_value: float
    level: float
    ceiling: float
    chance: float
    n: int
    leaking: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """The verdict: ``leaks`` where any finding leaks, else ``clean``; ``unresolved`` names what stays open."""

    verdict: str
    whole: Finding
    by_dimension: dict[str, Finding]
    unresolved: tuple[str, ...]


def reach_verdict(probes: Sequence[ProbeAccuracy], margin: float = MARGIN, alpha: float = ALPHA) -> Verdict:
    """Reaches the verdict of all probes of an audit.

    Args:
        probes: every probe that was run, none left out: the correction is for their number.
        margin: how far above chance the upper end of an interval may lie for a dimension to be clean.
        alpha: chance that a file without a leak is called leaking, at most.

    Raises:
        ValueError: where there is no probe.
    """
    if not probes:
        raise ValueError("a verdict needs at least one probe")
    dimensions = sorted(probes[0].by_dimension)
    level = alpha / 2 if len(dimensions) > 1 else alpha
    whole = _finding(
        [(probe.name, _whole(probe)) for probe in probes], holm([p.p_value for p in probes]), level, margin
    )
    cells = [(name, probe.name, probe.by_dimension[name]) for name in dimensions for probe in probes]
    adjusted = holm([cell.p_value for _, _, cell in cells]) if len(dimensions) > 1 else [1.0] * len(cells)
    parts = {}
    for name in dimensions:
        at = [number for number, cell in enumerate(cells) if cell[0] == name]
        parts[name] = _finding([cells[i][1:] for i in at], [adjusted[i] for i in at], level, margin)
    if len(dimensions) == 1:
        parts = {dimensions[0]: whole}
    leaks = any(finding.verdict == "leaks" for finding in (whole, *parts.values()))
    open_ones = [name for name, finding in parts.items() if finding.verdict == "unresolved"]
    open_ones = ["all"] * (whole.verdict == "unresolved") + open_ones
    return Verdict("leaks" if leaks else "clean", whole, parts, tuple(open_ones))


def _whole(probe: ProbeAccuracy) -> Accuracy:
    return Accuracy(probe.n, probe.clusters, probe.accuracy, probe.chance, probe.ci_low, probe.ci_high, probe.p_value)


def _finding(found: Sequence[tuple[str, Accuracy]], adjusted: Sequence[float], level: float, margin: float) -> Finding:
    name, best = max(found, key=lambda pair: pair[1].accuracy)
    ceiling = max(part.ci_high for _, part in found)
    leaking = [(part.accuracy, probe) for (probe, part), p in zip(found, adjusted, strict=True) if p <= level]
    verdict = "leaks" if leaking else "clean" if ceiling <= best.chance + margin + 1e-9 else "unresolved"
    return Finding(
        verdict=verdict,
        strongest=name,
        accuracy=best.accuracy,
        ci_low=best.ci_low,
        ci_high=best.ci_high,
        p_value=min(adjusted),
        level=level,
        ceiling=ceiling,
        chance=best.chance,
        n=best.n,
        leaking=tuple(probe for _, probe in sorted(leaking, key=lambda pair: (-pair[0], pair[1]))),
    )
