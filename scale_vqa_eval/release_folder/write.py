"""Writes release folders: Parquet shards per config and split, and the dataset card.

A folder is assembled in a hidden sibling folder and renamed. A process killed at any moment leaves the old folder or
the new one, and possibly the hidden folder, which the next writer removes. A lock excludes a second writer.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import exclusive_output
from scale_vqa_eval.release_folder.card import CONTROLS, HUB, write_card
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.schema import ALL_DIMENSIONS, CONFIGS, VIEWS

Row = Mapping[str, Any]
ROWS_PER_GROUP: Final = 64
"""Number of rows after which a row group without images ends."""
GROUP_BYTES: Final = (16 * 2**20, 64 * 2**20)
"""Image bytes of a row group, counted once per row. Above the first number a row group ends before the next row that
shares no image with it; above the second number it always ends, which bounds a reader's memory."""
SHARD_BYTES: Final = 500_000_000
PARQUET: Final[dict[str, Any]] = {
    "compression": "snappy",
    "write_page_index": True,
    "write_page_checksum": True,
    # large enough for all images of a row group: a column then stores an image of several rows once
    "dictionary_pagesize_limit": 2 * GROUP_BYTES[1],
}


def row_features(images: bool = True, config: str = "") -> Any:
    """Returns the columns of a release folder as ``datasets.Features``.

    Args:
        images: whether the config has image columns (``text`` has none).
        config: name of the config; ``hub`` has a text and a data URI in place of the image columns.
    """
    from datasets import ClassLabel, Features, Image, List, Value

    columns: dict[str, Any] = {
        "id": Value("string"),
        "question": Value("string"),
        "options": List(Value("string")),
        "answer": ClassLabel(names=list("ABCD")),
        "rationale": Value("string"),
    }
    if config == HUB:
        columns |= {"prompt": Value("string"), "composite": Value("string")}
    elif images:
        columns |= {view: Image() for view in VIEWS}
        columns["option_images"] = List(Image())
    columns["dimension"] = ClassLabel(names=list(ALL_DIMENSIONS))
    for name in ("wsi_name", "patient_id", "path_id", "source", "group"):
        columns[name] = Value("string")
    return Features(columns)


