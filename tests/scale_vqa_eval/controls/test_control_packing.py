"""Groups of four from a compatibility graph: valid, as many as can be had, never more than the bound."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scale_vqa_eval.controls.group_packing import (
    best_packing,
    capacity_bound,
    four_cliques,
    pack,
    raise_weight,
    relaxed_bound,
    useful_edges,
)


def random_graph(n: int, density: float, seed: int, planted: int = 0) -> np.ndarray:
    """A random graph in which ``planted`` disjoint groups of four are made complete."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((n, n)) < density, 1)
    order = rng.permutation(n)
    for group in range(planted):
        for one, other in combinations(sorted(order[4 * group : 4 * group + 4]), 2):
            upper[one, other] = True
    return upper | upper.T


def most_groups(graph: np.ndarray) -> int:
    """The optimum by exhaustive search, for graphs of up to 12 items."""
    cliques = [set(c) for c in combinations(range(len(graph)), 4) if all(graph[a, b] for a, b in combinations(c, 2))]

    @cache
    def best(free: frozenset[int]) -> int:
        return max((1 + best(free - clique) for clique in cliques if clique <= free), default=0)

    return best(frozenset(range(len(graph))))


def assert_valid(groups: object, graph: np.ndarray) -> None:
    items = [item for group in groups for item in group]
    assert len(items) == len(set(items))
    for group in groups:
        assert len(group) == 4
        assert all(graph[one, other] for one, other in combinations(group, 2))


@given(n=st.integers(1, 12), density=st.floats(0.3, 1), seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_small_graphs_are_packed_to_the_optimum(n: int, density: float, seed: int) -> None:
    graph = random_graph(n, density, seed)
    packing = pack(graph, np.zeros((n, n)), [str(item) for item in range(n)], seed)
    assert_valid(packing.groups, graph)
    assert len(packing.groups) == most_groups(graph) <= packing.bound


@given(density=st.sampled_from([0.05, 0.3, 0.6, 0.95]), groups=st.integers(1, 20), seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_planted_groups_bound_what_is_found(density: float, groups: int, seed: int) -> None:
    n = 4 * groups + seed % 4
    graph = random_graph(n, density, seed, planted=groups)
    packing = pack(graph, np.zeros((n, n)), [str(item) for item in range(n)], seed)
    assert_valid(packing.groups, graph)
    assert groups >= len(packing.groups) >= groups - 1
    assert packing.bound >= groups  # the optimum is n // 4: a bound below it would be false


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_patients_alone_give_exactly_the_capacity(sizes: list[int], seed: int) -> None:
    """Where only the patient forbids a pair, the optimum is known: the largest G with sum min(size, G) >= 4 G."""
    patients = np.repeat(np.arange(len(sizes)), sizes)
    patients = np.random.default_rng(seed).permutation(patients)
    graph = patients[:, None] != patients[None, :]
    packing = pack(graph, np.zeros(graph.shape), [str(patient) for patient in patients], seed)
    assert_valid(packing.groups, graph)
    assert len(packing.groups) == packing.bound == capacity_bound(sizes)


def test_first_come_would_lose_groups() -> None:
    """Four patients with one item each and one with four: taking the large one late strands its items."""
    sizes = [4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert capacity_bound(sizes) == 4
    patients = np.repeat(np.arange(13), sizes)[::-1]
    graph = patients[:, None] != patients[None, :]
    assert len(pack(graph, np.zeros(graph.shape), [str(p) for p in patients], 0).groups) == 4


def test_same_seed_same_groups() -> None:
    graph, weight = random_graph(80, 0.25, 3), random_graph(80, 0.5, 4).astype(float)
    first, second = (pack(graph, weight, [str(i) for i in range(80)], 7) for _ in range(2))
    assert first == second and first.groups


@given(seed=st.integers(0, 10_000), density=st.floats(0.5, 1))
@settings(max_examples=30, deadline=None)
def test_weight_rises_and_groups_stay_groups(seed: int, density: float) -> None:
    graph = random_graph(30, density, seed, planted=6)
    rng = np.random.default_rng(seed)
    weight = rng.random((30, 30))
    weight += weight.T
    before = [tuple(group) for group in best_packing(four_cliques(graph, np.arange(30), 10**6)[:400])[0]]
    after = raise_weight(graph, weight, before)
    assert_valid(after, graph)
    assert len(after) == len(before)

    def total(groups: list[tuple[int, ...]]) -> float:
        return sum(weight[a, b] for group in groups for a, b in combinations(group, 2))

    assert total(after) >= total(before) - 1e-9


@given(n=st.integers(4, 11), density=st.floats(0.3, 1), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_bounds_are_bounds(n: int, density: float, seed: int) -> None:
    graph = random_graph(n, density, seed)
    optimum = most_groups(graph)
    useful = useful_edges(graph)
    assert most_groups(useful) == optimum
    assert capacity_bound([1] * int(useful.any(axis=1).sum())) >= optimum
    cliques = four_cliques(graph, np.arange(n), 10**6)
    assert {tuple(clique) for clique in cliques.tolist()} == {
        c for c in combinations(range(n), 4) if all(graph[a, b] for a, b in combinations(c, 2))
    }
    assert relaxed_bound(cliques) >= optimum


def test_too_many_cliques_are_not_listed() -> None:
    graph = random_graph(30, 1.0, 0)
    assert four_cliques(graph, np.arange(30), 100) is None


@pytest.mark.parametrize("n", [0, 1, 3])
def test_nothing_to_pack(n: int) -> None:
    graph = np.zeros((n, n), dtype=bool)
    assert pack(graph, np.zeros((n, n)), [""] * n, 0).groups == ()
