"""Checks image files that a table names: each lies inside the image root, is complete and is of a sane size.

The paths come from a file that somebody else wrote: none is opened before it is known to stay inside the root.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from scale_vqa_eval.errors import Problem, preview
from scale_vqa_eval.files import inside_root

FORMATS: Final = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
MAX_PIXELS: Final = 64_000_000
"""Most pixels an image may claim; three of the released 512 px views have under one million."""


def inside(root: Path, name: str) -> Path | str:
    """Returns the file that ``name`` points to below ``root``, or a line that says why there is none.

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
        real = inside_root(root, name)
        if real is None:
            return "a symlink that leaves the image root"
        return real if real.is_file() else "no file there"
    except (OSError, ValueError) as error:
        return preview(error)


def image_problem(path: Path) -> str | None:
    """Returns a line that says what is wrong with an image file, or None if it decodes in full."""
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
        root: the folder that the paths are relative to.
        named: pairs of location (for messages) and path, in row order.
        workers: threads; decoding releases the interpreter lock.

    Returns:
        One problem for each pair whose path or file is bad, in row order.
    """
    pairs = list(named)
    files = {name: inside(root, name) for _, name in pairs}
    paths = sorted({file for file in files.values() if isinstance(file, Path)})
    with ThreadPoolExecutor(workers) as pool:
        checked = tqdm(pool.map(image_problem, paths), "images checked", total=len(paths), disable=None)
        broken = dict(zip(paths, checked, strict=True))
    problems = []
    for location, name in pairs:
        file, where = files[name], f"{location}, image {preview(name)}"
        if not isinstance(file, Path):
            hint = f"put it below {root}" if file == "no file there" else "name a file below the image root"
            problems.append(Problem(where, f"a file inside {root}", file, hint))
        elif (found := broken[file]) is not None:
            problems.append(Problem(where, "a complete image", found, "download it again"))
    return problems
