"""Builds of many slides: cost per slide, memory of the driver, a killed build on Ray, an extended one.

    python benchmarks/many_slides.py [--slides 200] [--few 25 100] [--added 10] [--paths 8] [--ray local]

Draws slide files (JPEG tiles, three levels, 2,000 x 1,800 px at 0.5 um/px, which hold 40x and 200x views), then

- builds ``--few`` and ``--slides`` of them in one process, stage by stage: processor time per slide and peak memory;
- builds all of them with ``--workers 2`` and compares bytes with those of the build in one process;
- builds all of them on Ray, kills the driver in the middle of rendering, runs the command again, and compares bytes
  with those of the build in one process;
- adds slides and builds again: what is rendered, and whether patients keep their splits.
"""

from __future__ import annotations

import argparse
import csv
import json
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from drawn_slides import halves, tissue_pixels, write_slide

from scale_vqa_eval.release_folder.write import folder_digest

STAGES = ("plan", "render", None)
MEASURED = """
import json, resource, sys, time
from scale_vqa_eval import cli
start = time.monotonic()
try:
    cli.main()
except SystemExit as stop:
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = {"cpu": used.ru_utime + used.ru_stime, "wall": time.monotonic() - start, "mb": used.ru_maxrss / 1024}
    print(json.dumps(spent), file=sys.stderr)
    raise
"""


def draw(task: tuple[Path, int]) -> None:
    path, seed = task
    write_slide(path, halves(tissue_pixels(2000, 1800, seed), 3), compression="jpeg")


def command(folder: Path, out: Path, paths: int, *options: object) -> list[str]:
    given = ["build", "slides", folder, "--out", out, "--paths-per-slide", paths, "--views", "mid,high", *options]
    return [sys.executable, "-c", MEASURED, *map(str, given)]


def measured(arguments: list[str]) -> dict[str, float]:
    result = subprocess.run(arguments, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(result.stderr[-2000:])
    return json.loads(result.stderr.strip().splitlines()[-1])


def archives(work: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in work.glob("*/*.zip")}


def splits_of(out: Path) -> dict[str, str]:
    with (out / "grounding" / "splits.csv").open(newline="") as file:
        return {row["patient"]: row["split"] for row in csv.DictReader(file)}


def linked(folder: Path, slides: list[Path]) -> Path:
    folder.mkdir()
    for slide in slides:
        (folder / slide.name).hardlink_to(slide)
    return folder


def stage_costs(place: Path, slides: list[Path], paths: int) -> Path:
    folder, out = linked(place / f"of-{len(slides)}", slides), place / f"release-{len(slides)}"
    idle = measured(command(folder, out, paths, "--help"))["cpu"]
    for stage in STAGES:
        spent = measured(command(folder, out, paths, *(["--stop-after", stage] if stage else [])))
        each = (spent["cpu"] - idle) / len(slides)
        print(
            f"{len(slides)} slides, {stage or 'assemble'}: {each:.3f} s a slide, peak {spent['mb']:.0f} MB", flush=True
        )
    return out


def killed_on_ray(place: Path, folder: Path, out: Path, paths: int, ray: str) -> Path:
    work, slides = place / "work", len(list(folder.iterdir()))
    process = subprocess.Popen(
        command(folder, out, paths, "--ray", ray, "--work", work), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and len(archives(work)) < slides / 2:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the build was over before it could be killed"
    time.sleep(5)  # the workers end by themselves
    before = archives(work)
    spent = measured(command(folder, out, paths, "--ray", ray, "--work", work))
    after = archives(work)
    kept = sum(after[path] == time_ns for path, time_ns in before.items())
    print(f"Ray: killed with {len(before)} of {len(after)} archives, {kept} of them used by the second run")
    print(f"Ray: the second run took {spent['wall']:.0f} s, its driver {spent['mb']:.0f} MB at most", flush=True)
    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=200)
    parser.add_argument("--few", type=int, nargs="+", default=[25, 100])
    parser.add_argument("--added", type=int, default=10)
    parser.add_argument("--paths", type=int, default=8)
    parser.add_argument("--ray", default="local")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "drawn").mkdir()
        slides = [place / "drawn" / f"slide_{seed:04d}.tif" for seed in range(options.slides + options.added)]
        with ProcessPoolExecutor() as pool:
            list(pool.map(draw, [(path, seed) for seed, path in enumerate(slides)]))
        print(f"{len(slides)} slides drawn, {sum(path.stat().st_size for path in slides) / 1e6:.0f} MB", flush=True)
        for few in options.few:
            stage_costs(place, slides[:few], options.paths)
        single = stage_costs(place, slides[: options.slides], options.paths)
        folder, out = place / f"of-{options.slides}", place / "release"
        two = place / "release-two"
        measured(command(folder, two, options.paths, "--workers", 2))
        print(f"two workers: same bytes as one process: {folder_digest(two) == folder_digest(single)}", flush=True)
        work = killed_on_ray(place, folder, out, options.paths, options.ray)
        print(f"Ray: same bytes as one process: {folder_digest(out) == folder_digest(single)}", flush=True)
        before, splits = archives(work), splits_of(out)
        for slide in slides[options.slides :]:
            (folder / slide.name).hardlink_to(slide)
        spent = measured(command(folder, out, options.paths, "--ray", options.ray, "--work", work))
        after = archives(work)
        rendered = {path.parent for path in after if after[path] != before.get(path)}
        stable = splits_of(out).items() >= splits.items()
        print(
            f"extended: {len(rendered)} slides rendered, {spent['wall']:.0f} s, patients keep their splits: {stable}"
        )


if __name__ == "__main__":
    main()
