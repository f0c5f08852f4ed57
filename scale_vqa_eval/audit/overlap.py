"""Finds what the splits of a dataset share: patients, slides, paths, image paths, question texts and images.

Images are read in batches from the bytes in Parquet files; only two digests, two perceptual hashes and the locations
of each are kept. Near duplicates are found without comparing all pairs: a 64-bit DCT hash finds candidates, a 256-bit
hash confirms them. This finds copies that were re-encoded, resized, brightened or re-coloured, but not copies that
were mirrored, rotated or cropped by more than a few per cent. Hash: Zauner 2010, as ``imagehash.phash``. Search:
multi-index hashing, Norouzi et al. 2012 (CVPR).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from scale_vqa_eval.audit.defects import letter_balance, normalised, text_key
from scale_vqa_eval.errors import preview
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.release_folder.read import release_files, resolve_data

MAX_PIXELS: Final = 50_000_000
"""Larger images are reported as decompression bombs and not opened."""
MAX_EXAMPLES: Final = 20
"""Maximum number of examples of a kind in a report; counts are complete."""
_ROWS_AT_ONCE: Final = 16
_LEVELS: Final[dict[str, tuple[str, Callable[[Question], list[Hashable]]]]] = {
    "patients": ("patient", lambda question: [question.patient] if question.patient else []),
    "slides": ("slide", lambda question: [question.slide] if question.slide else []),
    "paths": ("path", lambda question: [f"{question.slide or ''}::{question.path_id}"] if question.path_id else []),
    "image_paths": (
        "image path",
        lambda question: [PurePosixPath(path.replace("\\", "/")).as_posix() for _, path in question.images],
    ),
}
ImageLocation = tuple[int, str]
"""Row number among the questions, and the view."""

Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

COARSE_BITS: Final = 8
FINE_BITS: Final = 40
"""Maximum distances of a near pair, of 64 and of 256 bits; measured by ``benchmarks/near_images.py``."""

FLAT_SPREAD: Final = 4.0
"""Minimum standard deviation of grey values (0-255); images below it are blank and not compared."""

_CANDIDATES_AT_ONCE: Final = 4_000_000


def find_overlap(
    data: str | Path, config: str | None = None, images: bool = True, progress: bool = True
) -> dict[str, Any]:
    """Compares all splits of a dataset, and checks each split for repetitions.

    Args:
        data: see ``read_questions``.
        config: config of a release folder.
        images: whether to compare images, if the data has them.
        progress: whether to show a progress bar.

    Returns:
        ``splits`` (number of questions), ``patients``, ``slides``, ``paths``, ``image_paths`` (counts, shared ones,
        examples), ``texts`` (repeated questions), ``images`` (see ``image_overlap``; None if not compared),
        ``letters`` (chi-square by split and dimension), ``nulls``, ``leaks`` (a sentence for each kind of thing that
        two splits share) and ``notes`` (what was not checked, and why).

    Raises:
        InputError: if the data cannot be read.
    """
    questions = read_questions(data, None, config)
    report: dict[str, Any] = {"splits": dict(Counter(question.split or "all" for question in questions))}
    report |= {level: _shared(questions, names) for level, (_, names) in _LEVELS.items()}
    report["texts"] = _repeated_texts(questions)
    report["images"] = image_overlap(data, config, questions, progress) if images else None
    report["letters"] = letter_balance(questions)
    report["nulls"] = _nulls(questions, report["images"])
    # if images were compared, the same path alone is no leak: the images may differ
    levels = {level: noun for level, (noun, _) in _LEVELS.items() if level != "image_paths" or not report["images"]}
    shared = [(report[level]["shared"], f"{noun}(s) in more than one split") for level, noun in levels.items()]
    shared.append((report["texts"]["across_splits"], "question text(s) with the same options in more than one split"))
    if report["images"]:
        shared.append((report["images"]["exact"]["across_splits"], "image(s), pixel by pixel, in more than one split"))
        shared.append((report["images"]["near"]["across_splits"], "pair(s) of near-duplicate images across splits"))
    report["leaks"] = [f"{count} {what}" for count, what in shared if count]
    report["notes"] = _notes(report, len(questions), images)
    return report


def _shared(questions: Sequence[Question], names: Callable[[Question], list[Hashable]]) -> dict[str, Any]:
    """Counts the distinct ``names`` of the questions, and those in more than one split."""
    splits: dict[Hashable, Counter[str]] = defaultdict(Counter)
    naming = 0
    for question in questions:
        named = names(question)
        naming += bool(named)
        for name in named:
            splits[name][question.split or "all"] += 1
    crossing = sorted((str(name), dict(sorted(seen.items()))) for name, seen in splits.items() if len(seen) > 1)
    return {
        "questions_naming": naming,
        "distinct": len(splits),
        "shared": len(crossing),
        "examples": [{"name": name, "questions": seen} for name, seen in crossing[:MAX_EXAMPLES]],
    }


def _repeated_texts(questions: Sequence[Question]) -> dict[str, Any]:
    """Finds repeated questions across and within splits, by normalised question and options in any order.

    A text of which every option is gold equally often in each split reveals no answer; it is counted separately as an
    exchange set.
    """
    same: dict[tuple[str, ...], list[Question]] = defaultdict(list)
    for question in questions:
        same[text_key(question)].append(question)
    crossing: list[list[Question]] = []
    within: list[list[Question]] = []
    exchange = contradicting = 0
    for (_, *options), members in same.items():
        if len(members) < 2:
            continue
        answers: dict[str | None, Counter[str]] = defaultdict(Counter)
        for question in members:
            text = question.options[question.answer]
            answers[question.split][normalised(text) or text] += 1
        if all(len(seen) == len(options) and len(set(seen.values())) == 1 for seen in answers.values()):
            exchange += 1
            continue
        (crossing if len(answers) > 1 else within).append(members)
        contradicting += len(set().union(*answers.values())) > 1
    examples = []
    for members in [*crossing, *within][:MAX_EXAMPLES]:
        firsts = list({question.split: question for question in reversed(members)}.values())[::-1]
        few = [*firsts, *(question for question in members if question not in firsts)][:4]
        rows = [{"id": question.id, "split": question.split} for question in few]
        examples.append({"question": members[0].question, "rows": rows})
    return {
        "across_splits": len(crossing),
        "within_split": len(within),
        "other_answer": contradicting,
        "exchange_sets": exchange,
        "examples": examples,
    }


def _nulls(questions: Sequence[Question], images: Mapping[str, Any] | None) -> dict[str, Any]:
    """Counts the questions that lack a field, and the views that lack an image."""
    fields = ("dimension", "slide", "patient", "path_id", "rationale")
    missing = {name: sum(getattr(question, name) is None for question in questions) for name in fields}
    views: dict[str, int] = dict(images["nulls"]) if images else {}
    if not views:
        named = Counter(view for question in questions for view, _ in question.images)
        holders = sum(bool(question.images) for question in questions)
        views = {view: holders - count for view, count in sorted(named.items())}
    return {**missing, "views": views}


def _notes(report: Mapping[str, Any], count: int, images: bool) -> list[str]:
    notes = []
    if len(report["splits"]) == 1:
        notes.append("There is one split only: nothing could be compared across splits.")
    for level in ("patients", "slides"):
        lacking = count - report[level]["questions_naming"]
        if lacking:
            notes.append(f"{lacking} of {count} questions have no {_LEVELS[level][0]}: sharing one is not detected.")
    if report["images"] is None:
        why = "the file holds none; build a release folder to compare them" if images else "they were left out"
        notes.append(f"No images were compared: {why}.")
    else:
        notes.append(
            "Near duplicates are found after re-encoding, resizing and changes of brightness or colour, not after "
            "mirroring, rotating or cropping by more than a few percent."
        )
        if report["images"]["elsewhere"]:
            notes.append(f"{report['images']['elsewhere']} images are named by path only and were not compared.")
    return notes


@dataclass(frozen=True, slots=True)
class ImageFingerprint:
    """SHA-256 of the pixels of one decoded image, and its perceptual hashes (None for a flat image)."""

    pixels: bytes
    hashes: tuple[int, bytes] | None


@dataclass
class ImageIndex:
    """All images of a dataset: pixel digest -> fingerprint, and pixel digest -> locations."""

    fingerprints: dict[bytes, ImageFingerprint] = field(default_factory=dict)
    locations: dict[bytes, list[ImageLocation]] = field(default_factory=lambda: defaultdict(list))
    unreadable: list[tuple[ImageLocation, str]] = field(default_factory=list)
    nulls: Counter[str] = field(default_factory=Counter)
    views: Counter[str] = field(default_factory=Counter)
    elsewhere: int = 0


def image_overlap(
    data: str | Path, config: str | None, questions: Sequence[Question], progress: bool = True
) -> dict[str, Any] | None:
    """Compares all images of a release folder, Parquet file or Hub id; returns None if the data has no images.

    Args:
        data: see ``read_questions``.
        config: config of a release folder.
        questions: all questions in the order of the file, for the slide and split of each row.
        progress: whether to show a progress bar.

    Returns:
        ``images``, ``distinct``, ``nulls`` by view, ``unreadable`` with reasons, ``flat``, ``elsewhere`` (only the
        path is known), ``exact`` and ``near`` with counts and examples.
    """
    rows = _image_rows(data, config)
    index = _index(rows, len(questions), progress) if rows is not None else None
    if index is None or not index.views:
        return None
    return {
        "images": sum(index.views.values()),
        "by_view": dict(index.views),
        "nulls": dict(index.nulls),
        "distinct": len(index.fingerprints),
        "flat": sum(entry.hashes is None for entry in index.fingerprints.values()),
        "elsewhere": index.elsewhere,
        "unreadable": [
            {"id": questions[row].id, "view": view, "reason": reason} for (row, view), reason in index.unreadable
        ],
        "exact": _exact(index, questions),
        "near": _near(index, questions),
    }


def _image_rows(data: str | Path, config: str | None) -> Iterator[list[tuple[str, Any]]] | None:
    """Iterates over rows in the order of ``read_questions``: (view, ``{"bytes", "path"}`` or None) of their images.

    Returns None if the data has no image columns.
    """
    path = Path(resolve_data(data))
    if path.is_file() and path.suffix.lower() != ".parquet":
        return None
    import pyarrow.parquet as pq
    from datasets import Features, List, load_dataset
    from datasets import Image as ImageFeature

    if path.exists():
        files = [path] if path.is_file() else [file for part in release_files(path, config).values() for file in part]
        columns = _image_columns(Features.from_arrow_schema(pq.read_schema(files[0])))
        rows: Iterator[Mapping[str, Any]] = (
            row
            for file in files
            for batch in pq.ParquetFile(file).iter_batches(_ROWS_AT_ONCE, columns=list(columns))
            for row in batch.to_pylist()
        )
    else:
        streamed = load_dataset(str(path), config, streaming=True)
        columns = _image_columns(next(iter(streamed.values())).features or {})
        plain = ImageFeature(decode=False)
        for part in streamed:
            for column, several in columns.items():
                streamed[part] = streamed[part].cast_column(column, List(plain) if several else plain)
            streamed[part] = streamed[part].select_columns(list(columns))
        rows = (row for part in streamed.values() for row in part)
    return (_views(row, columns) for row in rows) if columns else None


def _image_columns(features: Mapping[str, Any]) -> dict[str, bool]:
    """Returns the image columns of a dataset, and whether each has lists of images."""
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


def _index(rows: Iterator[list[tuple[str, Any]]], total: int, progress: bool) -> ImageIndex:
    """Decodes and hashes every distinct file once, a batch of rows at a time."""
    out = ImageIndex()
    by_bytes: dict[bytes, ImageFingerprint | str] = {}
    batch: list[tuple[ImageLocation, bytes, bytes]] = []

    def flush(pool: ThreadPoolExecutor) -> None:
        new = {digest: content for _, digest, content in batch if digest not in by_bytes}
        by_bytes.update(zip(new, pool.map(_fingerprint, new.values()), strict=True))
        for location, digest, _ in batch:
            entry = by_bytes[digest]
            if isinstance(entry, str):
                out.unreadable.append((location, entry))
            else:
                out.fingerprints.setdefault(entry.pixels, entry)
                out.locations[entry.pixels].append(location)
        batch.clear()

    with ThreadPoolExecutor(2) as pool, tqdm(total=total, desc="images", unit="row", disable=not progress) as bar:
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
                flush(pool)
            bar.update()
        flush(pool)
    return out


def _fingerprint(content: bytes) -> ImageFingerprint | str:
    """Decodes an image, or returns the reason why it cannot be decoded; untrusted files may raise any error."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"decompression bomb: {image.width}x{image.height} pixels in {len(content)} bytes"
            plain = image.convert("RGB")
    except UnidentifiedImageError:
        return f"not an image of a known format: {len(content)} bytes, {preview(content[:8])} first"
    except Image.DecompressionBombError as error:
        return f"decompression bomb: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {preview(str(error), 120)}"
    digest = hashlib.sha256(f"{plain.width}x{plain.height}".encode() + plain.tobytes()).digest()
    return ImageFingerprint(digest, perceptual_hashes(plain))


