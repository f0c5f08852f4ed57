"""Reads the JPEG tiles of a TIFF slide with libjpeg-turbo: the pixels of OpenSlide in a third of its time.

OpenSlide stays the reference. Only the formats of ``PLAIN_GRIDS`` are read here, whose tiles lie side by side; a level
is used once a tile of it has been compared with OpenSlide's, and OpenSlide reads whatever this module does not: other
compressions, missing tiles, damaged data. Decoded tiles are kept, so that the fields of one place decode a tile once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

PLAIN_GRIDS: Final = frozenset({"aperio", "generic-tiff"})
"""Formats, by OpenSlide's names, in which a level is one TIFF directory without overlaps between tiles."""
CACHE_BYTES: Final = 64 * 2**20
"""Decoded pixels that are kept of one slide, if nothing else is asked for."""
_RGB_MARKER: Final = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
"""Adobe's APP14 segment with transform 0: the components are red, green and blue (JPEG File Interchange, T.872)."""


class TiffTiles:
    """The JPEG tiles of a TIFF's levels.

    Args:
        path: a TIFF file.
        sizes: (width, height) of the levels; a directory that is not the only one of its size is not used.
        cache_bytes: decoded pixels that are kept.
    """

    def __init__(self, path: Path, sizes: Sequence[tuple[int, int]], cache_bytes: int = CACHE_BYTES) -> None:
        import tifffile

        self._cache_bytes = cache_bytes
        self._file: Any = tifffile.TiffFile(path)
        directories: list[Any] = list(self._file.pages)
        pages = [page for page in directories if page.is_tiled]
        found = [[page for page in pages if (page.imagewidth, page.imagelength) == size] for size in sizes]
        self._pages: list[Any] = [same[0] if len(same) == 1 and _is_jpeg(same[0]) else None for same in found]
        self._cache: OrderedDict[tuple[int, int, int], Pixels] = OrderedDict()
        self._cached = 0

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def tile_box(self, level: int, x: int, y: int) -> tuple[int, int, int, int] | None:
        """Returns (left, top, width, height) of the tile that holds a pixel, or None where the level is not read."""
        page = self._pages[level]
        if page is None:
            return None
        left, top = x // page.tilewidth * page.tilewidth, y // page.tilelength * page.tilelength
        return left, top, min(page.tilewidth, page.imagewidth - left), min(page.tilelength, page.imagelength - top)

    def read(self, level: int, corner: tuple[int, int], size: tuple[int, int], reduce: int) -> Image.Image | None:
        """Returns pixels of a level, averaged ``reduce`` x ``reduce``; None where OpenSlide has to read them.

        Args:
            level: index of the level.
            corner: (x, y) in pixels of the level, multiples of ``reduce``.
            size: (width, height) in pixels of the level, within it.
            reduce: 1 for the level's own pixels.
        """
        page = self._pages[level]
        if page is None or page.tilewidth % reduce or page.tilelength % reduce:
            return None
        (x, y), (width, height) = corner, size
        out = np.empty((-(-height // reduce), -(-width // reduce), 3), np.uint8)
        across = -(-page.imagewidth // page.tilewidth)
        for row in range(y // page.tilelength, (y + height - 1) // page.tilelength + 1):
            for column in range(x // page.tilewidth, (x + width - 1) // page.tilewidth + 1):
                tile = self._tile(level, row * across + column, reduce)
                if tile is None:
                    return None
                top, left = (row * page.tilelength - y) // reduce, (column * page.tilewidth - x) // reduce
                target = out[max(0, top) : top + tile.shape[0], max(0, left) : left + tile.shape[1]]
                start_y, start_x = max(0, -top), max(0, -left)
                target[:] = tile[start_y : start_y + target.shape[0], start_x : start_x + target.shape[1]]
        return Image.fromarray(out)

    def _tile(self, level: int, index: int, reduce: int) -> Pixels | None:
        """Returns the part of a tile that lies on the level, or None where it is missing or damaged."""
        key = level, index, reduce
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        tile = self._decoded(self._pages[level], index)
        if tile is None:
            return None
        if reduce > 1:
            tile = np.asarray(Image.fromarray(tile).reduce(reduce))
        self._cache[key] = tile
        self._cached += tile.nbytes
        while self._cached > self._cache_bytes and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].nbytes
        return tile

    def _decoded(self, page: Any, index: int) -> Pixels | None:
        import simplejpeg

        if index >= len(page.databytecounts) or not page.databytecounts[index]:
            return None
        self._file.filehandle.seek(page.dataoffsets[index])
        data = self._file.filehandle.read(page.databytecounts[index])
        marker = _RGB_MARKER if page.photometric == 2 else b""
        tables = (page.jpegtables or b"")[2:-2]
        try:  # strict: libjpeg only warns of data that ends early, and fills in grey
            tile: Pixels = simplejpeg.decode_jpeg(data[:2] + marker + tables + data[2:], strict=True)
        except ValueError:
            return None
        if tile.shape != (page.tilelength, page.tilewidth, 3):
            return None
        row, column = divmod(index, -(-page.imagewidth // page.tilewidth))
        return tile[: page.imagelength - row * page.tilelength, : page.imagewidth - column * page.tilewidth]


def _is_jpeg(page: Any) -> bool:
    """Returns whether a page holds baseline JPEG tiles of RGB or YCbCr."""
    layout = page.compression, page.samplesperpixel, page.bitspersample, page.planarconfig
    return layout == (7, 3, 8, 1) and page.photometric in (2, 6)
