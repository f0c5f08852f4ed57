"""Writes release folders: Parquet shards per config and split beside the card that names them.

A folder is put together in a hidden sibling and takes its place in one rename: a process killed at any moment leaves
the old folder, the new one, or the hidden sibling, which the next writer clears. Two writers of one folder exclude
each other.
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
"""Rows of a row group, or of a piece of one: a row group whose rows share images is longer."""
GROUP_BYTES: Final = (16 * 2**20, 64 * 2**20)
"""Image bytes of a row group, counted once per row that shows them: it may end from the first number on, at a row that
shares no image with those before; it must end at the second, so that a reader's memory is bounded."""
SHARD_BYTES: Final = 500_000_000
PARQUET: Final[dict[str, Any]] = {
    "compression": "snappy",
    "write_page_index": True,
    "write_page_checksum": True,
    # with all images of a row group in its dictionary page, a column stores an image once that several rows show
    "dictionary_pagesize_limit": 2 * GROUP_BYTES[1],
}


def row_features(images: bool = True, config: str = "") -> Any:
    """Returns the columns of a release folder as ``datasets.Features``.

    Args:
        images: False for the ``text`` config, which has no image column.
        config: ``hub`` has a text and a data URI in place of the image columns.
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
    """Writes configs into a release folder; configs that the folder already has and ``tables`` does not name stay.

    Rows are streamed: memory does not grow with their number.

    Args:
        out: the release folder; made, or extended if it is one already.
        tables: config -> split -> rows. A row has the columns of ``row_features`` as plain values: an image is
            ``{"bytes": ..., "path": name}`` or None, ``answer`` a letter, ``dimension`` a name, absent columns null.
        notes: config -> Markdown paragraph for the card: where the rows come from, seed, limits, what was reported.
        files: further files, ``<config>/<name>`` -> content, that lie beside the Parquet of a config.
        drop: configs that the folder may have and that no longer hold, such as splits made from older rows.
        finish: called with the hidden folder once it is complete and loads; adds files that describe it.

    Returns:
        The path of the folder.

    Raises:
        InputError: if ``out`` holds something that is not a release folder, cannot be written, or another process
            writes to it.
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
    """Yields rows as Arrow tables, each of them a row group; one at a time in memory.

    Args:
        rows: as for ``write_release``.
        features: the columns, from ``row_features``.
    """
    import pyarrow as pa

    for batch in row_groups(rows):
        encoded = [features.encode_example(_complete(row, features)) for row in batch]
        yield pa.Table.from_pylist(encoded, schema=features.arrow_schema)


def _complete(row: Row, names: Iterable[str]) -> dict[str, Any]:
    return {name: (row.get(name) or []) if name == "option_images" else row.get(name) for name in names}


def row_groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yields the rows of each row group; its end is where no image is shared across it, if that comes in time."""
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
    """Writes tables, each of them a row group, as ``<split>-<shard>-of-<shards>.parquet``; one at a time in memory.

    Args:
        folder: folder of the config; made if it is missing.
        split: name of the split.
        schema: Arrow schema of the tables, the ``datasets`` features in its metadata.
        tables: Arrow tables, such as ``row_tables`` yields.

    Raises:
        ValueError: if there is no table.
    """
    shards = write_parts(folder, split, schema, tables)
    if not shards:
        raise ValueError(f"split {split!r} has no row")
    for shard, name in zip(shards, shard_names(split, len(shards)), strict=True):
        shard.rename(folder / name)


def shard_names(split: str, count: int) -> list[str]:
    """Returns the file names of a split that has ``count`` shards, in order."""
    return [f"{split}-{number:05d}-of-{count:05d}.parquet" for number in range(count)]


def write_parts(folder: Path, prefix: str, schema: Any, tables: Iterable[Any]) -> list[Path]:
    """Writes tables as ``<prefix>.<number>.shard`` of about ``SHARD_BYTES`` each; returns the files, none for none."""
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
    """Yields a hidden folder to write ``configs`` into; on leaving, writes the card and takes the place of ``out``.

    Everything else that ``out`` holds already stays: its other configs and any file beside them. ``hub`` goes if the
    rows that it may have been made of are written anew. The lock of ``out`` is held meanwhile.

    Args:
        out: the release folder; made, or extended if it is one already. A symlink is followed.
        configs: the configs that the caller writes as ``<config>/<split>-<shard>-of-<shards>.parquet``.
        notes: config -> Markdown paragraph for the card.

    Raises:
        InputError: if ``out`` holds something that is not a release folder, cannot be written, or another process
            writes to it.
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
            write_card(staging, notes, previous=target / "README.md")
            _swap(staging, target, retired)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


@contextlib.contextmanager
def exclusive_release(out: str | Path) -> Iterator[Path]:
    """Holds the lock of a release folder that will be written; yields its real path, symlinks followed.

    A folder that a killed writer had set aside is put back first.

    Raises:
        InputError: if ``out`` holds something that is not a release folder, cannot be written, or another process
            writes to it.
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
                expected, found = "no folder yet, or a release folder", "a folder that holds something else"
                raise InputError(Problem(str(out), expected, found, "name another --out")) from error
        yield target


def check_out(out: str | Path) -> None:
    """Preflight check: raises InputError if ``exclusive_release(out)`` would, before hours of work."""
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
    """Returns the siblings in which a new folder is put together and the old one is set aside."""
    return target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.retired")


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Hard-links a file that stays as it is (no second copy of large shards); copies if links are not supported."""
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
