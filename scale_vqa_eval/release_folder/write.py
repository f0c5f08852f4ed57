"""Writes rows into a release folder: Parquet files per config and split, beside the card that names them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from scale_vqa_eval.release_folder.features import row_features
from scale_vqa_eval.release_folder.shards import ROWS_PER_GROUP, write_shards
from scale_vqa_eval.release_folder.staging import staged_release

Row = Mapping[str, Any]


def write_release(
    out: str | Path,
    tables: Mapping[str, Mapping[str, Iterable[Row]]],
    notes: Mapping[str, str],
    files: Mapping[str, bytes] | None = None,
    drop: Set[str] = frozenset(),
) -> Path:
    """Writes configs into a release folder; configs that the folder already has and ``tables`` does not name stay.

    Rows are streamed: memory does not grow with their number.

    Args:
        out: the release folder; made, or extended where it is one already.
        tables: config -> split -> rows. A row has the columns of ``row_features`` as plain values: an image is
            ``{"bytes": ..., "path": name}`` or None, ``answer`` a letter, ``dimension`` a name, absent columns null.
        notes: config -> Markdown paragraph for the card: where the rows come from, seed, limits, what was reported.
        files: further files, ``<config>/<name>`` -> content, that lie beside the Parquet of a config.
        drop: configs that the folder may have and that no longer hold, such as splits made from older rows.

    Returns:
        The path of the folder.

    Raises:
        InputError: where ``out`` holds something that is no release folder.
    """
    with staged_release(out, tables.keys() | drop, notes) as staging:
        for config, splits in tables.items():
            for split, rows in splits.items():
                _write_split(staging / config, split, rows, images=config != "text")
        for name, content in (files or {}).items():
            (staging / name).write_bytes(content)
    return Path(out).absolute()


def folder_digest(folder: str | Path) -> str:
    """Returns the SHA-256 over the names and bytes of all files of a folder, in name order."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _write_split(folder: Path, split: str, rows: Iterable[Row], images: bool) -> None:
    """Writes one split as numbered Parquet shards of bounded size and row groups of bounded length."""
    features = row_features(images)
    schema = features.arrow_schema
    encoded = ([features.encode_example(_complete(row, features)) for row in batch] for batch in _batches(rows))
    write_shards(folder, split, schema, (pa.Table.from_pylist(batch, schema=schema) for batch in encoded))


def _complete(row: Row, names: Iterable[str]) -> dict[str, Any]:
    return {name: (row.get(name) or []) if name == "option_images" else row.get(name) for name in names}


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, ROWS_PER_GROUP)):
        yield batch
