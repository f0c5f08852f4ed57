"""Chooses where to look on a slide: groups of four nested fields that look alike.

The exchange of answers rests on such a group: its four questions show the same four options, and each of the four is
the answer once. Whatever looks at the options alone is then right on exactly one question in four.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

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
MAX_CANDIDATES: Final = 2500
MAX_NEAREST: Final = 300
"""Candidates among which a group is sought first."""
MAX_GROWN: Final = 64
"""Groups grown, of which the tightest is taken; more would leave out a slide's rarer tissue."""
MAX_TRIES: Final = 300
"""Candidates from which growing a group is tried."""
MATCH_STEPS: Final = np.array([0.5, 0.5, 0.5, 0.1, 0.5])
"""Differences that count alike when targets are matched: grey levels of mean colour, share of tissue, log sharpness.

A box and its 200x field show the same tissue and differ by three levels in mean colour, so a reader of mean colour can
tell apart boxes that differ by more. Chosen on three slides.
"""
PARENT_STEPS: Final = 3.0
"""Parents may differ this many times more: their colour differs from their targets' by five levels and more."""
SURPLUS_STEPS: Final = 0.5
"""What one answer too many to a reader of mean colour counts, in steps of matching."""
MIN_STRUCTURE: Final = 2.3
"""Least standard deviation of lightness within a target: a just noticeable difference in CIELAB (Mahy et al., Color
Research and Application 1994; 19: 105-121). A field below it has nothing by which a person could find it again."""
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
        context: the 10x field that holds all pairs; None if they may lie anywhere on the slide.
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
    """Returns a group in a context field (or anywhere on the slide), or None if chance finds none."""
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
    fit &= tissue.structure(target_x, target_y, target_side) >= MIN_STRUCTURE
    distance = np.maximum(np.abs(target_x[:, None] - used[:, 0]), np.abs(target_y[:, None] - used[:, 1]))
    fit &= (distance >= target_side / 2).all(axis=1)
    x, y, target_x, target_y = x[fit], y[fit], target_x[fit], target_y[fit]
    limit = OVERLAP_LIMIT if context is not None or spec.parent_view == "low_mag" else 1.0

    def compatible_with(index: int, others: NDArray[np.intp]) -> Mask:
        """Returns which of some candidates may share a question with one."""
        u, v, other_u, other_v = target_x[index], target_y[index], target_x[others], target_y[others]
        found = apart(other_u - u, other_v - v, BOX_GAP * target_side)
        reach = (parent_side + target_side) / 2
        found &= apart(other_u - x[index], other_v - y[index], reach)
        found &= apart(u - x[others], v - y[others], reach)
        found &= shared_area(x[others] - x[index], y[others] - y[index], parent_side) <= limit
        return found

    targets = tissue.appearance(target_x, target_y, target_side) / MATCH_STEPS
    parents = tissue.appearance(x, y, parent_side) / MATCH_STEPS

    def surplus(chosen: list[int]) -> float:
        """Returns by how much a group gives itself away to a reader that compares mean colours."""
        return SURPLUS_STEPS * colour_surplus(targets[chosen], parents[chosen])

    chosen = most_similar_group(np.hstack([targets, parents / PARENT_STEPS]), compatible_with, surplus, rng)
    if chosen is None:
        return None
    order = rng.permutation(chosen)
    return FieldGroup(
        context,
        tuple(field(spec.parent_view, x[index], y[index], spec.parent_px) for index in order),
        tuple(field("high_mag", target_x[index], target_y[index], spec.target_px) for index in order),
    )


def most_similar_group(
    appearance: Values,
    compatible_with: Callable[[int, NDArray[np.intp]], Mask],
    surplus: Callable[[list[int]], float],
    rng: np.random.Generator,
) -> list[int] | None:
    """Returns the indices of four candidates that look alike and may share a question, or None.

    Grown from random candidates by adding the nearest that may join all so far; of these the four with the smallest
    sum of widest distance and surplus are taken.

    Args:
        appearance: (n, features), in units that count alike.
        compatible_with: index, indices -> truth of each of these being allowed together with that candidate.
        surplus: four indices -> what is added to their widest distance.
        rng: generator.
    """
    best: tuple[float, list[int]] | None = None
    grown = 0
    for seed in rng.permutation(len(appearance))[:MAX_TRIES]:
        distance = np.linalg.norm(appearance - appearance[seed], axis=1)
        order = np.argsort(distance, kind="stable")
        chosen = _grown(int(seed), order[:MAX_NEAREST], compatible_with) or _grown(int(seed), order, compatible_with)
        if not chosen:
            continue
        cost = distance[chosen[-1]] + surplus(chosen)
        if best is None or cost < best[0]:
            best = (float(cost), chosen)
        grown += 1
        if grown == MAX_GROWN:
            break
    return None if best is None else best[1]


def _grown(seed: int, order: NDArray[np.intp], compatible_with: Callable[[int, NDArray[np.intp]], Mask]) -> list[int]:
    """Returns a candidate and the first three others in an order that may all join, or nothing."""
    free, chosen = compatible_with(seed, order), [seed]
    while len(chosen) < GROUP_SIZE and np.count_nonzero(free) >= GROUP_SIZE - len(chosen):
        chosen.append(int(order[np.argmax(free)]))
        free &= compatible_with(chosen[-1], order)
    return chosen if len(chosen) == GROUP_SIZE else []


def colour_surplus(targets: Values, parents: Values) -> float:
    """Returns how far readers of mean colour and of its saturation are from one right answer in four.

    Each reader takes the option nearest to the image asked about; both directions are asked.

    Args:
        targets: (4, features) of the targets, red, green and blue first.
        parents: (4, features) of their parents, in the same order.
    """
    surplus = 0.0
    for left, right in ((targets[:, :3], parents[:, :3]), (_saturation(targets), _saturation(parents))):
        distance = np.linalg.norm(left[:, None] - right, axis=2)
        for axis in (0, 1):
            surplus += abs(float(np.count_nonzero(distance.argmin(axis=axis) == np.arange(len(left)))) - 1)
    return surplus


def _saturation(appearance: Values) -> Values:
    colour = appearance[:, :3]
    return np.asarray(1 - colour.min(axis=1, keepdims=True) / colour.max(axis=1, keepdims=True))


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
