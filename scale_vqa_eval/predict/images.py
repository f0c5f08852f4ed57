"""Reads and decodes the images of a dataset, for all backends, trainers and plug-ins.

An ``ImageSource`` returns the original bytes of a row's images. ``decode_image`` converts bytes to RGB: EXIF rotation
applied, transparency over white, colour profiles converted to sRGB, resized to the pixel bounds. An ``ImageFolder``
writes images to files as ``predict`` sends them.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any, Final

from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import atomic_write, inside_root
from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.read import release_files, resolve_data
from scale_vqa_eval.schema import VIEWS

OPTION_IMAGES: Final = "option_images"
PIXELS: Final = "scale_vqa_pixels"
"""Key in an image processor's configuration for the pixel bounds that the model was trained with."""
UNREADABLE: Final = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""Exceptions that PIL raises for bytes that are not a readable image."""
SENT_UNCHANGED: Final = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
_SUFFIXES: Final = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}
_COLUMNS_KEPT: Final = 4 * (len(VIEWS) + 1)
"""Column chunks cached in memory: those of four row groups."""
_SAME_COLOUR: Final = 3
"""Maximum difference of a channel (0 to 255) at which a colour profile counts as sRGB."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image: 0-based row among the questions read, column, and index in a list of option images or None."""

    row: int
    column: str
    option: int | None = None

    @property
    def name(self) -> str:
        """Name for messages."""
        column = self.column if self.option is None else f"{self.column}[{self.option}]"
        return f"row {self.row + 1}, {column}"


class ImageSource:
    """Lists the images of each row and returns their bytes; the base class without arguments has no images.

    Args:
        present: view -> whether each row has it; ``option_images`` -> number of option images of each row.
    """

    def __init__(self, present: Mapping[str, Sequence[Any]] | None = None) -> None:
        self._present = present or {}

    def views(self, row: int) -> list[str]:
        """Returns the views of a row, in scale order."""
        return [view for view in VIEWS if view in self._present and self._present[view][row]]

    def options(self, row: int) -> int:
        """Returns the number of option images of a row."""
        return int(self._present[OPTION_IMAGES][row] or 0) if OPTION_IMAGES in self._present else 0

    def read(self, image: ImageRef) -> bytes:
        """Returns an image's original bytes; raises InputError if they cannot be read."""
        raise InputError(Problem(image.name, "no image", "one", "this is a defect of the program: report it"))


class ParquetImages(ImageSource):
    """Images embedded in Parquet files, of which only a few row groups are held in memory.

    Args:
        files: the shards in order; rows are numbered across them.
        kept: numbers of the rows that were read as questions, or None for all rows.
    """

    def __init__(self, files: Sequence[Path], kept: Sequence[int] | None = None) -> None:
        import pyarrow.parquet as pq

        self._files = [pq.ParquetFile(path) for path in files]
        self._paths = list(files)
        groups = [(f, g) for f, file in enumerate(self._files) for g in range(file.metadata.num_row_groups)]
        sizes = [self._files[f].metadata.row_group(g).num_rows for f, g in groups]
        self._groups, self._starts = groups, [0, *accumulate(sizes)]
        self._rows = range(self._starts[-1]) if kept is None else kept
        self._column = lru_cache(maxsize=_COLUMNS_KEPT)(self._read_column)
        found = {name: self._presence(name) for name in (*VIEWS, OPTION_IMAGES)}
        super().__init__({name: [flags[row] for row in self._rows] for name, flags in found.items() if flags})

    def read(self, image: ImageRef) -> bytes:
        row = self._rows[image.row]
        group = bisect_right(self._starts, row) - 1
        value = self._column(group, image.column)[row - self._starts[group]].as_py()
        return embedded_bytes(value, image, str(self._paths[self._groups[group][0]]))

    def _read_column(self, group: int, name: str) -> Any:
        file, number = self._groups[group]
        return self._files[file].read_row_group(number, columns=[name]).column(0)

    def _presence(self, name: str) -> list[Any]:
        """Returns per row whether a view exists, or the number of option images, from the column of image names."""
        import pyarrow as pa

        found: list[Any] = []
        for path, file in zip(self._paths, self._files, strict=True):
            if name not in file.schema_arrow.names:
                return []
            kind = file.schema_arrow.field(name).type
            kind = kind.value_type if name == OPTION_IMAGES and hasattr(kind, "value_type") else kind
            if pa.types.is_null(kind):  # pandas writes this type for a column, or lists, without any value
                found += [0] * file.metadata.num_rows
                continue
            if not pa.types.is_struct(kind) or {"bytes", "path"} - {field.name for field in kind}:
                expected, hint = "images as {bytes, path}", "write the column with datasets' Image feature"
                raise InputError(Problem(f"{path}, {name}", expected, preview(str(kind)), hint))
            # the element of a list is called element, item or array_element, depending on the writer
            leaves = [file.schema.column(index).path for index in range(len(file.schema))]
            leaf = next(leaf for leaf in leaves if leaf.startswith(f"{name}.") and leaf.endswith(".path"))
            found += image_presence(file.read(columns=[leaf]).column(0), name)
        return found


