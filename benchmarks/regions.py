"""Regions a second from real slides: ours, bare OpenSlide, and large-image, side by side on the same boxes.

    python benchmarks/regions.py SLIDE_OR_DIR... [--paths 16] [--repeats 5] [--workers 2]

The boxes are those that a build would show. Each contender has handles of its own and ends with JPEG bytes:

- scale-vqa: what a build does with a box: best level, exact scale (Lanczos), simple measures, JPEG.
- bare openslide: ``read_region`` of the same box at the same level, ``convert("RGB")``, JPEG; the pixels are left at
  the level's own scale, so they are not the view that was asked for.
- bare openslide, corner aligned: the same, its corner moved to a whole pixel of the level (up to half a pixel off);
  OpenSlide interpolates otherwise.
- bare openslide + resize: the first of these, brought to the view's size by Pillow's Lanczos.
- large-image: ``getRegion`` in mm at the view's size, JPEG (``pip install large-image large-image-source-openslide``;
  left out where it is not installed).

All run in one process, a slide's boxes at a time, in turn, in an order that changes with the repeat; no tile cache
outlives a turn. Time is the processor time of the process, so that a busy machine does not count. Printed are the best
of all repeats, summed over slides, and the speed relative to bare openslide (above 1: faster). Then the same regions
are read by the build's own worker pool with one and with several workers, by the clock.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openslide
from PIL import Image

from dataset_script.slides.build_cache import make_plan, make_regions, slide_work
from dataset_script.slides.field_images import encode_jpeg, measure_image, read_field
from dataset_script.slides.plan import plan_slide
from dataset_script.slides.sampling import Field
from dataset_script.slides.settings import GroundingSettings
from dataset_script.slides.slide_files import find_slides
from dataset_script.slides.workers import worker_pool
from scale_vqa_eval.wsi import OpenSlideSource, best_level

Reader = Callable[[Field], None]


@contextmanager
def ours(path: Path) -> Iterator[Reader]:
    with OpenSlideSource(path) as source:

        def read(field: Field) -> None:
            image = read_field(source, field)
            measure_image(image, len(encode_jpeg(image)))

        yield read


@contextmanager
def bare(path: Path, aligned: bool = False, resized: bool = False) -> Iterator[Reader]:
    with OpenSlideSource(path) as source:
        mpp = source.mpp
    with openslide.OpenSlide(str(path)) as slide:

        def read(field: Field) -> None:
            level = best_level(slide.level_downsamples, field.mpp / mpp)
            down = slide.level_downsamples[level]
            x, y = ((centre - field.side / 2) / mpp for centre in (field.x, field.y))
            if aligned:
                x, y = round(x / down) * down, round(y / down) * down
            size = round(field.side / mpp / down)
            image = slide.read_region((int(x), int(y)), level, (size, size)).convert("RGB")
            encode_jpeg(image.resize((field.size_px,) * 2, Image.Resampling.LANCZOS) if resized else image)

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


CONTENDERS: dict[str, Callable[[Path], Any]] = {
    "scale-vqa": ours,
    "bare openslide": bare,
    "bare openslide, corner aligned": lambda path: bare(path, aligned=True),
    "bare openslide + resize": lambda path: bare(path, resized=True),
    "large-image": large_image,
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
    names = [name for name in CONTENDERS if name != "large-image" or importlib.util.find_spec("large_image")]
    boxes = {slide: fields_of(slide, paths) for slide in slides}
    views = sorted({field.view for fields in boxes.values() for field in fields})
    best: dict[tuple[str, Path, str], float] = {}
    for repeat in range(repeats):
        for slide, fields in boxes.items():
            for view in views:
                part = [field for field in fields if field.view == view]
                for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
                    with CONTENDERS[name](slide) as read:
                        start = time.process_time()
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
            print(f"  {name:32s} {count / seconds:7.1f} regions/s  x{spent['bare openslide'] / seconds:.2f}")


def scale(slides: Sequence[Path], paths: int, workers: int, repeats: int) -> None:
    """Prints how much faster the build's pool reads regions with several workers than with one."""
    settings = GroundingSettings(paths_per_slide=paths)
    best: dict[int, float] = {}
    for _ in range(repeats):
        for count in (1, workers):
            with tempfile.TemporaryDirectory() as folder, worker_pool(count) as run:
                works = [slide_work(Path(folder), slide, settings) for slide in slides]
                list(run(make_plan, [(work, settings) for work in works]))
                tasks = [(work, settings, *batch) for work in works for batch in work.batches()]
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
    slides = find_slides(given.slides).slides
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")  # Pillow loads its codecs on first use
    compare(slides, given.paths, given.repeats)
    scale(slides, given.paths, given.workers, given.repeats)


if __name__ == "__main__":
    main()
