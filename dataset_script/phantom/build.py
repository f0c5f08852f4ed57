"""``scale-vqa build phantom``: draws the views of synthetic slides and writes their questions."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import click

from dataset_script.anticipation import DescribedPath, anticipation_config
from dataset_script.phantom.plan import PhantomPlan, captions, deal_pools, path_questions, plan_slides
from dataset_script.phantom.slide import VIEW_PIXELS, PhantomSlide, write_slide
from dataset_script.slides.workers import available_cores, run_all, worker_pool
from dataset_script.splits import SPLITS
from scale_vqa_eval.errors import Problem
from scale_vqa_eval.files import atomic_path, exclusive_output, sha256_json
from scale_vqa_eval.release_folder.write import check_out, write_release
from scale_vqa_eval.schema import ANTICIPATION, VIEWS

CONFIG: Final = "phantom"
QUALITY: Final = 88
"""JPEG quality of the views."""


def draw_slide(task: tuple[PhantomPlan, Path, Path | None, int]) -> tuple[Problem, ...]:
    """Draws the views of a slide into an archive, and optionally its slide file; existing files are kept."""
    plan, root, slide_files, side = task
    slide = PhantomSlide(plan)
    archive = root / f"{plan.name}.zip"
    if not archive.exists():
        with atomic_path(archive) as partial, zipfile.ZipFile(partial, "w") as file:
            for number, path in enumerate(plan.paths):
                for name, view in slide.views(number).items():
                    buffer = io.BytesIO()
                    slide.view_image(view, side).save(buffer, "JPEG", quality=QUALITY)
                    file.writestr(f"{path.path_id}/{name}.jpg", buffer.getvalue())
    if slide_files is not None:
        write_slide(slide, slide_files / f"{plan.name}.tif")
    return ()


@dataclass(frozen=True)
class PhantomSettings:
    """The settings of a build.

    Attributes:
        missing_high: share of groups of paths without a 200x view.
        slide_files: folder for slide files, or None to write none.
        side: side of a view in pixels; the field does not change, so fewer pixels are coarser.
        anticipation: also write Scale Anticipation questions.
    """

    slides: int
    seed: int = 42
    missing_high: float = 0.0
    slide_files: Path | None = None
    side: int = VIEW_PIXELS
    anticipation: bool = False


def build_phantom(settings: PhantomSettings, out: Path, workers: int) -> dict[str, int]:
    """Draws synthetic slides and writes their questions into a release folder.

    Finished slides are kept in a hidden folder beside ``out`` until the release folder is complete, so that an
    interrupted build resumes. The same settings give the same bytes for any number of drawing processes.

    Returns:
        split -> number of rows.
    """
    plans = plan_slides(settings.slides, settings.seed, settings.missing_high)
    parent = out.absolute().with_name(f".{out.name}.{CONFIG}")
    with exclusive_output(parent):
        root = _work_folder(settings, parent)
        with worker_pool(min(workers, len(plans))) as run:
            tasks = [(plan, root, settings.slide_files, settings.side) for plan in plans]
            run_all(run, draw_slide, tasks, "synthetic slides drawn")
        counts: Counter[str] = Counter()
        by_split = {split: [plan for plan in plans if plan.split == split] for split in SPLITS}
        tables = {split: _rows(of_split, root, counts) for split, of_split in by_split.items() if of_split}
        configs, notes = {CONFIG: tables}, {CONFIG: card_note(settings, plans)}
        if settings.anticipation:
            configs[ANTICIPATION], notes[ANTICIPATION] = described_questions(plans, root, settings.seed)
        write_release(out, configs, notes)
        shutil.rmtree(parent)
    return {split: counts[split] for split in tables}


def _rows(plans: Sequence[PhantomPlan], root: Path, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    for plan in plans:
        with zipfile.ZipFile(root / f"{plan.name}.zip") as archive:
            for path in plan.paths:
                names = {view: f"{path.path_id}/{view}.jpg" for view in VIEWS}
                images = {
                    view: {"bytes": archive.read(name), "path": f"{plan.name}/{name}"}
                    for view, name in names.items()
                    if name in archive.namelist()
                }
                for question in path_questions(plan, path):
                    counts[plan.split] += 1
                    yield question.as_row(CONFIG) | images


def described_questions(plans: Sequence[PhantomPlan], root: Path, seed: int) -> tuple[Any, str]:
    """Returns the config ``anticipation`` and its note; the captions are facts, so each excludes the other images."""
    paths = [
        DescribedPath(plan.name, plan.name, path.path_id, captions(path)["high_mag"])
        for plan in plans
        for path in plan.paths
        if path.has_high
    ]

    def read(path: DescribedPath, view: str) -> dict[str, Any]:
        name = f"{path.path_id}/{view}.jpg"
        with zipfile.ZipFile(root / f"{path.slide}.zip") as archive:
            return {"bytes": archive.read(name), "path": f"{path.slide}/{name}"}

    splits = {plan.name: plan.split for plan in plans}
    tables, note = anticipation_config(paths, splits, read, cross_slide=len(plans) >= 12, limit=0.999, seed=seed)
    return tables, f"**A phantom, not tissue**, as in `{CONFIG}`. {note}"


def _work_folder(settings: PhantomSettings, parent: Path) -> Path:
    """Returns the work folder of these settings and this code; those of other builds are removed."""
    packages = {name: version(name) for name in ("skia-python", "numpy", "scipy", "pillow")}
    sources = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.iterdir()) if path.suffix]
    inputs = [settings.slides, settings.seed, settings.missing_high, settings.side, packages, sources]
    root = parent / sha256_json(inputs)[:32]
    root.mkdir(parents=True, exist_ok=True)
    for other in parent.iterdir():
        if other != root:
            shutil.rmtree(other)
    return root


def card_note(settings: PhantomSettings, plans: Sequence[PhantomPlan]) -> str:
    """Returns the paragraph of the dataset card."""
    pools = min(len(pool) for pool in deal_pools(settings.slides))
    slides = "four different slides" if pools >= 4 else "slides of which some are the same (fewer than 12 were built)"
    missing = sum(not path.has_high for plan in plans for path in plan.paths)
    without_high = f" {missing} paths have no 200x view and no question about one." if missing else ""
    return (
        f"**A phantom, not tissue.** These {settings.slides} synthetic slides were drawn by a program from a random "
        f"scene (seed {settings.seed}); histological terms name drawn shapes. They are for tests, teaching and "
        "learning curves, and never for claims about pathology.\n\n"
        "The right answers are known, because the scenes were built from them; no expert was asked. Questions come "
        "in exchange groups of four (`group`): one question text, four options in one order, each right once, on "
        f"{slides}. Options cross two features that two scales show. So any function of the text of one question is "
        "right on exactly 25% of each split and each dimension. All questions of a group are in the same split. A "
        "probe that is trained on part of a group and tested on the rest is not such a function: do not split groups."
        f"{without_high}"
    )


@click.command()
@click.option("--slides", type=click.IntRange(1), required=True, help="Number of slides, with 20 questions each.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The release folder, such as scale-vqa.")
@click.option("--seed", type=int, default=42, show_default=True)
@click.option(
    "--workers", type=click.IntRange(1), default=None, help="Drawing processes.  [default: the cores of the machine]"
)
@click.option(
    "--missing-high",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of paths without a 200x view (0.07 in the released benchmark); they get two of the five questions.",
)
@click.option(
    "--size",
    "side",
    type=click.IntRange(56, 512),
    default=512,
    show_default=True,
    help="Side of the views in pixels. The fields do not change, so fewer pixels are coarser.",
)
@click.option("--anticipation", is_flag=True, help="Also write Scale Anticipation questions (a config of that name).")
@click.option(
    "--write-slides",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also write each slide as a pyramidal TIFF into this folder (at least a minute and about 80 MB per slide).",
)
def phantom(
    slides: int,
    out: Path,
    seed: int,
    workers: int | None,
    missing_high: float,
    side: int,
    anticipation: bool,
    write_slides: Path | None,
) -> None:
    """Build questions on synthetic slides ("phantoms"): H&E-like images drawn by a program, with known answers.

    For tests, teaching and learning curves, never for claims about pathology. The same seed gives the same bytes for
    any --workers. An interrupted build resumes when the same command is run again.
    """
    if write_slides is not None and find_spec("imagecodecs") is None:
        raise click.UsageError("--write-slides needs the package 'imagecodecs': pip install 'scale-vqa[slides]'")
    check_out(out)
    if slides < 12:
        click.echo(
            f"--slides {slides}: some groups have paths that share a slide; use 12 or more to avoid it", err=True
        )
    if slides < 3:
        click.echo(f"--slides {slides}: too few for train, val and test", err=True)
    settings = PhantomSettings(slides, seed, missing_high, write_slides, side, anticipation)
    counts = build_phantom(settings, out, workers or available_cores())
    parts = ", ".join(f"{split} {count}" for split, count in counts.items())
    click.echo(f"{out}: phantom with {parts} questions")
