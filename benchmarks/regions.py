"""Regions a second from real slides: ours and the readers that pip installs, side by side on the same boxes.

    python benchmarks/regions.py SLIDE_OR_DIR... [--paths 16] [--repeats 5] [--workers 2]

The boxes are those that a build would show. Each contender has handles of its own and ends with JPEG bytes (Pillow,
quality 90, 4:4:4). Peers are left out where they are not installed:

    pip install large-image large-image-source-tiff large-image-source-openslide pylibtiff
    pip install cucim-cu12 fastslide tiatoolbox

At the view's exact scale, 512 pixels for a 512-pixel view:

- scale-vqa: what a build does with a box: best level, exact scale, simple measures, JPEG.
- openslide + resize: ``read_region`` at the same level, Pillow's Lanczos.
- cucim + resize, fastslide + resize: the same with their ``read_region``.
- large-image: ``getRegion`` in mm at the view's size; ``large_image.open`` chooses the source, which is printed.
- tiatoolbox: ``read_bounds`` of its OpenSlide reader at the view's um per pixel, with its own interpolation.

At the level's scale, so not the view that was asked for:

- openslide, openslide corner aligned (its corner moved to a whole pixel of the level; OpenSlide interpolates
  otherwise), cucim, fastslide.

All run in one process, a slide's boxes at a time, in turn, in an order that changes with the repeat; no handle and no
tile cache outlives a turn. Time is the processor time of the process, opening included, so that a busy machine does
not count. Printed are the best of all repeats, summed over slides, and our speed relative to each (above 1: we are
faster). Then the same regions are read by the build's own worker pool with one and with several workers, by the clock.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from PIL import Image

from dataset_script.slides.build_cache import (
    encode_jpeg,
    make_plan,
    make_regions,
    measure_image,
    read_field,
    slide_work,
)
from dataset_script.slides.plan import GroundingSettings, plan_slide
from dataset_script.slides.sampling import Field
from dataset_script.slides.slide_files import find_slides
from dataset_script.slides.workers import worker_pool
from scale_vqa_eval.wsi import OpenSlideSource, best_level

Reader = Callable[[Field], None]
LevelReader = Callable[[int, int, int, int], Any]
"""(level, left, top, side), in pixels of the level -> pixels."""


@contextmanager
def ours(path: Path) -> Iterator[Reader]:
    with OpenSlideSource(path) as source:

        def read(field: Field) -> None:
            image = read_field(source, field)
            measure_image(image, len(encode_jpeg(image)))

        yield read


@contextmanager
def level_reader(path: Path, opened: Callable[[Path], LevelReader], resized: bool) -> Iterator[Reader]:
    """Yields a reader of boxes by a library that reads squares of a level at whole pixels."""
    mpp, downsamples = scale_of(path)
    square = opened(path)

    def read(field: Field) -> None:
        level = best_level(downsamples, field.mpp / mpp)
        scale = mpp * downsamples[level]
        left, top = (round((centre - field.side / 2) / scale) for centre in (field.x, field.y))
        image = square(level, left, top, round(field.side / scale))
        image = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image)[..., :3])
        encode_jpeg(image.resize((field.size_px,) * 2, Image.Resampling.LANCZOS) if resized else image)

    yield read


@cache
def scale_of(path: Path) -> tuple[float, tuple[float, ...]]:
    with OpenSlideSource(path) as source, openslide.OpenSlide(str(path)) as slide:
        return source.mpp, slide.level_downsamples


def open_openslide(path: Path) -> LevelReader:
    slide = openslide.OpenSlide(str(path))

    def square(level: int, left: int, top: int, side: int) -> Any:
        down = slide.level_downsamples[level]
        return slide.read_region((round(left * down), round(top * down)), level, (side, side)).convert("RGB")

    return square


def open_cucim(path: Path) -> LevelReader:
    from cucim import CuImage

    slide = CuImage(str(path))
    downsamples = slide.resolutions["level_downsamples"]

    def square(level: int, left: int, top: int, side: int) -> Any:
        corner = (round(left * downsamples[level]), round(top * downsamples[level]))
        return np.asarray(slide.read_region(corner, (side, side), level))

    return square


def open_fastslide(path: Path) -> LevelReader:
    import fastslide

    slide = fastslide.FastSlide.from_file_path(str(path))
    return lambda level, left, top, side: slide.read_region((left, top), level, (side, side)).numpy()


@contextmanager
def unaligned_openslide(path: Path) -> Iterator[Reader]:
    mpp, downsamples = scale_of(path)
    with openslide.OpenSlide(str(path)) as slide:

        def read(field: Field) -> None:
            level = best_level(downsamples, field.mpp / mpp)
            corner = [int((centre - field.side / 2) / mpp) for centre in (field.x, field.y)]
            size = round(field.side / mpp / downsamples[level])
            encode_jpeg(slide.read_region((corner[0], corner[1]), level, (size, size)).convert("RGB"))

        yield read


@contextmanager
def large_image(path: Path) -> Iterator[Reader]:
    import large_image as library

    library.cache_util.cachesClear()
    source = library.open(str(path))

    def read(field: Field) -> None:
        left, top = ((centre - field.side / 2) / 1000 for centre in (field.x, field.y))
        side = field.side / 1000
        region = {"left": left, "top": top, "width": side, "height": side, "units": "mm"}
        image, _ = source.getRegion(
            region=region,
            output={"maxWidth": field.size_px, "maxHeight": field.size_px},
            format=library.constants.TILE_FORMAT_PIL,
            resample=Image.Resampling.LANCZOS,
        )
        encode_jpeg(image.convert("RGB"))

    yield read


@contextmanager
def tiatoolbox(path: Path) -> Iterator[Reader]:
    from tiatoolbox.wsicore.wsireader import OpenSlideWSIReader

    mpp = scale_of(path)[0]
    # WSIReader.open would decode the whole of a generic TIFF into memory
    reader = OpenSlideWSIReader(path, mpp=(mpp, mpp))

    def read(field: Field) -> None:
        left, top = ((centre - field.side / 2) / mpp for centre in (field.x, field.y))
        box = (round(left), round(top), round(left + field.side / mpp), round(top + field.side / mpp))
        encode_jpeg(Image.fromarray(reader.read_bounds(box, resolution=field.mpp, units="mpp")))

    yield read


EXACT: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "scale-vqa": ("openslide", ours),
    "openslide + resize": ("openslide", partial(level_reader, opened=open_openslide, resized=True)),
    "cucim + resize": ("cucim", partial(level_reader, opened=open_cucim, resized=True)),
    "fastslide + resize": ("fastslide", partial(level_reader, opened=open_fastslide, resized=True)),
    "large-image": ("large_image", large_image),
    "tiatoolbox": ("tiatoolbox", tiatoolbox),
}
AT_LEVEL: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "openslide": ("openslide", unaligned_openslide),
    "openslide, corner aligned": ("openslide", partial(level_reader, opened=open_openslide, resized=False)),
    "cucim": ("cucim", partial(level_reader, opened=open_cucim, resized=False)),
    "fastslide": ("fastslide", partial(level_reader, opened=open_fastslide, resized=False)),
}
CONTENDERS = {
    name: context for name, (module, context) in (EXACT | AT_LEVEL).items() if importlib.util.find_spec(module)
}


def fields_of(path: Path, paths: int) -> list[Field]:
    """Returns the fields that a build of one slide shows."""
    with OpenSlideSource(path) as source:
        plan = plan_slide(source, GroundingSettings(paths_per_slide=paths))
    found = [group for groups in plan.groups.values() for group in groups]
    fields = [field for group in found for field in (group.context, *group.parents, *group.targets) if field]
    return list(dict.fromkeys(fields))


def compare(slides: Sequence[Path], paths: int, repeats: int) -> None:
    """Prints regions a second of every contender, overall and by view."""
    names = list(CONTENDERS)
    boxes = {slide: fields_of(slide, paths) for slide in slides}
    views = sorted({field.view for fields in boxes.values() for field in fields})
    best: dict[tuple[str, Path, str], float] = {}
    for repeat in range(repeats):
        for slide, fields in boxes.items():
            for view in views:
                part = [field for field in fields if field.view == view]
                for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
                    start = time.process_time()
                    with CONTENDERS[name](slide) as read:
                        for field in part:
                            read(field)
                        seconds = time.process_time() - start
                    key = name, slide, view
                    best[key] = min(seconds, best.get(key, seconds))
    for view in (*views, "all"):
        count = sum(1 for fields in boxes.values() for field in fields if view in ("all", field.view))
        print(f"\n{view}: {count} regions of {len(slides)} slides")
        spent = {
            name: sum(
                seconds for (who, _, location), seconds in best.items() if who == name and view in ("all", location)
            )
            for name in names
        }
        for name, seconds in spent.items():
            scale = "exact scale" if name in EXACT else "level's scale"
            print(f"  {name:28s} {scale:14s} {count / seconds:7.1f} regions/s  x{seconds / spent['scale-vqa']:.2f}")


def scale(slides: Sequence[Path], paths: int, workers: int, repeats: int) -> None:
    """Prints how much faster the build's pool reads regions with several workers than with one."""
    settings = GroundingSettings(paths_per_slide=paths)
    best: dict[int, float] = {}
    for _ in range(repeats):
        for count in (1, workers):
            with tempfile.TemporaryDirectory() as folder, worker_pool(count) as run:
                works = [slide_work(Path(folder), slide, settings) for slide in slides]
                list(run(make_plan, [(work, settings) for work in works]))
                tasks = [(work, settings, (batch,)) for work in works for batch in work.batches()]
                start = time.perf_counter()
                list(run(make_regions, tasks))
                seconds = time.perf_counter() - start
                best[count] = min(seconds, best.get(count, seconds))
    print(f"\nregion batches by the build's pool, {len(tasks)} tasks")
    for count, seconds in best.items():
        print(f"  {count} worker{'s' if count > 1 else ' '} {seconds:7.2f} s  x{best[1] / seconds:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", nargs="+", type=Path)
    parser.add_argument("--paths", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    slides = find_slides(given.slides)
    for context in CONTENDERS.values():
        with context(slides[0]) as read:  # imports and libraries loaded on first use are not counted
            read(fields_of(slides[0], 4)[0])
    if "large-image" in CONTENDERS:
        import large_image as library

        print("large-image uses", *sorted({type(library.open(str(slide))).__module__ for slide in slides}))
    compare(slides, given.paths, given.repeats)
    scale(slides, given.paths, given.workers, given.repeats)


if __name__ == "__main__":
    main()
