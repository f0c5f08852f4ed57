"""Finds the image files of a table in any layout, and validates them.

The paths are untrusted: none is opened before it is known to stay inside the root. Images must be complete and of a
reasonable size.

A table refers to an image as ``SLIDE/rois/10_4_2.jpg``. Every folder, and every folder in an archive, that contains
this path is a candidate. Images are taken from the candidates that have an image no other candidate has; if these do
not give each image exactly once, the error lists all candidates. Names in archives are only compared, never used as
paths; links, absolute names and ``..`` are refused. Archives are not unpacked, except for the images of a compressed
tar, which has no random access: they are copied to an unnamed temporary file.
"""

from __future__ import annotations

import io
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import unicodedata
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Final, Protocol

import click
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import inside_root
from scale_vqa_eval.predict.images import SENT_UNCHANGED

FORMATS: Final = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
MAX_PIXELS: Final = 64_000_000
"""Maximum number of pixels of an image; three released views of 512 px have less than one million."""
MAX_BYTES: Final = 500_000_000
"""Maximum size of an image file, which is in memory while its row is written."""
UNREADABLE: Final = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    NotImplementedError,
)
"""Errors of reading a file, or a member of a damaged archive."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in a folder, in an archive or on the Hub.

    Attributes:
        path: path below the folder or repository that is searched; an archive counts as a folder.
        size: size in bytes.
        archive: path of the archive that contains it, or an empty string.
        open: returns the content as a binary file.
    """

    path: str
    size: int
    archive: str
    open: Callable[[], IO[bytes]] = field(compare=False)


@dataclass(frozen=True, slots=True)
class FoundImages:
    """The images of a table.

    Attributes:
        files: name -> file, or the reason why there is none.
        root: name of the folder or repository that was searched.
        places: folders and archives below it that contain the images.
    """

    files: Mapping[str, StoredFile | str]
    root: str
    places: tuple[str, ...]


def unsafe_path(name: str) -> str | None:
    """Returns why a path of an untrusted table or archive is refused, or None if it is safe."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if "\0" in name:
        return "a path with a NUL byte"
    if posix.is_absolute() or windows.is_absolute() or windows.drive:
        return "an absolute path"
    return "a path with '..'" if ".." in posix.parts or ".." in windows.parts else None


def inside(root: Path, name: str) -> Path | str:
    """Returns the file ``name`` below ``root``, or the reason why there is none.

    Absolute paths (of any system), ``..``, NUL bytes, and symlinks that leave the root are refused.
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


@contextmanager
def opened_image(content: IO[bytes]) -> Iterator[Image.Image]:
    """Opens an image of an untrusted file in one of ``FORMATS``, without decoding it.

    Raises:
        Image.DecompressionBombError: if it has more than ``MAX_PIXELS`` pixels; for other defects, the errors of PIL.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(content, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
            yield image


def browser_image(content: bytes, location: str) -> tuple[bytes, str]:
    """Returns bytes and media type of an image in a format that browsers show.

    Args:
        content: the image file; its format is read from the bytes.
        location: its name in error messages.

    Raises:
        InputError: if it is not an image, is damaged, or has too many pixels.
    """
    try:
        with opened_image(io.BytesIO(content)) as image:
            kind = SENT_UNCHANGED.get(image.format or "")
            if kind is not None:
                return content, kind
            out = io.BytesIO()
            image.convert("RGB").save(out, "PNG")
            return out.getvalue(), "image/png"
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        expected, hint = f"an image in {', '.join(FORMATS)}", "fix the row, or reject the item"
        raise InputError(Problem(location, expected, preview(str(error)), hint)) from error


def image_problem(file: Path | StoredFile) -> str | None:
    """Returns the defect of an image file, or None if it can be decoded completely."""
    try:
        size = file.stat().st_size if isinstance(file, Path) else file.size
        if size > MAX_BYTES:
            return f"a file of {size:,} bytes (at most {MAX_BYTES:,})"
        with file.open("rb") if isinstance(file, Path) else file.open() as content, opened_image(content) as image:
            image.load()
    except Image.DecompressionBombError as error:
        return f"a decompression bomb ({error})"
    except UnidentifiedImageError:
        return f"no image in {', '.join(FORMATS)}" if size else "an empty file"
    except (*UNREADABLE, SyntaxError, ValueError, struct.error, IndexError, OverflowError) as error:
        return f"a truncated or broken image ({preview(error)})"
    return None


def check_images(root: Path | FoundImages, named: Iterable[tuple[str, str]], workers: int = 2) -> list[Problem]:
    """Checks the images of all rows, each file once.

    Args:
        root: the folder that the paths are relative to, or the result of ``find_images``.
        named: (location for messages, path) pairs, in row order.
        workers: number of threads; decoding releases the interpreter lock.

    Returns:
        One problem for each pair with an invalid path or file, in row order.
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
            hint = "convert it, or download it again" if found.startswith("no image in") else "download it again"
            problems.append(Problem(where, "a complete image", found, hint))
    return problems