def write_release(
    out: str | Path,
    tables: Mapping[str, Mapping[str, Iterable[Row]]],
    notes: Mapping[str, str],
    files: Mapping[str, bytes] | None = None,
    drop: Set[str] = frozenset(),
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """Writes configs into a release folder; other configs of the folder are kept. Rows are streamed.

    Args:
        out: the release folder, which is created or extended.
        tables: config -> split -> rows. A row has the columns of ``row_features`` as plain values: an image is
            ``{"bytes": ..., "path": name}`` or None, ``answer`` a letter, ``dimension`` a name; missing ones are null.
        notes: config -> Markdown paragraph for the card: source of the rows, seed, limits, reported defects.
        files: ``<config>/<name>`` -> content of other files to write beside the Parquet files.
        drop: configs to remove, such as controls that were made from older rows.
        finish: called with the hidden folder when it is complete, to add files that describe it.

    Returns:
        The path of the folder.

    Raises:
        InputError: if ``out`` is not a release folder, cannot be written, or is being written by another process.
    """
    with staged_release(out, tables.keys() | drop, notes) as staging:
        for config, splits in tables.items():
            features = row_features(images=config != "text", config=config)
            for split, rows in splits.items():
                write_shards(staging / config, split, features.arrow_schema, row_tables(rows, features))
        for name, content in (files or {}).items():
            (staging / name).write_bytes(content)
        if finish is not None:
            write_card(staging, notes, previous=Path(out) / "README.md")
            finish(staging)
    return Path(out).absolute()


def row_tables(rows: Iterable[Row], features: Any) -> Iterator[Any]:
    """Yields rows (see ``write_release``) as Arrow tables, one per row group, with the columns ``features``."""
    import pyarrow as pa

    for batch in row_groups(rows):
        encoded = [
            features.encode_example(
                {name: (row.get(name) or []) if name == "option_images" else row.get(name) for name in features}
            )
            for row in batch
        ]
        yield pa.Table.from_pylist(encoded, schema=features.arrow_schema)


def row_groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yields the rows of each row group; if possible, no image is shared between row groups (see ``GROUP_BYTES``)."""
    batch: list[Row] = []
    seen: set[bytes] = set()
    size = 0
    for row in rows:
        cells = [*(row.get(view) for view in VIEWS), *(row.get("option_images") or ())]
        images = [cell.get("bytes") or b"" for cell in cells if isinstance(cell, Mapping)]
        size += sum(map(len, images))
        shares = any(image in seen for image in images)
        full = size > GROUP_BYTES[0] or (not seen and len(batch) >= ROWS_PER_GROUP)
        if batch and ((full and not shares) or size > GROUP_BYTES[1]):
            yield batch
            batch, seen, size = [], set(), sum(map(len, images))
        batch.append(row)
        seen.update(images)
    if batch:
        yield batch


def write_shards(folder: Path, split: str, schema: Any, tables: Iterable[Any]) -> None:
    """Writes tables (see ``row_tables``), each as a row group, to ``<split>-<shard>-of-<shards>.parquet``.

    Raises:
        ValueError: if there is no table.
    """
    shards = write_parts(folder, split, schema, tables)
    if not shards:
        raise ValueError(f"split {split!r} has no row")
    for shard, name in zip(shards, shard_names(split, len(shards)), strict=True):
        shard.rename(folder / name)


def shard_names(split: str, count: int) -> list[str]:
    """Returns the file names of the ``count`` shards of a split, in order."""
    return [f"{split}-{number:05d}-of-{count:05d}.parquet" for number in range(count)]


def write_parts(folder: Path, prefix: str, schema: Any, tables: Iterable[Any]) -> list[Path]:
    """Writes tables to files ``<prefix>.<number>.shard`` of about ``SHARD_BYTES`` each; returns the files."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Path] = []
    writer: Any = None
    try:
        for table in tables:
            if writer is None or shards[-1].stat().st_size > SHARD_BYTES:
                if writer is not None:
                    writer.close()
                shards.append(folder / f"{prefix}.{len(shards):05d}.shard")
                writer = pq.ParquetWriter(shards[-1], schema, **PARQUET)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
    return shards


@contextlib.contextmanager
def staged_release(out: str | Path, configs: Set[str], notes: Mapping[str, str]) -> Iterator[Path]:
    """Yields a hidden folder to write ``configs`` into; on exit, writes the card and replaces ``out`` by this folder.

    The caller writes files ``<config>/<split>-<shard>-of-<shards>.parquet``. Other configs and files of ``out`` are
    kept, except ``hub`` if a config that it may have been made from is written again. ``out`` is locked meanwhile.
    What the card of ``out`` states is kept, or what a README.md states that the caller writes into the hidden folder.

    Raises:
        InputError: as ``write_release``.
    """
    unknown = sorted(configs - set(CONFIGS))
    if unknown:
        raise ValueError(f"unknown config {', '.join(unknown)}; a release folder has {', '.join(CONFIGS)}")
    configs = configs | {HUB} if configs - {*CONTROLS, HUB} else configs
    with exclusive_release(out) as target:
        staging, retired = _hidden(target)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            for entry in sorted(target.iterdir()) if target.exists() else ():
                if entry.is_dir() and entry.name not in configs:
                    shutil.copytree(entry, staging / entry.name, copy_function=link_or_copy)
                elif entry.is_file() and entry.name != "README.md":
                    link_or_copy(entry, staging / entry.name)
            yield staging
            card = staging / "README.md"
            write_card(staging, notes, previous=card if card.exists() else target / "README.md")
            _swap(staging, target, retired)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


@contextlib.contextmanager
def exclusive_release(out: str | Path) -> Iterator[Path]:
    """Locks a release folder for writing; yields its real path.

    Restores the folder first if a writer was killed while replacing it.

    Raises:
        InputError: as ``write_release``.
    """
    with exclusive_output(out) as target:
        _, retired = _hidden(target)
        if retired.exists():
            if target.exists():
                shutil.rmtree(retired)
            else:
                retired.rename(target)
        if target.exists() and not target.is_dir():
            raise InputError(Problem(str(out), "a folder", "a file", "name another --out"))
        if target.exists() and any(target.iterdir()):
            try:
                release_configs(target)
            except InputError as error:
                expected, found = "a new folder, or a release folder", "a folder with other contents"
                raise InputError(Problem(str(out), expected, found, "name another --out")) from error
        yield target


def check_out(out: str | Path) -> None:
    """Preflight check before long work: raises InputError if ``out`` cannot be written as a release folder."""
    with exclusive_release(out):
        pass


def folder_digest(folder: str | Path) -> str:
    """Returns the SHA-256 over the names and bytes of all files of a folder, in name order."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _hidden(target: Path) -> tuple[Path, Path]:
    """Returns the hidden sibling folders for the new folder and for the old one while it is replaced."""
    return target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.retired")


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Hard-links a file that will not be changed, or copies it if hard links are not supported."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _swap(staging: Path, target: Path, retired: Path) -> None:
    if target.exists():
        target.rename(retired)
    try:
        staging.rename(target)
    except OSError:
        with contextlib.suppress(OSError):
            retired.rename(target)
        raise
    shutil.rmtree(retired, ignore_errors=True)
