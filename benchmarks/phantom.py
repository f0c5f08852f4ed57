"""Speed of phantom slides: regions per second at each scale beside a slide file's, and slides per second.

    python benchmarks/phantom.py [--slides 4] [--regions 24] [--workers 1 2] [--json OUT]

The peer of drawing a region is reading it: the same boxes of the same slide, from the pyramidal TIFF that
``write_slide`` makes, through ``OpenSlideSource`` (for the 10x view a file of one fragment, without its finest level's
other tissue). A slide is four paths of three views, drawn, encoded as JPEG and put away.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dataset_script.phantom.build import draw_slide
from dataset_script.phantom.plan import plan_slides
from dataset_script.phantom.slide import VIEW_PIXELS, PhantomSlide, write_slide
from dataset_script.slides.workers import worker_pool
from scale_vqa_eval.schema import MAGNIFICATION, MPP
from scale_vqa_eval.wsi import OpenSlideSource, SlideSource

AREA = 2700.0
"""Half the side of the part of the slide that is written as a file: one fragment and the glass around it, um."""


def region_rates(regions: int, folder: Path) -> list[dict[str, object]]:
    """Returns drawn and read regions per second at each scale."""
    slide = PhantomSlide(plan_slides(1)[0])
    x, y = slide.fragment_centre(0)
    corner = x - AREA, y - AREA
    print("writing the slide file that is read ...", flush=True)
    path = write_slide(slide, folder / "part.tif", (*corner, x + AREA, y + AREA))
    rates = []
    with OpenSlideSource(path) as file:
        for view, mpp in MPP.items():
            reach = AREA - VIEW_PIXELS * mpp / 2 - 1
            places = np.random.default_rng(1).uniform(-reach, reach, (regions, 2))
            drawn = _rate(slide, (x, y), places, mpp)
            read = _rate(file, (AREA, AREA), places, mpp)
            rates.append({"view": MAGNIFICATION[view], "drawn": drawn, "read": read, "ratio": drawn / read})
    return rates


def _rate(source: SlideSource, middle: tuple[float, float], places: np.ndarray, mpp: float) -> float:
    source.read_region(*middle, mpp, VIEW_PIXELS)
    return len(places) / _seconds(
        lambda: [source.read_region(middle[0] + dx, middle[1] + dy, mpp, VIEW_PIXELS) for dx, dy in places]
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def slide_rate(slides: int, workers: int) -> float:
    """Returns slides per second, the start of the workers included."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = [(plan, Path(folder), None, VIEW_PIXELS) for plan in plan_slides(slides)]

        def work() -> None:
            with worker_pool(workers) as run:
                list(run(draw_slide, tasks))

        return slides / _seconds(work)


def main() -> None:
    """Runs the benchmark and prints one line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=4)
    parser.add_argument("--regions", type=int, default=24)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        regions = region_rates(arguments.regions, Path(folder))
    for rate in regions:
        print("{view:>5}: drawn {drawn:6.1f}/s, read from a file {read:6.1f}/s, ratio {ratio:.2f}".format(**rate))
    slides = {}
    for workers in arguments.workers:
        slides[workers] = slide_rate(arguments.slides, workers)
        print(f"{workers} worker(s): {slides[workers]:.2f} slides/s", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"regions": regions, "slides_per_second": slides}, indent=2) + "\n")


if __name__ == "__main__":
    main()