class HubImages(ImageSource):
    """Images of a dataset loaded by ``datasets``, memory-mapped."""

    def __init__(self, name: str, split: str | None, config: str | None) -> None:
        from datasets import concatenate_datasets, load_dataset

        data = load_dataset(name, config, split=split)
        data = data if split is not None else concatenate_datasets(list(data.values()))
        self._name, self._table = name, data.data
        names = [column for column in (*VIEWS, OPTION_IMAGES) if column in data.column_names]
        super().__init__({column: image_presence(self._table.column(column), column) for column in names})

    def read(self, image: ImageRef) -> bytes:
        return embedded_bytes(self._table.column(image.column)[image.row].as_py(), image, self._name)


class FileImages(ImageSource):
    """Image files that a question file names by paths below a root folder.

    Args:
        root: folder that the paths are relative to.
        questions: the questions of the file, in order.

    Raises:
        InputError: lists every path that leaves the root or does not exist, and every unknown view.
    """

    def __init__(self, root: Path, questions: Sequence[Question]) -> None:
        self._root = root.resolve()
        self._paths = [dict(question.images) for question in questions]
        super().__init__({view: [bool(paths.get(view)) for paths in self._paths] for view in VIEWS})
        expected, named = f"an image file inside {self._root}", 0
        hint = "name the folder of the images with --images, or use --ablate blind"
        problems: list[Problem] = []
        missing: list[Problem] = []
        for question in questions:
            for view, text in question.images:
                named += 1
                file = inside_root(self._root, str(text))
                if view not in VIEWS:
                    known = f"views {', '.join(VIEWS)}"
                    problems.append(Problem(f"{question.id}, image_path", known, preview(view), "rename the view"))
                elif file is None or not file.is_file():
                    missing.append(Problem(f"{question.id}, {view}", expected, preview(text), hint))
        if len(missing) == named > 1:  # probably a wrong folder
            missing = [Problem(str(root), f"{named} image files", f"none, the first {missing[0].found}", hint)]
        if problems or missing:
            raise InputError(problems + missing)

    def read(self, image: ImageRef) -> bytes:
        return (self._root / self._paths[image.row][image.column]).read_bytes()


def open_images(
    data: str, split: str | None, config: str | None, questions: Sequence[Question], root: Path | None
) -> ImageSource:
    """Returns the image source of ``questions``, which were read from the same data, split and config.

    Raises:
        InputError: if the data names images that do not exist.
    """
    data = resolve_data(data)
    path = Path(data)
    if path.is_dir():
        splits = release_files(path, config)
        return ParquetImages([file for name, files in splits.items() if split in (None, name) for file in files])
    if path.suffix.lower() == ".parquet":
        return ParquetImages([path], _rows_of_split(path, split))
    if path.is_file():
        return FileImages(root or path.parent, questions)
    return HubImages(data, split, config)


def _rows_of_split(path: Path, split: str | None) -> list[int] | None:
    """Returns the row numbers of a split in a Parquet file, or None for all if it has no split column."""
    import pyarrow.parquet as pq

    if split is None or "split" not in pq.read_schema(path).names:
        return None
    names = pq.read_table(path, columns=["split"]).column(0).to_pylist()
    return [row for row, name in enumerate(names) if name == split]


def image_presence(column: Any, name: str) -> list[Any]:
    """Returns per row of an Arrow column whether a view exists, or the length of its list of option images."""
    import pyarrow.compute as pc

    present = pc.list_value_length(column) if name == OPTION_IMAGES else column.is_valid()
    return list(present.to_pylist())


def embedded_bytes(value: Any, image: ImageRef, location: str) -> bytes:
    """Returns the bytes of an image cell.

    Raises:
        InputError: if the cell has only a path: a dataset must not open files on this machine.
    """
    cell = value if image.option is None else value[image.option]
    content = cell.get("bytes") if isinstance(cell, Mapping) else None
    if not content:
        found = preview(cell.get("path")) if isinstance(cell, Mapping) else "nothing"
        hint = "build the release folder with --images, so that its images are in it"
        raise InputError(Problem(f"{location}, {image.name}", "an embedded image", found, hint))
    assert isinstance(content, bytes)
    return content


