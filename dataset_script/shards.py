"""Parquet shards of a release folder that may come from anyone: where they lie, what they hold, what is refused.

``datasets`` opens the file or URL that an image's ``path`` names wherever its ``bytes`` are null, and follows a card
out of its folder. A release folder has every image inside, so both are refused here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Features
from huggingface_hub.constants import HF_HUB_CACHE

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.question_files import release_configs
from scale_vqa_eval.release_folder.aliases import HOW_TO_MAKE_ONE, named_folder
from scale_vqa_eval.release_folder.features import row_features
from scale_vqa_eval.schema import CONFIGS, VIEWS

Shards = Mapping[str, list[Path]]
"""Split -> Parquet files, in order."""


def release_folder(data_dir: str | Path | None) -> Path:
    """Returns the absolute path of ``data_dir``; of ``$SCALE_VQA_PATH``, else of ``./scale-vqa``, where it is None.

    Raises:
        InputError: where none is named and none is here.
    """
    folder = named_folder() if data_dir is None else Path(data_dir).expanduser()
    if folder is None:
        raise InputError(Problem("data_dir", "a release folder", "none named and none here", HOW_TO_MAKE_ONE))
    return folder.absolute()


def release_shards(folder: Path) -> Mapping[str, Shards]:
    """Returns config -> split -> Parquet files of a release folder; the config that loads without a name comes first.

    Raises:
        InputError: where the folder has no card, a config is none of Scale-VQA's, or a file lies outside.
    """
    configs = release_configs(folder)
    card = folder / "README.md"
    problems = [
        Problem(str(card), f"configs of Scale-VQA ({', '.join(CONFIGS)})", preview(name), "rename or remove it")
        for name in configs
        if name not in CONFIGS
    ]
    for shards in configs.values():
        for file in (file for files in shards.values() for file in files):
            if not _is_inside(file, folder):
                problems.append(
                    Problem(str(file), "a file of this folder", f"a link to {file.resolve()}", "copy the file into it")
                )
    if problems:
        raise InputError(problems)
    return configs


def has_images(config: str, shards: Shards) -> bool:
    """Says whether a config has image columns: all but ``text``, and controls made of a folder without images.

    A control takes over the columns of the rows it was made of, so its own files are asked; that any other config has
    its image columns is for ``check_columns`` to hold.
    """
    if config not in ("exchange", "screened"):
        return config != "text"
    return any(view in pq.read_schema(file).names for files in shards.values() for file in files for view in VIEWS)


def content_hash(config: str, shards: Shards) -> str:
    """Returns the SHA-256 over a config's name and features and the splits, names and bytes of its shards."""
    files = [[split, file.name, _sha256_of(file)] for split, files in shards.items() for file in files]
    return _hash(config, [[str(row_features(has_images(config, shards)))], *files])


def file_stamp(config: str, shards: Shards) -> str:
    """Returns a SHA-256 over a config's name and the places, sizes and times of its shards, without reading them."""
    files = [(split, file.absolute(), file.stat()) for split, files in shards.items() for file in files]
    return _hash(config, [[split, str(file), stat.st_size, stat.st_mtime_ns] for split, file, stat in files])


def row_count(files: Iterable[Path]) -> int:
    """Returns the number of rows of some shards, from their footers."""
    return sum(pq.read_metadata(file).num_rows for file in files)


def check_columns(shards: Shards, declared: Features) -> None:
    """Compares the columns of every shard with the declared features.

    Raises:
        InputError: with each column that is missing, unknown, or of another type or other class names.
    """
    problems = [problem for files in shards.values() for file in files for problem in _column_problems(file, declared)]
    if problems:
        raise InputError(problems)


def unembedded_rows(table: pa.Table) -> Iterator[tuple[int, str, str]]:
    """Yields row number, column and path of every image that is named by a path and has no bytes of its own."""
    for name in table.column_names:
        start = 0
        for chunk in table[name].chunks:  # as they are: to join them would copy every image
            for row, path in _paths_alone(chunk):
                yield start + row, name, path
            start += len(chunk)


def _paths_alone(column: pa.Array) -> Iterator[tuple[int, str]]:
    rows = None
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        rows, column = pc.list_parent_indices(column), pc.list_flatten(column)
    if not pa.types.is_struct(column.type) or {field.name for field in column.type} != {"bytes", "path"}:
        return
    paths = pc.struct_field(column, "path")
    alone = pc.and_(pc.is_null(pc.struct_field(column, "bytes")), pc.is_valid(paths))
    for index in pc.indices_nonzero(alone).to_pylist():
        yield (index if rows is None else rows[index].as_py()), paths[index].as_py()


def _is_inside(file: Path, folder: Path) -> bool:
    root = folder.resolve()
    # a snapshot in the Hub's cache is a folder of links that the Hub's client made itself
    return file.resolve().is_relative_to(root) or root.is_relative_to(Path(HF_HUB_CACHE).resolve())


def _hash(config: str, parts: Sequence[Sequence[str | int]]) -> str:
    return hashlib.sha256(json.dumps([config, parts]).encode()).hexdigest()


def _sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _column_problems(file: Path, declared: Features) -> Iterator[Problem]:
    hint = "build the folder again with `scale-vqa build`"
    try:
        schema = pq.read_schema(file)
        found = Features.from_arrow_schema(schema)
    except (pa.ArrowInvalid, OSError, ValueError, TypeError, KeyError) as error:
        yield Problem(str(file), "a Parquet file with the columns of Scale-VQA", preview(str(error), 160), hint)
        return
    expected = declared.arrow_schema
    for name in [*expected.names, *(name for name in schema.names if name not in declared)]:
        location = f"{file}, column {name}"
        if name not in declared:
            yield Problem(location, "no such column", str(schema.field(name).type), hint)
        elif schema.names.count(name) != 1:
            yield Problem(location, str(expected.field(name).type), f"{schema.names.count(name)} such columns", hint)
        elif schema.field(name).type != expected.field(name).type:
            yield Problem(location, str(expected.field(name).type), str(schema.field(name).type), hint)
        elif isinstance(found[name], ClassLabel) and found[name].names != declared[name].names:
            yield Problem(location, f"the classes {declared[name].names}", f"the classes {found[name].names}", hint)
