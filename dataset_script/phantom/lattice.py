"""Jittered lattices whose every cell draws its numbers from a hash, so that any rectangle is the same scene.

A cell's numbers depend on the seed, a salt that names their use, and the cell's indices alone: nothing is stored, and
two overlapping rectangles hold the same points whatever was asked for first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Rect = tuple[float, float, float, float]
"""left, top, right, bottom in um, in slide coordinates."""

_MIX: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_STEP: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 64) - 1


def mixed(number: int) -> int:
    """Mixes a 64-bit integer (the finaliser of SplitMix64; Steele et al. 2014)."""
    number &= _MASK
    number = ((number ^ (number >> 30)) * _MIX[0]) & _MASK
    number = ((number ^ (number >> 27)) * _MIX[1]) & _MASK
    return number ^ (number >> 31)


def seeded(seed: int, *names: int | str) -> int:
    """Returns a 64-bit seed that depends on a seed and on the names of what it is used for."""
    value = mixed(seed + _STEP)
    for name in names:
        for part in [name] if isinstance(name, int) else name.encode():
            value = mixed(value + _STEP * (int(part) + 1))
    return value


def _mixed_array(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(_MIX[0])
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(_MIX[1])
    return numbers ^ (numbers >> np.uint64(31))


@dataclass(frozen=True)
class Points:
    """Lattice points: positions in um and the hash that further numbers of each point are drawn from."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    key: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.x)

    def select(self, kept: NDArray[np.bool_]) -> Points:
        """Returns the points that a mask keeps."""
        return Points(self.x[kept], self.y[kept], self.key[kept])

    def uniform(self, number: int) -> NDArray[np.float64]:
        """Returns the ``number``-th uniform number in [0, 1) of each point."""
        return _uniform(self.key, number)


def _uniform(key: NDArray[np.uint64], number: int) -> NDArray[np.float64]:
    mixed_keys = _mixed_array(key + np.uint64((_STEP * (number + 1)) & _MASK))
    return (mixed_keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


def lattice(seed: int, salt: str, rect: Rect, pitch: float, jitter: float) -> Points:
    """Returns the points of a jittered triangular lattice in a rectangle.

    Args:
        seed: of the scene.
        salt: names the use; another salt is another lattice.
        rect: wanted points lie in it (half-open), um.
        pitch: distance of neighbours, um; a point stands for ``pitch ** 2 * sqrt(3) / 2`` um2.
        jitter: greatest displacement along each axis as a share of the pitch.
    """
    row_height = pitch * 0.75**0.5
    reach = pitch * jitter
    rows = np.arange(np.floor((rect[1] - reach) / row_height), np.ceil((rect[3] + reach) / row_height) + 1)
    columns = np.arange(np.floor((rect[0] - reach) / pitch) - 1, np.ceil((rect[2] + reach) / pitch) + 1)
    row, column = (grid.ravel().astype(np.int64) for grid in np.meshgrid(rows, columns, indexing="ij"))
    base = np.uint64(seeded(seed, salt))
    key = _mixed_array(base + row.astype(np.uint64) * np.uint64(_STEP))
    key = _mixed_array(key + column.astype(np.uint64) * np.uint64(_MIX[0]))
    x = (column + 0.5 * (row & 1) + jitter * (2 * _uniform(key, 0) - 1)) * pitch
    y = row * row_height + jitter * (2 * _uniform(key, 1) - 1) * pitch
    inside = within(x, y, rect)
    return Points(x[inside], y[inside], key[inside])


def within(x: NDArray[np.float64], y: NDArray[np.float64], rect: Rect) -> NDArray[np.bool_]:
    """Says of each place whether it lies in a rectangle (half-open)."""
    return np.asarray((x >= rect[0]) & (x < rect[2]) & (y >= rect[1]) & (y < rect[3]))


def grown(rect: Rect, by: float) -> Rect:
    """Returns a rectangle with ``by`` um more on every side."""
    return rect[0] - by, rect[1] - by, rect[2] + by, rect[3] + by


def overlap(first: Rect, second: Rect) -> Rect | None:
    """Returns what two rectangles share, None where that is nothing."""
    shared = max(first[0], second[0]), max(first[1], second[1]), min(first[2], second[2]), min(first[3], second[3])
    return shared if shared[0] < shared[2] and shared[1] < shared[3] else None
