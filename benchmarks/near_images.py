"""How well near-duplicate images are found on real tissue, and what the search costs beside comparing all pairs.

    python benchmarks/near_images.py SLIDE_OR_DIR... [--regions 30] [--hashes 100000]

Fields of view are read at random places and three scales; each is copied in several ways. Recall is the share of
copies found; a false alarm is a found pair of fields of view that overlap by less than a half.
"""

from __future__ import annotations

import argparse
import io
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
from PIL import Image, ImageEnhance

from scale_vqa_eval.audit.overlap import COARSE_BITS, FINE_BITS, near_pairs, pairs_within, perceptual_hashes

SIZE = 512


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cropped(image: Image.Image, share: float) -> Image.Image:
    edge = round(image.width * share / 2)
    return image.crop((edge, edge, image.width - edge, image.height - edge)).resize(image.size)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 75": lambda image: jpeg(image, 75),
    "JPEG quality 20": lambda image: jpeg(image, 20),
    "half size": lambda image: image.resize((SIZE // 2, SIZE // 2), Image.Resampling.BICUBIC),
    "quarter size": lambda image: image.resize((SIZE // 4, SIZE // 4), Image.Resampling.BOX),
    "1.7 times the size": lambda image: image.resize((870, 870), Image.Resampling.LANCZOS),
    "brightness +10%": lambda image: ImageEnhance.Brightness(image).enhance(1.10),
    "brightness -25%": lambda image: ImageEnhance.Brightness(image).enhance(0.75),
    "contrast +30%": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "saturation +50%": lambda image: ImageEnhance.Color(image).enhance(1.5),
    "300 px, +10%, JPEG 60": lambda image: jpeg(ImageEnhance.Brightness(image.resize((300, 300))).enhance(1.1), 60),
    "cropped by 2%": lambda image: cropped(image, 0.02),
    "cropped by 5%": lambda image: cropped(image, 0.05),
    "mirrored (a limit)": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned by 90 degrees (a limit)": lambda image: image.rotate(90),
}


def fields_of_view(slides: list[Path], regions: int) -> list[tuple[Image.Image, tuple[str, int, int, int]]]:
    """Reads ``regions`` fields a slide and scale; returns those with structure, and (slide, x, y, side) of each."""
    rng = random.Random(42)
    out = []
    for path in slides:
        with openslide.OpenSlide(path) as slide:
            for factor in (1, 5, 10):
                level = slide.get_best_level_for_downsample(factor)
                side, read = SIZE * factor, round(SIZE * factor / slide.level_downsamples[level])
                if side > min(slide.dimensions):
                    continue
                for _ in range(regions):
                    x, y = (rng.randrange(length - side + 1) for length in slide.dimensions)
                    image = slide.read_region((x, y), level, (read, read)).convert("RGB").resize((SIZE, SIZE))
                    if perceptual_hashes(image):
                        out.append((image, (path.name, x, y, side)))
    return out


def overlap(left: tuple[str, int, int, int], right: tuple[str, int, int, int]) -> float:
    """Returns intersection over union of two fields of view."""
    if left[0] != right[0]:
        return 0.0
    shared = 1
    for axis in (1, 2):
        shared *= max(0, min(left[axis] + left[3], right[axis] + right[3]) - max(left[axis], right[axis]))
    return shared / (left[3] ** 2 + right[3] ** 2 - shared)


def stacked(pairs: list[tuple[int, bytes]]) -> tuple[np.ndarray, np.ndarray]:
    coarse = np.array([pair[0] for pair in pairs], dtype=np.uint64)
    return coarse, np.frombuffer(b"".join(pair[1] for pair in pairs), dtype=np.uint8).reshape(-1, 32)


def show_recall(slides: list[Path], regions: int) -> None:
    fields = fields_of_view(slides, regions)
    start = time.perf_counter()
    originals = [perceptual_hashes(image) for image, _ in fields]
    cost = (time.perf_counter() - start) / len(fields)
    print(f"{len(fields)} fields of view from {len(slides)} slides; {cost * 1e3:.1f} ms a field for both hashes")
    print(f"near: at most {COARSE_BITS} of 64 bits and {FINE_BITS} of 256 bits differ\n")
    print("| copy | found |\n|---|---|")
    for name, change in COPIES.items():
        found = 0
        for (image, _), original in zip(fields, originals, strict=True):
            copy = perceptual_hashes(change(image))
            found += copy is not None and len(near_pairs(*stacked([original, copy]))[0]) == 1
        print(f"| {name} | {found / len(fields):.1%} |")
    first, second, _ = near_pairs(*stacked(originals))
    shares = [overlap(fields[a][1], fields[b][1]) for a, b in zip(first, second, strict=True)]
    false = sum(share < 0.5 for share in shares)
    compared = len(fields) * (len(fields) - 1) // 2
    print(f"\nfalse alarms: {false} of {compared} pairs of different fields of view")
    print(f"found beside them: {len(shares) - false} pairs that do overlap by a half or more")


def show_speed(count: int) -> None:
    """Times the search beside the comparison of all pairs, on random hashes with planted relatives."""
    rng = np.random.default_rng(42)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    hashes[: count // 100] = hashes[-(count // 100) :] ^ np.uint64(0b10110)
    start = time.perf_counter()
    found = pairs_within(hashes, COARSE_BITS)
    search = time.perf_counter() - start
    start = time.perf_counter()
    pairs = sum(
        int((np.bitwise_count(hashes[place] ^ hashes[place + 1 :]) <= COARSE_BITS).sum()) for place in range(count)
    )
    every = time.perf_counter() - start
    assert pairs == len(found[0])
    print(
        f"\n{count} hashes, {pairs} near pairs: search {search:.1f} s, all pairs {every:.1f} s ({every / search:.1f}x)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", nargs="+", type=Path)
    parser.add_argument("--regions", type=int, default=30, help="fields of view a slide and scale")
    parser.add_argument("--hashes", type=int, default=100_000)
    arguments = parser.parse_args()
    slides = [file for path in arguments.slides for file in (sorted(path.glob("*.tif")) if path.is_dir() else [path])]
    show_recall(slides, arguments.regions)
    show_speed(arguments.hashes)


if __name__ == "__main__":
    main()
