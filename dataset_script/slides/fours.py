"""Chooses where to look on a slide: fours of nested fields that look alike.

A four is what the exchange of answers rests on: its four questions show the same four options, and each of the four is
the answer once. Nothing that looks at the options alone can then be right more often than once in four.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from dataset_script.slides.fields import OVERLAP_LIMIT, Field, Mask, Values, apart, field, shared_area
from dataset_script.slides.survey import Survey
from scale_vqa_eval.schema import MPP

Bounds = tuple[float, float, float, float]
"""(left, right, top, bottom) in um."""

FOUR: Final = 4
LOW_SHARE: Final = 0.25
"""Part of the least share of tissue that is asked of a 10x field: a needle biopsy fills no more of one."""
FRAMES: Final = 40
"""10x fields tried for one four before the slide is said to hold no more."""
CANDIDATES: Final = 1500
SEEDS: Final = 64
"""Fours grown to take the tightest of; not more, so that a slide's rarer tissue is asked about too."""
TRIES: Final = 300
"""Candidates from which growing a four is tried."""
BOX_GAP: Final = 1.2
"""200x fields of one four keep a fifth of a side between them, room for the marks of an origin question."""


@dataclass(frozen=True)
class Four:
    """Four pairs of nested fields.

    Attributes:
        frame: the 10x field that holds all pairs; None where they may lie anywhere on the slide.
        outer: four 40x or 10x fields; the 200x fields themselves where nothing lies between frame and 200x field.
        inner: four 200x fields, each in the outer field of its number and outside of the three others.
    """

    frame: Field | None
    outer: tuple[Field, ...]
    inner: tuple[Field, ...]


@dataclass(frozen=True)
class Shape:
    """What a four is made of.

    Attributes:
        frame_px: pixels of the 10x field that holds all pairs, or None.
        outer_view: view of the outer fields.
        outer_px: their pixels.
        inner_px: pixels of the 200x fields.
        least_tissue: least share of tissue in 40x and 200x fields; a quarter of it in 10x fields.
    """

    frame_px: int | None
    outer_view: str
    outer_px: int
    inner_px: int
    least_tissue: float


def sample_fours(survey: Survey, shape: Shape, count: int, rng: np.random.Generator) -> list[Four]:
    """Returns up to ``count`` fours; fewer where the slide's tissue holds no more.

    200x fields lie at least half a side from each other, so that no two questions ask the same.
    """
    fours: list[Four] = []
    used = np.empty((0, 2))
    for _ in range(count):
        found = (_four_in(survey, shape, frame, used, rng) for frame in _frames(survey, shape, rng))
        four = next((four for four in found if four is not None), None)
        if four is None:
            break
        fours.append(four)
        used = np.vstack([used, [(inner.x, inner.y) for inner in four.inner]])
    return fours


def _frames(survey: Survey, shape: Shape, rng: np.random.Generator) -> Iterator[Field | None]:
    """Yields 10x fields with enough tissue; where none is asked for, a few rounds without one."""
    if shape.frame_px is None:
        yield from [None] * 4
        return
    side = shape.frame_px * MPP["low_mag"]
    x, y = _centres(survey, _whole(survey), side, 10 * FRAMES, rng)
    fit = np.flatnonzero(survey.tissue_share(x, y, side) >= shape.least_tissue * LOW_SHARE)
    for index in fit[:FRAMES]:
        yield field("low_mag", x[index], y[index], shape.frame_px)


