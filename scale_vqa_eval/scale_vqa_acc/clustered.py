"""Statistics of questions that come in clusters: many questions of one patient are not many patients.

Miller, "Adding error bars to evals" (2024, arXiv:2411.00640) for clustered standard errors, paired differences and
power; Korn & Graubard (1998, Survey Methodology 24:193) for proportions whose clustered variance is zero.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special

Alternative = Literal["greater", "less", "two-sided"]
Codes = npt.NDArray[np.int64]
Clusters = Sequence[Hashable] | npt.NDArray[Any]


@dataclass(frozen=True)
class ClusteredInterval:
    """A mean over items with its clustered standard error and confidence interval.

    Attributes:
        mean: mean over items.
        standard_error: clustered standard error; nan where there is one cluster only.
        ci_low: lower end of the interval.
        ci_high: upper end.
        n: items.
        clusters: clusters.
        effective_n: independent items that would give the same standard error, at most ``n``.
        method: ``t`` | ``clopper-pearson`` (clustered variance zero) | ``undefined`` (one cluster: the interval is
            the whole scale, as nothing is known of the spread between clusters).
    """

    mean: float
    standard_error: float
    ci_low: float
    ci_high: float
    n: int
    clusters: int
    effective_n: float
    method: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON: nan becomes None."""
        return _without_nan(asdict(self))


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference a - b over the same items, with its clustered interval and two-sided p-value."""

    difference: float
    standard_error: float
    ci_low: float
    ci_high: float
    p_value: float
    n: int
    clusters: int
    method: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON: nan becomes None."""
        return _without_nan(asdict(self))


@dataclass(frozen=True)
class McNemar:
    """Discordant items of two models and the exact two-sided p-value; items are taken as independent."""

    only_a: int
    only_b: int
    p_value: float


def cluster_codes(clusters: Clusters) -> tuple[Codes, int]:
    """Numbers the clusters.

    Args:
        clusters: (n,) names, numbered in order of appearance; an integer array is taken as numbers already, which
            need not be dense.

    Returns:
        codes (n,) and the number of clusters that occur.

    Raises:
        ValueError: where a cluster is missing (None, nan, an empty name, a negative number).
    """
    if isinstance(clusters, np.ndarray) and clusters.dtype.kind in "iu":
        if clusters.size and clusters.min() < 0:
            raise ValueError(f"item {int(clusters.argmin())} has no cluster (found {clusters.min()})")
        if clusters.size and clusters.max() > 4 * clusters.size:  # sparse numbers: a table of them would be large
            clusters = np.unique(clusters, return_inverse=True)[1]
        return clusters.astype(np.int64, copy=False), int(np.count_nonzero(np.bincount(clusters)))
    names = clusters if isinstance(clusters, list | tuple) else list(clusters)
    index = {name: number for number, name in enumerate(dict.fromkeys(names))}
    missing = [name for name in index if name is None or name == "" or name != name]
    if missing:
        raise ValueError(
            f"item {names.index(missing[0])} has no cluster (found {missing[0]!r}); name a patient or slide"
        )
    return np.fromiter(map(index.__getitem__, names), np.int64, len(names)), len(index)


def clustered_standard_error(values: npt.ArrayLike, codes: Codes, clusters: int) -> float:
    """Returns sqrt(C/(C-1) * sum over clusters of (sum of residuals)^2) / n; nan where C is 1.

    Miller 2024, eq. 4, with the small-sample factor C/(C-1).
    """
    data = np.asarray(values, dtype=np.float64)
    if clusters < 2:
        return math.nan
    sums = np.bincount(codes, weights=data - data.mean())
    return float(math.sqrt(clusters / (clusters - 1) * float(sums @ sums)) / data.size)