ARCHIVE: Final = re.compile(r"\.(?:zip|tar|tar\.(?:gz|bz2|xz)|tgz|tbz2?|txz)$", re.IGNORECASE)
_SHOWN: Final = 8
_SKIPPED: Final = "__MACOSX"


class ImageFiles(Protocol):
    """A folder or repository: lists files with their sizes, and gives access to a file."""

    @property
    def name(self) -> str: ...
    def listing(self) -> Iterable[tuple[str, int]]: ...
    def exact(self, name: str) -> StoredFile | str: ...
    def local(self, path: str) -> Path: ...
    def peek(self, path: str) -> IO[bytes]: ...


class Folder:
    """A local folder, or one archive, as an ``ImageFiles``."""

    def __init__(self, path: Path) -> None:
        self.name, self._archive = str(path), path.name if path.is_file() else ""
        self._root = path.parent if self._archive else path

    def listing(self) -> Iterator[tuple[str, int]]:
        if self._archive:
            yield self._archive, self.local(self._archive).stat().st_size
            return
        for place, folders, names in os.walk(self._root):
            folders[:] = sorted(name for name in folders if not name.startswith((".", _SKIPPED)))
            for path in (Path(place, name) for name in sorted(names)):
                shown = path.relative_to(self._root).as_posix()
                if not path.is_symlink() or isinstance(inside(self._root, shown), Path):
                    yield shown, path.stat().st_size

    def exact(self, name: str) -> StoredFile | str:
        file = "no file there" if self._archive else inside(self._root, name)
        return file if isinstance(file, str) else StoredFile(name, file.stat().st_size, "", partial(file.open, "rb"))

    def local(self, path: str) -> Path:
        return self._root / path

    def peek(self, path: str) -> IO[bytes]:
        return self.local(path).open("rb")


def find_images(source: ImageFiles, names: Iterable[str], scratch: Path, named: bool) -> FoundImages:
    """Finds the images of a table.

    Args:
        source: folder or repository.
        names: image paths in the table.
        scratch: folder for the images of compressed tars.
        named: whether the user gave ``source`` as the root; if it has every image itself, nothing else is searched.

    Raises:
        InputError: if the location is ambiguous, an archive cannot be read, or ``source`` was not named and has none.
    """
    found = {name: unsafe_path(name) or source.exact(name) for name in names}
    wanted = {_normal(name) for name in found if unsafe_path(name) is None}
    exact = {_normal(name): file for name, file in found.items() if not isinstance(file, str)}
    places = ["."]
    if wanted and not (named and wanted == exact.keys()):
        search = _Search(source, wanted, exact, scratch)
        search.run()
        files, places = search.result(named)
        click.echo(
            f"images: {len(files)} of {len(wanted)} in {_listed(places) or 'no place'} ({source.name})", err=True
        )
        found = {name: why if unsafe_path(name) else files.get(_normal(name), why) for name, why in found.items()}
    return FoundImages(found, source.name, tuple(places))


