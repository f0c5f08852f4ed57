"""Nuclei, cells and other small bodies of a fragment, computed for any rectangle from hashed lattices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dataset_script.phantom.geometry import Points, Rect, grown, lattice, overlap, seeded, within
from dataset_script.phantom.scene import FOCUS_REACH, Fragment, Label


class BodyKind(IntEnum):
    """Kinds of body, one row of the sprite sheet each."""

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
    """Bodies to draw: positions in um, kinds, hashes for the variants, angles in radians, and sizes as factors."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    kind: NDArray[np.int64]
    key: NDArray[np.uint64]
    angle: NDArray[np.float64]
    size: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.x)

    def inside(self, rect: Rect) -> Bodies:
        """Returns the bodies whose position is in a rectangle."""
        kept = within(self.x, self.y, rect)
        return Bodies(self.x[kept], self.y[kept], self.kind[kept], self.key[kept], self.angle[kept], self.size[kept])


def joined(parts: list[Bodies]) -> Bodies:
    """Concatenates bodies."""
    if not parts:
        empty = np.zeros(0)
        return Bodies(empty, empty, empty.astype(np.int64), empty.astype(np.uint64), empty, empty)
    return Bodies(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(Bodies)))


def loose(points: Points, kind: NDArray[np.int64] | BodyKind) -> Bodies:
    """Returns bodies with random direction and a size within a sixth of the kind's own."""
    kinds = np.full(len(points), int(kind), np.int64) if isinstance(kind, BodyKind) else kind
    angle, size = points.uniform(8) * 2 * np.pi, 0.84 + 0.32 * points.uniform(9)
    return Bodies(points.x, points.y, kinds, points.key, angle, size)


def placed_on(fragment: Fragment, block: Rect, salt: str, pitch: float, jitter: float, label: Label) -> Points:
    """Returns the lattice points in a compartment."""
    points = lattice(fragment.seed, salt, block, pitch, jitter)
    return points.select(fragment.label(points.x, points.y) == label)


def rows_near(centres: NDArray[np.float64], block: Rect, by: float) -> NDArray[np.int64]:
    """Returns the indices of the positions in a block or within ``by`` um of it."""
    return np.flatnonzero(within(centres[:, 0], centres[:, 1], grown(block, by)))


MITOTIC_SHARE: Final = 0.09
"""Share of epithelial nuclei in mitosis if there are many mitoses."""


def _epithelial(fragment: Fragment, points: Points) -> NDArray[np.int64]:
    """Returns the kinds of epithelial nuclei, some of them in mitosis, by the facts."""
    kind = BodyKind.UNIFORM if fragment.facts.nuclei == "uniform" else BodyKind.BIZARRE
    kinds = np.full(len(points), int(kind), np.int64)
    if fragment.facts.mitoses == "many":
        kinds[points.uniform(5) < MITOTIC_SHARE] = int(BodyKind.MITOSIS)
    return kinds


def sheet_nuclei(fragment: Fragment, block: Rect) -> Bodies:
    """Returns the nuclei of epithelium that grows in sheets."""
    if fragment.facts.growth == "glandular":
        return joined([])
    bizarre = fragment.facts.nuclei == "bizarre"
    points = placed_on(fragment, block, "sheet", 14.5 if bizarre else 11.0, 0.22 if bizarre else 0.14, Label.SHEET)
    return loose(points, _epithelial(fragment, points))


