"""Chooses where to look on a slide: groups of four nested fields that look alike.

The exchange of answers rests on such a group: its four questions show the same four options, and each of the four is
the answer once. Whatever looks at the options alone is then right on exactly one question in four.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from dataset_script.slides.thumbnail import Mask, TissueMap, Values
from scale_vqa_eval.controls.exchange_group import GROUP_SIZE
from scale_vqa_eval.schema import MAGNIFICATION, MPP

Bounds = tuple[float, float, float, float]
"""(left, right, top, bottom) in um."""

OVERLAP_LIMIT: Final = 0.25
"""Two fields of one question share at most this part of one field's area."""
LOW_SHARE: Final = 0.25
"""Part of the minimum tissue share that a 10x field needs: a needle biopsy fills no more of one."""
MAX_CONTEXTS: Final = 40
"""10x fields tried for one group before the slide counts as full."""
MAX_CANDIDATES: Final = 1500
MAX_GROWN: Final = 64
"""Groups grown, of which the tightest is taken; more would leave out a slide's rarer tissue."""
MAX_TRIES: Final = 300
"""Candidates from which growing a group is tried."""
BOX_GAP: Final = 1.2
"""200x fields of one group keep a fifth of a side between them, for the box marks of an origin question."""


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
        """Returns whether another field lies completely in this one, to a thousandth of a um."""
        margin = (self.side - other.side) / 2 + 1e-3
        return abs(self.x - other.x) <= margin and abs(self.y - other.y) <= margin

    def overlap(self, other: Field) -> float:
        """Returns the area shared with another field as part of the smaller one's area."""
        reach = (self.side + other.side) / 2
        smaller = min(self.side, other.side)
        across = min(smaller, max(0.0, reach - abs(self.x - other.x)))
        down = min(smaller, max(0.0, reach - abs(self.y - other.y)))
        return across * down / smaller**2


def field(view: str, x: Any, y: Any, size_px: int) -> Field:
    """Returns a field whose centre is rounded to a tenth of a um, as file names and the plan give it."""
    return Field(view, round(float(x), 1), round(float(y), 1), size_px)


def shared_area(across: Values, down: Values, side: float) -> Values:
    """Returns the area that equal fields share, as part of one field's area, from the distances of their centres."""
    return np.asarray(np.clip(1 - np.abs(across) / side, 0, 1) * np.clip(1 - np.abs(down) / side, 0, 1))


def apart(across: Values, down: Values, reach: float) -> Mask:
    """Returns whether fields have no point in common, from the distances of their centres.

    Args:
        across: distances in um from left to right.
        down: distances from top to bottom.
        reach: half the sum of the two fields' sides; a fifth of a um more is asked for, for centres are rounded.
    """
    return np.asarray(np.maximum(np.abs(across), np.abs(down)) >= reach + 0.2)


@dataclass(frozen=True)
class FieldGroup:
    """Four pairs of nested fields.

    Attributes:
        context: the 10x field that holds all pairs; None where they may lie anywhere on the slide.
        parents: four 40x or 10x fields; the targets themselves where there is no view between context and target.
        targets: four 200x fields, each in the parent of its index and outside of the three others.
    """

    context: Field | None
    parents: tuple[Field, ...]
    targets: tuple[Field, ...]


@dataclass(frozen=True)
class SamplingSpec:
    """The fields that a group is made of.

    Attributes:
        context_px: pixels of the 10x field that holds all pairs, or None.
        parent_view: view of the parents.
        parent_px: their pixels.
        target_px: pixels of the 200x targets.
        min_tissue: minimum share of tissue in 40x and 200x fields; a quarter of it in 10x fields.
    """

    context_px: int | None
    parent_view: str
    parent_px: int
    target_px: int
    min_tissue: float


def sample_groups(tissue: TissueMap, spec: SamplingSpec, count: int, rng: np.random.Generator) -> list[FieldGroup]:
    """Returns up to ``count`` groups; fewer where the slide's tissue holds no more.

    200x fields lie at least half a side from each other, so that no two questions ask the same.
    """
    groups: list[FieldGroup] = []
    used = np.empty((0, 2))
    for _ in range(count):
        found = (_group_in(tissue, spec, context, used, rng) for context in _contexts(tissue, spec, rng))
        group = next((group for group in found if group is not None), None)
        if group is None:
            break
        groups.append(group)
        used = np.vstack([used, [(target.x, target.y) for target in group.targets]])
    return groups


def _contexts(tissue: TissueMap, spec: SamplingSpec, rng: np.random.Generator) -> Iterator[Field | None]:
    """Yields 10x fields with enough tissue; where none is asked for, a few rounds without one."""
    if spec.context_px is None:
        yield from [None] * 4
        return
    side = spec.context_px * MPP["low_mag"]
    x, y = _centres(tissue, _whole(tissue), side, 10 * MAX_CONTEXTS, rng)
    fit = np.flatnonzero(tissue.tissue_share(x, y, side) >= spec.min_tissue * LOW_SHARE)
    for index in fit[:MAX_CONTEXTS]:
        yield field("low_mag", x[index], y[index], spec.context_px)


