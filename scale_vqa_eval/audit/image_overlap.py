"""Which images of a dataset are the same, or nearly so, and whether that crosses a split or a slide.

Images are read one batch at a time from the bytes that Parquet files hold; what is kept of each is two digests, two
perceptual hashes and where it stands.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from scale_vqa_eval.audit.near_images import COARSE_BITS, FINE_BITS, near_pairs, perceptual_hashes
from scale_vqa_eval.errors import preview
from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.read import release_files, resolve_data

MAX_PIXELS: Final = 50_000_000
"""A larger image is taken for a decompression bomb: named, not opened."""

EXAMPLES: Final = 20
"""Most examples that a report shows of one kind; counts are whole."""

_ROWS_AT_ONCE: Final = 16
Place = tuple[int, str]
"""Row number among the questions, and the view."""


@dataclass(frozen=True, slots=True)
class Print:
    """What is kept of one decoded image: SHA-256 of its pixels, and its hashes (None where it is flat)."""

    pixels: bytes
    hashes: tuple[int, bytes] | None


@dataclass
class Collected:
    """All images of a dataset: pixels' digest -> first print, and the places that it stands at."""

    prints: dict[bytes, Print] = field(default_factory=dict)
    places: dict[bytes, list[Place]] = field(default_factory=lambda: defaultdict(list))
    unreadable: list[tuple[Place, str]] = field(default_factory=list)
    nulls: Counter[str] = field(default_factory=Counter)
    views: Counter[str] = field(default_factory=Counter)
    elsewhere: int = 0


def image_overlap(
    data: str | Path, config: str | None, questions: Sequence[Question], progress: bool = True
) -> dict[str, Any] | None:
    """Compares all images of a release folder, Parquet file or Hub id; None where the data holds no images.

    Args:
        data: as for ``read_questions``.
        config: config of a release folder.
        questions: all its questions, in the order of the file: they say which slide and split a row belongs to.
        progress: show a bar on standard error.

    Returns:
        Plain values: ``images``, ``distinct``, ``nulls`` by view, ``unreadable`` with reasons, ``flat``, ``elsewhere``
        (named by path only), ``exact`` and ``near`` with counts and examples.
    """
    rows = image_rows(data, config)
    if rows is None:
        return None
    collected = _collect(rows, len(questions), progress)
    if not collected.views:
        return None
    exact = _exact(collected, questions)
    return {
        "images": sum(collected.views.values()),
        "by_view": dict(collected.views),
        "nulls": dict(collected.nulls),
        "distinct": len(collected.prints),
        "flat": sum(entry.hashes is None for entry in collected.prints.values()),
        "elsewhere": collected.elsewhere,
        "unreadable": [
            {"id": questions[row].id, "view": view, "reason": reason} for (row, view), reason in collected.unreadable
        ],
        "exact": exact,
        "near": _near(collected, questions),
    }


def image_rows(data: str | Path, config: str | None) -> Iterator[list[tuple[str, Any]]] | None:
    """Returns an iterator over rows, in the order of ``read_questions``: (view, encoded image or None) of each.

    An encoded image is the ``{"bytes", "path"}`` of ``datasets``. None where the data holds no image columns at all.
    """
    path = Path(resolve_data(data))
    if path.is_dir():
        return _parquet_rows([file for files in release_files(path, config).values() for file in files])
    if path.suffix.lower() == ".parquet":
        return _parquet_rows([path])
    return None if path.is_file() else _hub_rows(str(data), config)


def _parquet_rows(files: Sequence[Path]) -> Iterator[list[tuple[str, Any]]] | None:
    import pyarrow.parquet as pq
    from datasets import Features

    columns = _image_columns(Features.from_arrow_schema(pq.read_schema(files[0])))
    if not columns:
        return None
    return (
        _views(row, columns)
        for file in files
        for batch in pq.ParquetFile(file).iter_batches(_ROWS_AT_ONCE, columns=list(columns))
        for row in batch.to_pylist()
    )


def _hub_rows(name: str, config: str | None) -> Iterator[list[tuple[str, Any]]] | None:
    from datasets import Image as ImageFeature
    from datasets import List, load_dataset

    data = load_dataset(name, config, streaming=True)
    columns = _image_columns(next(iter(data.values())).features or {})
    if not columns:
        return None
    for part in data:
        for column, several in columns.items():
            plain = ImageFeature(decode=False)
            data[part] = data[part].cast_column(column, List(plain) if several else plain)
        data[part] = data[part].select_columns(list(columns))
    return (_views(row, columns) for part in data.values() for row in part)


def _image_columns(features: Mapping[str, Any]) -> dict[str, bool]:
    """Returns the image columns of a dataset, and whether each holds a list of images."""
    kinds = {
        name: (type(kind).__name__, type(getattr(kind, "feature", None)).__name__) for name, kind in features.items()
    }
    return {name: outer != "Image" for name, (outer, inner) in kinds.items() if "Image" in (outer, inner)}