def gland_nuclei(fragment: Fragment, block: Rect) -> Bodies:
    """Returns nuclei along the base of glands, with the long axis across the epithelium, and vacuoles above them."""
    if fragment.facts.growth != "glandular":
        return joined([])
    glands = fragment.glands
    near = rows_near(glands.centres, block, 100)
    if not len(near):
        return joined([])
    bizarre = fragment.facts.nuclei == "bizarre"
    step = 9.6 if bizarre else 7.0
    counts = np.rint(2 * np.pi * (glands.radii[near].mean(axis=1) - 8) / step).astype(np.int64)
    gland = np.repeat(near, counts)
    index = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    key = np.array([seeded(fragment.seed, "column")], np.uint64) + gland.astype(np.uint64) * np.uint64(100003)
    hashed = Points(index.astype(float), index.astype(float), key + index.astype(np.uint64) * np.uint64(7919))
    along = (index + 0.35 * (hashed.uniform(1) - 0.5)) / np.repeat(counts, counts)
    depth = (7.5 if bizarre else 6.5) + (6.0 if bizarre else 2.6) * hashed.uniform(2)
    nuclei = _round_gland(fragment, gland, along, depth)
    cells = _epithelial(fragment, hashed)
    size = np.where(hashed.uniform(9) < 0.5, 0.9, 1.0) * (0.85 + 0.3 * hashed.uniform(10))
    angle = nuclei[2] + (hashed.uniform(8) - 0.5) * (1.6 if bizarre else 0.25)
    basal = Bodies(nuclei[0], nuclei[1], cells, hashed.key, angle, size)
    goblets = hashed.uniform(11) < 0.16
    above = _round_gland(fragment, gland[goblets], along[goblets], np.full(int(goblets.sum()), 15.5))
    kinds = np.full(int(goblets.sum()), int(BodyKind.VACUOLE), np.int64)
    vacuoles = Bodies(above[0], above[1], kinds, hashed.key[goblets], above[2], size[goblets])
    return joined([vacuoles.inside(block), basal.inside(block)])


