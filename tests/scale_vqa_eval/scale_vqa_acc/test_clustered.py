"""Clustered statistics against SciPy, brute force and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from scale_vqa_eval.scale_vqa_acc.clustered import (
    clopper_pearson,
    cluster_codes,
    clustered_interval,
    holm,
    minimum_detectable_effect,
    overlapping_interval,
    p_value_against,
    paired_difference,
)


def by_hand(values, clusters, weights=None):
    """Mean, CR2 variance and degrees of freedom with the matrices of the definition, item by item."""
    n, names = len(values), sorted(set(clusters))
    weights = np.full(n, 1 / n) if weights is None else np.array(weights) / np.sum(weights)
    residual_maker = np.eye(n) - np.outer(np.ones(n), weights)
    own = np.array([[weight * (c == name) for weight, c in zip(weights, clusters, strict=True)] for name in names])
    rows = own @ residual_maker
    expected, wanted = np.diag(rows @ rows.T), (own**2).sum(axis=1)
    scaled = rows * np.sqrt(wanted / expected)[:, None]
    terms, products = (scaled @ values) ** 2, scaled @ scaled.T
    spread = np.sum((terms - terms.mean()) ** 2) * len(names) / (len(names) - 1)
    df = min(np.trace(products) ** 2 / np.sum(products**2), 2 * terms.sum() ** 2 / max(spread, 1e-300))
    trials = 1 / np.sum(own.sum(axis=1) ** 2)
    return float(weights @ values), terms.sum(), df, trials


@given(
    st.lists(st.tuples(st.integers(0, 1), st.sampled_from("abcdefg"), st.floats(0.1, 1)), min_size=2, max_size=40),
    st.booleans(),
)
def test_interval_is_the_formula(items, weighted):
    values, clusters, weights = np.array([float(v) for v, _, _ in items]), [c for _, c, _ in items], None
    weights = [w for _, _, w in items] if weighted else None
    interval = clustered_interval(values, clusters, weights=weights)
    assert 0.0 <= interval.ci_low <= interval.mean + 1e-12 and interval.mean - 1e-12 <= interval.ci_high <= 1.0
    assert (interval.n, interval.clusters) == (len(items), len(set(clusters)))
    if interval.clusters == 1:
        assert (interval.ci_low, interval.ci_high, interval.method) == (0.0, 1.0, "undefined")
        assert interval.as_dict()["standard_error"] is None
        return
    mean, variance, df, trials = by_hand(values, clusters, weights)
    assert interval.mean == pytest.approx(mean)
    low, high = clopper_pearson(mean, trials)
    if variance < 1e-20:
        assert interval.method == "clopper-pearson" and interval.ci_high - interval.ci_low > 0
    else:
        half = stats.t.ppf(0.975, df) * math.sqrt(variance) / (mean * (1 - mean))
        assert interval.standard_error == pytest.approx(math.sqrt(variance), rel=1e-6)
        centre = special.logit(mean)
        low, high = max(low, special.expit(centre - half)), min(high, special.expit(centre + half))
    assert (interval.ci_low, interval.ci_high) == pytest.approx((low, high), abs=1e-6)


def test_cr2_is_that_of_adjustment_matrices():
    """The definition of Bell & McCaffrey and of clubSandwich: residuals times (I - H_g)^(-1/2), cluster by cluster."""
    generator = np.random.default_rng(3)
    codes = np.repeat(np.arange(9), [2, 3, 5, 8, 8, 9, 12, 15, 20])
    values = (generator.random(codes.size) < generator.beta(3, 3, 9)[codes]).astype(float)
    n, hat = codes.size, np.full((codes.size, codes.size), 1 / codes.size)
    columns = []
    for cluster in range(9):
        own = codes == cluster
        roots, basis = np.linalg.eigh(np.eye(own.sum()) - hat[np.ix_(own, own)])
        adjusted = basis @ np.diag(roots**-0.5) @ basis.T @ np.ones(own.sum())
        columns.append((np.eye(n) - hat)[:, own] @ adjusted / n)
    products = np.array(columns) @ np.array(columns).T
    terms = (np.array(columns) @ values) ** 2
    interval = clustered_interval(values, codes)
    assert interval.standard_error == pytest.approx(math.sqrt(terms.sum()))
    half = (special.logit(interval.ci_high) - special.logit(interval.ci_low)) / 2
    t = half * interval.mean * (1 - interval.mean) / interval.standard_error
    satterthwaite = np.trace(products) ** 2 / np.sum(products**2)
    spread = 2 * terms.sum() ** 2 / (np.sum((terms - terms.mean()) ** 2) * 9 / 8)
    assert t == pytest.approx(stats.t.ppf(0.975, min(satterthwaite, spread)))


def test_macro_is_the_mean_of_the_strata_with_their_own_residuals():
    generator = np.random.default_rng(2)
    strata, clusters = generator.integers(0, 3, 200), generator.integers(0, 15, 200)
    values = (generator.random(200) < np.array([0.2, 0.5, 0.9])[strata]).astype(float)
    interval = clustered_interval(values, clusters, strata=strata)
    means = [values[strata == part].mean() for part in range(3)]
    assert interval.mean == pytest.approx(np.mean(means))
    pooled = clustered_interval(values, clusters)
    assert interval.standard_error < pooled.standard_error, "differences between the strata are not noise"
    with pytest.raises(ValueError, match="weights must be positive"):
        clustered_interval(values, clusters, weights=np.zeros(200))


def test_groups_that_share_patients_are_not_independent():
    generator = np.random.default_rng(4)
    members = [generator.choice(12, 4, replace=False) for _ in range(90)]
    right = (generator.random(90) < 0.6).astype(float)
    low, high = overlapping_interval(right, members)
    alone = clopper_pearson(right.mean(), 90)
    assert low < alone[0] < right.mean() < alone[1] < high
    apart = overlapping_interval(right, [[4 * group + place for place in range(4)] for group in range(90)])
    assert apart == pytest.approx(alone, abs=0.02)
    assert overlapping_interval(np.ones(90), members)[0] == pytest.approx(clopper_pearson(1.0, 3.0)[0])
    assert overlapping_interval([1.0], [["a", "b"]]) == (0.0, 1.0)


def test_without_clusters_it_is_the_ordinary_standard_error():
    values = np.array([1, 0, 0, 1, 1, 1, 0, 1], float)
    interval = clustered_interval(values, list("abcdefgh"))
    assert interval.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(8))
    assert interval.effective_n == pytest.approx(8)


def test_copies_of_one_item_add_no_information():
    values, names = [1.0, 0.0, 1.0, 1.0, 0.0], list("abcde")
    once, tenfold = clustered_interval(values, names), clustered_interval(values * 10, names * 10)
    assert tenfold.standard_error == pytest.approx(once.standard_error)
    assert tenfold.effective_n == pytest.approx(5, rel=0.2)
    assert (tenfold.ci_low, tenfold.ci_high) == pytest.approx((once.ci_low, once.ci_high))


def test_all_right_has_an_interval_with_width_that_shrinks_with_clusters():
    few = clustered_interval(np.ones(300), [str(number % 3) for number in range(300)])
    many = clustered_interval(np.ones(300), [str(number % 100) for number in range(300)])
    assert few.ci_low == pytest.approx(0.025 ** (1 / 3)) and few.ci_high == 1.0
    assert few.ci_low < many.ci_low < 1.0
    assert clustered_interval(np.zeros(300), [str(number % 3) for number in range(300)]).ci_high == pytest.approx(
        1 - 0.025 ** (1 / 3)
    )


def test_interval_covers_where_clusters_differ():
    """At least 90% of the 95% intervals hold the truth; of intervals that ignore clusters far fewer do."""
    generator = np.random.default_rng(5)
    clusters = np.repeat(np.arange(20), 10)
    held = naive = 0
    for _ in range(400):
        values = (generator.random(200) < np.clip(generator.normal(0.5, 0.25, 20), 0, 1)[clusters]).astype(float)
        interval, ignoring = clustered_interval(values, clusters), clustered_interval(values, np.arange(200))
        held += interval.ci_low <= 0.5 <= interval.ci_high
        naive += ignoring.ci_low <= 0.5 <= ignoring.ci_high
    assert held >= 0.9 * 400 > naive


def test_p_value_holds_its_level_and_finds_an_effect():
    generator = np.random.default_rng(7)
    clusters = np.repeat(np.arange(17), 25)
    null = [p_value_against(generator.random(425) < 0.25, clusters, 0.25) for _ in range(400)]
    assert 0.02 <= np.mean(np.array(null) < 0.05) <= 0.09
    assert p_value_against(generator.random(425) < 0.5, clusters, 0.25) < 1e-6


def test_p_value_directions_and_edges():
    values, clusters = [1, 1, 0, 1, 1, 0, 1, 1], list("aabbccdd")
    above, below = (p_value_against(values, clusters, 0.5, side) for side in ("greater", "less"))
    assert above + below == pytest.approx(1) and above < 0.5
    assert p_value_against(values, clusters, 0.5, "two-sided") == pytest.approx(2 * above)
    assert p_value_against([1, 1], ["a", "a"], 0.25) == 1.0
    assert p_value_against(np.ones(8), clusters, 0.25) == pytest.approx(0.25**4)  # four clusters, not eight items
    mixed = p_value_against(values, clusters, [0.5, 0.5, 0.25, 0.25, 0.5, 0.5, 0.25, 0.25])
    assert mixed < above


def test_paired_difference_against_the_one_sample_test():
    generator = np.random.default_rng(3)
    left, right = (generator.random(80) < share for share in (0.7, 0.5))
    paired = paired_difference(left, right, [str(number) for number in range(80)])
    expected = stats.ttest_1samp(left.astype(float) - right, 0.0)
    assert paired.p_value == pytest.approx(expected.pvalue)
    assert (paired.ci_low, paired.ci_high) == pytest.approx(tuple(expected.confidence_interval()))
    mirrored = paired_difference(right, left, [str(number) for number in range(80)])
    assert (mirrored.difference, mirrored.ci_low) == pytest.approx((-paired.difference, -paired.ci_high))


def test_paired_difference_without_variance():
    clusters = [str(number % 10) for number in range(40)]
    same = paired_difference(np.ones(40), np.ones(40), clusters)
    assert (same.difference, same.p_value) == (0.0, 1.0)
    assert same.ci_high == -same.ci_low == pytest.approx(1 - 0.025**0.1)
    better = paired_difference(np.ones(40), np.zeros(40), clusters)
    assert better.difference == better.ci_high == 1.0 and 0 < better.ci_low < 1
    assert better.p_value == pytest.approx(2 * 0.5**10)
    one = paired_difference([1, 0], [0, 0], ["a", "a"])
    assert (one.ci_low, one.ci_high, one.p_value) == (-1.0, 1.0, 1.0)


@pytest.mark.slow
def test_minimum_detectable_effect_is_found_with_its_power():
    generator = np.random.default_rng(11)
    clusters, error = 30, 1 / math.sqrt(30)
    effect = minimum_detectable_effect(error, clusters)
    found = [stats.ttest_1samp(generator.normal(effect, 1, clusters), 0).pvalue < 0.05 for _ in range(2000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)
    assert math.isnan(minimum_detectable_effect(0.0, 30)) and math.isnan(minimum_detectable_effect(math.nan, 1))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm(p_values):
    adjusted = holm(p_values)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, place in enumerate(order):
        steps = [min(1.0, (len(order) - step) * p_values[order[step]]) for step in range(rank + 1)]
        assert adjusted[place] == max(steps)


@given(st.integers(0, 50), st.integers(1, 50))
def test_clopper_pearson(right, extra):
    low, high = clopper_pearson(right / (right + extra), right + extra)
    expected = stats.binomtest(right, right + extra).proportion_ci()
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_clusters_may_be_codes():
    values = [1, 0, 1, 1, 0, 1]
    named = clustered_interval(values, ["x", "y", "y", "x", "z", "z"])
    for codes in ([0, 1, 1, 0, 2, 2], [5, 9, 9, 5, 0, 0], [10**12, 3, 3, 10**12, 4, 4]):
        assert clustered_interval(values, np.array(codes)) == named


@pytest.mark.parametrize("missing", [None, "", float("nan")])
def test_a_missing_cluster_is_named(missing):
    with pytest.raises(ValueError, match="item 1 has no cluster"):
        cluster_codes(["a", missing])


@pytest.mark.parametrize(
    "values, clusters, message",
    [([], [], "at least one"), ([1], ["a", "b"], "1 values but 2"), ([2, 0], ["a", "b"], r"\[0, 1\], got 0 to 2")],
)
def test_wrong_input_is_named(values, clusters, message):
    with pytest.raises(ValueError, match=message):
        clustered_interval(values, clusters)
