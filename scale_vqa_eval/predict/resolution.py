"""Brings an image to the resolution bounds, the same for every backend, and turns it into what a backend wants."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Final

from PIL import Image

from scale_vqa_eval.errors import Fault, InputError, shown

_SENT_AS_THEY_ARE: Final = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}


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


def decoded(content: bytes, where: str, bounds: Bounds) -> Image.Image:
    """Returns an image as RGB inside the bounds.

    Raises:
        InputError: where the bytes are no image, a truncated one, or a decompression bomb.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(Fault(where, "a whole image", shown(str(error), 120), "bring back the original")) from error
    size = bounds.size(*picture.size)
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)


def data_uri(content: bytes, where: str, bounds: Bounds) -> str:
    """Returns an image as a data URI: the original bytes where they can be sent, else lossless PNG.

    Raises:
        InputError: as ``decoded`` does.
    """
    picture = decoded(content, where, bounds)
    with Image.open(io.BytesIO(content)) as header:
        kind = _SENT_AS_THEY_ARE.get(header.format or "")
        as_it_is = kind is not None and header.size == picture.size and header.mode in ("RGB", "L")
    if not as_it_is:
        file = io.BytesIO()
        picture.save(file, "PNG")
        kind, content = "image/png", file.getvalue()
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
