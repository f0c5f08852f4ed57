"""Checks image files that a table names: each lies inside the image root, is complete and is of a sane size.

The paths come from a file that somebody else wrote: none is opened before it is known to stay inside the root.
``dataset_script.image_search`` finds images below other folders than the root itself, and in archives.
"""

from __future__ import annotations

import lzma
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Final

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from scale_vqa_eval.errors import Problem, preview
from scale_vqa_eval.files import inside_root

FORMATS: Final = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
MAX_PIXELS: Final = 64_000_000
"""Most pixels an image may claim; three of the released 512 px views have under one million."""
MAX_BYTES: Final = 500_000_000
"""Most bytes of an image file: it is held in memory while its row is written."""
UNREADABLE: Final = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    NotImplementedError,
)
"""What reading a file, or a member of a damaged archive, raises."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in a folder, in an archive or on the Hub.

    Attributes:
        path: below the folder or repository that was searched; an archive counts as a folder of its name.
        size: in bytes.
        archive: path of the archive that holds it, or an empty text.
        open: returns the content as a binary file.
    """

    path: str
    size: int
    archive: str
    open: Callable[[], IO[bytes]] = field(compare=False)


@dataclass(frozen=True, slots=True)
class FoundImages:
    """Where the images of a table are: name -> file, or why there is none.

    ``root`` is what was searched, ``places`` are the folders and archives below it that hold the images.
    """

    files: Mapping[str, StoredFile | str]
    root: str
    places: tuple[str, ...]


def unsafe_path(name: str) -> str | None:
    """Returns why a path of an untrusted table or archive is refused, whatever lies there; None if it may be used."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if "\0" in name:
        return "a path with a NUL byte"
    if posix.is_absolute() or windows.is_absolute() or windows.drive:
        return "an absolute path"
    return "a path with '..'" if ".." in posix.parts or ".." in windows.parts else None


def inside(root: Path, name: str) -> Path | str:
    """Returns the file that ``name`` points to below ``root``, or a line that says why there is none.

    Refused are absolute paths (of any system), ``..``, NUL bytes, and symlinks that lead out of the root.
    """
    if refused := unsafe_path(name):
        return refused
    try:
        real = inside_root(root, name)
        if real is None:
            return "a symlink that leaves the image root"
        return real if real.is_file() else "no file there"
    except (OSError, ValueError) as error:
        return preview(error)


def image_problem(file: Path | StoredFile) -> str | None:
    """Returns a line that says what is wrong with an image file, or None if it decodes in full."""
    try:
        size = file.stat().st_size if isinstance(file, Path) else file.size
        if size > MAX_BYTES:
            return f"a file of {size:,} bytes (at most {MAX_BYTES:,})"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with (
                file.open("rb") if isinstance(file, Path) else file.open() as content,
                Image.open(content, formats=FORMATS) as image,
            ):
                if image.width * image.height > MAX_PIXELS:
                    return f"a decompression bomb of {image.width} x {image.height} pixels (at most {MAX_PIXELS:,})"
                image.load()
    except Image.DecompressionBombError as error:
        return f"a decompression bomb ({error})"
    except UnidentifiedImageError:
        return f"no image in {', '.join(FORMATS)}" if size else "an empty file"
    except (*UNREADABLE, SyntaxError, ValueError, struct.error, IndexError, OverflowError) as error:
        return f"a truncated or broken image ({preview(error)})"
    return None


def check_images(root: Path | FoundImages, named: Iterable[tuple[str, str]], workers: int = 2) -> list[Problem]:
    """Checks every image that the rows name, each file once.

    Args:
        root: the folder that the paths are relative to, or where a search has found them.
        named: pairs of location (for messages) and path, in row order.
        workers: threads; decoding releases the interpreter lock.

    Returns:
        One problem for each pair whose path or file is bad, in row order.
    """
    pairs = list(named)
    files = {name: inside(root, name) if isinstance(root, Path) else root.files[name] for _, name in pairs}
    there = sorted({file for file in files.values() if not isinstance(file, str)}, key=str)
    with ThreadPoolExecutor(workers) as pool:
        checked = tqdm(pool.map(image_problem, there), "images checked", total=len(there), disable=None)
        broken = dict(zip(there, checked, strict=True))
    folder, problems = root if isinstance(root, Path) else root.root, []
    for location, name in pairs:
        file, where = files[name], f"{location}, image {preview(name)}"
        if isinstance(file, str):
            hint = f"put it below {folder}" if file == "no file there" else "name a file below the image root"
            problems.append(Problem(where, f"a file inside {folder}", file, hint))
        elif (found := broken[file]) is not None:
            problems.append(Problem(where, "a complete image", found, "download it again"))
    return problems
