"""The scene graph of a tissue fragment: outline, focus, follicles, vessels, glands, fat, and a label raster."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import skia
from numpy.typing import NDArray
from scipy.spatial import Voronoi, cKDTree

from dataset_script.phantom.geometry import Contours, Points, Rect, ellipses, lattice, seeded, smooth_path, waves
from dataset_script.phantom.plan import Facts

PITCH = 74.0
WALL = 2.6
"""Distance between the centres of fat cells, and half the width of the wall between two, um."""


def fat_cells(seed: int, middle: tuple[float, float], reach: float, area: skia.Path) -> skia.Path:
    """Returns the outlines of fat cells: Voronoi cells of a jittered lattice, shrunk by their walls and rounded.

    Args:
        seed: seed of the scene.
        middle: centre of the focus, um.
        reach: half the side of the square that is filled, um.
        area: path that must contain the site of a cell.
    """
    rect = (middle[0] - reach, middle[1] - reach, middle[0] + reach, middle[1] + reach)
    sites = lattice(seed, "fat", rect, PITCH, 0.2)
    cells = Voronoi(np.stack([sites.x, sites.y], axis=1))
    path = skia.Path()
    for site, region in zip(cells.points, cells.point_region, strict=True):
        corners = cells.regions[region]
        if corners and -1 not in corners and area.contains(float(site[0]), float(site[1])):
            path.addPath(_rounded(cells.vertices[corners], site))
    return path


def _rounded(corners: NDArray[np.float64], middle: NDArray[np.float64]) -> skia.Path:
    out = corners - middle
    distance = np.linalg.norm(out, axis=1, keepdims=True)
    shrunk = middle + out * np.clip(1 - WALL / distance, 0.3, 1)
    following = np.roll(shrunk, -1, axis=0)
    dense = np.stack([shrunk * (1 - part) + following * part for part in (0.0, 0.25, 0.5, 0.75)], axis=1)
    return smooth_path(dense.reshape(1, -1, 2))


LABEL_MPP: Final = 4.0
FRAME: Final = 2900.0
"""Half the side of the square around a fragment, um."""
TISSUE_RADIUS: Final = 2230.0
FOCUS_RADIUS: Final = 820.0
FOCUS_REACH: Final = 1.5 * FOCUS_RADIUS
"""Maximum distance of the outline of a focus from its centre, um."""
FOCUS_DISTANCE: Final = 1120.0
GLAND_SHARE: Final = 0.8
VESSEL_SHARE: Final = 0.5
"""Shares of the lattice points with a gland or a vessel, if there is space."""


class Label(IntEnum):
    """Tissue compartments of the label raster."""

    BACKGROUND = 0
    STROMA = 1
    GLAND = 2
    LUMEN = 3
    SHEET = 4
    VESSEL = 5
    FOCUS = 6
    FOLLICLE = 7
    CLEFT = 8


@dataclass(frozen=True)
class Growth:
    """A growth pattern: pitch and radii in um; ``thickness`` of the epithelium around a lumen, or None."""

    pitch: float
    radii: tuple[float, float]
    stretch: float
    wave: float
    thickness: float | None


GROWTHS: Final[dict[str, Growth]] = {
    "glandular": Growth(138.0, (42.0, 70.0), 1.30, 0.10, 21.0),
    "sheetlike": Growth(225.0, (84.0, 124.0), 1.22, 0.16, None),
    "sievelike": Growth(300.0, (122.0, 160.0), 1.12, 0.10, None),
}


@dataclass(frozen=True)
class Glands:
    """Epithelial structures of a fragment: outlines, and the lumens or holes in them."""

    centres: NDArray[np.float64]
    radii: NDArray[np.float64]
    angles: NDArray[np.float64]
    outlines: Contours
    lumens: Contours


@dataclass(frozen=True)
class Vessels:
    """Vessels of a fragment: outlines of the wall and of the lumen."""

    centres: NDArray[np.float64]
    outlines: Contours
    lumens: Contours


@dataclass(frozen=True)
class FragmentPaths:
    """The outlines of a fragment as drawing paths."""

    tissue: skia.Path
    focus: skia.Path
    follicles: skia.Path
    clefts: skia.Path
    glands: skia.Path
    lumens: skia.Path
    vessels: skia.Path
    vessel_lumens: skia.Path
    fat_cells: skia.Path


@dataclass(frozen=True)
class Fragment:
    """A piece of tissue with the facts of its path; ``labels`` is a raster of the frame with ``LABEL_MPP`` um/px."""

    seed: int
    centre: tuple[float, float]
    facts: Facts
    focus_centre: tuple[float, float]
    glands: Glands
    vessels: Vessels
    paths: FragmentPaths
    fibre_angle: float
    labels: NDArray[np.uint8]

    @property
    def frame(self) -> Rect:
        """The square around the fragment in slide coordinates, um."""
        return framed(self.centre)

    def label(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Returns the compartment at each position, ``BACKGROUND`` outside of the frame."""
        return looked_up(self.labels, self.frame, x, y)


def framed(centre: tuple[float, float]) -> Rect:
    """Returns the frame around a centre."""
    return centre[0] - FRAME, centre[1] - FRAME, centre[0] + FRAME, centre[1] + FRAME


