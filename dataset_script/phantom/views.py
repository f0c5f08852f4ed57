"""Places the three nested views of a path where its facts can be seen.

A 40x field is taken where it touches the focus or keeps clear of it, at the margin of the tissue or within it, as the
facts say, and shows vessels; a 200x field where it shows epithelium, stroma, inflammatory cells and, if there are any,
mitoses. Fields are drawn at random until one fits; the label raster and the bodies themselves are what is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dataset_script.phantom.bodies import Kind
from dataset_script.phantom.lattice import Rect, grown, seeded, within
from dataset_script.phantom.nuclei import bodies
from dataset_script.phantom.scene import LABEL_MPP, Fragment, Label
from scale_vqa_eval.schema import MPP

VIEW_PIXELS: Final = 512
LOW_JITTER: Final = 60.0
TOUCHING: Final = (0.10, 0.45)
MARGIN: Final = (0.10, 0.35)
"""Least and greatest share of a 40x field that the focus, or the bare glass, takes up."""
CLEARANCE: Final = 150.0
"""A 40x field that avoids the focus, or lies in the centre, keeps this far from it or from the margin, um."""
MIN_VESSELS: Final = 6
MIN_CELLS: Final = 12
MIN_MITOSES: Final = 5
_TRIES: Final = 4000


@dataclass(frozen=True)
class View:
    """A square field: centre in slide coordinates (um) and scale."""

    x: float
    y: float
    mpp: float

    @property
    def half(self) -> float:
        """Half the side, um."""
        return VIEW_PIXELS * self.mpp / 2

    @property
    def rect(self) -> Rect:
        """The field in slide coordinates, um."""
        return self.x - self.half, self.y - self.half, self.x + self.half, self.y + self.half


def place_views(fragment: Fragment) -> dict[str, View] | None:
    """Returns view name -> field, each within the one before; None where no field shows all facts."""
    rng = np.random.default_rng(seeded(fragment.seed, "views"))
    x, y = np.array(fragment.centre) + rng.uniform(-LOW_JITTER, LOW_JITTER, 2)
    low = View(float(x), float(y), MPP["low_mag"])
    for mid in _mid_fields(fragment, low, rng):
        high = _high_field(fragment, mid, rng)
        if high is not None:
            return {"low_mag": low, "mid_mag": mid, "high_mag": high}
    return None


def _share(fragment: Fragment, rect: Rect, *labels: Label) -> float:
    """Returns the share of a rectangle that compartments take up, from up to some 100 x 100 samples of the raster."""
    frame, side = fragment.frame, fragment.labels.shape[0]
    left, top, right, bottom = (
        min(max(round((value - frame[axis % 2]) / LABEL_MPP), 0), side) for axis, value in enumerate(rect)
    )
    step = max(1, (right - left) // 100)
    counts = np.bincount(fragment.labels[top:bottom:step, left:right:step].ravel(), minlength=len(Label))
    return float(counts[list(labels)].sum() / max(1, counts.sum()))


def _mid_fields(fragment: Fragment, low: View, rng: np.random.Generator) -> Iterator[View]:
    """Yields 40x fields within the 10x field that bear out the facts."""
    facts = fragment.facts
    half = VIEW_PIXELS * MPP["mid_mag"] / 2
    reach = low.half - half
    for x, y in rng.uniform(-reach, reach, (_TRIES, 2)) + np.array([low.x, low.y]):
        view = View(float(x), float(y), MPP["mid_mag"])
        around = grown(view.rect, CLEARANCE)
        bare = _share(fragment, view.rect, Label.BACKGROUND)
        if facts.depth == "margin" and not MARGIN[0] <= bare <= MARGIN[1]:
            continue
        if facts.depth == "centre" and _share(fragment, around, Label.BACKGROUND) > 0:
            continue
        focus = _share(fragment, view.rect, Label.FOCUS)
        if facts.site == "touching" and not TOUCHING[0] <= focus <= TOUCHING[1]:
            continue
        if facts.site == "avoiding" and _share(fragment, around, Label.FOCUS) > 0:
            continue
        if _seen(fragment.vessels.centres, view) >= MIN_VESSELS and _share(fragment, view.rect, Label.STROMA) > 0.2:
            yield view


def _seen(centres: NDArray[np.float64], view: View) -> int:
    return int(within(centres[:, 0], centres[:, 1], view.rect).sum())


def _high_field(fragment: Fragment, mid: View, rng: np.random.Generator) -> View | None:
    """Returns a 200x field within a 40x field that shows what is asked of 200x; None where a few tries find none."""
    reach = mid.half - VIEW_PIXELS * MPP["high_mag"] / 2
    looked = 0
    for x, y in rng.uniform(-reach, reach, (400, 2)) + np.array([mid.x, mid.y]):
        view = View(float(x), float(y), MPP["high_mag"])
        if _share(fragment, view.rect, Label.BACKGROUND, Label.FOCUS, Label.FOLLICLE) > 0:
            continue
        epithelium = _share(fragment, view.rect, Label.GLAND, Label.SHEET)
        if not 0.15 <= epithelium <= 0.65 or _share(fragment, view.rect, Label.STROMA) < 0.25:
            continue
        looked += 1
        if _shows_cells(fragment, view):
            return view
        if looked == 40:
            break
    return None


def _shows_cells(fragment: Fragment, view: View) -> bool:
    kinds = [block.kind for block in bodies(fragment, view.rect)]
    counts = np.bincount(np.concatenate(kinds) if kinds else np.zeros(0, np.int64), minlength=len(Kind))
    if counts[Kind[fragment.facts.cells.upper()]] < MIN_CELLS:
        return False
    return fragment.facts.mitoses == "zero" or bool(counts[Kind.MITOSIS] >= MIN_MITOSES)
