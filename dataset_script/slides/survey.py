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
SURVEY_PIXELS: Final = 4096
"""Longer side of a survey at most; a slide of more than 16 mm is surveyed at a coarser scale."""

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
    grey = density.mean(axis=-1, dtype=np.float64)
    maps = np.dstack([tissue, ink, density, _sharpness(grey)]).astype(np.float64)
    sums = np.zeros((maps.shape[0] + 1, maps.shape[1] + 1, maps.shape[2]))
    np.cumsum(np.cumsum(maps, axis=0), axis=1, out=sums[1:, 1:])
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
