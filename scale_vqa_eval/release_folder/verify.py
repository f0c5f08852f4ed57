"""Checks of an untrusted release folder: locations of its files, columns, and images.

``datasets`` opens the file or URL in an image's ``path`` if its ``bytes`` are null, and reads files outside the folder
if the card names them. A release folder contains all its images, so both are refused here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import sha256_file, sha256_json
from scale_vqa_eval.release_folder.card import CONTROLS, HUB
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.release_folder.write import row_features
from scale_vqa_eval.schema import CONFIGS, VIEWS

if TYPE_CHECKING:
    import pyarrow as pa

Shards = Mapping[str, list[Path]]
"""Split -> Parquet files, in order."""


def release_shards(folder: Path) -> Mapping[str, Shards]:
    """Returns config -> split -> Parquet files of a release folder, the default config first.

    Raises:
        InputError: if the folder has no card, a config is not one of Scale-VQA's, or a file is outside the folder.
    """
    configs = release_configs(folder)
    expected = f"configs of Scale-VQA ({', '.join(CONFIGS)})"
    problems = [
        Problem(str(folder / "README.md"), expected, preview(name), "rename or remove it")
        for name in configs
        if name not in CONFIGS
    ]
    problems += outside_files(folder, (file for shards in configs.values() for one in shards.values() for file in one))
    if problems:
        raise InputError(problems)
    return configs


def outside_files(folder: Path, files: Iterable[Path]) -> list[Problem]:
    """Returns a problem for each link out of the folder; a snapshot in the Hub's cache may have some."""
    from huggingface_hub.constants import HF_HUB_CACHE

    root = folder.resolve()
    if root.is_relative_to(Path(HF_HUB_CACHE).resolve()):
        return []
    return [
        Problem(str(file), "a file of this folder", f"a link to {file.resolve()}", "copy the file into it")
        for file in files
        if not file.resolve().is_relative_to(root)
    ]


def has_images(config: str, shards: Shards) -> bool:
    """Returns whether a config should have image columns.

    ``text`` and ``hub`` have none. A control has the columns of the rows that it was made from, so its files are read.
    All other configs must have image columns, which ``check_columns`` checks.
    """
    if config not in CONTROLS:
        return config not in ("text", HUB)
    import pyarrow.parquet as pq

    return any(view in pq.read_schema(file).names for files in shards.values() for file in files for view in VIEWS)


def declared_features(config: str, shards: Shards) -> Any:
    """Returns the ``datasets.Features`` that a config must have."""
    return row_features(has_images(config, shards), config)


def content_hash(config: str, shards: Shards) -> str:
    """Returns the SHA-256 over a config's name, features, and the splits, names and bytes of its shards."""
    files = [[split, file.name, sha256_file(file)] for split, files in shards.items() for file in files]
    return sha256_json([config, [[str(declared_features(config, shards))], *files]])


def file_stamp(config: str, shards: Shards) -> str:
    """Returns a SHA-256 over a config's name and the paths, sizes and modification times of its shards."""
    files = [(split, file.absolute(), file.stat()) for split, files in shards.items() for file in files]
    return sha256_json([config, [[split, str(file), stat.st_size, stat.st_mtime_ns] for split, file, stat in files]])


def check_columns(shards: Shards, declared: Any) -> None:
    """Compares the columns of every shard with the declared ``datasets.Features``.

    Raises:
        InputError: lists each column that is missing, unknown, or has another type or other class names.
    """
    problems = [problem for files in shards.values() for file in files for problem in _column_problems(file, declared)]
    if problems:
        raise InputError(problems)


def _column_problems(file: Path, declared: Any) -> Iterator[Problem]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features

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


def unembedded_rows(table: pa.Table) -> Iterator[tuple[int, str, str]]:
    """Yields row number, column and path of every image that has a path but no bytes."""
    for name in table.column_names:
        start = 0
        for chunk in table[name].chunks:  # combining the chunks would copy every image
            for row, path in _paths_alone(chunk):
                yield start + row, name, path
            start += len(chunk)


def _paths_alone(column: pa.Array) -> Iterator[tuple[int, str]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = None
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        rows, column = pc.list_parent_indices(column), pc.list_flatten(column)
    if not pa.types.is_struct(column.type) or {field.name for field in column.type} != {"bytes", "path"}:
        return
    paths = pc.struct_field(column, "path")
    alone = pc.and_(pc.is_null(pc.struct_field(column, "bytes")), pc.is_valid(paths))
    for index in pc.indices_nonzero(alone).to_pylist():
        yield (index if rows is None else rows[index].as_py()), paths[index].as_py()