@dataclass(frozen=True, slots=True)
class Bounds:
    """Minimum and maximum pixels (width x height) of an image, or None for no bound besides a processor's own."""

    minimum: int | None = None
    maximum: int | None = None

    def as_dict(self) -> dict[str, int | None]:
        """Returns the bounds in the format used in files."""
        return {"least": self.minimum, "most": self.maximum}

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Returns a size within the bounds, with the same aspect ratio up to rounding.

        >>> Bounds(maximum=200).size(40, 20), Bounds(minimum=3200).size(40, 20), Bounds().size(40, 20)
        ((20, 10), (80, 40), (40, 20))
        """
        area = width * height
        if self.maximum is not None and area > self.maximum:
            factor = math.sqrt(self.maximum / area)
            return max(1, math.floor(width * factor)), max(1, math.floor(height * factor))
        if self.minimum is not None and area < self.minimum:
            factor = math.sqrt(self.minimum / area)
            return math.ceil(width * factor), math.ceil(height * factor)
        return width, height


@dataclass(frozen=True, slots=True)
class ProcessorBounds(Bounds):
    """Bounds as applied by Qwen's processors: sides are multiples of ``factor`` pixels.

    Processors do not change an image of such a size. Training, vLLM's rollouts, and prediction with the bounds saved
    beside the weights therefore use the same number of image tokens.
    """

    factor: int = 28

    def as_dict(self) -> dict[str, int | None]:
        """Returns the bounds and the factor in the format used in files."""
        return {"least": self.minimum, "most": self.maximum, "factor": self.factor}

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Returns the size to which the processor resizes an image."""
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        assert self.minimum is not None and self.maximum is not None
        # smart_resize refuses a very thin image, whose size then stays unchanged
        with suppress(ValueError):
            for _ in range(4):  # repeated, because resizing a thin image once may not reach a stable size
                height, width = smart_resize(height, width, self.factor, self.minimum, self.maximum)
        return width, height


def stated_bounds(entry: Any) -> Bounds | None:
    """Returns the pixel bounds of training from the entry ``PIXELS`` of an image processor, or None if invalid."""
    if not isinstance(entry, Mapping):
        return None
    least, most, factor = (entry.get(name) for name in ("least", "most", "factor"))
    whole = [number for number in (least, most, factor) if isinstance(number, int) and number > 0]
    if isinstance(factor, int) and len(whole) == 3:
        return ProcessorBounds(least, most, factor)
    return Bounds(least, most) if whole and len(whole) == 3 - [least, most, factor].count(None) else None


def decode_image(content: bytes, location: str, bounds: Bounds) -> Image.Image:
    """Returns an image as RGB within the bounds; see ``to_rgb``.

    Raises:
        InputError: if the bytes are not a complete image, are a decompression bomb, or have an unknown value range.
    """
    with _opened(content, location) as image:
        decoded = to_rgb(image, location)
    size = bounds.size(*decoded.size)
    return decoded if size == decoded.size else decoded.resize(size, Image.Resampling.BICUBIC)


@contextmanager
def _opened(content: bytes, location: str) -> Iterator[Image.Image]:
    """Opens an image; converts PIL's exceptions, also those raised while it is read, to InputError."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            yield image
    except UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        found = preview(str(error), 120)
        if isinstance(error, UnidentifiedImageError):  # its message contains a memory address
            found = f"{len(content):,} bytes that begin with {preview(content[:16])}" if content else "no bytes"
        raise InputError(Problem(location, "a complete image", found, "restore the original file")) from error


def to_rgb(image: Image.Image, location: str) -> Image.Image:
    """Returns an image as sRGB: EXIF rotation applied, transparent parts over white, colour profile converted.

    16-bit grey is scaled to 8 bits (PIL would clip it to white).

    Raises:
        InputError: for 32-bit pixels, whose value range is unknown.
    """
    if _exif_rotated(image):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value * (1 / 257)).convert("L")
    if image.mode in ("I", "F"):
        found = f"32 bits a pixel (mode {image.mode}) with an unknown value range"
        raise InputError(Problem(location, "8 or 16 bits a channel", found, "save the image with 8 bits a channel"))
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    mode = _colour_mode(image.mode)
    colours = image if image.mode == mode else image.convert(mode)
    colours = _in_srgb(colours, image.info.get("icc_profile") or b"")
    if alpha is None:
        return colours
    page = Image.new("RGB", image.size, "white")
    page.paste(colours, mask=alpha)
    return page


def _exif_rotated(image: Image.Image) -> bool:
    return bool(image.getexif().get(ExifTags.Base.Orientation, 1) != 1)


def _colour_mode(mode: str) -> str:
    """Returns the mode of an image without its palette or transparency."""
    if mode in ("LA", "La") or mode.startswith("I;16"):
        return "L"
    return "RGB" if mode in ("1", "P", "PA", "RGBA", "RGBa", "RGBX") else mode


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    if profile_kind(profile, image.mode) == "converted":
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert converted is not None
    else:
        converted = image.convert("RGB")
    converted.info.pop("icc_profile", None)  # saving would write it
    return converted


@lru_cache(maxsize=64)
def profile_kind(profile: bytes, mode: str) -> str:
    """Returns how a colour profile is treated: ``none``, ``srgb``, ``converted`` or ``unusable``.

    A profile counts as sRGB if it maps test colours to themselves. A profile that cannot be read, or that belongs to
    another image mode, is unusable and is ignored.
    """
    if not profile:
        return "none"
    levels = range(0, 256, 51)
    colours: list[Any] = list(range(256)) if mode == "L" else []
    if mode == "RGB":
        colours = [(red, green, blue) for red in levels for green in levels for blue in levels]
    sample = Image.new(mode, (max(len(colours), 1), 1))
    sample.putdata(colours)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(sample, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, *UNREADABLE):
        return "unusable"
    if converted is None or not colours:
        return "converted"
    pairs = zip(sample.convert("RGB").tobytes(), converted.tobytes(), strict=True)
    return "srgb" if max(abs(before - after) for before, after in pairs) <= _SAME_COLOUR else "converted"


def colour_changes(content: bytes) -> list[str]:
    """Returns how ``to_rgb`` changes an image's colours, from its header."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            kind = profile_kind(image.info.get("icc_profile") or b"", _colour_mode(image.mode))
            found = {"converted": ["profile converted to sRGB"], "unusable": ["unusable profile left aside"]}
            return [*found.get(kind, []), *(["transparency over white"] if image.has_transparency_data else [])]
    except UNREADABLE:
        return []  # reported when the question is asked


