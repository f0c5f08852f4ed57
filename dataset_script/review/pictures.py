"""Image files for the browser: the bytes of the release, or a PNG where the browser knows no such format."""

from __future__ import annotations

import io
import warnings
from typing import Final

from PIL import Image

from dataset_script.image_files import FORMATS, MAX_PIXELS
from scale_vqa_eval.errors import InputError, Problem, preview

_SHOWN_AS_THEY_ARE: Final = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}


def browser_image(content: bytes, location: str) -> tuple[bytes, str]:
    """Returns bytes and media type of an image that a browser shows.

    Args:
        content: the image file; its format is taken from the bytes, never from a name.
        location: what a message calls it.

    Raises:
        InputError: where it is no image, is broken, or claims too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
                kind = _SHOWN_AS_THEY_ARE.get(image.format or "")
                if kind is not None:
                    return content, kind
                out = io.BytesIO()
                image.convert("RGB").save(out, "PNG")
                return out.getvalue(), "image/png"
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        problem = Problem(
            location, f"an image in {', '.join(FORMATS)}", preview(str(error)), "fix the row, or reject the item"
        )
        raise InputError(problem) from error