def _exact(index: ImageIndex, questions: Sequence[Question]) -> dict[str, Any]:
    """Counts images with identical pixels in two splits, or of two slides of a split."""
    crossing, straying = [], []
    for locations in index.locations.values():
        owners = [questions[row] for row, _ in locations]
        if len({owner.split for owner in owners}) > 1:
            crossing.append(locations)
        elif len({owner.slide for owner in owners}) > 1:
            straying.append(locations)
    return {
        "across_splits": len(crossing),
        "other_slide": len(straying),
        "examples": [_described(locations, questions) for locations in [*crossing, *straying][:MAX_EXAMPLES]],
    }


def _near(index: ImageIndex, questions: Sequence[Question]) -> dict[str, Any]:
    """Counts pairs of near-duplicate images across splits, across slides of a split, and within a slide."""
    hashed = [(key, entry.hashes) for key, entry in index.fingerprints.items() if entry.hashes is not None]
    coarse = np.array([hashes[0] for _, hashes in hashed], dtype=np.uint64)
    fine = np.frombuffer(b"".join(hashes[1] for _, hashes in hashed), dtype=np.uint8).reshape(-1, 32)
    first, second, apart = near_pairs(coarse, fine)
    owners = [[questions[row] for row, _ in index.locations[key]] for key, _ in hashed]
    splits = _codes([frozenset(owner.split for owner in group) for group in owners])
    slides = _codes([group[0].slide for group in owners])
    same_slide = slides[first] == slides[second]
    crossing = splits[first] != splits[second]
    order = np.lexsort((second, first, apart, ~crossing))[:MAX_EXAMPLES]
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
                "places": _described([index.locations[hashed[end[pair]][0]][0] for end in (first, second)], questions),
            }
            for pair in order
        ],
    }


