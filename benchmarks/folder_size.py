"""Size of a release folder against the distinct image files that it holds.

    python benchmarks/folder_size.py RELEASE_FOLDER...

Per config: references to images, distinct images, the size of the Parquet files as a ratio of the distinct images,
and the least ratio that Parquet allows. A dictionary belongs to one column, so an image that is a view in one row and
an option in another is stored at least twice.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pyarrow.parquet as pq

from scale_vqa_eval.release_folder.read import IMAGE_COLUMNS, release_configs


def measure(files: list[Path]) -> str:
    per_column: dict[tuple[str, bytes], int] = {}
    references = 0
    for path in files:
        file = pq.ParquetFile(path)
        columns = sorted(IMAGE_COLUMNS & set(file.schema_arrow.names))
        for batch in file.iter_batches(batch_size=64, columns=columns):
            for column in columns:
                for value in batch[column].to_pylist():
                    for cell in value if isinstance(value, list) else [value]:
                        if cell is not None:
                            references += 1
                            key = (column, hashlib.sha256(cell["bytes"]).digest())
                            per_column[key] = len(cell["bytes"])
    distinct = {digest: size for (_, digest), size in per_column.items()}
    if not distinct:
        return "no images"
    total, size = sum(distinct.values()), sum(path.stat().st_size for path in files)
    least = sum(per_column.values()) / total
    shown = f"{references} references, {len(distinct)} distinct images of {total / 1e6:.1f} MB"
    return f"{shown}; Parquet {size / 1e6:.1f} MB, {size / total:.3f} times; least {least:.3f}"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for config, splits in release_configs(Path(name)).items():
            print(f"{name}, {config}: {measure([file for files in splits.values() for file in files])}")
