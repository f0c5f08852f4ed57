"""Fat cells: a net of rounded cells, as adipose tissue looks once its fat is washed out."""

from __future__ import annotations

import numpy as np
import skia
from numpy.typing import NDArray
from scipy.spatial import Voronoi

from dataset_script.phantom.lattice import lattice
from dataset_script.phantom.outlines import smooth_path

PITCH = 74.0
WALL = 2.6
"""Distance between the middles of fat cells, and half the width of the wall between two, um."""


def fat_cells(seed: int, middle: tuple[float, float], reach: float, area: skia.Path) -> skia.Path:
    """Returns the outlines of fat cells: Voronoi cells of a jittered lattice, shrunk by their walls and rounded.

    Args:
        seed: of the scene.
        middle: centre of the tissue, um.
        reach: cells are looked for so far around it, um.
        area: cells whose site lies in it are kept.
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