def _codes(values: Sequence[Any]) -> np.typing.NDArray[np.int64]:
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], dtype=np.int64)


def _described(locations: Sequence[ImageLocation], questions: Sequence[Question]) -> list[dict[str, Any]]:
    return [{"id": questions[row].id, "view": view, "split": questions[row].split} for row, view in locations[:4]]


def perceptual_hashes(image: Image.Image) -> tuple[int, bytes] | None:
    """Returns the 64-bit and the 256-bit hash of an image, or None if it is flat (see ``FLAT_SPREAD``)."""
    small = image.convert("L").resize((64, 64), Image.Resampling.LANCZOS)
    if float(np.asarray(small, dtype=np.float32).std()) < FLAT_SPREAD:
        return None
    coarse = np.packbits(imagehash.phash(small, hash_size=8).hash.ravel()).tobytes()
    fine = np.packbits(imagehash.phash(small, hash_size=16).hash.ravel()).tobytes()
    return int.from_bytes(coarse, "big"), fine


def near_pairs(coarse: Hashes, fine: npt.NDArray[np.uint8]) -> tuple[Positions, Positions, Positions]:
    """Returns (first, second, fine distance) of every pair of images within ``COARSE_BITS`` and ``FINE_BITS``.

    Args:
        coarse: (n,) 64-bit hashes.
        fine: (n, 32) the bytes of the 256-bit hashes.

    Returns:
        Sorted positions with first < second, and the number of differing bits (of 256).
    """
    first, second, _ = pairs_within(coarse, COARSE_BITS)
    apart = np.bitwise_count(fine[first] ^ fine[second]).sum(axis=1, dtype=np.int64)
    kept = apart <= FINE_BITS
    return first[kept], second[kept], apart[kept]