def clustered_interval(correct: npt.ArrayLike, clusters: Clusters, level: float = 0.95) -> ClusteredInterval:
    """Mean of ``correct`` with a clustered standard error and a t-interval at C-1 degrees of freedom.

    The interval is clipped to [0, 1]. Where the clustered variance is zero (all right, all wrong) a t-interval would
    have no width, however few the clusters; there Clopper-Pearson with the clusters as the sample is taken. With one
    cluster nothing is known and the interval is [0, 1].

    Args:
        correct: (n,) values in [0, 1].
        clusters: (n,) cluster of each item, names or codes as ``cluster_codes`` takes them.
        level: confidence level.

    Raises:
        ValueError: where there is no item, a length differs, a value lies outside [0, 1] or a cluster is missing.

    >>> interval = clustered_interval([1, 1, 0, 1, 0, 0], ["a", "a", "b", "b", "c", "c"])
    >>> round(interval.mean, 3), round(interval.standard_error, 3), interval.clusters
    (0.5, 0.289, 3)
    """
    values, codes, count = _checked(correct, clusters, 0.0, 1.0)
    mean, n = float(values.mean()), int(values.size)
    error = clustered_standard_error(values, codes, count)
    if count < 2:
        return ClusteredInterval(mean, error, 0.0, 1.0, n, count, 1.0, "undefined")
    if _is_zero(error):
        low, high = clopper_pearson(mean, count, level)
        return ClusteredInterval(mean, 0.0, low, high, n, count, float(min(n, count)), "clopper-pearson")
    half = float(special.stdtrit(count - 1, 0.5 + level / 2.0)) * error
    independent = float(values.var(ddof=1)) / error**2
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    return ClusteredInterval(mean, error, low, high, n, count, min(float(n), independent), "t")


def p_value_against(
    correct: npt.ArrayLike,
    clusters: Clusters,
    chance: float | npt.ArrayLike,
    alternative: Alternative = "greater",
) -> float:
    """p-value of "the mean is above (below, other than) chance", by the clustered t statistic at C-1 degrees.

    Args:
        correct: (n,) values in [0, 1].
        clusters: (n,) cluster of each item.
        chance: accuracy of a guess, one number or one per item (questions with different numbers of options).
        alternative: ``greater`` (default), ``less`` or ``two-sided``.

    Returns:
        The p-value; 1.0 with one cluster. Where the clustered variance is zero: the binomial tail with the clusters
        as the sample, in line with ``clustered_interval``.
    """
    values, codes, count = _checked(correct, clusters, 0.0, 1.0)
    expected = np.broadcast_to(np.asarray(chance, dtype=np.float64), values.shape)
    if count < 2:
        return 1.0
    excess = values - expected
    error = clustered_standard_error(excess, codes, count)
    if _is_zero(error):
        above = _binomial_tail(float(values.mean()), count, float(expected.mean()))
        below = _binomial_tail(1.0 - float(values.mean()), count, 1.0 - float(expected.mean()))
    else:
        above = float(special.stdtr(count - 1, -float(excess.mean()) / error))
        below = 1.0 - above
    return {"greater": above, "less": below, "two-sided": min(1.0, 2.0 * min(above, below))}[alternative]


