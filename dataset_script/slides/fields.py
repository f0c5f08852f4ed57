"""Square fields of a slide and how they lie to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scale_vqa_eval.schema import MAGNIFICATION, MPP

Values = NDArray[np.float64]
Mask = NDArray[np.bool_]

OVERLAP_LIMIT: Final = 0.25
"""Most that two fields of one question share, as part of one field's area."""


@dataclass(frozen=True, order=True)
class Field:
    """A square field of a slide at one of the three scales.

    Attributes:
        view: ``low_mag``, ``mid_mag`` or ``high_mag``; the scale is ``schema.MPP[view]``.
        x: centre in um from the left edge of the slide, in tenths of a um.
        y: centre in um from its top edge.
        size_px: pixels along a side.
    """

    view: str
    x: float
    y: float
    size_px: int

    @property
    def mpp(self) -> float:
        """Um per pixel."""
        return MPP[self.view]

    @property
    def side(self) -> float:
        """Side in um."""
        return self.size_px * self.mpp

    def name(self, slide: str) -> str:
        """Returns the field's file name: slide, magnification, centre in um, pixels."""
        return f"{slide}_{MAGNIFICATION[self.view]}_x{self.x:.1f}_y{self.y:.1f}_{self.size_px}px.jpg"

    def holds(self, other: Field) -> bool:
        """Says whether another field lies wholly in this one, to a thousandth of a um."""
        room = (self.side - other.side) / 2 + 1e-3
        return abs(self.x - other.x) <= room and abs(self.y - other.y) <= room

    def overlap(self, other: Field) -> float:
        """Returns the area shared with another field as part of the smaller one's area."""
        reach = (self.side + other.side) / 2
        smaller = min(self.side, other.side)
        across = min(smaller, max(0.0, reach - abs(self.x - other.x)))
        down = min(smaller, max(0.0, reach - abs(self.y - other.y)))
        return across * down / smaller**2


def field(view: str, x: Any, y: Any, size_px: int) -> Field:
    """Returns a field whose centre is rounded to a tenth of a um, as its name and the plan write it."""
    return Field(view, round(float(x), 1), round(float(y), 1), size_px)


def shared_area(across: Values, down: Values, side: float) -> Values:
    """Returns the area that equal fields share, as part of one field's area, from the distances of their centres."""
    return np.asarray(np.clip(1 - np.abs(across) / side, 0, 1) * np.clip(1 - np.abs(down) / side, 0, 1))


def apart(across: Values, down: Values, reach: float) -> Mask:
    """Says of fields whether they have no point in common, from the distances of their centres.

    Args:
        across: distances in um from left to right.
        down: distances from top to bottom.
        reach: half the sum of the two fields' sides; a fifth of a um more is asked for, for centres are rounded.
    """
    return np.asarray(np.maximum(np.abs(across), np.abs(down)) >= reach + 0.2)