def pairs_within(hashes: Hashes, bits: int) -> tuple[Positions, Positions, Positions]:
    """Returns (first, second, distance) of every pair of hashes that differ in at most ``bits`` bits, sorted.

    The 64 bits are split into m chunks. If two hashes differ in at most r = a m + b bits (b < m), one of the first b +
    1 chunks differs in at most a bits, or one of the others in at most a - 1; otherwise the differences would exceed
    r. So it is enough to look up each chunk in a table with that many bits flipped. A chunk has about log2(n) bits, so
    that a table cell has about one of n hashes.
    """
    n = len(hashes)
    chunks = min(8, max(3, round(64 / math.log2(max(n, 4)))))  # at least 3: a table of 2^22 cells, 32 MB
    edges = [round(64 * part / chunks) for part in range(chunks + 1)]
    found: list[Positions] = [np.empty(0, np.int64)]
    most, rest = divmod(bits, chunks)
    for part, (low, high) in enumerate(itertools.pairwise(edges)):
        keys = ((hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)).astype(np.int64)
        for first, second in _neighbours(keys, high - low, most if part <= rest else most - 1):
            near = np.bitwise_count(hashes[first] ^ hashes[second]) <= bits
            found.append(first[near] * n + second[near])
    codes = np.unique(np.concatenate(found))
    first, second = codes // max(n, 1), codes % max(n, 1)
    return first, second, np.bitwise_count(hashes[first] ^ hashes[second]).astype(np.int64)