def _views(row: Mapping[str, Any], columns: Mapping[str, bool]) -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for column, several in columns.items():
        value = row[column]
        out += [(f"{column} {n}", image) for n, image in enumerate(value or [], 1)] if several else [(column, value)]
    return out


def _collect(rows: Iterator[list[tuple[str, Any]]], total: int, progress: bool) -> Collected:
    """Decodes and hashes every distinct file once, a batch of rows at a time."""
    out = Collected()
    by_bytes: dict[bytes, Print | str] = {}
    with ThreadPoolExecutor(2) as pool, tqdm(total=total, desc="images", unit="row", disable=not progress) as bar:
        batch: list[tuple[Place, bytes, bytes]] = []
        for number, row in enumerate(rows):
            for view, image in row:
                out.views[view] += image is not None
                out.nulls[view] += image is None
                content = (image or {}).get("bytes")
                if content is not None:
                    batch.append(((number, view), hashlib.sha256(content).digest(), content))
                elif image is not None:
                    out.elsewhere += 1
            if len(batch) >= 3 * _ROWS_AT_ONCE:
                _absorb(batch, by_bytes, out, pool)
                batch = []
            bar.update()
        _absorb(batch, by_bytes, out, pool)
    return out


def _absorb(
    batch: Sequence[tuple[Place, bytes, bytes]],
    by_bytes: dict[bytes, Print | str],
    out: Collected,
    pool: ThreadPoolExecutor,
) -> None:
    new = {digest: content for _, digest, content in batch if digest not in by_bytes}
    by_bytes.update(zip(new, pool.map(_print, new.values()), strict=True))
    for place, digest, _ in batch:
        entry = by_bytes[digest]
        if isinstance(entry, str):
            out.unreadable.append((place, entry))
        else:
            out.prints.setdefault(entry.pixels, entry)
            out.places[entry.pixels].append(place)


def _print(content: bytes) -> Print | str:
    """Decodes one image; returns why where it cannot be, since a file that a stranger made may break any decoder."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"decompression bomb: {image.width}x{image.height} pixels in {len(content)} bytes"
            plain = image.convert("RGB")
    except UnidentifiedImageError:
        return f"no image that can be told: {len(content)} bytes, {preview(content[:8])} first"
    except Image.DecompressionBombError as error:
        return f"decompression bomb: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {preview(str(error), 120)}"
    digest = hashlib.sha256(f"{plain.width}x{plain.height}".encode() + plain.tobytes()).digest()
    return Print(digest, perceptual_hashes(plain))


def _exact(collected: Collected, questions: Sequence[Question]) -> dict[str, Any]:
    """Counts images with the very same pixels in two splits, or under two slides of one split."""
    crossing, straying = [], []
    for places in collected.places.values():
        owners = [questions[row] for row, _ in places]
        if len({owner.split for owner in owners}) > 1:
            crossing.append(places)
        elif len({owner.slide for owner in owners}) > 1:
            straying.append(places)
    return {
        "across_splits": len(crossing),
        "other_slide": len(straying),
        "examples": [_where(places, questions) for places in [*crossing, *straying][:EXAMPLES]],
    }


def _near(collected: Collected, questions: Sequence[Question]) -> dict[str, Any]:
    """Counts pairs of different images that look alike: across splits, across slides of a split, within a slide."""
    hashed = [(key, entry.hashes) for key, entry in collected.prints.items() if entry.hashes is not None]
    coarse = np.array([hashes[0] for _, hashes in hashed], dtype=np.uint64)
    fine = np.frombuffer(b"".join(hashes[1] for _, hashes in hashed), dtype=np.uint8).reshape(-1, 32)
    first, second, apart = near_pairs(coarse, fine)
    owners = [[questions[row] for row, _ in collected.places[key]] for key, _ in hashed]
    splits = _codes([frozenset(owner.split for owner in group) for group in owners])
    slides = _codes([group[0].slide for group in owners])
    same_slide = slides[first] == slides[second]
    crossing = splits[first] != splits[second]
    order = np.lexsort((second, first, apart, ~crossing))[:EXAMPLES]
    return {
        "threshold_of_64": COARSE_BITS,
        "threshold_of_256": FINE_BITS,
        "across_splits": int(crossing.sum()),
        "other_slide": int((~crossing & ~same_slide).sum()),
        "same_slide": int((~crossing & same_slide).sum()),
        "examples": [
            {
                "distance": int(apart[pair]),
                "same_slide": bool(same_slide[pair]),
                "across_splits": bool(crossing[pair]),
                "places": _where(
                    [collected.places[hashed[first[pair]][0]][0], collected.places[hashed[second[pair]][0]][0]],
                    questions,
                ),
            }
            for pair in order
        ],
    }


def _codes(values: Sequence[Any]) -> np.typing.NDArray[np.int64]:
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], dtype=np.int64)


def _where(places: Sequence[Place], questions: Sequence[Question]) -> list[dict[str, Any]]:
    shown_places = places[:4]
    return [{"id": questions[row].id, "view": view, "split": questions[row].split} for row, view in shown_places]
