"""Synthetic slides ("phantoms") as input of the curation: captions from the scene graph, and drawn views.

``python tests/helpers/phantom_captions.py --slides 24 --out captions`` writes ``captions/captions.jsonl`` and
``captions/<slide>/<path>/<view>.jpg``. Facts are drawn independently and uniformly, for each path. Unlike those of
``scale-vqa build phantom``, they are not planned in groups, so nothing is balanced before the curation starts.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from dataset_script.curate.work import write_lines
from dataset_script.phantom.geometry import seeded
from dataset_script.phantom.plan import FEATURES, PATHS, SIGNS, Facts, PhantomPath, PhantomPlan, captions
from scale_vqa_eval.errors import Problem
from scale_vqa_eval.schema import VIEWS


def caption_plans(slides: int, seed: int, missing_high: float = 0.0, alike: float = 0.0) -> list[PhantomPlan]:
    """Returns slides whose paths have independent facts; the same arguments give the same plans.

    With ``alike``, a path has each fact of the slide's first path with that probability, as paths of real slides do.
    """
    plans = []
    for number in range(slides):
        rng = random.Random(seeded(seed, "captions", number))
        paths = []
        for place in range(1, PATHS + 1):
            facts = Facts(**{name: rng.choice(sorted(feature.phrases)) for name, feature in FEATURES.items()})
            paths.append(PhantomPath(f"path-{place}", facts, (), rng.random() >= missing_high))
        same = random.Random(seeded(seed, "alike", number))
        first = vars(paths[0].facts)
        for place, path in enumerate(paths if alike else ()):
            facts = {name: first[name] if same.random() < alike else value for name, value in vars(path.facts).items()}
            paths[place] = replace(path, facts=Facts(**facts))
        plans.append(PhantomPlan(f"phantom-{number + 1:04d}", seeded(seed, "slide", number), "", tuple(paths)))
    return plans


def caption_row(plan: PhantomPlan) -> dict[str, Any]:
    """Returns the line of a slide in the curation's input."""
    paths = []
    for path in plan.paths:
        texts = captions(path)
        views = {
            view: {"image_path": f"{plan.name}/{path.path_id}/{view}.jpg", "caption": texts[view]}
            if view in texts
            else None
            for view in VIEWS
        }
        growth, nuclei = path.facts.growth, path.facts.nuclei
        grade = FEATURES["nuclei"].phrases[nuclei]
        paths.append(
            {
                "path_id": path.path_id,
                "path_description": f"At 10x {SIGNS['growth'][growth]}, and at 200x nuclei fit the grade.",
                "path_summary": f"Phantom of {growth} type, grade {grade}.",
                **views,
            }
        )
    return {"wsi_name": plan.name, "wsi_path": None, "paths": paths}


def write_captions(out: Path, plans: list[PhantomPlan], workers: int) -> Path:
    """Writes captions and views and returns the captions file; slides that are there are not drawn again."""
    from dataset_script.slides.workers import worker_pool

    out.mkdir(parents=True, exist_ok=True)
    missing = [plan for plan in plans if not (out / plan.name).is_dir()]
    with worker_pool(min(workers, max(1, len(missing)))) as run:
        for _ in run(draw_views, ((plan, out) for plan in missing)):
            pass
    file = out / "captions.jsonl"
    write_lines(file, (caption_row(plan) for plan in plans))
    facts = {f"{plan.name}::{path.path_id}": vars(path.facts) for plan in plans for path in plan.paths}
    (out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return file


def draw_views(task: tuple[PhantomPlan, Path]) -> tuple[Problem, ...]:
    """Draws the views of one slide into a folder of its name, which appears complete."""
    from dataset_script.phantom.build import QUALITY
    from dataset_script.phantom.slide import VIEW_PIXELS, PhantomSlide

    plan, out = task
    slide, partial = PhantomSlide(plan), out / f".{plan.name}"
    shutil.rmtree(partial, ignore_errors=True)
    for number, path in enumerate(plan.paths):
        (partial / path.path_id).mkdir(parents=True)
        for name, view in slide.views(number).items():
            slide.view_image(view, VIEW_PIXELS).save(partial / path.path_id / f"{name}.jpg", "JPEG", quality=QUALITY)
    partial.rename(out / plan.name)
    return ()


@click.command()
@click.option("--slides", type=click.IntRange(1), default=24, show_default=True, help="Four paths of each.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write.")
@click.option("--seed", type=int, default=42, show_default=True)
@click.option("--missing-high", type=click.FloatRange(0, 1), default=0.07, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=None, help="Processes that draw.  [default: the cores]")
def main(slides: int, out: Path, seed: int, missing_high: float, workers: int | None) -> None:
    """Write phantom captions and views as an input of `scale-vqa curate`. No tissue: drawn, with known truth."""
    file = write_captions(out, caption_plans(slides, seed, missing_high), workers or os.cpu_count() or 1)
    click.echo(file)


if __name__ == "__main__":
    main()
