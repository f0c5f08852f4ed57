"""Geometry of synthetic slides: seeded jittered lattices, and wavy outlines as point arrays and drawing paths.

The random numbers of a lattice cell are hashes of the seed, a salt that names their use, and the cell's indices. So
nothing is stored, and overlapping rectangles contain the same points, in whatever order they are computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import skia
from numpy.typing import NDArray

Rect = tuple[float, float, float, float]
"""left, top, right, bottom in um, in slide coordinates."""

_MIX: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_STEP: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 64) - 1


def mixed(number: int) -> int:
    """Hashes a 64-bit integer (the finaliser of SplitMix64; Steele et al. 2014)."""
    number &= _MASK
    number = ((number ^ (number >> 30)) * _MIX[0]) & _MASK
    number = ((number ^ (number >> 27)) * _MIX[1]) & _MASK
    return number ^ (number >> 31)


def seeded(seed: int, *names: int | str) -> int:
    """Derives a 64-bit seed from a seed and the names of its use."""
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
    """Lattice points: positions in um, and a hash from which further random numbers of each point are drawn."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    key: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.x)

    def select(self, kept: NDArray[np.bool_]) -> Points:
        """Returns the points of a mask."""
        return Points(self.x[kept], self.y[kept], self.key[kept])

    def uniform(self, number: int) -> NDArray[np.float64]:
        """Returns the ``number``-th uniform random number in [0, 1) of each point."""
        return _uniform(self.key, number)


def _uniform(key: NDArray[np.uint64], number: int) -> NDArray[np.float64]:
    mixed_keys = _mixed_array(key + np.uint64((_STEP * (number + 1)) & _MASK))
    return (mixed_keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


def lattice(seed: int, salt: str, rect: Rect, pitch: float, jitter: float) -> Points:
    """Returns the points of a jittered triangular lattice in a rectangle.

    Args:
        seed: seed of the scene.
        salt: name of the use; each salt has its own lattice.
        rect: half-open rectangle that contains the points, um.
        pitch: distance of neighbours, um; the area per point is ``pitch ** 2 * sqrt(3) / 2`` um2.
        jitter: maximum displacement along each axis, as a share of the pitch.
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
    """Returns whether each position is in a half-open rectangle."""
    return np.asarray((x >= rect[0]) & (x < rect[2]) & (y >= rect[1]) & (y < rect[3]))


def grown(rect: Rect, by: float) -> Rect:
    """Returns a rectangle enlarged by ``by`` um on every side."""
    return rect[0] - by, rect[1] - by, rect[2] + by, rect[3] + by


def overlap(first: Rect, second: Rect) -> Rect | None:
    """Returns the intersection of two rectangles, or None if it is empty."""
    shared = max(first[0], second[0]), max(first[1], second[1]), min(first[2], second[2]), min(first[3], second[3])
    return shared if shared[0] < shared[2] and shared[1] < shared[3] else None


Contours = NDArray[np.float64]
"""Shape (curves, points, 2), um."""


def waves(
    rng: np.random.Generator, curves: int, points: int, first: int, last: int, strength: float
) -> NDArray[np.float64]:
    """Returns relative radii, shape (curves, points): 1 plus harmonics ``first`` to ``last`` of decreasing amplitude.

    Args:
        rng: random generator of amplitudes and phases.
        curves: number of outlines.
        points: number of samples along each outline.
        first: lowest harmonic (2 does not move the centre).
        last: highest harmonic.
        strength: maximum amplitude of the lowest harmonic.
    """
    orders = np.arange(first, last + 1)
    amplitudes = rng.uniform(0, strength, (curves, len(orders))) * (first / orders)
    phases = rng.uniform(0, 2 * np.pi, (curves, len(orders)))
    angles = np.arange(points) * (2 * np.pi / points)
    cosines = np.cos(orders[None, :, None] * angles[None, None, :] + phases[:, :, None])
    return 1 + np.einsum("co,cop->cp", amplitudes, cosines)


def ellipses(
    centres: NDArray[np.float64],
    radii: NDArray[np.float64],
    angles: NDArray[np.float64],
    wave: NDArray[np.float64],
) -> Contours:
    """Returns wavy ellipses.

    Args:
        centres: (curves, 2) in um.
        radii: (curves, 2) radii in um, along and across.
        angles: (curves,) direction of the first radius, radians.
        wave: (curves, points) relative radii, from ``waves``.
    """
    along = np.arange(wave.shape[1]) * (2 * np.pi / wave.shape[1])
    x = radii[:, :1] * wave * np.cos(along)
    y = radii[:, 1:] * wave * np.sin(along)
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.stack([centres[:, :1] + cosine * x - sine * y, centres[:, 1:] + sine * x + cosine * y], axis=-1)


def smooth_path(contours: Contours) -> skia.Path:
    """Returns a path of closed quadratic B-splines with the given polygons as control points."""
    path = skia.Path()
    points = contours.shape[1]
    corner_x, corner_y = (contours[:, :, axis].ravel().tolist() for axis in (0, 1))
    middles = (contours + np.roll(contours, -1, axis=1)) / 2
    joint_x, joint_y = (middles[:, :, axis].ravel().tolist() for axis in (0, 1))
    for first in range(0, len(corner_x), points):
        path.moveTo(joint_x[first + points - 1], joint_y[first + points - 1])
        for at in range(first, first + points):
            path.quadTo(corner_x[at], corner_y[at], joint_x[at], joint_y[at])
        path.close()
    return path
