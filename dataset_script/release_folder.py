"""Writes a release folder: Parquet files per config and split, and the dataset card that names them.

A folder is put together beside its final place and moved there in one rename; its card is what makes it load, so a
process killed at any moment leaves either the old folder, the new one, or a hidden sibling that the next call clears.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_script.card import write_card
from dataset_script.features import row_features
from scale_vqa_eval.errors import Fault, InputError
from scale_vqa_eval.question_files import release_configs
from scale_vqa_eval.schema import CONFIGS

Row = Mapping[str, Any]
ROWS_PER_GROUP: Final = 64
SHARD_BYTES: Final = 500_000_000


def write_release(
    out: str | Path,
    tables: Mapping[str, Mapping[str, Iterable[Row]]],
    notes: Mapping[str, str],
) -> Path:
    """Writes configs into a release folder; configs that the folder already has and ``tables`` does not name stay.

    Rows are streamed: memory does not grow with their number.

    Args:
        out: the release folder; made, or extended where it is one already.
        tables: config -> split -> rows. A row has the columns of ``row_features`` as plain values: an image is
            ``{"bytes": ..., "path": name}`` or None, ``answer`` a letter, ``dimension`` a name, absent columns null.
        notes: config -> Markdown paragraph for the card: where the rows come from, seed, limits, what was reported.

    Returns:
        The path of the folder.

    Raises:
        InputError: where ``out`` holds something that is no release folder.
    """
    out = Path(out).absolute()
    staging = out.with_name(f".{out.name}.partial")
    retired = out.with_name(f".{out.name}.retired")
    _recover(out, retired)
    kept = _configs_to_keep(out, set(tables))
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        for config in kept:
            shutil.copytree(out / config, staging / config, copy_function=_link_or_copy)
        for config, splits in tables.items():
            for split, rows in splits.items():
                _write_split(staging / config, split, rows, images=config != "text")
        write_card(staging, notes, previous=out / "README.md")
        _swap(staging, out, retired)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return out


def folder_digest(folder: str | Path) -> str:
    """Returns the SHA-256 over the names and bytes of all files of a folder, in name order."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _configs_to_keep(out: Path, replaced: set[str]) -> list[str]:
    unknown = sorted(replaced - set(CONFIGS))
    if unknown:
        raise ValueError(f"unknown config {', '.join(unknown)}; a release folder has {', '.join(CONFIGS)}")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return []
    if not out.is_dir():
        raise InputError(Fault(str(out), "a folder", "a file", "name another --out"))
    with_other_things = Fault(
        str(out), "no folder yet, or a release folder", "a folder that holds something else", "name another --out"
    )
    try:
        return sorted(set(release_configs(out)) - replaced)
    except InputError as error:
        raise InputError(with_other_things) from error


def _write_split(folder: Path, split: str, rows: Iterable[Row], images: bool) -> None:
    """Writes one split as numbered Parquet shards of bounded size and row groups of bounded length."""
    folder.mkdir(parents=True, exist_ok=True)
    features = row_features(images)
    schema = features.arrow_schema
    shards: list[Path] = []
    writer: pq.ParquetWriter | None = None
    try:
        for batch in _batches(rows):
            encoded = [features.encode_example(_complete(row, features)) for row in batch]
            if writer is None or shards[-1].stat().st_size > SHARD_BYTES:
                if writer is not None:
                    writer.close()
                shards.append(folder / f"{split}.{len(shards):05d}.shard")
                writer = pq.ParquetWriter(shards[-1], schema, compression="snappy", write_page_index=True)
            writer.write_table(pa.Table.from_pylist(encoded, schema=schema))
    finally:
        if writer is not None:
            writer.close()
    if not shards:
        raise ValueError(f"split {split!r} has no row")
    for number, shard in enumerate(shards):
        shard.rename(folder / f"{split}-{number:05d}-of-{len(shards):05d}.parquet")


def _complete(row: Row, names: Iterable[str]) -> dict[str, Any]:
    return {name: (row.get(name) or []) if name == "option_images" else row.get(name) for name in names}


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, ROWS_PER_GROUP)):
        yield batch


def _link_or_copy(source: str, target: str) -> None:
    """Hard-links a file that stays as it is (no second copy of large shards); copies where links are not to be had."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _recover(out: Path, retired: Path) -> None:
    """Brings back the folder of a run that was killed between the two renames of ``_swap``."""
    if retired.exists():
        if out.exists():
            shutil.rmtree(retired)
        else:
            retired.rename(out)


def _swap(staging: Path, out: Path, retired: Path) -> None:
    if out.exists():
        out.rename(retired)
    try:
        staging.rename(out)
    except OSError:
        with contextlib.suppress(OSError):
            retired.rename(out)
        raise
    shutil.rmtree(retired, ignore_errors=True)
