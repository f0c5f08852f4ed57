"""Nuclei and other small bodies of a fragment, drawn from hashed lattices for any rectangle when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dataset_script.phantom.lattice import Points, Rect, grown, lattice, overlap, seeded, within
from dataset_script.phantom.scene import Fragment, Label

REACH: Final = 14.0
"""No body reaches further than this from its place, um."""
BLOCK: Final = 1000.0
"""Side of the blocks that a large rectangle is worked through in, um: memory stays flat."""
MITOTIC_SHARE: Final = 0.05
MINOR_CELLS: Final = 0.05
"""Share of inflammatory cells that are plain lymphocytes whatever the fact says."""


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
    parts = [_blood(fragment, block), _focus(fragment, block), _stroma(fragment, block), _sheets(fragment, block)]
    parts += [_columns(fragment, block), _endothelium(fragment, block)]
    return _joined([part for part in parts if len(part)])


def _joined(parts: list[Bodies]) -> Bodies:
    names = ("x", "y", "kind", "key", "angle", "size")
    if not parts:
        empty = np.zeros(0)
        return Bodies(empty, empty, empty.astype(np.int64), empty.astype(np.uint64), empty, empty)
    return Bodies(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _free(points: Points, kind: NDArray[np.int64] | Kind) -> Bodies:
    """Bodies that lie any way round, their sizes within a sixth of the kind's own."""
    kinds = np.full(len(points), int(kind), np.int64) if isinstance(kind, Kind) else kind
    return Bodies(
        points.x, points.y, kinds, points.key, points.uniform(8) * 2 * np.pi, 0.84 + 0.32 * points.uniform(9)
    )


def _on(fragment: Fragment, block: Rect, salt: str, pitch: float, jitter: float, label: Label) -> Points:
    points = lattice(fragment.seed, salt, block, pitch, jitter)
    return points.where(fragment.label(points.x, points.y) == label)


def _blood(fragment: Fragment, block: Rect) -> Bodies:
    """Red cells in congested vessels (the wall keeps free of them) and in a haematoma."""
    parts = []
    if fragment.facts.vessels == "congested":
        near = _rows_near(fragment.vessels.centres, block, 60)
        points = _on(fragment, block, "red", 6.6, 0.2, Label.VESSEL)
        if len(near) and len(points):
            lumens = fragment.vessels.lumens[near]
            radius = np.linalg.norm(lumens - fragment.vessels.centres[near][:, None], axis=-1).min(axis=1)
            gaps = np.hypot(
                points.x[:, None] - fragment.vessels.centres[near, 0],
                points.y[:, None] - fragment.vessels.centres[near, 1],
            )
            parts.append(_free(points.where((gaps < radius + 1).any(axis=1)), Kind.RED_CELL))
    if fragment.facts.focus == "haematoma":
        points = _on(fragment, block, "bleed", 7.4, 0.3, Label.FOCUS)
        parts.append(_free(points.where(points.uniform(3) < 0.8), Kind.RED_CELL))
    return _joined(parts)


def _focus(fragment: Fragment, block: Rect) -> Bodies:
    focus = fragment.facts.focus
    if focus == "necrosis":
        points = _on(fragment, block, "debris", 11.0, 0.45, Label.FOCUS)
        patch = _patchy(fragment, points)
        chance = points.uniform(3)
        dust = points.where(chance < 0.22 * patch)
        ghosts = points.where((chance > 0.93) & (patch < 0.8))
        return _joined([_free(ghosts, Kind.GHOST), _free(dust, Kind.DEBRIS)])
    if focus == "fibrosis":
        points = _on(fragment, block, "scar", 24.0, 0.4, Label.FOCUS)
        return _aligned(fragment, points.where(points.uniform(3) < 0.3))
    return _joined([])


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
    points = lattice(fragment.seed, "stroma", block, 9.0, 0.3)
    labels = fragment.label(points.x, points.y)
    points, labels = points.where(labels > 0), labels[labels > 0]
    share = {"diffuse": 0.42, "nodular": 0.035, "minimal": 0.035}[facts.infiltrate]
    patch = _patchy(fragment, points)
    infiltrate = np.where(labels == Label.STROMA, share * (0.7 + 0.6 * patch), 0.0)
    infiltrate = np.where(labels == Label.FOLLICLE, 0.86, infiltrate)
    chance = points.uniform(3)
    inflamed = points.where(chance < infiltrate)
    cells = Kind[facts.cells.upper()]
    kinds = np.where(inflamed.uniform(4) < MINOR_CELLS, int(Kind.LYMPHOCYTES), int(cells)).astype(np.int64)
    fibrous = (labels == Label.STROMA) & (chance > 1 - (0.075 if facts.stroma == "compact" else 0.045))
    return _joined([_aligned(fragment, points.where(fibrous)), _free(inflamed, kinds)])