def sent_image(content: bytes, location: str, bounds: Bounds) -> tuple[str, bytes]:
    """Returns the MIME type and bytes of an image as it is sent to a model.

    These are the original bytes if all programs decode them as ``decode_image`` does, else a lossless PNG.

    Raises:
        InputError: as ``decode_image``.
    """
    with _opened(content, location) as image:
        kind = SENT_UNCHANGED.get(image.format or "")
        plain = image.mode in ("RGB", "L") and not _exif_rotated(image) and not colour_changes(content)
        if kind is not None and plain and bounds.size(*image.size) == image.size:
            image.draft(image.mode, (1, 1))  # checks all bytes of a JPEG, but decodes it at a low resolution
            image.load()
            return kind, content
    file = io.BytesIO()
    decode_image(content, location, bounds).save(file, "PNG")
    return "image/png", file.getvalue()


def data_uri(content: bytes, location: str, bounds: Bounds) -> str:
    """Returns an image as a data URI; see ``sent_image``."""
    kind, sent = sent_image(content, location, bounds)
    return f"data:{kind};base64,{base64.b64encode(sent).decode('ascii')}"


class EncodedImages:
    """A thread-safe LRU cache of data URIs, because the questions of a path share their images.

    Attributes:
        limit: maximum number of characters in the cache.
    """

    def __init__(self, limit: int = 512 * 2**20) -> None:
        self.limit = limit
        self._kept: OrderedDict[bytes, str] = OrderedDict()
        self._size = 0
        self._lock = Lock()

    def uri(self, content: bytes, location: str, bounds: Bounds) -> str:
        """Returns ``data_uri``, cached."""
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
            while self._size > self.limit:
                self._size -= len(self._kept.popitem(last=False)[1])
        return found


def images_digest(images: Sequence[tuple[str, ImageRef]], source: ImageSource) -> tuple[str | None, dict[str, int]]:
    """Returns the SHA-256 over all images (None if there are none), and colour change -> number of images.

    ``images`` are pairs of question id and image, in the order of the questions.
    """
    digest, changes = hashlib.sha256(), Counter[str]()
    for name, image in images:
        content = source.read(image)
        digest.update(f"{name} {image.column} {image.option} {len(content)}\n".encode() + content)
        changes.update(colour_changes(content))
    return digest.hexdigest() if images else None, dict(sorted(changes.items()))


@dataclass
class ImageFolder:
    """The folder ``images`` of an export, with each image once, named by a hash of the written bytes.

    Args:
        root: folder of the export; images of an interrupted export are kept.
        bounds: minimum and maximum pixels of an image.
    """

    root: Path
    bounds: Bounds = field(default_factory=Bounds)
    _names: dict[str, str] = field(default_factory=dict, repr=False)

    def add(self, content: bytes, location: str) -> str:
        """Writes an image and returns its path relative to the root; raises InputError if it cannot be decoded."""
        key = hashlib.sha256(content).hexdigest()
        if key not in self._names:
            kind, sent = sent_image(content, location, self.bounds)
            name = f"images/{hashlib.sha256(sent).hexdigest()[:32]}.{_SUFFIXES[kind]}"
            if not (self.root / name).is_file():
                atomic_write(self.root / name, sent, "name another --out")
            self._names[key] = name
        return self._names[key]
