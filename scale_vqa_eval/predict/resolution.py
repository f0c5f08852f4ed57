"""Brings an image to the resolution bounds, the same for every backend, and turns it into what a backend wants."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Final

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from scale_vqa_eval.errors import InputError, Problem, preview

_SENT_AS_THEY_ARE: Final = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
UNREADABLE: Final = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Least and most pixels (width x height) of an image; None for no bound of ours (a processor has its own)."""

    least: int | None = None
    most: int | None = None

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Returns the size inside the bounds, the sides' ratio kept to a pixel.

        >>> Bounds(most=200).size(40, 20), Bounds(least=3200).size(40, 20), Bounds().size(40, 20)
        ((20, 10), (80, 40), (40, 20))
        """
        area = width * height
        if self.most is not None and area > self.most:
            factor = math.sqrt(self.most / area)
            return max(1, math.floor(width * factor)), max(1, math.floor(height * factor))
        if self.least is not None and area < self.least:
            factor = math.sqrt(self.least / area)
            return math.ceil(width * factor), math.ceil(height * factor)
        return width, height


def decoded(content: bytes, location: str, bounds: Bounds) -> Image.Image:
    """Returns an image as RGB inside the bounds, turned as its EXIF orientation says: as people and servers see it.

    Raises:
        InputError: where the bytes are no image, a truncated one, a decompression bomb, or of an unknown range.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            picture = as_rgb(image, location)
    except UnidentifiedImageError as error:  # its message names an address in memory
        raise InputError(Problem(location, "a whole image", _opening(content), "bring back the original")) from error
    except UNREADABLE as error:
        raise InputError(
            Problem(location, "a whole image", preview(str(error), 120), "bring back the original")
        ) from error
    size = bounds.size(*picture.size)
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)


def as_rgb(image: Image.Image, location: str) -> Image.Image:
    """Returns an image as RGB, turned as its EXIF says; of 16 bits of grey the upper ones (PIL would make all white).

    Raises:
        InputError: for 32 bits: which value is white is not known.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value * (1 / 257)).convert("L")
    if image.mode in ("I", "F"):
        found = f"32 bits a pixel (mode {image.mode}), of which nothing says what is white"
        raise InputError(Problem(location, "8 or 16 bits a channel", found, "save the image with 8 bits a channel"))
    return image.convert("RGB")


def _opening(content: bytes) -> str:
    return f"{len(content):,} bytes that open with {preview(content[:16])}" if content else "no bytes"


def data_uri(content: bytes, location: str, bounds: Bounds) -> str:
    """Returns an image as a data URI: the original bytes where they can be sent, else lossless PNG.

    Raises:
        InputError: as ``decoded`` does.
    """
    picture = decoded(content, location, bounds)
    with Image.open(io.BytesIO(content)) as header:
        kind = _SENT_AS_THEY_ARE.get(header.format or "")
        plain = header.mode in ("RGB", "L") and header.getexif().get(ExifTags.Base.Orientation, 1) == 1
        as_it_is = kind is not None and header.size == picture.size and plain
    if not as_it_is:
        file = io.BytesIO()
        picture.save(file, "PNG")
        kind, content = "image/png", file.getvalue()
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


class EncodedImages:
    """Data URIs of the images encoded last: the questions of a path share theirs, and each is encoded once.

    Safe to use from several threads.

    Attributes:
        most: characters kept.
    """

    def __init__(self, most: int = 512 * 2**20) -> None:
        self.most = most
        self._kept: OrderedDict[bytes, str] = OrderedDict()
        self._size = 0
        self._lock = Lock()

    def uri(self, content: bytes, location: str, bounds: Bounds) -> str:
        """Returns ``data_uri``, from memory where it is there."""
        key = hashlib.blake2b(content, key=repr(bounds).encode()[:64], digest_size=16).digest()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = data_uri(content, location, bounds)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = found
                self._size += len(found)
            while self._size > self.most:
                self._size -= len(self._kept.popitem(last=False)[1])
        return found
