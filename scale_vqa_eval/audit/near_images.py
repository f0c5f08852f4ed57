"""Finds near-duplicate images by two perceptual hashes per image, without comparing all pairs.

A 64-bit DCT hash finds candidates, a 256-bit hash confirms them. This finds copies that were re-encoded, resized,
brightened or re-coloured, but not copies that were mirrored, rotated or cropped by more than a few per cent.
Hash: Zauner 2010, as ``imagehash.phash``. Search: multi-index hashing, Norouzi et al. 2012 (CVPR).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Final

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

COARSE_BITS: Final = 8
FINE_BITS: Final = 40
"""Maximum distances of a near pair, of 64 and of 256 bits; measured by ``benchmarks/near_images.py``."""

FLAT_SPREAD: Final = 4.0
"""Minimum standard deviation of grey values (0-255); images below it are blank and not compared."""

_CANDIDATES_AT_ONCE: Final = 4_000_000


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
