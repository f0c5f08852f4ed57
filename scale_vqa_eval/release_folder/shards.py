"""Writes one split of one config of a release folder as numbered Parquet shards of bounded size."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

ROWS_PER_GROUP: Final = 64
SHARD_BYTES: Final = 500_000_000
# a dictionary page that holds a row group's images stores one once that the questions of a path share
PARQUET: Final[dict[str, Any]] = {
    "compression": "snappy",
    "write_page_index": True,
    "dictionary_pagesize_limit": 64 * 2**20,
}


def write_shards(folder: Path, split: str, schema: Any, tables: Iterable[Any]) -> None:
    """Writes tables, each of them a row group, as ``<split>-<shard>-of-<shards>.parquet``; one at a time in memory.

    Args:
        folder: folder of the config; made where it is missing.
        split: name of the split.
        schema: Arrow schema of the tables, the ``datasets`` features in its metadata.
        tables: Arrow tables of at most ``ROWS_PER_GROUP`` rows.

    Raises:
        ValueError: where there is no table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Path] = []
    writer: Any = None
    try:
        for table in tables:
            if writer is None or shards[-1].stat().st_size > SHARD_BYTES:
                if writer is not None:
                    writer.close()
                shards.append(folder / f"{split}.{len(shards):05d}.shard")
                writer = pq.ParquetWriter(shards[-1], schema, **PARQUET)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
    if not shards:
        raise ValueError(f"split {split!r} has no row")
    for number, shard in enumerate(shards):
        shard.rename(folder / f"{split}-{number:05d}-of-{len(shards):05d}.parquet")
