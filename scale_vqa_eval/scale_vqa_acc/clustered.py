"""Statistics of clustered questions: several questions come from the same patient.

Sources: Miller 2024, "Adding error bars to evals" (arXiv:2411.00640) for clustered standard errors, paired differences
and power; Bell & McCaffrey 2002 and Pustejovsky & Tipton 2018 (J. Bus. Econ. Stat. 36:672) for the CR2 variance and
its Satterthwaite degrees of freedom; Korn & Graubard 1998 (Survey Methodology 24:193) for proportions without
clustered variance; Aronow, Samii & Assenova 2015 (Political Analysis 23:564) for units that share members.
``benchmarks/coverage.py`` simulates the coverage of every interval.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse, special

Alternative = Literal["greater", "less", "two-sided"]
Codes = npt.NDArray[np.int64]
Clusters = Sequence[Hashable] | npt.NDArray[Any]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClusteredInterval:
    """A mean over items with its clustered standard error and confidence interval.

    Attributes:
        mean: mean over items.
        standard_error: clustered standard error; nan with one cluster.
        ci_low: lower end of the interval.
        ci_high: upper end.
        n: items.
        clusters: clusters.
        effective_n: independent items that would give the same standard error, at most ``n``.
        method: ``logit``, ``clopper-pearson`` (no clustered variance) or ``undefined`` (one cluster: the interval is
            [0, 1], because the variance between clusters is unknown).
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
    """Mean difference a - b over the same items, with clustered interval and two-sided p-value."""

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


def cluster_codes(clusters: Clusters) -> tuple[Codes, int]:
    """Returns (n,) integer codes of the clusters, and the number of clusters.

    Args:
        clusters: (n,) names, which are numbered in order of appearance; or an integer array of codes, which need not
            be consecutive.

    Raises:
        ValueError: if a cluster is missing (None, nan, an empty name, a negative code).
    """
    if isinstance(clusters, np.ndarray) and clusters.dtype.kind in "iu":
        if clusters.size and clusters.min() < 0:
            raise ValueError(f"item {int(clusters.argmin())} has no cluster (found {clusters.min()})")
        if clusters.size and clusters.max() > 4 * clusters.size:  # bincount would need much memory
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
    """Returns sqrt(C/(C-1) * sum over clusters of (sum of residuals)^2) / n; nan if C is 1.

    Miller 2024, eq. 4, with the small-sample factor C/(C-1).
    """
    data = np.asarray(values, dtype=np.float64)
    if clusters < 2:
        return math.nan
    sums = np.bincount(codes, weights=data - data.mean())
    return float(math.sqrt(clusters / (clusters - 1) * float(sums @ sums)) / data.size)


def clustered_interval(
    correct: npt.ArrayLike,
    clusters: Clusters,
    level: float = 0.95,
    weights: npt.ArrayLike | None = None,
    strata: Codes | None = None,
) -> ClusteredInterval:
    """Mean of ``correct`` with its CR2 standard error and a logit interval.

    The interval is logit(m) +- t * SE / (m (1 - m)), transformed back. t has the smaller of two degrees of freedom:
    Satterthwaite's, and 2 V^2 / var(V) with the variance estimate V and the spread of the clusters' contributions,
    which is small if V depends on one or two clusters. The interval is never wider than Clopper-Pearson with the
    effective number of clusters as the sample size, which is also the interval without clustered variance (all right
    or all wrong).

    Args:
        correct: (n,) values in [0, 1].
        clusters: (n,) cluster of each item, names or codes as for ``cluster_codes``.
        level: confidence level.
        weights: (n,) positive weights of a weighted mean (a ratio estimate), or None.
        strata: (n,) codes of strata, or None; the mean is then the mean of the strata's means.

    Raises:
        ValueError: if there is no item, lengths differ, a value is outside [0, 1] or a cluster is missing.

    >>> interval = clustered_interval([1, 1, 0, 1, 0, 0], ["a", "a", "b", "b", "c", "c"])
    >>> round(interval.mean, 3), round(interval.standard_error, 3), interval.clusters
    (0.5, 0.289, 3)
    """
    values, codes, count = _checked(correct, clusters, 0.0, 1.0)
    n = int(values.size)
    weight = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if weight.shape != values.shape or not (weight > 0).all():
        raise ValueError("weights must be positive, one for each value")
    groups = np.zeros(n, np.int64) if strata is None else strata
    sizes = np.bincount(groups, weights=weight)
    weight = weight / sizes[groups] / np.count_nonzero(sizes)
    centre = np.bincount(groups, weights=weight * values) * np.count_nonzero(sizes)
    mean = float(values.mean() if weights is None and strata is None else weight @ values)
    residuals = values - centre[groups]
    present = np.bincount(codes) > 0
    parts = (weight * residuals, weight, weight**2)
    sums, shares, squares = (np.bincount(codes, weights=part)[present].astype(np.float64) for part in parts)
    trials = 1.0 / float(shares @ shares)
    if count < 2:
        return ClusteredInterval(mean, math.nan, 0.0, 1.0, n, count, 1.0, "undefined")
    variance, df = _cr2(sums, shares, squares)
    if variance < 1e-24:
        low, high = clopper_pearson(mean, trials, level)
        return ClusteredInterval(mean, 0.0, low, high, n, count, min(float(n), trials), "clopper-pearson")
    low, high = _logit_interval(mean, variance, df, trials, level)
    independent = float(weight @ residuals**2) * n / (n - 1) / variance
    return ClusteredInterval(mean, math.sqrt(variance), low, high, n, count, min(float(n), independent), "logit")


