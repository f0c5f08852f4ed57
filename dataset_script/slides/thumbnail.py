"""A low-power map of a whole slide: tissue, pen ink, colour and structure of any field at the cost of four look-ups.

Fields are chosen and matched on this map, so that only the regions that a question shows are read from the slide.
Optical density is that of Beer and Lambert, -log10(I / I0), I0 being the light of the empty slide (Ruifrok and
Johnston, Anal Quant Cytol Histol 2001; 23: 291-299). The tissue threshold is Otsu's (IEEE Trans SMC 1979; 9: 62-66),
held between bounds because a slide that is all tissue has no second mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scale_vqa_eval.wsi import SlideSource

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Density = NDArray[np.float32]
Values = NDArray[np.float64]

MAP_MPP: Final = 4.0
MAP_PIXELS: Final = 2048
"""Longer side of the map at most (its tables then take 200 MB); a slide above 8 mm gets a coarser map."""
OTSU_BOUNDS: Final = (0.03, 0.07)
"""Bounds of the tissue threshold in mean optical density: empty glass is below, pale stroma above."""
DIMMEST_GLASS: Final = 230
"""Empty glass is never taken to be darker than this, whatever a slide without empty glass suggests."""
GLASS_TINT: Final = 8
"""Empty glass is near neutral; where a slide has none, its palest tissue must not pass for it."""
INK_EXCESS: Final = 0.15
"""Ink absorbs red this much more than green; haematoxylin and eosin absorb green more than red."""
BLACK_DENSITY: Final = 0.7
BLACK_SPREAD: Final = 0.12
"""Black ink is dense in every channel alike; the densest nuclei let blue through."""
COLOURED_STROKE_UM: Final = 20.0
BLACK_STROKE_UM: Final = 60.0
"""Narrowest ink; black is asked to be wider, because pigment and dust are black too."""
INK_RIM_UM: Final = 50.0
MIN_PIECE_UM: Final = 100.0
MAX_FILLER: Final = 6
"""Brightest channel of black filler, after JPEG; the blackest ink that is scanned is brighter."""
DETAIL_UM: Final = 16.0
"""Size of what a person can find again at 40x: a gland's edge or a vessel, not a nucleus."""
LUMA: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32) / 2.55
"""Weights of ITU-R BT.601 that give lightness in percent."""


@dataclass(frozen=True)
class TissueMap:
    """Cumulative maps of a slide.

    Attributes:
        extent: (width, height) of the slide in um.
        um_per_pixel: (across, down) of the maps.
        tissue: (height, width), where tissue is.
        ink: (height, width), where pen ink is.
        sums: (height + 1, width + 1, 7) summed-area tables of tissue, ink, red, green, blue, sharpness, structure.
    """

    extent: tuple[float, float]
    um_per_pixel: tuple[float, float]
    tissue: Mask
    ink: Mask
    sums: NDArray[np.float64]

    def means(self, x: Values, y: Values, side: float) -> Values:
        """Returns the (n, 7) means of the maps over square fields centred at ``x``, ``y`` with ``side``, all in um."""
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
        """Returns random points (x, y in um) on tissue within (left, right, top, bottom), or none."""
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

    def appearance(self, x: Values, y: Values, side: float) -> Values:
        """Returns (n, 5) features for matching: mean red, green and blue, tissue share, log sharpness."""
        means = self.means(x, y, side)
        return np.column_stack([means[:, 2:5], means[:, 0], np.log(means[:, 5] + 1e-6)])

    def structure(self, x: Values, y: Values, side: float) -> Values:
        """Returns the standard deviation of lightness (0 to 100) in each field, over details of ``DETAIL_UM``."""
        return np.asarray(np.sqrt(np.maximum(0, self.means(x, y, side)[:, 6])))


def map_slide(source: SlideSource) -> TissueMap:
    """Reads a slide's thumbnail and makes the maps.

    Raises:
        InputError: where the thumbnail cannot be read.
    """
    width, height = source.size
    longer = max(width, height)
    pixels = np.asarray(source.thumbnail(min(MAP_PIXELS, max(1, round(longer * source.mpp / MAP_MPP)))))
    scale = longer * source.mpp / max(pixels.shape[:2])
    density = optical_density(pixels)
    density[filler := filler_mask(pixels, density, scale)] = 0
    ink = ink_mask(density, scale)
    tissue = tissue_mask(density, ink, scale) & ~filler
    sharpness = _sharpness(density.mean(axis=-1, dtype=np.float64))
    maps = (tissue, ink, *np.moveaxis(pixels, -1, 0), sharpness, _structure(pixels, scale))
    sums = np.zeros((tissue.shape[0] + 1, tissue.shape[1] + 1, len(maps)))
    for number, values in enumerate(maps):
        sums[1:, 1:, number] = values.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    extent = (width * source.mpp, height * source.mpp)
    return TissueMap(extent, (extent[0] / pixels.shape[1], extent[1] / pixels.shape[0]), tissue, ink, sums)


