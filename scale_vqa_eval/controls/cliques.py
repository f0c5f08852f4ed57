"""4-cliques of a compatibility graph: enumerated, packed exactly, and bounded from above."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.bool_]
Items = npt.NDArray[np.int64]
Group = tuple[int, ...]

SIZE: Final = 4
NODE_LIMIT: Final = 500
"""Branch-and-bound nodes of one exact packing: bounds the time without reading a clock, so that runs repeat."""


def useful_edges(compatible: Matrix) -> Matrix:
    """Returns the graph without the edges that lie in no 4-clique by a simple count of common neighbours."""
    graph = compatible.copy()
    while True:
        common = graph.astype(np.float32) @ graph.astype(np.float32)
        kept = graph & (common >= SIZE - 2)
        kept[kept.sum(axis=1) < SIZE - 1] = False
        kept &= kept.T
        if (kept == graph).all():
            return graph
        graph = kept


def four_cliques(graph: Matrix, items: Items, limit: int) -> Items | None:
    """Returns (m, 4): every 4-clique among ``items``, as item numbers; None where there are more than ``limit``."""
    found: list[Items] = []
    total = 0
    part = graph[np.ix_(items, items)]
    later = np.triu(part, 1)
    for first in range(len(items)):
        for second in np.flatnonzero(later[first]):
            both = np.flatnonzero(later[first] & later[second])
            third, fourth = np.nonzero(later[np.ix_(both, both)])
            if len(third) == 0:
                continue
            total += len(third)
            if total > limit:
                return None
            head = np.broadcast_to([first, second], (len(third), 2))
            found.append(np.column_stack([head, both[third], both[fourth]]))
    if not found:
        return np.empty((0, SIZE), dtype=np.int64)
    return np.asarray(items[np.concatenate(found)], dtype=np.int64)


def best_packing(cliques: Items) -> tuple[list[Group], int]:
    """Returns a largest set of disjoint cliques by integer programming (HiGHS), and the solver's upper bound."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    if len(cliques) == 0:
        return [], 0
    cover = _cover(cliques)
    result = milp(
        -np.ones(len(cliques)),
        constraints=LinearConstraint(cover, ub=1),
        integrality=np.ones(len(cliques)),
        bounds=Bounds(0, 1),
        options={"node_limit": NODE_LIMIT},
    )
    limit = cover.shape[0] // SIZE
    if result.mip_dual_bound is not None and np.isfinite(result.mip_dual_bound):
        limit = min(limit, int(np.floor(-result.mip_dual_bound + 1e-6)))
    chosen = [] if result.x is None else np.flatnonzero(result.x > 0.5).tolist()
    return [tuple(int(item) for item in cliques[column]) for column in chosen], limit


def upper_bound(compatible: Matrix, classes: Sequence[str]) -> int:
    """Returns a number that no packing exceeds.

    A group has at most one item of any set of mutually incompatible items; so in a partition into such sets S_k, G
    groups need sum over k of min(|S_k|, G) >= 4 G. Taken over two partitions: the classes, and a greedy colouring of
    the graph (largest degree first, Welsh and Powell 1967), the smaller bound counts.
    """
    alive = np.flatnonzero(compatible.any(axis=1))
    by_class = Counter(classes[item] for item in alive.tolist())
    return min(capacity_bound(list(by_class.values())), capacity_bound(_colour_sizes(compatible, alive)))


def capacity_bound(sizes: Sequence[int]) -> int:
    """Returns the largest G with sum of min(size, G) >= 4 G.

    >>> capacity_bound([1, 1, 1, 1]), capacity_bound([9, 9, 9]), capacity_bound([10, 1, 1, 1])
    (1, 0, 1)
    """
    counts = np.asarray(sizes, dtype=np.int64)
    groups = int(counts.sum()) // SIZE
    while groups and int(np.minimum(counts, groups).sum()) < SIZE * groups:
        groups -= 1
    return groups


def relaxed_bound(cliques: Items) -> int:
    """Returns the bound that the linear relaxation of the set packing over all 4-cliques of a graph gives."""
    from scipy.optimize import linprog

    if len(cliques) == 0:
        return 0
    cover = _cover(cliques)
    result = linprog(-np.ones(len(cliques)), A_ub=cover, b_ub=np.ones(cover.shape[0]), method="highs")
    return int(np.floor(-result.fun + 1e-6)) if result.status == 0 else int(cover.shape[0]) // SIZE


def _cover(cliques: Items) -> Any:
    """Returns the sparse (items, cliques) matrix of which item is in which clique."""
    from scipy.sparse import csc_array

    items, rows = np.unique(cliques, return_inverse=True)
    columns = np.repeat(np.arange(len(cliques)), SIZE)
    return csc_array((np.ones(len(columns)), (rows.ravel(), columns)), shape=(len(items), len(cliques)))


def _colour_sizes(compatible: Matrix, alive: Items) -> list[int]:
    """Returns the class sizes of a greedy colouring: each class a set of mutually incompatible items."""
    free = list(alive[np.argsort(compatible[alive].sum(axis=1), kind="stable")])
    sizes = []
    while free:
        blocked = np.zeros(len(compatible), dtype=bool)
        rest = []
        size = 0
        for item in free:
            if blocked[item]:
                rest.append(item)
            else:
                blocked |= compatible[item]
                size += 1
        sizes.append(size)
        free = rest
    return sizes