def _epithelial(fragment: Fragment, points: Points) -> NDArray[np.int64]:
    """Kinds of epithelial nuclei: as the fact says, some of them in mitosis where it says so."""
    kind = Kind.UNIFORM if fragment.facts.nuclei == "uniform" else Kind.BIZARRE
    kinds = np.full(len(points), int(kind), np.int64)
    if fragment.facts.mitoses == "many":
        kinds[points.uniform(5) < MITOTIC_SHARE] = int(Kind.MITOSIS)
    return kinds


def _sheets(fragment: Fragment, block: Rect) -> Bodies:
    """Nuclei of epithelium that grows in sheets."""
    if fragment.facts.growth == "glandular":
        return _joined([])
    bizarre = fragment.facts.nuclei == "bizarre"
    points = _on(fragment, block, "sheet", 14.5 if bizarre else 11.0, 0.22 if bizarre else 0.14, Label.SHEET)
    return _free(points, _epithelial(fragment, points))


def _columns(fragment: Fragment, block: Rect) -> Bodies:
    """Nuclei along the base of glands, the long axis across the epithelium, and pale vacuoles above them."""
    if fragment.facts.growth != "glandular":
        return _joined([])
    glands = fragment.glands
    near = _rows_near(glands.centres, block, 100)
    if not len(near):
        return _joined([])
    bizarre = fragment.facts.nuclei == "bizarre"
    step = 9.6 if bizarre else 7.0
    counts = np.rint(2 * np.pi * (glands.radii[near].mean(axis=1) - 8) / step).astype(np.int64)
    gland = np.repeat(near, counts)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    key = np.array([seeded(fragment.seed, "column")], np.uint64) + gland.astype(np.uint64) * np.uint64(100003)
    hashed = Points(place.astype(float), place.astype(float), key + place.astype(np.uint64) * np.uint64(7919))
    turn = (place + 0.35 * (hashed.uniform(1) - 0.5)) / np.repeat(counts, counts)
    depth = (7.5 if bizarre else 6.5) + (6.0 if bizarre else 2.6) * hashed.uniform(2)
    nuclei = _round_gland(fragment, gland, turn, depth)
    cells = _epithelial(fragment, hashed)
    size = np.where(hashed.uniform(9) < 0.5, 0.9, 1.0) * (0.85 + 0.3 * hashed.uniform(10))
    angle = nuclei[2] + (hashed.uniform(8) - 0.5) * (1.6 if bizarre else 0.25)
    basal = Bodies(nuclei[0], nuclei[1], cells, hashed.key, angle, size)
    goblets = hashed.uniform(11) < 0.16
    above = _round_gland(fragment, gland[goblets], turn[goblets], np.full(int(goblets.sum()), 15.5))
    kinds = np.full(int(goblets.sum()), int(Kind.VACUOLE), np.int64)
    vacuoles = Bodies(above[0], above[1], kinds, hashed.key[goblets], above[2], size[goblets])
    return _joined([vacuoles.inside(block), basal.inside(block)])


def _round_gland(
    fragment: Fragment, gland: NDArray[np.int64], turn: NDArray[np.float64], depth: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Places at a share of the way round a gland's outline and a depth (um) inside it, with the inward direction."""
    outlines = fragment.glands.outlines
    points = outlines.shape[1]
    first = np.floor(turn * points).astype(np.int64) % points
    part = (turn * points - np.floor(turn * points))[:, None]
    place = outlines[gland, first] * (1 - part) + outlines[gland, (first + 1) % points] * part
    inward = fragment.glands.centres[gland] - place
    inward /= np.linalg.norm(inward, axis=1, keepdims=True)
    place = place + inward * depth[:, None]
    return place[:, 0], place[:, 1], np.arctan2(inward[:, 1], inward[:, 0])


def _endothelium(fragment: Fragment, block: Rect) -> Bodies:
    """Flat nuclei in the walls of vessels."""
    near = _rows_near(fragment.vessels.centres, block, 80)
    if not len(near):
        return _joined([])
    middle = (fragment.vessels.outlines[near] + fragment.vessels.lumens[near]) / 2
    every = middle[:, ::3].reshape(-1, 2)
    along = (np.roll(middle, -1, axis=1) - np.roll(middle, 1, axis=1))[:, ::3].reshape(-1, 2)
    numbers = (near[:, None] * 97 + np.arange(middle[:, ::3].shape[1])).ravel().astype(np.uint64)
    points = Points(every[:, 0], every[:, 1], numbers * np.uint64(7919) + np.uint64(seeded(fragment.seed, "wall")))
    kept = points.uniform(3) < 0.7
    points, along = points.where(kept), along[kept]
    kinds = np.full(len(points), int(Kind.FIBROBLAST), np.int64)
    size = 0.65 + 0.3 * points.uniform(9)
    angle = np.arctan2(along[:, 1], along[:, 0])
    return Bodies(points.x, points.y, kinds, points.key, angle, size).inside(block)


def _rows_near(centres: NDArray[np.float64], block: Rect, by: float) -> NDArray[np.int64]:
    return np.flatnonzero(within(centres[:, 0], centres[:, 1], grown(block, by)))