def looked_up(
    labels: NDArray[np.uint8], frame: Rect, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Reads a label raster at positions in slide coordinates."""
    column = np.floor((x - frame[0]) / LABEL_MPP).astype(np.int64)
    row = np.floor((y - frame[1]) / LABEL_MPP).astype(np.int64)
    inside = (column >= 0) & (row >= 0) & (column < labels.shape[1]) & (row < labels.shape[0])
    found = np.zeros(x.shape, np.uint8)
    found[inside] = labels[row[inside], column[inside]]
    return found


def build_fragment(seed: int, centre: tuple[float, float], facts: Facts) -> Fragment:
    """Builds the scene of a fragment; the same seed, centre and facts give the same scene."""
    rng = np.random.default_rng(seeded(seed, "fragment"))
    middle = np.array([centre])
    painter = _LabelPainter(centre)
    tissue = painter.fill(_tissue_outline(rng, middle), Label.STROMA)
    towards = rng.uniform(0, 2 * np.pi)
    focus_centre = middle + FOCUS_DISTANCE * np.array([[np.cos(towards), np.sin(towards)]])
    focus_wave = waves(rng, 1, 128, 2, 24, 0.10)
    focus = painter.fill(
        ellipses(focus_centre, np.full((1, 2), FOCUS_RADIUS), rng.uniform(0, 6, 1), focus_wave), Label.FOCUS
    )
    follicles = painter.fill(_follicles(seed, rng, painter, facts), Label.FOLLICLE)
    fibre_angle = float(rng.uniform(0, 180))
    clefts = painter.fill(_clefts(seed, rng, painter, fibre_angle), Label.CLEFT)
    glands = _glands(seed, rng, painter, facts)
    gland_path = painter.fill(glands.outlines, Label.GLAND if facts.growth == "glandular" else Label.SHEET)
    lumen_path = painter.fill(glands.lumens, Label.LUMEN)
    vessels = _vessels(seed, rng, painter, facts)
    vessel_path = painter.fill(vessels.outlines, Label.VESSEL)
    vessel_lumens = smooth_path(vessels.lumens)
    focus_middle = (float(focus_centre[0, 0]), float(focus_centre[0, 1]))
    fat = fat_cells(seed, focus_middle, FOCUS_REACH, focus) if facts.focus == "adipose" else skia.Path()
    return Fragment(
        seed=seed,
        centre=centre,
        facts=facts,
        focus_centre=focus_middle,
        glands=glands,
        vessels=vessels,
        paths=FragmentPaths(tissue, focus, follicles, clefts, gland_path, lumen_path, vessel_path, vessel_lumens, fat),
        fibre_angle=fibre_angle,
        labels=painter.labels(),
    )


def _tissue_outline(rng: np.random.Generator, middle: NDArray[np.float64]) -> Contours:
    broad = waves(rng, 1, 1440, 2, 9, 0.085)
    frayed = waves(rng, 1, 1440, 12, 480, 0.006)
    radii = np.full((1, 2), TISSUE_RADIUS) * rng.uniform(0.97, 1.03)
    return ellipses(middle, radii, rng.uniform(0, 6, 1), broad + frayed - 1)


class _LabelPainter:
    """Paints compartments into a label raster; later ones cover earlier ones."""

    def __init__(self, centre: tuple[float, float]) -> None:
        side = round(2 * FRAME / LABEL_MPP)
        self.frame = framed(centre)
        self._pixels = np.zeros((side, side, 4), np.uint8)
        self._surface = skia.Surface(self._pixels)
        self._canvas = self._surface.getCanvas()
        self._canvas.scale(1 / LABEL_MPP, 1 / LABEL_MPP)
        self._canvas.translate(-self.frame[0], -self.frame[1])

    def fill(self, contours: Contours, label: Label) -> skia.Path:
        """Paints a compartment and returns the path of its outlines."""
        value = int(label)
        path = smooth_path(contours)
        paint = skia.Paint(Color=skia.Color(value, value, value), AntiAlias=False, BlendMode=skia.BlendMode.kSrc)
        self._canvas.drawPath(path, paint)
        return path

    def labels(self) -> NDArray[np.uint8]:
        return self._pixels[:, :, 0].copy()

    def lies_in(self, contours: Contours, label: Label) -> NDArray[np.bool_]:
        """Returns whether all points of each curve are in a compartment."""
        found = looked_up(self._pixels[:, :, 0], self.frame, contours[:, :, 0], contours[:, :, 1])
        return np.asarray((found == label).all(axis=1))


def _placed(points: Points) -> NDArray[np.float64]:
    return np.stack([points.x, points.y], axis=1)


def _follicles(seed: int, rng: np.random.Generator, painter: _LabelPainter, facts: Facts) -> Contours:
    if facts.infiltrate != "nodular":
        return np.zeros((0, 32, 2))
    centres = _placed(lattice(seed, "follicle", painter.frame, 900.0, 0.2))
    radii = rng.uniform(165, 230, (len(centres), 1)) * rng.uniform(0.9, 1.1, (len(centres), 2))
    wave = waves(rng, len(centres), 32, 2, 5, 0.06)
    outlines = ellipses(centres, radii, rng.uniform(0, 6, len(centres)), wave)
    return outlines[painter.lies_in(outlines, Label.STROMA)]


def _clefts(seed: int, rng: np.random.Generator, painter: _LabelPainter, fibre_angle: float) -> Contours:
    """Returns clefts along the fibres, artefacts of cutting and fixation."""
    sites = lattice(seed, "cleft", painter.frame, 430.0, 0.35)
    centres = _placed(sites.select(sites.uniform(2) < 0.6))
    count = len(centres)
    radii = np.stack([rng.uniform(50, 190, count), rng.uniform(4, 15, count)], axis=1)
    angles = np.deg2rad(fibre_angle) + rng.normal(0, 0.35, count)
    outlines = ellipses(centres, radii, angles, waves(rng, count, 40, 2, 14, 0.16))
    return outlines[painter.lies_in(outlines, Label.STROMA)]


def _vessels(seed: int, rng: np.random.Generator, painter: _LabelPainter, facts: Facts) -> Vessels:
    sites = lattice(seed, "vessel", painter.frame, 96.0, 0.2)
    centres = _placed(sites.select(sites.uniform(2) < VESSEL_SHARE))
    count = len(centres)
    angles = rng.uniform(0, 2 * np.pi, count)
    if facts.vessels == "congested":
        inner = rng.uniform(24, 40, (count, 1)) * rng.uniform(0.85, 1.15, (count, 2))
        wall = 5.0
    else:
        inner = np.stack([rng.uniform(20, 30, count), rng.uniform(2.5, 4.5, count)], axis=1)
        wall = 10.0
    wave = waves(rng, count, 24, 2, 5, 0.08)
    outlines = ellipses(centres, inner + wall, angles, wave)
    free = painter.lies_in(outlines, Label.STROMA)
    lumens = ellipses(centres, inner, angles, wave)
    return Vessels(centres[free], outlines[free], lumens[free])


def _glands(seed: int, rng: np.random.Generator, painter: _LabelPainter, facts: Facts) -> Glands:
    growth = GROWTHS[facts.growth]
    sites = lattice(seed, "gland", painter.frame, growth.pitch, 0.3)
    centres = _placed(sites.select(sites.uniform(2) < GLAND_SHARE))
    count = len(centres)
    stretch = rng.uniform(1, growth.stretch, count)
    radii = rng.uniform(*growth.radii, count)[:, None] * np.stack([stretch, 1 / stretch], axis=1)
    angles = rng.uniform(0, 2 * np.pi, count)
    wave = waves(rng, count, 24, 2, 7, growth.wave)
    outlines = ellipses(centres, radii, angles, wave)
    free = painter.lies_in(ellipses(centres, radii + 6, angles, wave), Label.STROMA)
    free &= _apart(centres, radii.max(axis=1) * 0.97, free)
    centres, radii, angles, outlines = centres[free], radii[free], angles[free], outlines[free]
    if growth.thickness is not None:
        inner = waves(rng, len(centres), 24, 2, 9, 0.09)
        lumens = ellipses(centres, radii - growth.thickness, angles, inner)
    elif facts.growth == "sievelike":
        lumens = _holes(rng, centres, radii, angles)
    else:
        lumens = np.zeros((0, 16, 2))
    return Glands(centres, radii, angles, outlines, lumens)


def _apart(centres: NDArray[np.float64], reach: NDArray[np.float64], wanted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Selects, in order, the wanted discs that do not touch one selected before."""
    kept = wanted.copy()
    for first, second in sorted(cKDTree(centres).query_pairs(2 * float(reach.max()))):
        if kept[first] and kept[second]:
            gap = float(np.hypot(*(centres[first] - centres[second])))
            kept[second] = gap >= reach[first] + reach[second]
    return kept


def _holes(
    rng: np.random.Generator,
    centres: NDArray[np.float64],
    radii: NDArray[np.float64],
    angles: NDArray[np.float64],
) -> Contours:
    """Returns round holes, 68 um apart, in sheets of cells."""
    pitch = 68.0
    steps = np.array([(i + 0.5 * j, j * 0.75**0.5) for i in range(-3, 4) for j in range(-3, 4)]) * pitch
    rotated = np.stack(
        [
            centres[:, :1] + np.cos(angles)[:, None] * steps[:, 0] - np.sin(angles)[:, None] * steps[:, 1],
            centres[:, 1:] + np.sin(angles)[:, None] * steps[:, 0] + np.cos(angles)[:, None] * steps[:, 1],
        ],
        axis=-1,
    ) + rng.uniform(-5, 5, (len(centres), len(steps), 2))
    fits = np.linalg.norm(rotated - centres[:, None], axis=-1) < radii.min(axis=1)[:, None] - 36
    holes = rotated[fits]
    sizes = rng.uniform(15, 22, (len(holes), 1)) * rng.uniform(0.9, 1.1, (len(holes), 2))
    return ellipses(holes, sizes, rng.uniform(0, 6, len(holes)), waves(rng, len(holes), 16, 2, 5, 0.08))
