"""Packs as many disjoint groups of four mutually compatible items as can be had: 4-clique packing in a graph.

The problem is NP-hard (Hell and Kirkpatrick 1983), so small graphs are solved exactly as a set packing over all their
4-cliques, and larger ones by large neighbourhood search (Shaw 1998): a few groups and the items left over are taken
out, repacked exactly, and put back. The count stands beside an upper bound, and the search ends where it meets it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.controls.cliques import (
    SIZE,
    Group,
    Items,
    Matrix,
    best_packing,
    four_cliques,
    relaxed_bound,
    upper_bound,
    useful_edges,
)

Weights = npt.NDArray[np.float64]

EXACT_CLIQUES: Final = 1_500
"""Up to this number of 4-cliques a graph, or a part of one, is packed exactly in one piece."""
LISTED_CLIQUES: Final = 20_000
"""Up to this number all 4-cliques are listed: for the bound of the linear relaxation and a start by rarity."""


@dataclass(frozen=True)
class Packing:
    """Disjoint groups of four, and how good they can be.

    Attributes:
        groups: each a sorted tuple of four item numbers; sorted.
        bound: no packing has more groups than this.
    """

    groups: tuple[Group, ...]
    bound: int


def pack(compatible: Matrix, weight: Weights, classes: Sequence[str], seed: int, patience: int = 40) -> Packing:
    """Packs items into as many groups of four as the search finds, then raises the weight within groups.

    Args:
        compatible: (n, n) symmetric, False on the diagonal: which two items may share a group.
        weight: (n, n) symmetric: how much one prefers two items in one group; counts second to the number of groups.
        classes: (n,) names of mutually incompatible items (patients), for the upper bound.
        seed: of the search; the same seed gives the same groups.
        patience: repacked neighbourhoods without gain after which the search ends.
    """
    compatible = useful_edges(compatible)
    rng = random.Random(seed)
    bound = upper_bound(compatible, classes)
    groups = _construct(compatible, weight, rng, bound)
    cliques = four_cliques(compatible, np.arange(len(compatible)), LISTED_CLIQUES) if len(groups) < bound else None
    if cliques is not None:
        bound = min(bound, relaxed_bound(cliques))
        groups = max(groups, _rarest_first(cliques, len(compatible)), key=len)
    groups = _search(compatible, groups, bound, rng, patience)
    if len(groups) < bound and cliques is not None and len(cliques) <= EXACT_CLIQUES:
        exact, limit = best_packing(cliques)
        groups, bound = max(groups, exact, key=len), min(bound, limit)
    groups = raise_weight(compatible, weight, groups)
    return Packing(tuple(sorted(tuple(sorted(group)) for group in groups)), bound)


def raise_weight(compatible: Matrix, weight: Weights, groups: Sequence[Group]) -> list[Group]:
    """Exchanges items between groups, and with items left over, while the summed weight within groups rises.

    Every step keeps all groups cliques; in a sweep each group takes part in one exchange at most, the best first.
    """
    members = np.array([sorted(group) for group in groups], dtype=np.int64).reshape(-1, SIZE)
    n, count = len(compatible), len(members)
    weight = np.where(np.eye(n, dtype=bool), 0.0, weight)
    clash = ~compatible & ~np.eye(n, dtype=bool)
    for _ in range(4 * n):
        place = np.full(n, -1)
        place[members.ravel()] = np.repeat(np.arange(count), SIZE)
        gains = _exchange_gains(weight, clash, members, place)
        order = np.argsort(-gains, axis=None, kind="stable")[: 8 * count]
        touched: set[int] = set()
        for flat in order:
            one, other = (int(part) for part in np.unravel_index(flat, gains.shape))
            if gains[one, other] <= 1e-9:
                break
            # a group, or an item left over, takes part in one exchange of a sweep
            pair = {int(place[item]) if place[item] >= 0 else count + item for item in (one, other)}
            if touched & pair:
                continue
            touched |= pair
            for item, partner in ((one, other), (other, one)):
                if place[item] >= 0:
                    row = members[place[item]]
                    row[row == item] = partner
        if not touched:
            break
    return [tuple(int(item) for item in row) for row in members]


def _exchange_gains(weight: Weights, clash: Matrix, members: Items, place: Items) -> Weights:
    """Returns (n, n): what exchanging two items' places gains in weight, -inf where it may not be."""
    n, count = len(place), len(members)
    # one group more, empty, stands for "left over": it has no weight and clashes with nothing
    inside = np.zeros((n, count + 1))
    inside[members.ravel(), np.repeat(np.arange(count), SIZE)] = 1
    here = np.where(place >= 0, place, count)
    into = (weight @ inside)[:, here] - np.where(place >= 0, weight, 0.0)
    clashes = (clash.astype(np.float32) @ inside.astype(np.float32))[:, here] - np.where(place >= 0, clash, False)
    stays = (weight @ inside)[np.arange(n), here]
    gains = into + into.T - stays[:, None] - stays[None, :]
    allowed = (clashes < 0.5) & (clashes.T < 0.5) & (place[:, None] != place[None, :])
    return np.where(np.triu(allowed, 1), gains, -np.inf)


