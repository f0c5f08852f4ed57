"""Where a slide has tissue, and where it has ink or nothing: masks of a thumbnail.

Optical density is that of Beer and Lambert, -log10(I / I0), I0 being the light of the empty slide (Ruifrok and
Johnston, Anal Quant Cytol Histol 2001; 23: 291-299). The threshold is Otsu's (IEEE Trans SMC 1979; 9: 62-66), held
between bounds because a slide that is all tissue has no second mode for it to find.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Density = NDArray[np.float32]

OTSU_BOUNDS: Final = (0.03, 0.07)
"""Bounds of the tissue threshold in mean optical density: empty glass lies below, pale stroma above."""
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


def optical_density(pixels: Pixels) -> Density:
    """Returns the optical density of (height, width, 3) uint8 pixels, per channel, 0 where the glass is empty."""
    bright = np.percentile(pixels.reshape(-1, 3), 98, axis=0).astype(np.float32)
    glass = np.maximum(bright, max(bright.max() - GLASS_TINT, DIMMEST_GLASS))
    table = np.arange(256, dtype=np.float32)[:, None]
    densities = np.maximum(0, np.log10(glass) - np.log10(np.maximum(table, 1)))
    return np.stack([densities[pixels[..., channel], channel] for channel in range(3)], axis=-1)


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
    core = np.asarray(isotropic_erosion(np.pad(mask, 1), width / 2))[1:-1, 1:-1]  # what lies beyond is no ink
    return np.asarray(isotropic_dilation(core, width / 2)) if core.any() else core
