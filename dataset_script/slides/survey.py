"""A survey of a whole slide at low power: for any field, at the cost of four look-ups, how it looks.

Paths are chosen and matched on the survey, so that only the regions that a question shows are read from the slide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dataset_script.slides.regions import SlideSource
from dataset_script.slides.tissue import Mask, ink_mask, optical_density, tissue_mask

SURVEY_MPP: Final = 4.0
SURVEY_PIXELS: Final = 2048
"""Longer side of a survey at most (its tables then take 200 MB); a slide above 8 mm is surveyed at a coarser scale."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Survey:
    """Cumulative maps of a slide.

    Attributes:
        extent: (width, height) of the slide in um.
        um_per_pixel: (across, down) of the maps.
        tissue: where tissue is, for looking at.
        ink: where pen is.
        sums: (height + 1, width + 1, 6) summed-area tables of tissue, ink, density of red, green, blue, sharpness.
    """

    extent: tuple[float, float]
    um_per_pixel: tuple[float, float]
    tissue: Mask
    ink: Mask
    sums: NDArray[np.float64]

    def means(self, x: Values, y: Values, side: float) -> Values:
        """Returns the (n, 6) means of the maps over square fields centred at ``x``, ``y`` with ``side``, all in um."""
        height, width = self.tissue.shape
        across, down = self.um_per_pixel
        left, right = _span(x, side, across, width)
        top, bottom = _span(y, side, down, height)
        total = self.sums[bottom, right] - self.sums[top, right] - self.sums[bottom, left] + self.sums[top, left]
        area = ((right - left) * (bottom - top))[:, None]
        return np.asarray(total / area)

    def tissue_share(self, x: Values, y: Values, side: float) -> Values:
        """Returns the share of tissue of each field, -1 where a field touches ink."""
        means = self.means(x, y, side)
        return np.where(means[:, 1] > 0, -1.0, means[:, 0])

    def tissue_points(
        self, bounds: tuple[float, float, float, float], count: int, rng: np.random.Generator
    ) -> tuple[Values, Values]:
        """Returns random points (x, y in um) on tissue within (left, right, top, bottom); none where there is none."""
        across, down = self.um_per_pixel
        left, right, top, bottom = (
            round(edge / scale) for edge, scale in zip(bounds, (across,) * 2 + (down,) * 2, strict=True)
        )
        rows, columns = np.nonzero(self.tissue[max(0, top) : bottom, max(0, left) : right])
        if rows.size == 0:
            return np.empty(0), np.empty(0)
        drawn = rng.integers(0, rows.size, count)
        x = (columns[drawn] + max(0, left) + rng.random(count)) * across
        y = (rows[drawn] + max(0, top) + rng.random(count)) * down
        return x, y

    def looks(self, x: Values, y: Values, side: float) -> Values:
        """Returns (n, 5) of what fields are matched on: tissue share, stain (three densities), log sharpness."""
        means = self.means(x, y, side)
        return np.column_stack([means[:, 0], means[:, 2:5], np.log(means[:, 5] + 1e-6)])


def survey_slide(source: SlideSource) -> Survey:
    """Reads a slide's thumbnail and makes the maps.

    Raises:
        InputError: where the thumbnail cannot be read.
    """
    width, height = source.size
    longer = max(width, height)
    pixels = np.asarray(source.thumbnail(min(SURVEY_PIXELS, max(1, round(longer * source.mpp / SURVEY_MPP)))))
    scale = longer * source.mpp / max(pixels.shape[:2])
    density = optical_density(pixels)
    ink = ink_mask(density, scale)
    tissue = tissue_mask(density, ink, scale)
    maps = (tissue, ink, *np.moveaxis(density, -1, 0), _sharpness(density.mean(axis=-1, dtype=np.float64)))
    sums = np.zeros((tissue.shape[0] + 1, tissue.shape[1] + 1, len(maps)))
    for number, values in enumerate(maps):
        sums[1:, 1:, number] = values.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    extent = (width * source.mpp, height * source.mpp)
    return Survey(extent, (extent[0] / pixels.shape[1], extent[1] / pixels.shape[0]), tissue, ink, sums)


def _sharpness(grey: Values) -> Values:
    """Returns the squared Laplacian, whose mean over a field is the usual focus measure."""
    from scipy import ndimage

    return np.asarray(ndimage.laplace(grey) ** 2)


def _span(centre: Values, side: float, scale: float, limit: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    start = np.clip(np.rint((centre - side / 2) / scale).astype(np.intp), 0, limit - 1)
    end = np.clip(np.rint((centre + side / 2) / scale).astype(np.intp), start + 1, limit)
    return start, end