def _four_in(survey: Survey, shape: Shape, frame: Field | None, used: Values, rng: np.random.Generator) -> Four | None:
    """Returns a four in a frame (or anywhere on the slide), None where chance finds none."""
    inner_side, outer_side = shape.inner_px * MPP["high_mag"], shape.outer_px * MPP[shape.outer_view]
    x, y = _centres(survey, _whole(survey) if frame is None else _bounds(frame), outer_side, CANDIDATES, rng)
    room = max(0.0, (outer_side - inner_side) / 2 - 0.05)  # rounding must not push a field out of the one around it
    inner_x = np.round(x + rng.uniform(-room, room, x.size), 1)
    inner_y = np.round(y + rng.uniform(-room, room, y.size), 1)
    share = shape.least_tissue * (LOW_SHARE if shape.outer_view == "low_mag" else 1)
    fit = survey.tissue_share(x, y, outer_side) >= share
    fit &= survey.tissue_share(inner_x, inner_y, inner_side) >= shape.least_tissue
    distance = np.maximum(np.abs(inner_x[:, None] - used[:, 0]), np.abs(inner_y[:, None] - used[:, 1]))
    fit &= (distance >= inner_side / 2).all(axis=1)
    x, y, inner_x, inner_y = x[fit], y[fit], inner_x[fit], inner_y[fit]
    limit = OVERLAP_LIMIT if frame is not None or shape.outer_view == "low_mag" else 1.0

    def friends(index: int) -> Mask:
        """Says which candidates may stand in one question with one of them."""
        across, down = inner_x - inner_x[index], inner_y - inner_y[index]
        found = apart(across, down, BOX_GAP * inner_side)
        reach = (outer_side + inner_side) / 2
        found &= apart(inner_x - x[index], inner_y - y[index], reach)
        found &= apart(inner_x[index] - x, inner_y[index] - y, reach)
        found &= shared_area(x - x[index], y - y[index], outer_side) <= limit
        return found

    looks = np.hstack([survey.looks(inner_x, inner_y, inner_side), survey.looks(x, y, outer_side)])
    chosen = alike(standardised(looks), friends, rng)
    if chosen is None:
        return None
    order = rng.permutation(chosen)
    return Four(
        frame,
        tuple(field(shape.outer_view, x[index], y[index], shape.outer_px) for index in order),
        tuple(field("high_mag", inner_x[index], inner_y[index], shape.inner_px) for index in order),
    )


def alike(looks: Values, friends: Callable[[int], Mask], rng: np.random.Generator) -> list[int] | None:
    """Returns the indices of four candidates that look alike and may stand in one question, None where none do.

    Grown from random candidates by adding the nearest that may join all so far; the tightest four are taken.

    Args:
        looks: (n, features), each feature of unit spread.
        friends: index -> (n,) truth of the others being allowed together with that candidate.
        rng: generator.
    """
    best: tuple[float, list[int]] | None = None
    grown = 0
    for seed in rng.permutation(len(looks))[:TRIES]:
        free, chosen = friends(int(seed)), [int(seed)]
        if np.count_nonzero(free) < FOUR - 1:
            continue
        distance = np.linalg.norm(looks - looks[seed], axis=1)
        while len(chosen) < FOUR and np.count_nonzero(free) >= FOUR - len(chosen):
            nearest = int(np.argmin(np.where(free, distance, np.inf)))
            chosen.append(nearest)
            free &= friends(nearest)
        if len(chosen) < FOUR:
            continue
        if best is None or distance[chosen[-1]] < best[0]:
            best = (float(distance[chosen[-1]]), chosen)
        grown += 1
        if grown == SEEDS:
            break
    return None if best is None else best[1]


def standardised(looks: Values) -> Values:
    """Returns features divided by their spread; a feature without any is left out of account."""
    if len(looks) == 0:
        return looks
    spread = looks.std(axis=0)
    return np.asarray(looks / np.where(spread > 1e-9, spread, np.inf))


def _centres(
    survey: Survey, bounds: Bounds, side: float, count: int, rng: np.random.Generator
) -> tuple[Values, Values]:
    """Returns centres, in tenths of a um, of fields within bounds, each around a random point of tissue."""
    left, right, top, bottom = bounds
    half = side / 2
    x, y = survey.tissue_points(bounds, count, rng)
    x, y = x + rng.uniform(-half, half, x.size), y + rng.uniform(-half, half, y.size)
    return _tenths(x, left + half, right - half), _tenths(y, top + half, bottom - half)


def _tenths(centres: Values, least: float, most: float) -> Values:
    """Returns centres in whole tenths of a um within two ends, which may be equal."""
    least, most = np.ceil(least * 10 - 1e-6) / 10, np.floor(most * 10 + 1e-6) / 10
    return np.asarray(np.round(np.clip(centres, least, max(least, most)), 1))


def _whole(survey: Survey) -> Bounds:
    return 0.0, survey.extent[0], 0.0, survey.extent[1]


def _bounds(frame: Field) -> Bounds:
    half = frame.side / 2
    return frame.x - half, frame.x + half, frame.y - half, frame.y + half
