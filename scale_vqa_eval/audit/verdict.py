"""The verdict of an audit: whether any probe beats chance, by dimension and over all questions.

*Leaks*: some probe is above chance after Holm's correction. The level of 5% is split evenly: half for the probes over
all questions, half for the probes on every dimension (all of it for the former where there are less than two
dimensions), so that a file without a leak is called leaking in at most 5% of cases.

*Clean*, of a dimension, asks for more than the absence of proof: the upper end of every probe's 95% interval is within
``MARGIN`` of chance. Otherwise the dimension is *unresolved*: too few questions to exclude a leak of that size.

Below chance is not a leak (balanced designs push cross-fitted probes there); the report mentions it.
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
class SliceVerdict:
    """The verdict on one dimension, or on all questions.

    Attributes:
        verdict: ``leaks``, ``clean`` or ``unresolved``.
        strongest: name of the probe with the highest accuracy.
        accuracy: of that probe.
        ci_low: lower end of its 95% interval.
        ci_high: upper end: what a text-only reader may reach; only a model above it is known to look at images.
        p_value: smallest Holm-adjusted p-value of any probe.
        level: what ``p_value`` is compared with.
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
class AuditVerdict:
    """The verdict: ``leaks`` where any part leaks, else ``clean``; ``unresolved`` lists the parts that stay open."""

    verdict: str
    whole: SliceVerdict
    by_dimension: dict[str, SliceVerdict]
    unresolved: tuple[str, ...]


def reach_verdict(probes: Sequence[ProbeAccuracy], margin: float = MARGIN, alpha: float = ALPHA) -> AuditVerdict:
    """Reaches the verdict of all probes of an audit.

    Args:
        probes: every probe that was run, none left out: the correction is for their number.
        margin: how far above chance the upper end of an interval may lie for a dimension to be clean.
        alpha: maximum probability that a file without a leak is called leaking.

    Raises:
        ValueError: there is no probe.
    """
    if not probes:
        raise ValueError("a verdict needs at least one probe")
    dimensions = sorted(probes[0].by_dimension)
    level = alpha / 2 if len(dimensions) > 1 else alpha
    whole = _slice_verdict([(probe.name, probe) for probe in probes], holm([p.p_value for p in probes]), level, margin)
    parts = {name: whole for name in dimensions}
    if len(dimensions) > 1:
        cells = [(name, probe.name, probe.by_dimension[name]) for name in dimensions for probe in probes]
        adjusted = holm([cell.p_value for _, _, cell in cells])
        for name in dimensions:
            rows = [number for number, cell in enumerate(cells) if cell[0] == name]
            parts[name] = _slice_verdict([cells[i][1:] for i in rows], [adjusted[i] for i in rows], level, margin)
    leaks = any(part.verdict == "leaks" for part in (whole, *parts.values()))
    unresolved = [name for name, part in {"all": whole, **parts}.items() if part.verdict == "unresolved"]
    return AuditVerdict("leaks" if leaks else "clean", whole, parts, tuple(unresolved))


def _slice_verdict(
    probes: Sequence[tuple[str, Accuracy]], adjusted: Sequence[float], level: float, margin: float
) -> SliceVerdict:
    name, best = max(probes, key=lambda pair: pair[1].accuracy)
    ceiling = max(part.ci_high for _, part in probes)
    leaking = [(part.accuracy, probe) for (probe, part), p in zip(probes, adjusted, strict=True) if p <= level]
    verdict = "leaks" if leaking else "clean" if ceiling <= best.chance + margin + 1e-9 else "unresolved"
    return SliceVerdict(
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