def _construct(compatible: Matrix, weight: Weights, rng: random.Random, bound: int, tries: int = 8) -> list[Group]:
    best: list[Group] = []
    for _ in range(tries):
        jitter = np.array([rng.random() for _ in range(len(compatible))])
        best = max(best, _greedy(compatible, weight, jitter), key=len)
        if len(best) >= bound:
            break
    return best


def _greedy(compatible: Matrix, weight: Weights, jitter: Weights) -> list[Group]:
    """Builds groups around the item with the fewest partners left, from partners with few of their own."""
    alive: Matrix = np.asarray(compatible.any(axis=1))
    groups: list[Group] = []
    while alive.sum() >= SIZE:
        degree = compatible[:, alive].sum(axis=1)
        first = int(min(np.flatnonzero(alive), key=lambda item: (degree[item], jitter[item])))
        group = [first]
        candidates = alive & compatible[first]
        while len(group) < SIZE and candidates.any():
            inner = compatible[:, candidates].sum(axis=1)
            enough = [item for item in np.flatnonzero(candidates) if inner[item] >= SIZE - 1 - len(group)]
            if not enough:
                break
            pull = weight[:, group].sum(axis=1)
            chosen = int(min(enough, key=lambda item: (degree[item] // SIZE, -pull[item], jitter[item])))
            group.append(chosen)
            candidates &= compatible[chosen]
        if len(group) == SIZE:
            groups.append(tuple(group))
            alive[group] = False
        else:
            alive[first] = False
    return groups


def _rarest_first(cliques: Items, n: int) -> list[Group]:
    """Takes the item that is in the fewest cliques left, and of its cliques the one whose items are in the fewest."""
    groups: list[Group] = []
    while len(cliques):
        counts = np.bincount(cliques.ravel(), minlength=n)
        first = int(np.where(counts > 0, counts, counts.max() + 1).argmin())
        own = cliques[(cliques == first).any(axis=1)]
        chosen = own[counts[own].sum(axis=1).argmin()]
        groups.append(tuple(int(item) for item in chosen))
        cliques = cliques[~np.isin(cliques, chosen).any(axis=1)]
    return groups


def _search(compatible: Matrix, groups: list[Group], bound: int, rng: random.Random, patience: int) -> list[Group]:
    """Repacks the surroundings of items left over, ever wider ones, until the bound is met or patience ends."""
    usable = np.flatnonzero(compatible.any(axis=1))
    fruitless = 0
    while len(groups) < bound and fruitless < patience:
        around = _surroundings(compatible, groups, usable, rng, 3 + fruitless // 4)
        items = np.array(sorted({item for part in around for item in part}), dtype=np.int64)
        cliques = four_cliques(compatible, items, EXACT_CLIQUES)
        whole = [part for part in around if len(part) == SIZE]
        packed = [] if cliques is None else best_packing(cliques)[0]
        fruitless = 0 if len(packed) > len(whole) else fruitless + 1
        if len(packed) >= len(whole):
            groups = [group for group in groups if group not in set(whole)] + packed
    return groups


def _surroundings(
    compatible: Matrix, groups: list[Group], usable: Items, rng: random.Random, width: int
) -> list[tuple[int, ...]]:
    """Returns up to ``width`` groups closely tied to some items left over, and those items as groups of one."""
    taken = {item for group in groups for item in group}
    left = [int(item) for item in usable if int(item) not in taken]
    start = rng.choice(left)
    near = sorted(left, key=lambda item: (item != start, not compatible[start, item], rng.random()))[: 2 + width]
    ties = compatible[near].sum(axis=0)
    ranked = sorted(groups, key=lambda group: -sum(int(ties[item]) for item in group) * rng.random())
    return [*ranked[:width], *((item,) for item in near)]
