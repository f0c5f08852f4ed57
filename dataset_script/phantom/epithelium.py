"""Nuclei of epithelium: packed in sheets, or in one row along the base of glands."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from dataset_script.phantom.bodies import Bodies, Kind, joined, loose, placed_on, rows_near
from dataset_script.phantom.lattice import Points, Rect, seeded
from dataset_script.phantom.scene import Fragment, Label

MITOTIC_SHARE: Final = 0.09
"""Share of epithelial nuclei in mitosis where there are many."""


def _epithelial(fragment: Fragment, points: Points) -> NDArray[np.int64]:
    """Kinds of epithelial nuclei: as the fact says, some of them in mitosis where it says so."""
    kind = Kind.UNIFORM if fragment.facts.nuclei == "uniform" else Kind.BIZARRE
    kinds = np.full(len(points), int(kind), np.int64)
    if fragment.facts.mitoses == "many":
        kinds[points.uniform(5) < MITOTIC_SHARE] = int(Kind.MITOSIS)
    return kinds


def sheet_nuclei(fragment: Fragment, block: Rect) -> Bodies:
    """Nuclei of epithelium that grows in sheets."""
    if fragment.facts.growth == "glandular":
        return joined([])
    bizarre = fragment.facts.nuclei == "bizarre"
    points = placed_on(fragment, block, "sheet", 14.5 if bizarre else 11.0, 0.22 if bizarre else 0.14, Label.SHEET)
    return loose(points, _epithelial(fragment, points))


def gland_nuclei(fragment: Fragment, block: Rect) -> Bodies:
    """Nuclei along the base of glands, the long axis across the epithelium, and pale vacuoles above them."""
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
    return joined([vacuoles.inside(block), basal.inside(block)])


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
