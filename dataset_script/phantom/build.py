"""Builds the ``phantom`` config: draws the views of every slide, then writes the rows slide by slide."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from dataset_script.phantom.draw import archive_of, draw_slide
from dataset_script.phantom.plan import PathPlan, SlidePlan, deal_pools, plan_slides
from dataset_script.phantom.questions import path_questions
from dataset_script.phantom.views import VIEW_PIXELS
from dataset_script.slides.workers import worker_pool
from dataset_script.splits import SPLITS
from scale_vqa_eval.release_folder.write import write_release
from scale_vqa_eval.schema import VIEWS

CONFIG: Final = "phantom"


@dataclass(frozen=True)
class PhantomSettings:
    """What to build.

    Attributes:
        slides: number of slides.
        seed: of everything.
        missing_high: share of groups of paths without a 200x view.
        slide_files: folder to write slide files into as well, or None.
        side: pixels along a side of a view; the field stays the same, fewer pixels are coarser.
    """

    slides: int
    seed: int = 42
    missing_high: float = 0.0
    slide_files: Path | None = None
    side: int = VIEW_PIXELS


def build_phantom(settings: PhantomSettings, out: Path, workers: int) -> dict[str, int]:
    """Draws phantom slides and writes their questions into a release folder.

    Finished slides are kept in a hidden folder beside ``out`` until the release folder stands: killed and called
    again, the build goes on where it was. The same settings give the same bytes for any number of workers.

    Args:
        settings: what to build.
        out: the release folder.
        workers: processes that draw.

    Returns:
        split -> number of rows.
    """
    plans = plan_slides(settings.slides, settings.seed, settings.missing_high)
    root = _work_folder(settings, out)
    with worker_pool(min(workers, len(plans))) as run:
        tasks = ((plan, root, settings.slide_files, settings.side) for plan in plans)
        for _ in tqdm(run(draw_slide, tasks), desc="phantom slides drawn", total=len(plans), unit="slide"):
            pass
    counts: Counter[str] = Counter()
    by_split = {split: [plan for plan in plans if plan.split == split] for split in SPLITS}
    tables = {split: _rows(of_split, root, counts) for split, of_split in by_split.items() if of_split}
    write_release(out, {CONFIG: tables}, {CONFIG: card_note(settings, plans)})
    shutil.rmtree(root.parent)
    return {split: counts[split] for split in tables}


def _rows(plans: Sequence[SlidePlan], root: Path, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    for plan in plans:
        with zipfile.ZipFile(archive_of(root, plan)) as archive:
            for path in plan.paths:
                images = _images(plan, path, archive)
                for question in path_questions(plan, path):
                    counts[plan.split] += 1
                    yield {
                        "id": question.id,
                        "question": question.question,
                        "options": list(question.options),
                        "answer": question.answer,
                        "rationale": question.rationale,
                        **images,
                        "dimension": question.dimension,
                        "wsi_name": plan.name,
                        "patient_id": plan.name,
                        "path_id": path.path_id,
                        "source": CONFIG,
                        "group": question.group,
                    }


def _images(plan: SlidePlan, path: PathPlan, archive: zipfile.ZipFile) -> dict[str, dict[str, Any] | None]:
    present = set(archive.namelist())
    images: dict[str, dict[str, Any] | None] = {}
    for view in VIEWS:
        name = f"{path.path_id}/{view}.jpg"
        images[view] = {"bytes": archive.read(name), "path": f"{plan.name}/{name}"} if name in present else None
    return images


def _work_folder(settings: PhantomSettings, out: Path) -> Path:
    """Returns the hidden folder of this build, cleared of what other settings or other code left in it."""
    parent = out.absolute().with_name(f".{out.name}.{CONFIG}")
    packages = {name: version(name) for name in ("skia-python", "numpy", "scipy", "pillow")}
    sources = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    inputs = [settings.slides, settings.seed, settings.missing_high, settings.side, packages, sources]
    root = parent / hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]
    root.mkdir(parents=True, exist_ok=True)
    for other in parent.iterdir():
        if other != root:
            shutil.rmtree(other)
    for partial in root.glob(".*"):
        partial.unlink()
    return root


def card_note(settings: PhantomSettings, plans: Sequence[SlidePlan]) -> str:
    """Returns the paragraph of the dataset card."""
    pools = min(len(pool) for pool in deal_pools(settings.slides))
    slides = "four different slides" if pools >= 4 else "slides of which some are the same (fewer than 12 were built)"
    missing = sum(not path.has_high for plan in plans for path in plan.paths)
    null = f" {missing} paths have no 200x view and are asked nothing about one." if missing else ""
    return (
        f"**A phantom, not tissue.** These {settings.slides} slides were drawn by a program from a random scene (seed "
        f"{settings.seed}); nothing in them grew, and the words of histology name drawn shapes. They are for tests, "
        "teaching and learning curves, and never for claims about pathology.\n\n"
        "The truth of every question is known, because the scene was built to it; no expert is needed and none was "
        "asked. Questions come in exchange groups of four (`group`): one question text, four options in one order, "
        f"each right once, on {slides}. Options cross two features that two scales show. So the text alone tells "
        "nothing: any function of it is right on exactly 25% of each split and each dimension. Groups do not straddle "
        f"splits. A probe that is trained with part of a group and tested on the rest is not a function of the text: "
        f"keep groups whole.{null}"
    )