class _Search:
    """Searches a source for the wanted images; ``places`` is place -> name -> file."""

    def __init__(self, source: ImageFiles, wanted: set[str], exact: dict[str, StoredFile], scratch: Path) -> None:
        self.source, self.wanted = source, wanted
        self.places = {".": dict(exact)} if exact else {}
        self._depths = sorted({name.count("/") + 1 for name in wanted})
        self._others: Counter[str] = Counter()
        self._example: dict[str, str] = {}
        self._scratch = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  (as long as the images are read)
        self._zip = lru_cache(maxsize=16)(zipfile.ZipFile)

    def run(self) -> None:
        """Lists all files and archives; tars come last, and on the Hub only if images are still missing."""
        archives, unread = [], []
        for path, size in self.source.listing():
            if ARCHIVE.search(path):
                archives.append(path)
            else:
                self._add(StoredFile(path, size, "", partial(self.source.peek, path)))
        for path in sorted(archives, key=lambda path: (not path.lower().endswith(".zip"), path)):
            try:
                if path.lower().endswith(".zip"):
                    refused = self._add_zip(path)
                elif isinstance(self.source, Folder) or not self.wanted <= set().union(*self.places.values()):
                    refused = self._add_tar(path)
                else:
                    unread.append(path)
                    continue
            except InputError:
                raise
            except (*UNREADABLE, RuntimeError, ValueError) as error:
                location, hint = f"{self.source.name}, {path}", "download it again, or give the images with --images"
                raise InputError(Problem(location, "a complete archive", preview(str(error), 160), hint)) from error
            if refused:
                click.echo(f"{path}: skipped {refused} links or names that leave the archive", err=True)
        if unread:
            click.echo(f"not downloaded, because all images are found elsewhere: {_listed(unread)}", err=True)

    def _add(self, file: StoredFile) -> bool:
        """Adds a file to every place below which it has a wanted name; returns whether there is one."""
        path, found = _normal(file.path), False
        parts = path.split("/")
        for depth in self._depths:
            name = "/".join(parts[-depth:])
            if depth > len(parts) or name not in self.wanted:
                continue
            place = _place(path[: -len(name)], name, _normal(file.archive) if file.archive else "")
            files, found = self.places.setdefault(place, {}), True
            if name in files and place != ".":
                location, hint = f"{self.source.name}, {place}", "remove one of the two"
                raise InputError(Problem(location, "each image once", f"{name} twice", hint))
            files.setdefault(name, file)
        if not found:
            group = file.archive or "/".join(parts[:-1][:2]) or "."
            self._others[group] += 1
            self._example.setdefault(group, "/".join(parts[-3:] if file.archive else parts[-1:]))
        return found

    def _add_zip(self, path: str) -> int:
        bare, refused = ARCHIVE.sub("", path), 0
        with self.source.peek(path) as content, zipfile.ZipFile(content) as archive:
            for info in archive.infolist():
                name = info.filename.replace("\\", "/")
                if info.is_dir() or name.startswith(_SKIPPED):
                    continue
                if unsafe_path(name) or stat.S_ISLNK(info.external_attr >> 16):
                    refused += 1
                    continue
                opened = partial(self._zipped, path, info)
                if self._add(StoredFile(f"{bare}/{name}", info.file_size, path, opened)) and info.flag_bits & 1:
                    raise RuntimeError("it needs a password")
        return refused

    def _zipped(self, path: str, info: zipfile.ZipInfo) -> IO[bytes]:
        return self._zip(self.source.local(path)).open(info)

    def _add_tar(self, path: str) -> int:
        bare, refused, packed = ARCHIVE.sub("", path), 0, not path.lower().endswith(".tar")
        local = self.source.local(path)
        # the mode "r|" reads the file once, from start to end
        with tarfile.open(local, "r|*" if packed else "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # or it would keep all headers
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse() or unsafe_path(member.name):
                    refused += 1
                    continue
                at = self._scratch.seek(0, io.SEEK_END) if packed else member.offset_data
                opened = partial(_slice, self._scratch if packed else local, at, member.size)
                wanted = self._add(StoredFile(f"{bare}/{member.name}", member.size, path, opened))
                if packed and wanted and member.size <= MAX_BYTES:  # larger ones are refused by check_images
                    shutil.copyfileobj(archive.extractfile(member) or io.BytesIO(), self._scratch)
        self._scratch.flush()  # because os.pread bypasses the buffer
        return refused

    def result(self, named: bool) -> tuple[dict[str, StoredFile], list[str]]:
        """Returns the file of each name, and the places used."""
        holders: dict[str, list[str]] = {}
        for place, files in self.places.items():
            for name in files:
                holders.setdefault(name, []).append(place)
        needed = {places[0] for places in holders.values() if len(places) == 1}
        chosen: dict[str, StoredFile] = {}
        for name, places in holders.items():
            fits = [place for place in places if place in needed]
            if len(fits) != 1 or len({self.places[place][name].size for place in places}) != 1:
                hint = "give the one to use with --images"
                raise InputError(Problem(self.source.name, "one place for each image", self._candidates(), hint))
            chosen[name] = self.places[fits[0]][name]
        if not chosen:
            expected = f"the {len(self.wanted)} images that the rows name, such as {preview(min(self.wanted))}"
            hint = "give the folder that contains these paths, or an archive, with --images"
            problem = Problem(self.source.name, expected, f"none; tried {self._candidates()}", hint)
            if not named:
                raise InputError(problem)
            click.echo(str(problem), err=True)  # check_images reports each missing image
        if unused := sorted(self.places.keys() - needed):
            click.echo(f"not used, because they have only copies of some images: {_listed(unused)}", err=True)
        return chosen, sorted(needed)

    def _candidates(self) -> str:
        """Returns the places tried and the number of images in each."""
        given = sorted((-len(files), place) for place, files in self.places.items())
        tried = [f"{place}: {-count} of {len(self.wanted)} images" for count, place in given] or [
            f"{group}: none in {count} files, such as {preview(self._example[group])}"
            for group, count in self._others.most_common()
        ]
        return _listed(tried, "; ") or "no file at all"


def _slice(file: IO[bytes] | Path, start: int, size: int) -> IO[bytes]:
    """Returns a part of an open file, or of a file that is opened for this."""
    if not isinstance(file, Path):
        return io.BytesIO(os.pread(file.fileno(), size, start))
    with file.open("rb") as opened:
        return io.BytesIO(os.pread(opened.fileno(), size, start))


def _place(above: str, name: str, archive: str) -> str:
    """Returns the place of a file by its path; archives that are named after slides count as one place.

    >>> _place("data/", "S1/rois/a.jpg", ""), _place("", "S1/rois/a.jpg", "")
    ('data', '.')
    >>> _place("d/all/images/", "S1/rois/a.jpg", "d/all.zip"), _place("d/", "S1/rois/a.jpg", "d/S1.zip")
    ('d/all.zip/images', 'd/*.zip')
    """
    if not archive:
        return above.rstrip("/") or "."
    folder, _, file = archive.rpartition("/")
    bare = ARCHIVE.sub("", archive)
    if ARCHIVE.sub("", file) in name.split("/"):
        return f"{folder}/*{archive[len(bare) :]}".removeprefix("/")
    return f"{archive}/{above[len(bare) + 1 :]}".rstrip("/")


def _normal(name: str) -> str:
    """Returns a path without ``./`` and in Unicode NFC; archives from macOS have decomposed characters."""
    return unicodedata.normalize("NFC", PurePosixPath(name).as_posix())


def _listed(texts: list[str], between: str = ", ") -> str:
    """Joins the first texts, and adds the number of further ones."""
    more = [f"and {len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
    return between.join([*texts[:_SHOWN], *more])