def paired_difference(
    correct_a: npt.ArrayLike, correct_b: npt.ArrayLike, clusters: Clusters, level: float = 0.95
) -> PairedDifference:
    """Mean of a - b over the same items, clustered; two-sided p by t at C-1 degrees (Miller 2024, section 4).

    Where the differences have no clustered variance the interval comes from Clopper-Pearson over clusters: of the
    rate of discordant clusters where the models never differ, else of the difference mapped to [0, 1]. With one
    cluster the interval is [-1, 1] and p is 1.

    Raises:
        ValueError: as ``clustered_interval``.
    """
    left, codes, count = _checked(correct_a, clusters, 0.0, 1.0)
    right, _, _ = _checked(correct_b, clusters, 0.0, 1.0)
    gap = left - right
    mean, n = float(gap.mean()), int(gap.size)
    error = clustered_standard_error(gap, codes, count)
    if count < 2:
        return PairedDifference(mean, error, -1.0, 1.0, 1.0, n, count, "undefined")
    if _is_zero(error):
        if not gap.any():
            reach = clopper_pearson(0.0, count, level)[1]
            return PairedDifference(0.0, 0.0, -reach, reach, 1.0, n, count, "clopper-pearson")
        low, high = clopper_pearson((mean + 1.0) / 2.0, count, level)
        p_value = min(1.0, 2.0 * _binomial_tail((abs(mean) + 1.0) / 2.0, count, 0.5))
        return PairedDifference(mean, 0.0, 2 * low - 1, 2 * high - 1, p_value, n, count, "clopper-pearson")
    half = float(special.stdtrit(count - 1, 0.5 + level / 2.0)) * error
    p_value = min(1.0, 2.0 * float(special.stdtr(count - 1, -abs(mean) / error)))
    return PairedDifference(mean, error, max(-1.0, mean - half), min(1.0, mean + half), p_value, n, count, "t")


def mcnemar_exact(correct_a: npt.ArrayLike, correct_b: npt.ArrayLike) -> McNemar:
    """Exact two-sided McNemar test: binomial(only_a + only_b, 1/2) (McNemar 1947). It ignores clusters.

    >>> round(mcnemar_exact([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]).p_value, 6)
    0.0625
    """
    left, right = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if left.shape != right.shape:
        raise ValueError(f"McNemar needs the same items: {left.size} against {right.size}")
    only_a, only_b = int((left & ~right).sum()), int((right & ~left).sum())
    total = only_a + only_b
    if total == 0:
        return McNemar(0, 0, 1.0)
    return McNemar(only_a, only_b, min(1.0, 2.0 * _binomial_tail(max(only_a, only_b) / total, total, 0.5)))


def minimum_detectable_effect(standard_error: float, clusters: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest true effect that a two-sided test at ``alpha`` finds with ``power``: (t_(1-alpha/2) + t_power) * SE.

    Bloom 1995 (Evaluation Review 19:547); Miller 2024, section 5. nan where the standard error is zero or undefined.
    """
    if clusters < 2 or math.isnan(standard_error) or _is_zero(standard_error):
        return math.nan
    df = clusters - 1
    return float(special.stdtrit(df, 1.0 - alpha / 2.0) + special.stdtrit(df, power)) * standard_error


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979).

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda number: p_values[number])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def clopper_pearson(share: float, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a binomial share (Clopper & Pearson 1934); real-valued counts as in Korn & Graubard 1998.

    >>> [round(end, 3) for end in clopper_pearson(1.0, 10)]
    [0.692, 1.0]
    """
    right, tail = share * trials, (1.0 - level) / 2.0
    low = 0.0 if right <= 1e-9 else float(special.betaincinv(right, trials - right + 1.0, tail))
    high = 1.0 if right >= trials - 1e-9 else float(special.betaincinv(right + 1.0, trials - right, 1.0 - tail))
    return low, high


def _checked(
    values: npt.ArrayLike, clusters: Clusters, low: float, high: float
) -> tuple[npt.NDArray[np.float64], Codes, int]:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0:
        raise ValueError(f"a mean needs a list of at least one value, got shape {data.shape}")
    if len(clusters) != data.size:
        raise ValueError(f"{data.size} values but {len(clusters)} clusters")
    if not ((data >= low) & (data <= high)).all():
        raise ValueError(f"values must lie in [{low:g}, {high:g}], got {data.min():g} to {data.max():g}")
    codes, count = cluster_codes(clusters)
    return data, codes, count


def _is_zero(error: float) -> bool:
    return error < 1e-12


def _binomial_tail(share: float, trials: int, chance: float) -> float:
    """P(X >= share * trials) for X ~ binomial(trials, chance), continued to real counts by the beta distribution."""
    right = share * trials
    return 1.0 if right <= 1e-9 else float(special.betainc(right, trials - right + 1.0, chance))


def _without_nan(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in fields.items()}
