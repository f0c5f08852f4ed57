"""``scale-vqa build phantom``: procedural slides with known truth."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import click


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@click.command()
@click.option("--slides", type=click.IntRange(1), required=True, help="Number of slides; 20 questions come of each.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The release folder, such as scale-vqa.")
@click.option("--seed", type=int, default=42, show_default=True)
@click.option(
    "--workers", type=click.IntRange(1), default=None, help="Processes that draw.  [default: the cores of the machine]"
)
@click.option(
    "--missing-high",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of paths without a 200x view (the released benchmark has 0.07); they get two questions of five.",
)
@click.option(
    "--size",
    "side",
    type=click.IntRange(56, 512),
    default=512,
    show_default=True,
    help="Pixels a side of every view. The fields stay the same, so fewer pixels are coarser.",
)
@click.option(
    "--write-slides",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also write each slide as a pyramidal TIFF into this folder (a minute or more and some 80 MB a slide).",
)
def phantom(
    slides: int,
    out: Path,
    seed: int,
    workers: int | None,
    missing_high: float,
    side: int,
    write_slides: Path | None,
) -> None:
    """Build questions on phantom slides: H&E-like pictures drawn by a program, truth known by construction.

    For tests, teaching and learning curves, never for claims about pathology. The same seed gives the same bytes,
    whatever --workers; interrupted, run it again: it goes on where it was.
    """
    if write_slides is not None and find_spec("imagecodecs") is None:
        raise click.UsageError("--write-slides needs the package 'imagecodecs': pip install 'scale-vqa[slides]'")
    from dataset_script.phantom.build import PhantomSettings, build_phantom
    from scale_vqa_eval.release_folder.write import check_out

    check_out(out)  # what cannot be written is reported before anything is drawn
    if slides < 12:
        click.echo(
            f"--slides {slides}: groups of four have paths that share a slide; from 12 slides on they do not", err=True
        )
    if slides < 3:
        click.echo(f"--slides {slides}: too few for train, val and test", err=True)
    counts = build_phantom(PhantomSettings(slides, seed, missing_high, write_slides, side), out, workers or _cores())
    parts = ", ".join(f"{split} {count}" for split, count in counts.items())
    click.echo(f"{out}: phantom with {parts} questions")
