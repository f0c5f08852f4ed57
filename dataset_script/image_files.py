"""Checks the image files of a release: each lies inside the image root, is whole and is of a sane size.

The paths come from a file that somebody else wrote: none is opened before it is known to stay inside the root.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from scale_vqa_eval.errors import Problem, preview

FORMATS: Final = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
MAX_PIXELS: Final = 64_000_000
"""Most pixels an image may claim; three of the released 512 px views have under one million."""

_MEND_PATH = "name a file below the image root"


def inside(root: Path, name: str) -> Path | str:
    """Returns the file that ``name`` points to below ``root``, or a line that says why it is none.

    Refused are absolute paths (of any system), ``..``, NUL bytes, and symlinks that lead out of the root.
    """
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if "\0" in name:
        return "a path with a NUL byte"
    if posix.is_absolute() or windows.is_absolute() or windows.drive:
        return "an absolute path"
    if ".." in posix.parts or ".." in windows.parts:
        return "a path with '..'"
    try:
        real = Path(os.path.realpath(root / posix))
        if not real.is_relative_to(os.path.realpath(root)):
            return "a symlink that leaves the image root"
        return real if real.is_file() else "no file there"
    except (OSError, ValueError) as error:
        return preview(error)


def image_problem(path: Path) -> str | None:
    """Returns a line that says what is wrong with an image file, None where it decodes in full."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    return f"a decompression bomb of {image.width} x {image.height} pixels (at most {MAX_PIXELS:,})"
                image.load()
    except Image.DecompressionBombError as error:
        return f"a decompression bomb ({error})"
    except UnidentifiedImageError:
        return f"no image in {', '.join(FORMATS)}" if path.stat().st_size else "an empty file"
    except (OSError, SyntaxError, ValueError, struct.error, EOFError, IndexError, OverflowError) as error:
        return f"a truncated or broken image ({preview(error)})"
    return None


def check_images(root: Path, named: Iterable[tuple[str, str]], workers: int = 2) -> list[Problem]:
    """Checks every image that the rows name, each file once.

    Args:
        root: the folder that the paths of the release are relative to.
        named: pairs of place (for messages) and path, in row order.
        workers: threads; decoding leaves the interpreter lock.

    Returns:
        One fault for each pair whose path or file is bad, in row order.
    """
    pairs = list(named)
    places = {name: inside(root, name) for _, name in pairs}
    files = sorted({place for place in places.values() if isinstance(place, Path)})
    with ThreadPoolExecutor(workers) as pool:
        checked = tqdm(pool.map(image_problem, files), "images checked", total=len(files), disable=None)
        broken = dict(zip(files, checked, strict=True))
    problems = []
    for location, name in pairs:
        place = places[name]
        if not isinstance(place, Path):
            hint = f"put it below {root}" if place == "no file there" else _MEND_PATH
            problems.append(Problem(f"{location}, image {preview(name)}", f"a file inside {root}", place, hint))
        elif (found := broken[place]) is not None:
            problems.append(Problem(f"{location}, image {preview(name)}", "a whole image", found, "download it again"))
    return problems