def _group_in(
    tissue: TissueMap, spec: SamplingSpec, context: Field | None, used: Values, rng: np.random.Generator
) -> FieldGroup | None:
    """Returns a group in a context field (or anywhere on the slide), or None where chance finds none."""
    target_side, parent_side = spec.target_px * MPP["high_mag"], spec.parent_px * MPP[spec.parent_view]
    x, y = _centres(tissue, _whole(tissue) if context is None else _bounds(context), parent_side, MAX_CANDIDATES, rng)
    margin = max(
        0.0, (parent_side - target_side) / 2 - 0.05
    )  # rounding must not push a field out of the one around it
    target_x = np.round(x + rng.uniform(-margin, margin, x.size), 1)
    target_y = np.round(y + rng.uniform(-margin, margin, y.size), 1)
    share = spec.min_tissue * (LOW_SHARE if spec.parent_view == "low_mag" else 1)
    fit = tissue.tissue_share(x, y, parent_side) >= share
    fit &= tissue.tissue_share(target_x, target_y, target_side) >= spec.min_tissue
    distance = np.maximum(np.abs(target_x[:, None] - used[:, 0]), np.abs(target_y[:, None] - used[:, 1]))
    fit &= (distance >= target_side / 2).all(axis=1)
    x, y, target_x, target_y = x[fit], y[fit], target_x[fit], target_y[fit]
    limit = OVERLAP_LIMIT if context is not None or spec.parent_view == "low_mag" else 1.0

    def compatible_with(index: int) -> Mask:
        """Returns which candidates may share a question with one of them."""
        across, down = target_x - target_x[index], target_y - target_y[index]
        found = apart(across, down, BOX_GAP * target_side)
        reach = (parent_side + target_side) / 2
        found &= apart(target_x - x[index], target_y - y[index], reach)
        found &= apart(target_x[index] - x, target_y[index] - y, reach)
        found &= shared_area(x - x[index], y - y[index], parent_side) <= limit
        return found

    appearance = np.hstack([tissue.appearance(target_x, target_y, target_side), tissue.appearance(x, y, parent_side)])
    chosen = most_similar_group(standardised(appearance), compatible_with, rng)
    if chosen is None:
        return None
    order = rng.permutation(chosen)
    return FieldGroup(
        context,
        tuple(field(spec.parent_view, x[index], y[index], spec.parent_px) for index in order),
        tuple(field("high_mag", target_x[index], target_y[index], spec.target_px) for index in order),
    )


def most_similar_group(
    appearance: Values, compatible_with: Callable[[int], Mask], rng: np.random.Generator
) -> list[int] | None:
    """Returns the indices of four candidates that look alike and may share a question, or None.

    Grown from random candidates by adding the nearest that may join all so far; the tightest four are taken.

    Args:
        appearance: (n, features), each feature of unit spread.
        compatible_with: index -> (n,) truth of the others being allowed together with that candidate.
        rng: generator.
    """
    best: tuple[float, list[int]] | None = None
    grown = 0
    for seed in rng.permutation(len(appearance))[:MAX_TRIES]:
        free, chosen = compatible_with(int(seed)), [int(seed)]
        if np.count_nonzero(free) < GROUP_SIZE - 1:
            continue
        distance = np.linalg.norm(appearance - appearance[seed], axis=1)
        while len(chosen) < GROUP_SIZE and np.count_nonzero(free) >= GROUP_SIZE - len(chosen):
            nearest = int(np.argmin(np.where(free, distance, np.inf)))
            chosen.append(nearest)
            free &= compatible_with(nearest)
        if len(chosen) < GROUP_SIZE:
            continue
        if best is None or distance[chosen[-1]] < best[0]:
            best = (float(distance[chosen[-1]]), chosen)
        grown += 1
        if grown == MAX_GROWN:
            break
    return None if best is None else best[1]


def standardised(appearance: Values) -> Values:
    """Returns features divided by their spread; a feature without any spread has no effect."""
    if len(appearance) == 0:
        return appearance
    spread = appearance.std(axis=0)
    return np.asarray(appearance / np.where(spread > 1e-9, spread, np.inf))


def _centres(
    tissue: TissueMap, bounds: Bounds, side: float, count: int, rng: np.random.Generator
) -> tuple[Values, Values]:
    """Returns centres, in tenths of a um, of fields within bounds, each around a random point of tissue."""
    left, right, top, bottom = bounds
    half = side / 2
    x, y = tissue.tissue_points(bounds, count, rng)
    x, y = x + rng.uniform(-half, half, x.size), y + rng.uniform(-half, half, y.size)
    return _tenths(x, left + half, right - half), _tenths(y, top + half, bottom - half)


def _tenths(centres: Values, least: float, most: float) -> Values:
    """Returns centres in whole tenths of a um within two ends, which may be equal."""
    least, most = np.ceil(least * 10 - 1e-6) / 10, np.floor(most * 10 + 1e-6) / 10
    return np.asarray(np.round(np.clip(centres, least, max(least, most)), 1))


def _whole(tissue: TissueMap) -> Bounds:
    return 0.0, tissue.extent[0], 0.0, tissue.extent[1]


def _bounds(context: Field) -> Bounds:
    half = context.side / 2
    return context.x - half, context.x + half, context.y - half, context.y + half
