"""Loading a release folder, against the library's own Parquet builder, imagefolder, and pyarrow with PIL alone.

    python benchmarks/loading.py [--rows 2000] [--size 512] [--repeats 3]

One split of rows with three JPEG views each, written as a release folder and as an imagefolder of the same bytes.
Each repeat loads every contender into an empty cache, loads it again from that cache, and decodes rows. Printed are
the best of all repeats and, in brackets, the speed relative to the Parquet builder in the same run (above 1: faster).
The last column is the speed of decoding relative to pyarrow and PIL without ``datasets``, all rows in memory.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dataset_script import ScaleVQA
from scale_vqa_eval.release_folder.write import write_release
from scale_vqa_eval.schema import VIEWS

Loader = Callable[[str], Any]
BURST = 40


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


class PlainRows:
    """The images of the ``test`` split as pyarrow reads them, opened with PIL."""

    def __init__(self, release: Path) -> None:
        files = sorted((release / "default").glob("test-*.parquet"))
        self.table = pa.concat_tables([pq.read_table(file, columns=list(VIEWS)) for file in files])

    def __len__(self) -> int:
        return len(self.table)

    def select(self, rows: range) -> Iterator[dict[str, Image.Image]]:
        for row in self.table.slice(rows.start, len(rows)).to_pylist():
            yield {view: Image.open(io.BytesIO(row[view]["bytes"])) for view in VIEWS}


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
        "its images": lambda cache: datasets.load_dataset(str(release), cache_dir=cache, split="test").select_columns(
            list(VIEWS)
        ),
        "imagefolder": lambda cache: datasets.load_dataset(
            "imagefolder", data_dir=str(folder), cache_dir=cache, split="test"
        ),
        "pyarrow + PIL": lambda cache: PlainRows(release),
    }


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and what it returns."""
    start = time.perf_counter()
    value = work()
    return time.perf_counter() - start, value


def decode(data: Any, rows: range) -> None:
    """Decodes every view of some rows to pixels."""
    for row in data.select(rows):
        for view in VIEWS:
            row[view].load()


def measured(loaders: dict[str, Loader], repeats: int) -> dict[str, tuple[float, float, float]]:
    """Name -> least seconds of a first load and of a second, and of decoding ``BURST`` rows.

    The contenders take turns at every step and the least counts, so that other work on the machine favours none.
    """
    firsts: dict[str, list[float]] = {name: [] for name in loaders}
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    bursts: dict[str, list[float]] = {name: [] for name in loaders}
    for repeat in range(repeats):
        data = {}
        with tempfile.TemporaryDirectory() as caches:
            for name, load in loaders.items():
                cache = str(Path(caches, name))
                firsts[name].append(timed(lambda load=load, cache=cache: load(cache))[0])
                for _ in range(3):
                    second, data[name] = timed(lambda load=load, cache=cache: load(cache))
                    seconds[name].append(second)
            for burst in range(10):
                for name, loaded in data.items():
                    start = (repeat * 10 + burst) * BURST % (len(loaded) - BURST)
                    rows = range(start, start + BURST)
                    bursts[name].append(timed(lambda loaded=loaded, rows=rows: decode(loaded, rows))[0])
    return {name: (min(firsts[name]), min(seconds[name]), min(bursts[name])) for name in loaders}


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
        least = measured(contenders(release, folder), options.repeats)
    base, plain = least["parquet builder"], least["pyarrow + PIL"]
    print(f"{'':<16} {'first load':>16} {'reload':>18} {'decoded rows/s':>18} {'pyarrow + PIL':>15}")
    for name, (first, second, burst) in least.items():
        cells = f"{first:6.2f} s ({base[0] / first:4.2f}x) {second:7.3f} s ({base[1] / second:5.3f}x)"
        print(f"{name:<16} {cells} {BURST / burst:8.0f} ({base[2] / burst:4.2f}x) {plain[2] / burst:14.2f}x")


if __name__ == "__main__":
    main()