def _sharpness(grey: Values) -> Values:
    """Returns the squared Laplacian, whose mean over a field is the usual focus measure."""
    from scipy import ndimage

    return np.asarray(ndimage.laplace(grey) ** 2)


def _structure(pixels: Pixels, um_per_pixel: float) -> Values:
    """Returns half the squared difference of lightness over a distance, whose mean over a field is the variance.

    Lightness is the luma of sRGB as a percentage, within a few units of CIELAB's L*.
    """
    from scipy import ndimage

    light = ndimage.uniform_filter(pixels @ LUMA, max(1, round(DETAIL_UM / um_per_pixel)))
    step = max(1, round(4 * DETAIL_UM / um_per_pixel))
    moved = (
        np.pad(light, ((0, down), (0, across)), mode="edge")[down:, across:] for down, across in ((step, 0), (0, step))
    )
    return np.asarray(sum((light - other) ** 2 for other in moved) / 4)


def _span(centre: Values, side: float, scale: float, limit: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    start = np.clip(np.rint((centre - side / 2) / scale).astype(np.intp), 0, limit - 1)
    end = np.clip(np.rint((centre + side / 2) / scale).astype(np.intp), start + 1, limit)
    return start, end


def optical_density(pixels: Pixels) -> Density:
    """Returns the optical density of (height, width, 3) uint8 pixels, per channel, 0 where the glass is empty."""
    bright = np.percentile(pixels.reshape(-1, 3), 98, axis=0).astype(np.float32)
    glass = np.maximum(bright, max(bright.max() - GLASS_TINT, DIMMEST_GLASS))
    table = np.arange(256, dtype=np.float32)[:, None]
    densities = np.maximum(0, np.log10(glass) - np.log10(np.maximum(table, 1)))
    return np.stack([densities[pixels[..., channel], channel] for channel in range(3)], axis=-1)


def filler_mask(pixels: Pixels, density: Density, um_per_pixel: float) -> Mask:
    """Returns where a scanner or a converter filled in what was not scanned.

    Filler is black to a few levels, or exactly one grey, over ``MIN_PIECE_UM``; what is scanned has noise. Filler as
    pale as glass needs no mask. A rim of the width of the thumbnail's kernel is added.
    """
    from scipy import ndimage

    black = pixels.max(axis=-1) <= MAX_FILLER
    flat = np.zeros_like(black)
    flat[1:, 1:] = np.all((pixels[1:, 1:] == pixels[:-1, 1:]) & (pixels[1:, 1:] == pixels[1:, :-1]), axis=-1)
    flat &= (pixels.max(axis=-1) - pixels.min(axis=-1) <= GLASS_TINT) & (density.mean(axis=-1) > OTSU_BOUNDS[0])
    core = _strokes(black, MIN_PIECE_UM / um_per_pixel) | _strokes(flat, MIN_PIECE_UM / um_per_pixel)
    return np.asarray(ndimage.binary_dilation(core, iterations=4)) if core.any() else core


def ink_mask(density: Density, um_per_pixel: float) -> Mask:
    """Returns where a pen was: blue, green or black, wide enough for a stroke, with a rim around it."""
    from skimage.morphology import isotropic_dilation

    red, green = density[..., 0], density[..., 1]
    lightest, densest = density.min(axis=-1), density.max(axis=-1)
    coloured = (red - green > INK_EXCESS) & (red > 2 * INK_EXCESS)
    black = (lightest > BLACK_DENSITY) & (densest - lightest < BLACK_SPREAD + lightest / 4)
    strokes = _strokes(coloured, COLOURED_STROKE_UM / um_per_pixel) | _strokes(black, BLACK_STROKE_UM / um_per_pixel)
    return np.asarray(isotropic_dilation(strokes, INK_RIM_UM / um_per_pixel)) if strokes.any() else strokes


def tissue_mask(density: Density, ink: Mask, um_per_pixel: float) -> Mask:
    """Returns where tissue is: dense enough, no ink, in pieces larger than dust."""
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    mean = density.mean(axis=-1)
    free = mean[~ink]
    if free.size == 0 or free.min() == free.max():
        threshold = OTSU_BOUNDS[1]
    else:
        threshold = float(np.clip(threshold_otsu(free), *OTSU_BOUNDS))
    mask: Mask = (mean > threshold) & ~ink
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * um_per_pixel**2
    sizes[0] = 0
    large: Mask = (sizes >= MIN_PIECE_UM**2)[labels]
    return large


def _strokes(mask: Mask, width: float) -> Mask:
    """Returns the parts of a mask that are at least so many pixels wide."""
    from skimage.morphology import isotropic_dilation, isotropic_erosion

    if np.count_nonzero(mask) < width**2 / 2:
        return np.zeros_like(mask)
    core = np.asarray(isotropic_erosion(np.pad(mask, 1), width / 2))[1:-1, 1:-1]  # beyond the slide there is no ink
    return np.asarray(isotropic_dilation(core, width / 2)) if core.any() else core