def overlapping_interval(
    right: npt.ArrayLike, members: Sequence[Clusters], level: float = 0.95
) -> tuple[float, float]:
    """Interval of the share of right groups, if a patient may be a member of several groups.

    The variance is the sum of the products of residuals over all pairs of groups that share a patient. The number of
    disjoint groups (patients / members per group) is used as the number of clusters.

    Args:
        right: (g,) 1.0 for a group with all items right, else 0.0.
        members: patients of each group.
        level: confidence level.
    """
    values = np.asarray(right, dtype=np.float64)
    codes, count = cluster_codes([patient for group in members for patient in group])
    rows = np.repeat(np.arange(values.size), [len(group) for group in members])
    incidence = sparse.csr_matrix((np.ones(rows.size), (rows, codes)), shape=(values.size, count))
    incidence.data[:] = 1.0
    shared = (incidence @ incidence.T) > 0
    per_group = float(np.diff(incidence.indptr).mean())
    trials = max(1.0, min(float(values.size), count / per_group))
    residuals = values - values.mean()
    variance = max(float(residuals @ (shared @ residuals)), float(residuals @ residuals)) / values.size**2
    if variance < 1e-24 or trials <= 1.0:
        return clopper_pearson(float(values.mean()), trials, level) if trials > 1.0 else (0.0, 1.0)
    return _logit_interval(float(values.mean()), variance * trials / (trials - 1.0), trials - 1.0, trials, level)


def p_value_against(
    correct: npt.ArrayLike, clusters: Clusters, chance: float | npt.ArrayLike, alternative: Alternative = "greater"
) -> float:
    """p-value of the mean against chance, by the clustered t statistic with C-1 degrees of freedom.

    Args:
        correct: (n,) values in [0, 1].
        clusters: (n,) cluster of each item.
        chance: accuracy of guessing, one number or one per item (questions with different numbers of options).
        alternative: ``greater`` (default), ``less`` or ``two-sided``.

    Returns:
        The p-value; 1.0 with one cluster. Without clustered variance it is the binomial tail with the number of
        clusters as the sample size, as in ``clustered_interval``.
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
    """Mean of a - b over the same items, with a clustered t test at C-1 degrees of freedom (Miller 2024, section 4).

    Without clustered variance, the interval is Clopper-Pearson over clusters: for the rate of discordant clusters if
    the models never differ, else for the difference mapped to [0, 1]. With one cluster the interval is [-1, 1] and the
    p-value 1.

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


def minimum_detectable_effect(standard_error: float, clusters: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """Minimum detectable effect of a two-sided test, (t_(1-alpha/2) + t_power) * SE; nan if SE is zero or undefined.

    Bloom 1995 (Evaluation Review 19:547); Miller 2024, section 5.
    """
    if clusters < 2 or math.isnan(standard_error) or _is_zero(standard_error):
        return math.nan
    return float(special.stdtrit(clusters - 1, [1.0 - alpha / 2.0, power]).sum()) * standard_error


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


def clopper_pearson(share: float, trials: float, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a binomial share (Clopper & Pearson 1934); real-valued counts as in Korn & Graubard 1998.

    >>> [round(end, 3) for end in clopper_pearson(1.0, 10)]
    [0.692, 1.0]
    """
    right, tail = share * trials, (1.0 - level) / 2.0
    low = 0.0 if right <= 1e-9 else float(special.betaincinv(right, trials - right + 1.0, tail))
    high = 1.0 if right >= trials - 1e-9 else float(special.betaincinv(right + 1.0, trials - right, 1.0 - tail))
    return low, high


def _cr2(sums: Numbers, shares: Numbers, squares: Numbers) -> tuple[float, float]:
    """Returns the CR2 variance of a weighted mean and its degrees of freedom.

    Args:
        sums: (C,) sum of weight * residual in each cluster.
        shares: (C,) sum of the weights, which sum to 1.
        squares: (C,) sum of the squared weights.
    """
    total = float(squares.sum())
    expected = squares - 2.0 * shares * squares + shares**2 * total  # of sums^2, for items of equal variance
    factor = squares / np.maximum(expected, np.maximum(1e-12 * squares, 1e-300))  # one cluster may have all the weight
    terms = factor * sums**2
    variance = float(terms.sum())
    # sum of all squared covariances of the scaled sums, without a C x C matrix
    a, b, c = (float(factor @ part) for part in (shares**2, squares**2, shares * squares))
    cross = 2.0 * a * b + (total * a) ** 2 + 2.0 * c**2 - 4.0 * total * c * a
    own = float(np.sum((factor * (2.0 * shares * squares - shares**2 * total)) ** 2))
    satterthwaite = total**2 / (float(squares @ squares) + cross - own)
    spread = float(np.sum((terms - terms.mean()) ** 2)) * sums.size / (sums.size - 1)
    return variance, min(satterthwaite, 2.0 * variance**2 / max(spread, 1e-300))


def _logit_interval(mean: float, variance: float, df: float, trials: float, level: float) -> tuple[float, float]:
    half = float(special.stdtrit(df, 0.5 + level / 2.0)) * math.sqrt(variance) / (mean * (1.0 - mean))
    centre = float(special.logit(mean))
    low, high = clopper_pearson(mean, trials, level)
    return max(low, float(special.expit(centre - half))), min(high, float(special.expit(centre + half)))


def _checked(values: npt.ArrayLike, clusters: Clusters, low: float, high: float) -> tuple[Numbers, Codes, int]:
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
    """P(X >= share * trials) for X ~ binomial(trials, chance), extended to real counts by the beta distribution."""
    right = share * trials
    return 1.0 if right <= 1e-9 else float(special.betainc(right, trials - right + 1.0, chance))


def _without_nan(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in fields.items()}
