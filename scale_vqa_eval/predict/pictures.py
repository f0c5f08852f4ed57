"""Fetches the images of a question one by one: from a release folder, a Parquet file, a Hub id, or image paths."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Protocol

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.read import release_files, resolve_data
from scale_vqa_eval.schema import VIEWS

OPTION_IMAGES: Final = "option_images"
_GROUPS_KEPT: Final = 4


@dataclass(frozen=True, slots=True)
class Picture:
    """One image by its place: row (counted from 0 over the questions read), column, and which of an option list."""

    row: int
    column: str
    option: int | None = None

    @property
    def name(self) -> str:
        """What a message calls it."""
        place = self.column if self.option is None else f"{self.column}[{self.option}]"
        return f"row {self.row + 1}, {place}"


class PictureStore(Protocol):
    """Says which images a row has and hands out their bytes."""

    def views(self, row: int) -> list[str]:
        """Views that the row has, in scale order."""

    def options(self, row: int) -> int:
        """Number of option images of the row."""

    def read(self, picture: Picture) -> bytes:
        """The image's original bytes; raises InputError where they cannot be had."""


class ParquetPictures:
    """Images embedded in Parquet files; nothing but row groups in use is held in memory.

    Args:
        files: the shards in order; rows are counted across them.
        kept: row numbers, across the shards, that were read as questions; None for all.
    """

    def __init__(self, files: Sequence[Path], kept: Sequence[int] | None = None) -> None:
        import pyarrow.parquet as pq

        self._files = [pq.ParquetFile(path) for path in files]
        self._paths = list(files)
        self._kept = kept
        groups = [(f, g) for f, file in enumerate(self._files) for g in range(file.metadata.num_row_groups)]
        sizes = [self._files[f].metadata.row_group(g).num_rows for f, g in groups]
        self._groups, self._starts = groups, [0, *accumulate(sizes)]
        self._cache: OrderedDict[tuple[int, str], Any] = OrderedDict()
        self._present = {name: self._presence(name) for name in (*VIEWS, OPTION_IMAGES)}

    def views(self, row: int) -> list[str]:
        return [view for view in VIEWS if (flags := self._present[view]) is not None and flags[self._at(row)]]

    def options(self, row: int) -> int:
        counts = self._present[OPTION_IMAGES]
        return int(counts[self._at(row)] or 0) if counts is not None else 0

    def read(self, picture: Picture) -> bytes:
        place = self._at(picture.row)
        group = bisect_right(self._starts, place) - 1
        value = self._column(group, picture.column)[place - self._starts[group]].as_py()
        return embedded(value, picture, str(self._paths[self._groups[group][0]]))

    def _at(self, row: int) -> int:
        return row if self._kept is None else self._kept[row]

    def _column(self, group: int, name: str) -> Any:
        """Returns one column of one row group; the groups used last are kept."""
        key = (group, name)
        if key not in self._cache:
            file, number = self._groups[group]
            self._cache[key] = self._files[file].read_row_group(number, columns=[name]).column(0)
            while len(self._cache) > _GROUPS_KEPT * (len(VIEWS) + 1):
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _presence(self, name: str) -> list[Any] | None:
        """Returns per row whether a view is there, or how many option images; only the images' names are read."""
        import pyarrow as pa

        found: list[Any] = []
        for path, file in zip(self._paths, self._files, strict=True):
            if name not in file.schema_arrow.names:
                return None
            kind = file.schema_arrow.field(name).type
            kind = kind.value_type if name == OPTION_IMAGES and hasattr(kind, "value_type") else kind
            if not pa.types.is_struct(kind) or {"bytes", "path"} - {field.name for field in kind}:
                expected, hint = "images as {bytes, path}", "write the column with datasets' Image feature"
                raise InputError(Problem(f"{path}, {name}", expected, preview(str(kind)), hint))
            leaf = f"{name}.list.element.path" if name == OPTION_IMAGES else f"{name}.path"
            found += present(file.read(columns=[leaf]).column(0), name)
        return found


class HubPictures:
    """Images of a data set that ``datasets`` has loaded: memory-mapped, any row at once."""

    def __init__(self, name: str, split: str | None, config: str | None) -> None:
        from datasets import concatenate_datasets, load_dataset

        data = load_dataset(name, config, split=split)
        data = data if split is not None else concatenate_datasets(list(data.values()))
        self._name, self._table = name, data.data
        names = [column for column in (*VIEWS, OPTION_IMAGES) if column in data.column_names]
        self._present = {column: present(self._table.column(column), column) for column in names}

    def views(self, row: int) -> list[str]:
        return [view for view in VIEWS if view in self._present and self._present[view][row]]

    def options(self, row: int) -> int:
        return int(self._present[OPTION_IMAGES][row] or 0) if OPTION_IMAGES in self._present else 0

    def read(self, picture: Picture) -> bytes:
        return embedded(self._table.column(picture.column)[picture.row].as_py(), picture, self._name)


