"""Loading a release folder, against the library's own Parquet builder and against imagefolder, side by side.

    python benchmarks/loading.py [--rows 2000] [--size 512] [--repeats 3]

One split of rows with three JPEG views each, written as a release folder and as an imagefolder of the same bytes.
Each repeat loads every contender into an empty cache, loads it again from that cache, and decodes rows; medians are
printed, with the ratio to the Parquet builder in the same run (for seconds: theirs / ours, for rows/s: ours / theirs;
above 1 is faster than the Parquet builder).
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from dataset_script import ScaleVQA
from dataset_script.release_folder import write_release
from scale_vqa_eval.schema import VIEWS

Loader = Callable[[str], Any]
DECODED = 400


def jpeg(rng: np.random.Generator, size: int) -> bytes:
    """A JPEG with structure at several scales, about as large as one of tissue."""
    field = np.zeros((size, size, 3), dtype=np.float32)
    for cells, weight in ((8, 60), (32, 40), (128, 30)):
        coarse = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
        field += np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) * weight / 130
    buffer = io.BytesIO()
    Image.fromarray(field.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def rows(count: int, size: int) -> Iterator[dict[str, Any]]:
    """Rows of one split, three views of their own each."""
    rng = np.random.default_rng(0)
    for index in range(count):
        yield {
            "id": f"S{index // 40}::p{index}::type_A",
            "question": f"Which finding of path {index} holds at more than one scale?",
            "options": ["Solid growth", "Cribriform growth", "Necrosis", "Oedema"],
            "answer": "ABCD"[index % 4],
            "dimension": "Correspondence",
            "wsi_name": f"S{index // 40}",
            "patient_id": f"S{index // 40}",
            "path_id": f"p{index}",
            "source": "benchmark",
            **{view: {"bytes": jpeg(rng, size), "path": f"{view}.jpg"} for view in VIEWS},
        }


def write_both(place: Path, count: int, size: int) -> tuple[Path, Path]:
    """Writes the rows as a release folder and as an imagefolder with one file-name column a view."""
    made = list(rows(count, size))
    release = write_release(place / "release", {"default": {"test": made}}, {})
    folder = place / "imagefolder" / "test"
    folder.mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w") as lines:
        for number, row in enumerate(made):
            names = {view: f"{number}_{view}.jpg" for view in VIEWS}
            for view, name in names.items():
                (folder / name).write_bytes(row.pop(view)["bytes"])
            lines.write(json.dumps({**row, **{f"{view}_file_name": name for view, name in names.items()}}) + "\n")
    return release, folder.parent


def contenders(release: Path, folder: Path) -> dict[str, Loader]:
    """Name -> loads the ``test`` split by way of a given cache."""
    files = {"test": str(release / "default" / "test-*.parquet")}

    def ours(cache: str) -> Any:
        builder = ScaleVQA(data_dir=str(release), cache_dir=cache)
        builder.download_and_prepare()
        return builder.as_dataset(split="test")

    return {
        "parquet builder": lambda cache: datasets.load_dataset(
            "parquet", data_files=files, cache_dir=cache, split="test"
        ),
        "ScaleVQA": ours,
        "release folder": lambda cache: datasets.load_dataset(str(release), cache_dir=cache, split="test"),
        "imagefolder": lambda cache: datasets.load_dataset(
            "imagefolder", data_dir=str(folder), cache_dir=cache, split="test"
        ),
    }


def measured(load: Loader) -> tuple[float, float, float]:
    """Seconds of the first load and of the second, and decoded rows a second."""
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        load(cache)
        first = time.perf_counter() - start
        start = time.perf_counter()
        data = load(cache)
        second = time.perf_counter() - start
        count = min(DECODED, len(data))
        start = time.perf_counter()
        for row in data.select(range(count)):
            for name, value in row.items():
                if name in VIEWS:
                    value.load()
        return first, second, count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as place:
        release, folder = write_both(Path(place), options.rows, options.size)
        size = sum(file.stat().st_size for file in release.rglob("*.parquet")) / 1e6
        print(f"{options.rows} rows x {len(VIEWS)} JPEG of {options.size} px, {size:.0f} MB of Parquet")
        loaders = contenders(release, folder)
        results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in loaders}
        for _ in range(options.repeats):  # interleaved, so that other load on the machine meets all of them
            for name, load in loaders.items():
                results[name].append(measured(load))
    medians = {
        name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in results.items()
    }
    base = medians["parquet builder"]
    print(f"{'':<16} {'first load':>16} {'reload':>18} {'decoded rows/s':>18}")
    for name, (first, second, rate) in medians.items():
        cells = f"{first:6.2f} s ({base[0] / first:4.2f}x) {second:7.3f} s ({base[1] / second:4.2f}x)"
        print(f"{name:<16} {cells} {rate:8.0f} ({rate / base[2]:4.2f}x)")


if __name__ == "__main__":
    main()
