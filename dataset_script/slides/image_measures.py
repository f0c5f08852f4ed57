"""Simple measures of an image: what a reader who never looks at the tissue could go by."""

from __future__ import annotations

from typing import Final

import numpy as np
from PIL import Image

from dataset_script.slides.tissue import OTSU_BOUNDS

MEASURES: Final = ("red", "green", "blue", "saturation", "sharpness", "tissue", "bytes")
"""Names of what ``measure_image`` returns."""
GLASS: Final = 245.0
"""Light of empty glass, for an image by itself."""


def measure_image(image: Image.Image, encoded_bytes: int) -> list[float]:
    """Returns the measures of an RGB image: mean colour, saturation, sharpness, share of tissue, size of its file.

    Colour is taken from means over 8 x 8 pixels; sharpness is the log of the mean squared second difference of green
    along every eighth row, at full resolution.

    Args:
        image: RGB pixels.
        encoded_bytes: length of the encoded file; 0 where it has none of its own.
    """
    small = np.asarray(image.reduce(min(8, *image.size)), dtype=np.float32)
    lightest, darkest = small.max(axis=-1), small.min(axis=-1)
    saturation = float(np.mean((lightest - darkest) / np.maximum(lightest, 1)))
    density = -np.log10(np.maximum(small, 1) / GLASS).mean(axis=-1)
    green = np.asarray(image.getchannel("G"))[::8].astype(np.int32)
    bend = green[:, 2:] - 2 * green[:, 1:-1] + green[:, :-2]
    sharpness = float(np.log(np.mean(bend * bend) + 1e-6)) if bend.size else 0.0
    red, green_mean, blue = (float(value) for value in small.mean(axis=(0, 1)))
    tissue = float(np.mean(density > OTSU_BOUNDS[1]))
    values = (red, green_mean, blue, saturation, sharpness, tissue, float(encoded_bytes))
    return [round(value, 6) for value in values]
