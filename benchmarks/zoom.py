"""The zoom environment on real slides: looks beside bare OpenSlide reads of the same boxes, resets, memory.

    python benchmarks/zoom.py [SLIDE_OR_DIR...] [--looks 200] [--episodes 6400]

A look reads a field at its scale, resamples it, converts colours, and encodes a JPEG; the bare read is what OpenSlide
needs for the level pixels under the same box. Looks are at places that are not in the cache. Times are processor
times, so that a busy machine does not count; the cache is bounded at 64 MiB here.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

import click
import openslide

from dataset_script.phantom.slide import phantom_slides, write_slide
from dataset_script.slides.slide_files import find_slides
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import MAGNIFICATION
from scale_vqa_eval.zoom.environment import Budget, ZoomEnvironment
from scale_vqa_eval.zoom.questions import VisibleEvidence, ZoomQuestion, slide_files


@click.command()
@click.argument("places", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--looks", default=200, show_default=True, help="Looks at each slide.")
@click.option("--episodes", default=6400, show_default=True, help="Episodes of two looks each, for resets and memory.")
def main(places: tuple[Path, ...], looks: int, episodes: int) -> None:
    """Print looks and resets a second, and the growth of memory."""
    if not places:  # a piece of a synthetic slide
        drawn = Path(tempfile.mkdtemp(), "synthetic.tif")
        places = (write_slide(phantom_slides(1)[0], drawn, (2000.0, 2000.0, 4000.0, 4000.0)),)
    files = find_slides(places)
    questions = {
        path.name: ZoomQuestion(
            Question(path.name, "?", ("a", "b"), 0),
            str(path.resolve())[1:],
            (VisibleEvidence("low_mag", ((0, 0, 1, 1),)),),
        )
        for path in files
    }
    rng = random.Random(0)
    ours = bare = 0.0
    count = 0
    for path in files:
        environment = ZoomEnvironment(slide_files(Path("/")), questions, Budget(looks=10**6))
        environment.reset(path.name)
        width, height = environment.steps[0]["box"][2:]
        boxes = []
        for _ in range(looks):
            place = rng.uniform(0, width), rng.uniform(0, height), rng.choice(list(MAGNIFICATION.values()))
            start = time.process_time()
            environment.look(*place)
            ours += time.process_time() - start
            step = environment.steps[-1]
            if "sha256" in step:
                boxes.append((step["box"], step["mpp"], step["px"]))
        count += len(boxes)
        mpp = environment._slides.facts(questions[path.name].slide)[0]
        with openslide.OpenSlide(str(path)) as slide:
            slide.read_region((0, 0), 0, (16, 16))
            for box, scale, px in boxes:
                start = time.process_time()
                level = slide.get_best_level_for_downsample(scale / mpp * 1.01)
                side = round(px * scale / mpp / slide.level_downsamples[level])
                slide.read_region((int(box[0] / mpp), int(box[1] / mpp)), level, (side, side)).convert("RGB")
                bare += time.process_time() - start
    click.echo(f"{count} looks at {len(files)} slides: {count / ours:.0f}/s; bare reads {count / bare:.0f}/s")
    click.echo(f"a look takes {ours / bare:.2f} times a bare read")

    store = slide_files(Path("/"))
    store.cache_bytes = 2**26
    environment = ZoomEnvironment(store, questions, Budget(looks=2, px=256))
    names, start = sorted(questions), time.process_time()
    for name in names:
        environment.reset(name)
    first = time.process_time() - start
    memory: list[float] = []
    stops = [episodes // 4**step for step in (3, 2, 1, 0)]
    resets = 0.0
    for number in range(episodes):
        start = time.process_time()
        environment.reset(names[number % len(names)])
        resets += time.process_time() - start
        width, height = environment.steps[0]["box"][2:]
        for _ in range(2):
            environment.look(rng.uniform(0, width), rng.uniform(0, height), "200x")
        if number + 1 in stops:
            memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
    click.echo(f"first resets: {first / len(names):.2f} s each; then {60 * episodes / resets:,.0f} resets a minute")
    sizes = ", ".join(f"{size:.0f} after {stop:,}" for stop, size in zip(stops, memory, strict=False))
    click.echo(f"resident memory in MiB, by episodes: {sizes}")


if __name__ == "__main__":
    main()
