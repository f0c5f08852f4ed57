"""Small slide files drawn for tests: pyramidal TIFF with a scale, as OpenSlide's generic-tiff reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from dataset_script.slides.thumbnail import map_slide

Pixels = NDArray[np.uint8]


def write_slide(
    path: Path,
    levels: list[Pixels],
    mpp: float | None = 0.5,
    compression: str | None = None,
    icc: bytes | None = None,
    **options: Any,
) -> Path:
    """Writes levels, largest first, as a tiled pyramidal TIFF; ``mpp`` None leaves the scale out."""
    options = {"tile": (256, 256), "photometric": "rgb", "compression": compression, "iccprofile": icc} | options
    if mpp is not None:
        options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(levels):
            file.write(level, subfiletype=int(number > 0), **options)
    return path


def halves(pixels: Pixels, count: int) -> list[Pixels]:
    """Returns an image and its means over 2 x 2, 4 x 4, ... pixels, ``count`` levels in all."""
    levels = [pixels]
    for _ in range(count - 1):
        levels.append(np.asarray(Image.fromarray(levels[-1]).reduce(2)))
    return levels


def tissue_pixels(width: int, height: int, seed: int, margin: int = 100) -> Pixels:
    """Returns stained-looking pixels on empty glass: pink ground, purple spots, texture at every scale."""
    rng = np.random.default_rng(seed)
    texture = np.zeros((height, width), dtype=np.float32)
    for step in (4, 16, 64, 256):
        coarse = rng.normal(size=(-(-height // step), -(-width // step))).astype(np.float32)
        grown = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        texture += np.asarray(grown)
    ground = np.array([204, 132, 184], dtype=np.float32)
    pixels = np.clip(ground + texture[..., None] * np.array([13, 16, 10]), 60, 225)
    empty = np.ones((height, width), dtype=bool)
    empty[margin : height - margin, margin : width - margin] = False
    pixels[empty] = 244
    return pixels.astype(np.uint8)


def tissue_slide(path: Path, width: int = 3200, height: int = 2800, seed: int = 0, mpp: float | None = 0.5) -> Path:
    """Writes a slide of ``tissue_pixels`` with three levels."""
    return write_slide(path, halves(tissue_pixels(width, height, seed), 3), mpp)


class Picture:
    """A slide that is one picture at 4 um a pixel."""

    name = "picture"
    mpp = 4.0

    def __init__(self, pixels: Pixels) -> None:
        self.image = Image.fromarray(pixels)
        self.size = self.image.size

    def read_region(self, center_x_um: float, center_y_um: float, mpp: float, size_px: int) -> Image.Image:
        raise AssertionError("a tissue map reads the thumbnail alone")

    def thumbnail(self, max_px: int) -> Image.Image:
        self.image.thumbnail((max_px, max_px))
        return self.image


TISSUE_MAP = map_slide(Picture(tissue_pixels(600, 500, seed=3, margin=90)))