def _round_gland(
    fragment: Fragment, gland: NDArray[np.int64], along: NDArray[np.float64], depth: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Returns x, y and inward direction of points at a share of a gland's outline and a depth (um) inside it."""
    outlines = fragment.glands.outlines
    points = outlines.shape[1]
    first = np.floor(along * points).astype(np.int64) % points
    part = (along * points - np.floor(along * points))[:, None]
    position = outlines[gland, first] * (1 - part) + outlines[gland, (first + 1) % points] * part
    inward = fragment.glands.centres[gland] - position
    inward /= np.linalg.norm(inward, axis=1, keepdims=True)
    position = position + inward * depth[:, None]
    return position[:, 0], position[:, 1], np.arctan2(inward[:, 1], inward[:, 0])


REACH: Final = 14.0
"""Maximum extent of a body from its position, um."""
BLOCK: Final = 2000.0
"""Side of the blocks in which a large rectangle is computed, um; bounds the memory."""
INFILTRATE: Final = {"diffuse": 0.48, "nodular": 0.055, "minimal": 0.055}
PACKED: Final = 0.86
FIBROUS: Final = {"compact": 0.075, "swollen": 0.045}
"""Shares of the lattice points in the stroma (one per 70 um2) with an inflammatory cell (outside of nodules, and in
nodules) and with a fibroblast."""
MINOR_CELLS: Final = 0.05
"""Share of inflammatory cells that are lymphocytes in any case."""


def bodies(fragment: Fragment, rect: Rect) -> Iterator[Bodies]:
    """Yields the bodies in a rectangle (um, slide coordinates), block by block and in drawing order."""
    shared = overlap(rect, fragment.frame)
    if shared is None:
        return
    for top in np.arange(np.floor(shared[1] / BLOCK) * BLOCK, shared[3], BLOCK):
        for left in np.arange(np.floor(shared[0] / BLOCK) * BLOCK, shared[2], BLOCK):
            block = overlap(shared, (float(left), float(top), float(left + BLOCK), float(top + BLOCK)))
            if block is not None:
                layers = (_blood, _focus, _stroma, sheet_nuclei, gland_nuclei, _endothelium)
                found = joined([part for layer in layers if len(part := layer(fragment, block))])
                if len(found):
                    yield found


def _blood(fragment: Fragment, block: Rect) -> Bodies:
    """Returns the red cells in congested vessels and in a haematoma."""
    parts = []
    if fragment.facts.vessels == "congested":
        for number in rows_near(fragment.vessels.centres, block, 60):
            x, y = fragment.vessels.centres[number]
            radius = float(np.hypot(*(fragment.vessels.lumens[number] - (x, y)).T).min()) + 1
            near = overlap(block, (x - radius, y - radius, x + radius, y + radius))
            if near is not None:
                points = lattice(fragment.seed, "red", near, 6.6, 0.2)
                inside = np.hypot(points.x - x, points.y - y) < radius
                parts.append(loose(points.select(inside), BodyKind.RED_CELL))
    if fragment.facts.focus == "haematoma":
        points = _in_focus(fragment, block, "bleed", 7.4, 0.3)
        parts.append(loose(points.select(points.uniform(3) < 0.8), BodyKind.RED_CELL))
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
        return joined([loose(ghosts, BodyKind.GHOST), loose(dust, BodyKind.DEBRIS)])
    if focus == "fibrosis":
        points = _in_focus(fragment, block, "scar", 24.0, 0.4)
        return _aligned(fragment, points.select(points.uniform(3) < 0.3))
    return joined([])


def _patchy(fragment: Fragment, points: Points) -> NDArray[np.float64]:
    """Returns a slowly varying density factor, 0 to 1."""
    phases = [seeded(fragment.seed, "patch", number) % 628 / 100 for number in range(4)]
    wave = np.sin(points.x / 61 + phases[0] + 1.3 * np.sin(points.y / 97 + phases[1]))
    second = np.sin(points.y / 53 + phases[2] + np.sin(points.x / 131 + phases[3]))
    return np.asarray(0.5 + 0.25 * wave + 0.25 * second)


def _aligned(fragment: Fragment, points: Points) -> Bodies:
    """Returns spindle-shaped nuclei along the fibres of the stroma."""
    angle = np.deg2rad(fragment.fibre_angle) + 0.5 * np.sin(points.x / 90) + 0.5 * np.sin(points.y / 70)
    angle = angle + 0.5 * (points.uniform(8) - 0.5)
    kinds = np.full(len(points), int(BodyKind.FIBROBLAST), np.int64)
    return Bodies(points.x, points.y, kinds, points.key, angle, 0.8 + 0.4 * points.uniform(9))


def _stroma(fragment: Fragment, block: Rect) -> Bodies:
    """Returns fibroblasts and inflammatory cells; the latter are packed in follicles."""
    facts = fragment.facts
    share = INFILTRATE[facts.infiltrate]
    fibrous_share = FIBROUS[facts.stroma]
    points = lattice(fragment.seed, "stroma", block, 9.0, 0.3)
    chance = points.uniform(3)
    bound = PACKED if facts.infiltrate == "nodular" else 1.3 * share
    wanted = (chance < bound) | (chance > 1 - fibrous_share)  # drops most points before their labels are read
    points, chance = points.select(wanted), chance[wanted]
    labels = fragment.label(points.x, points.y)
    in_stroma = labels == Label.STROMA
    fibrous = in_stroma & (chance > 1 - fibrous_share)
    packed = (labels == Label.FOLLICLE) & (chance < PACKED)
    loosely = in_stroma & (chance < 1.3 * share)
    loosely[loosely] = chance[loosely] < share * (0.7 + 0.6 * _patchy(fragment, points.select(loosely)))
    inflamed = points.select(packed | loosely)
    cells = BodyKind[facts.cells.upper()]
    kinds = np.where(inflamed.uniform(4) < MINOR_CELLS, int(BodyKind.LYMPHOCYTES), int(cells)).astype(np.int64)
    return joined([_aligned(fragment, points.select(fibrous)), loose(inflamed, kinds)])


def _endothelium(fragment: Fragment, block: Rect) -> Bodies:
    """Returns flat nuclei in the walls of vessels."""
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
    kinds = np.full(len(points), int(BodyKind.FIBROBLAST), np.int64)
    size = 0.65 + 0.3 * points.uniform(9)
    angle = np.arctan2(along[:, 1], along[:, 0])
    return Bodies(points.x, points.y, kinds, points.key, angle, size).inside(block)