class FilePictures:
    """Images that a JSON file names by their paths; no path leaves the root.

    Args:
        root: folder that the paths are relative to.
        questions: what was read from the file, in its order.
    """

    def __init__(self, root: Path, questions: Sequence[Question]) -> None:
        self._root = root.resolve()
        self._paths = [dict(question.images) for question in questions]
        problems = [
            Problem(f"{question.id}, image_path", f"views {', '.join(VIEWS)}", preview(view), "rename the view")
            for question in questions
            for view, _ in question.images
            if view not in VIEWS
        ]
        missing = [problem for row in range(len(questions)) for problem in self._missing(row, questions[row].id)]
        named = sum(map(len, self._paths))
        if len(missing) == named > 1:  # the folder is wrong, not some files
            first = missing[0]
            missing = [Problem(str(root), f"{named} image files", f"none, the first {first.found}", first.hint)]
        if problems or missing:
            raise InputError(problems + missing)

    def views(self, row: int) -> list[str]:
        return [view for view in VIEWS if self._paths[row].get(view)]

    def options(self, row: int) -> int:
        return 0

    def read(self, picture: Picture) -> bytes:
        return (self._root / self._paths[picture.row][picture.column]).resolve().read_bytes()

    def _missing(self, row: int, name: str) -> list[Problem]:
        problems = []
        for view, text in self._paths[row].items():
            file = (self._root / str(text)).resolve()
            if Path(text).is_absolute() or not file.is_relative_to(self._root) or not file.is_file():
                hint = "name the images' folder by --images, or ask --ablate blind"
                problems.append(
                    Problem(f"{name}, {view}", f"an image file inside of {self._root}", preview(text), hint)
                )
        return problems


class NoPictures:
    """Questions that are asked without images."""

    def views(self, row: int) -> list[str]:
        return []

    def options(self, row: int) -> int:
        return 0

    def read(self, picture: Picture) -> bytes:
        raise InputError(Problem(picture.name, "no image", "one", "this is a defect of the program: report it"))


def open_pictures(
    data: str, split: str | None, config: str | None, questions: Sequence[Question], root: Path | None
) -> PictureStore:
    """Returns the store of the images of ``questions``, which were read from the same data, split and config.

    Raises:
        InputError: where the data names images that are not there.
    """
    data = resolve_data(data)
    path = Path(data)
    if path.is_dir():
        splits = release_files(path, config)
        return ParquetPictures([file for name, files in splits.items() if split in (None, name) for file in files])
    if path.suffix.lower() == ".parquet":
        return ParquetPictures([path], _rows_of(path, split))
    if path.is_file():
        return FilePictures(root or path.parent, questions)
    return HubPictures(data, split, config)


def _rows_of(path: Path, split: str | None) -> list[int] | None:
    """Returns the row numbers of one split of a Parquet file that has a split column, else None for all."""
    import pyarrow.parquet as pq

    if split is None or "split" not in pq.read_schema(path).names:
        return None
    names = pq.read_table(path, columns=["split"]).column(0).to_pylist()
    return [row for row, name in enumerate(names) if name == split]


def present(column: Any, name: str) -> list[Any]:
    """Returns per row of an Arrow column whether a view is there, or the length of a list of option images."""
    import pyarrow.compute as pc

    if name == OPTION_IMAGES:
        lengths: list[Any] = pc.list_value_length(column).to_pylist()
        return lengths
    flags: list[Any] = column.is_valid().to_pylist()
    return flags


def embedded(value: Any, picture: Picture, location: str) -> bytes:
    """Returns the bytes of an image cell.

    Raises:
        InputError: where the cell names a file instead: rows of a data set are not to open files of this machine.
    """
    cell = value if picture.option is None else value[picture.option]
    content = cell.get("bytes") if isinstance(cell, Mapping) else None
    if not content:
        found = preview(cell.get("path")) if isinstance(cell, Mapping) else "nothing"
        hint = "build the release folder with --images, so that its images are in it"
        raise InputError(Problem(f"{location}, {picture.name}", "an embedded image", found, hint))
    assert isinstance(content, bytes)
    return content
