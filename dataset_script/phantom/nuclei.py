"""Nuclei and other small bodies of a fragment, drawn from hashed lattices for any rectangle when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dataset_script.phantom.bodies import Bodies, Kind, joined, loose, placed_on, rows_near
from dataset_script.phantom.epithelium import gland_nuclei, sheet_nuclei
from dataset_script.phantom.lattice import Points, Rect, lattice, overlap, seeded
from dataset_script.phantom.scene import FOCUS_REACH, Fragment, Label

REACH: Final = 14.0
"""No body reaches further than this from its place, um."""
BLOCK: Final = 2000.0
"""Side of the blocks that a large rectangle is worked through in, um: memory stays flat."""
INFILTRATE: Final = {"diffuse": 0.48, "nodular": 0.055, "minimal": 0.055}
PACKED: Final = 0.86
FIBROUS: Final = {"compact": 0.075, "swollen": 0.045}
"""Shares of the places in the stroma (one in 70 um2) that bear an inflammatory cell, loosely and in a nodule, and a
fibroblast."""
MINOR_CELLS: Final = 0.05
"""Share of inflammatory cells that are plain lymphocytes whatever the fact says."""


def bodies(fragment: Fragment, rect: Rect) -> Iterator[Bodies]:
    """Yields the bodies whose place lies in a rectangle (um, slide coordinates), block by block in drawing order."""
    shared = overlap(rect, fragment.frame)
    if shared is None:
        return
    for top in np.arange(np.floor(shared[1] / BLOCK) * BLOCK, shared[3], BLOCK):
        for left in np.arange(np.floor(shared[0] / BLOCK) * BLOCK, shared[2], BLOCK):
            block = overlap(shared, (float(left), float(top), float(left + BLOCK), float(top + BLOCK)))
            if block is not None:
                found = _in_block(fragment, block)
                if len(found):
                    yield found


def _in_block(fragment: Fragment, block: Rect) -> Bodies:
    parts = [_blood(fragment, block), _focus(fragment, block), _stroma(fragment, block), sheet_nuclei(fragment, block)]
    parts += [gland_nuclei(fragment, block), _endothelium(fragment, block)]
    return joined([part for part in parts if len(part)])


def _blood(fragment: Fragment, block: Rect) -> Bodies:
    """Red cells in congested vessels (the wall keeps free of them) and in a haematoma."""
    parts = []
    if fragment.facts.vessels == "congested":
        for number in rows_near(fragment.vessels.centres, block, 60):
            x, y = fragment.vessels.centres[number]
            radius = float(np.hypot(*(fragment.vessels.lumens[number] - (x, y)).T).min()) + 1
            near = overlap(block, (x - radius, y - radius, x + radius, y + radius))
            if near is not None:
                points = lattice(fragment.seed, "red", near, 6.6, 0.2)
                inside = np.hypot(points.x - x, points.y - y) < radius
                parts.append(loose(points.select(inside), Kind.RED_CELL))
    if fragment.facts.focus == "haematoma":
        points = _in_focus(fragment, block, "bleed", 7.4, 0.3)
        parts.append(loose(points.select(points.uniform(3) < 0.8), Kind.RED_CELL))
    return joined(parts)


def _in_focus(fragment: Fragment, block: Rect, salt: str, pitch: float, jitter: float) -> Points:
    x, y = fragment.focus_centre
    reach = FOCUS_REACH
    near = overlap(block, (x - reach, y - reach, x + reach, y + reach)) or (x, y, x, y)
    return placed_on(fragment, near, salt, pitch, jitter, Label.FOCUS)


def _focus(fragment: Fragment, block: Rect) -> Bodies:
    focus = fragment.facts.focus
    if focus == "necrosis":
        points = _in_focus(fragment, block, "debris", 11.0, 0.45)
        patch = _patchy(fragment, points)
        chance = points.uniform(3)
        dust = points.select(chance < 0.22 * patch)
        ghosts = points.select((chance > 0.93) & (patch < 0.8))
        return joined([loose(ghosts, Kind.GHOST), loose(dust, Kind.DEBRIS)])
    if focus == "fibrosis":
        points = _in_focus(fragment, block, "scar", 24.0, 0.4)
        return _aligned(fragment, points.select(points.uniform(3) < 0.3))
    return joined([])


def _patchy(fragment: Fragment, points: Points) -> NDArray[np.float64]:
    """A slow wave over the slide, 0 to 1, so that densities are not the same everywhere."""
    phases = [seeded(fragment.seed, "patch", number) % 628 / 100 for number in range(4)]
    wave = np.sin(points.x / 61 + phases[0] + 1.3 * np.sin(points.y / 97 + phases[1]))
    return np.asarray(
        0.5 + 0.25 * wave + 0.25 * np.sin(points.y / 53 + phases[2] + np.sin(points.x / 131 + phases[3]))
    )


def _aligned(fragment: Fragment, points: Points) -> Bodies:
    """Spindle nuclei along the fibres of the stroma."""
    angle = np.deg2rad(fragment.fibre_angle) + 0.5 * np.sin(points.x / 90) + 0.5 * np.sin(points.y / 70)
    angle = angle + 0.5 * (points.uniform(8) - 0.5)
    kinds = np.full(len(points), int(Kind.FIBROBLAST), np.int64)
    return Bodies(points.x, points.y, kinds, points.key, angle, 0.8 + 0.4 * points.uniform(9))


def _stroma(fragment: Fragment, block: Rect) -> Bodies:
    """Fibroblasts and the infiltrate: as dense as the fact says in the stroma, packed in follicles."""
    facts = fragment.facts
    share = INFILTRATE[facts.infiltrate]
    fibrous_share = FIBROUS[facts.stroma]
    points = lattice(fragment.seed, "stroma", block, 9.0, 0.3)
    chance = points.uniform(3)
    bound = PACKED if facts.infiltrate == "nodular" else 1.3 * share
    wanted = (chance < bound) | (chance > 1 - fibrous_share)  # most places bear nothing wherever they lie
    points, chance = points.select(wanted), chance[wanted]
    labels = fragment.label(points.x, points.y)
    in_stroma = labels == Label.STROMA
    fibrous = in_stroma & (chance > 1 - fibrous_share)
    packed = (labels == Label.FOLLICLE) & (chance < PACKED)
    loosely = in_stroma & (chance < 1.3 * share)
    loosely[loosely] = chance[loosely] < share * (0.7 + 0.6 * _patchy(fragment, points.select(loosely)))
    inflamed = points.select(packed | loosely)
    cells = Kind[facts.cells.upper()]
    kinds = np.where(inflamed.uniform(4) < MINOR_CELLS, int(Kind.LYMPHOCYTES), int(cells)).astype(np.int64)
    return joined([_aligned(fragment, points.select(fibrous)), loose(inflamed, kinds)])


def _endothelium(fragment: Fragment, block: Rect) -> Bodies:
    """Flat nuclei in the walls of vessels."""
    near = rows_near(fragment.vessels.centres, block, 80)
    if not len(near):
        return joined([])
    middle = (fragment.vessels.outlines[near] + fragment.vessels.lumens[near]) / 2
    every = middle[:, ::3].reshape(-1, 2)
    along = (np.roll(middle, -1, axis=1) - np.roll(middle, 1, axis=1))[:, ::3].reshape(-1, 2)
    numbers = (near[:, None] * 97 + np.arange(middle[:, ::3].shape[1])).ravel().astype(np.uint64)
    points = Points(every[:, 0], every[:, 1], numbers * np.uint64(7919) + np.uint64(seeded(fragment.seed, "wall")))
    kept = points.uniform(3) < 0.7
    points, along = points.select(kept), along[kept]
    kinds = np.full(len(points), int(Kind.FIBROBLAST), np.int64)
    size = 0.65 + 0.3 * points.uniform(9)
    angle = np.arctan2(along[:, 1], along[:, 0])
    return Bodies(points.x, points.y, kinds, points.key, angle, size).inside(block)
