"""The verdict of an audit: leaks, clean or inconclusive, by dimension and over all questions.

*Leaks*: a probe is above chance after Holm's correction. Half of the level of 5% is for the probes on all questions,
half for the probes on the dimensions (with fewer than two dimensions, all of it is for the former). So a file without
a leak is reported as leaking in at most 5% of cases.

*Clean* requires power: every probe would have detected a leak of ``MARGIN`` or more with a probability of 80%. A probe
at chance by construction has no variance and detects any leak. Otherwise the part is *inconclusive*: it has too few
questions to exclude a leak of that size.

An accuracy below chance is not a leak (balanced designs cause it in cross-fitted probes); the report mentions it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from scale_vqa_eval.audit.probe import Accuracy, ProbeAccuracy
from scale_vqa_eval.scale_vqa_acc.clustered import holm

ALPHA: Final = 0.05
MARGIN: Final = 0.05
POWER: Final = 0.8


@dataclass(frozen=True)
class SliceVerdict:
    """The verdict on one dimension, or on all questions.

    Attributes:
        verdict: ``leaks``, ``clean`` or ``inconclusive``.
        strongest: name of the probe with the highest accuracy.
        accuracy: accuracy of that probe.
        ci_low: lower end of its 95% interval.
        ci_high: upper end of its 95% interval, which a text-only reader may reach; only a model above it uses images.
        p_value: smallest Holm-adjusted p-value of all probes.
        level: significance level for ``p_value``.
        ceiling: highest upper end of all probes' 95% intervals.
        chance: accuracy of guessing.
        n: number of questions.
        leaking: names of the probes above chance, strongest first.
        minimum_detectable_leak: maximum over the probes of the smallest excess over chance that would have been
            detected with probability ``POWER`` (Bloom 1995); 0 if all are at chance by construction.
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
    minimum_detectable_leak: float


@dataclass(frozen=True)
class AuditVerdict:
    """The verdict: ``leaks`` if any part leaks, else that over all questions.

    ``unresolved`` lists the parts (``all``, or a dimension) with the verdict ``inconclusive``.
    """

    verdict: str
    whole: SliceVerdict
    by_dimension: dict[str, SliceVerdict]
    unresolved: tuple[str, ...]


def reach_verdict(probes: Sequence[ProbeAccuracy], margin: float = MARGIN, alpha: float = ALPHA) -> AuditVerdict:
    """Returns the verdict of an audit.

    Args:
        probes: all probes that were run; the correction depends on their number.
        margin: maximum of the minimum detectable leak of a clean part, as a share (0.05 for five points).
        alpha: maximum probability that a file without a leak is reported as leaking.

    Raises:
        ValueError: if there is no probe.
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
    unresolved = [name for name, part in {"all": whole, **parts}.items() if part.verdict == "inconclusive"]
    return AuditVerdict("leaks" if leaks else whole.verdict, whole, parts, tuple(unresolved))


def minimum_detectable_leak(part: Accuracy, level: float) -> float:
    """Returns the smallest excess over chance that a one-sided test at ``level`` detects with probability ``POWER``.

    (t_(1-level) + t_POWER) * standard error, at clusters - 1 degrees of freedom; at most 1 - chance.
    """
    from scipy import special

    ends = [1.0 - level, POWER]
    tails = special.ndtri(ends) if part.clusters < 2 else special.stdtrit(part.clusters - 1, ends)
    return min(1.0 - part.chance, float(tails.sum()) * part.standard_error)


def _slice_verdict(
    probes: Sequence[tuple[str, Accuracy]], adjusted: Sequence[float], level: float, margin: float
) -> SliceVerdict:
    name, best = max(probes, key=lambda pair: pair[1].accuracy)
    ceiling = max(part.ci_high for _, part in probes)
    leaking = [(part.accuracy, probe) for (probe, part), p in zip(probes, adjusted, strict=True) if p <= level]
    detectable = max(minimum_detectable_leak(part, level / len(adjusted)) for _, part in probes)
    verdict = "leaks" if leaking else "clean" if detectable <= margin + 1e-9 else "inconclusive"
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
        minimum_detectable_leak=detectable,
    )