def _neighbours(keys: Positions, width: int, radius: int) -> Iterator[tuple[Positions, Positions]]:
    """Yields batches of pairs first < second whose keys of ``width`` bits differ in at most ``radius`` bits."""
    order = np.argsort(keys, kind="stable")
    ends = np.concatenate(([0], np.cumsum(np.bincount(keys, minlength=1 << width))))
    for flips in range(radius + 1):
        for bits in itertools.combinations(range(width), flips):
            wanted = keys ^ sum(1 << bit for bit in bits)
            start = ends[wanted]
            sizes = ends[wanted + 1] - start
            for rows in _portions(sizes):
                many = sizes[rows]
                first = np.repeat(rows, many)
                offset = np.arange(len(first)) - np.repeat(np.cumsum(many) - many, many)
                second = order[np.repeat(start[rows], many) + offset]
                ahead = first < second
                yield first[ahead], second[ahead]


def _portions(sizes: Positions) -> Iterator[Positions]:
    """Splits the rows into portions of bounded total size, to bound memory."""
    rows = np.flatnonzero(sizes)
    total = np.cumsum(sizes[rows])
    if len(rows) and total[-1] <= _CANDIDATES_AT_ONCE:
        yield rows
    elif len(rows):
        yield from np.split(rows, np.flatnonzero(np.diff(total // _CANDIDATES_AT_ONCE)) + 1)
