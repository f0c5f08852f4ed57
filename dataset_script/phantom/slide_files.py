"""Writes a phantom slide as a pyramidal, tiled TIFF that OpenSlide opens (generic-tiff, scale in its tags)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import tifffile
from PIL import Image

from dataset_script.phantom.lattice import Rect
from dataset_script.phantom.slide import EXTENT, PhantomSlide

TILE: Final = 512
STEP: Final = 4
"""Each level is this much coarser than the one before, and drawn from the scene rather than averaged."""
SMALLEST: Final = 512
"""The last level is no larger than this along its longer side."""
STRIPE: Final = 8
"""Tiles along the side of a block that is drawn at once."""
QUALITY: Final = 90


def write_slide(slide: PhantomSlide, path: str | Path, area: Rect = (0.0, 0.0, EXTENT, EXTENT)) -> Path:
    """Writes a slide, or a rectangle of it, as a slide file; a file that is there already is left as it is.

    Args:
        slide: the phantom slide.
        path: of the file; it appears only when it is complete.
        area: rectangle of the slide to write, um; it is the whole slide of the file.

    Returns:
        The path.
    """
    path = Path(path)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    side = max(area[2] - area[0], area[3] - area[1])
    mpp, level = slide.mpp, 0
    with tifffile.TiffWriter(partial, bigtiff=True) as file:
        while True:
            size = round((area[2] - area[0]) / mpp), round((area[3] - area[1]) / mpp)
            file.write(
                _tiles(slide, (area[0], area[1]), mpp, size),
                shape=(size[1], size[0], 3),
                dtype="uint8",
                tile=(TILE, TILE),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0,
                description=f"{slide.name}: procedural phantom, no tissue" if not level else None,
                software=False,
                metadata=None,
            )
            if side / mpp <= SMALLEST:
                break
            mpp, level = mpp * STEP, level + 1
    partial.replace(path)
    return path


def _tiles(slide: PhantomSlide, origin: tuple[float, float], mpp: float, size: tuple[int, int]) -> Iterator[bytes]:
    """Yields the JPEG tiles of a level, row by row; a block of several tiles is drawn at once."""
    columns, rows = -(-size[0] // TILE), -(-size[1] // TILE)
    for row in range(rows):
        for first in range(0, columns, STRIPE):
            count = min(STRIPE, columns - first)
            corner = origin[0] + first * TILE * mpp, origin[1] + row * TILE * mpp
            block = Image.fromarray(slide.pixels(corner, mpp, (count * TILE, TILE)))
            for column in range(count):
                buffer = io.BytesIO()
                tile = block.crop((column * TILE, 0, (column + 1) * TILE, TILE))
                tile.save(buffer, "JPEG", quality=QUALITY, subsampling="4:2:0")
                yield buffer.getvalue()
