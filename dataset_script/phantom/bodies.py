"""Nuclei, cells and other small bodies as arrays: what they are, where they lie, how they are turned."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from dataset_script.phantom.lattice import Points, Rect, grown, lattice, within
from dataset_script.phantom.scene import Fragment, Label


class Kind(IntEnum):
    """Kinds of body; each is a row of the sprite sheet."""

    FIBROBLAST = 0
    LYMPHOCYTES = 1
    NEUTROPHILS = 2
    EOSINOPHILS = 3
    UNIFORM = 4
    BIZARRE = 5
    MITOSIS = 6
    RED_CELL = 7
    DEBRIS = 8
    GHOST = 9
    VACUOLE = 10


@dataclass(frozen=True)
class Bodies:
    """Places in um, kinds, a hash for the variant, angle in radians and size as a factor, of bodies to draw."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    kind: NDArray[np.int64]
    key: NDArray[np.uint64]
    angle: NDArray[np.float64]
    size: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.x)

    def inside(self, rect: Rect) -> Bodies:
        """Returns the bodies whose place lies in a rectangle."""
        kept = within(self.x, self.y, rect)
        return Bodies(self.x[kept], self.y[kept], self.kind[kept], self.key[kept], self.angle[kept], self.size[kept])


def joined(parts: list[Bodies]) -> Bodies:
    """Returns bodies one after the other."""
    names = ("x", "y", "kind", "key", "angle", "size")
    if not parts:
        empty = np.zeros(0)
        return Bodies(empty, empty, empty.astype(np.int64), empty.astype(np.uint64), empty, empty)
    return Bodies(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def loose(points: Points, kind: NDArray[np.int64] | Kind) -> Bodies:
    """Bodies that lie any way round, their sizes within a sixth of the kind's own."""
    kinds = np.full(len(points), int(kind), np.int64) if isinstance(kind, Kind) else kind
    return Bodies(
        points.x, points.y, kinds, points.key, points.uniform(8) * 2 * np.pi, 0.84 + 0.32 * points.uniform(9)
    )


def placed_on(fragment: Fragment, block: Rect, salt: str, pitch: float, jitter: float, label: Label) -> Points:
    """Returns the points of a lattice that lie in a compartment."""
    points = lattice(fragment.seed, salt, block, pitch, jitter)
    return points.select(fragment.label(points.x, points.y) == label)


def rows_near(centres: NDArray[np.float64], block: Rect, by: float) -> NDArray[np.int64]:
    """Returns the numbers of the places in a block or within ``by`` um of it."""
    return np.flatnonzero(within(centres[:, 0], centres[:, 1], grown(block, by)))
