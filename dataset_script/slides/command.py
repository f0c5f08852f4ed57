"""``scale-vqa build slides``: slides into grounding questions."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from dataset_script.slides.plan import MIN_PX, MIN_RATIO, VIEWS_OF, GroundingSettings, side_of
from dataset_script.slides.workers import available_cores
from scale_vqa_eval.controls.exchange_group import GROUP_SIZE
from scale_vqa_eval.files import exclusive_output
from scale_vqa_eval.schema import GROUNDING_KINDS, MAGNIFICATION, VIEWS

SHORT: Final = {view.removesuffix("_mag"): view for view in VIEWS}
MAX_PX: Final = 4096
STAGES: Final = ("plan", "render", "assemble")


class NameList(click.ParamType):
    """A comma-separated list of given names, returned in their defined order."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.name = ",".join(names)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if not isinstance(value, str):
            return tuple(value)
        given = [part.strip() for part in value.split(",")]
        unknown = [part for part in given if part not in self.names]
        if unknown:
            self.fail(f"expected some of {','.join(self.names)}, found {', '.join(map(repr, unknown))}", param, ctx)
        return tuple(name for name in self.names if name in given)


class ViewSizeList(click.ParamType):
    """Pixels of all views (``256``) or of some (``low=336,high=448``)."""

    name = "px | view=px,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[str, int], ...]:
        if not isinstance(value, str):
            return tuple(value)
        parts = [part.strip() for part in value.split(",")]
        pairs = [(view, parts[0]) for view in SHORT] if len(parts) == 1 and "=" not in value else []
        pairs = pairs or [(part.partition("=")[0], part.partition("=")[2]) for part in parts]
        sizes: dict[str, int] = {}
        for view, pixels in pairs:
            if view not in SHORT or not pixels.isdecimal() or not MIN_PX <= int(pixels) <= MAX_PX:
                expected = f"expected {MIN_PX} to {MAX_PX} pixels, as 512 or as low=512,mid=512,high=512"
                self.fail(f"{expected}, found {value!r}", param, ctx)
            sizes[SHORT[view]] = int(pixels)
        return tuple(sorted(sizes.items()))


@click.command()
@click.argument(
    "places", nargs=-1, required=True, metavar="SLIDE_OR_DIR...", type=click.Path(exists=True, path_type=Path)
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The release folder, such as scale-vqa.")
@click.option(
    "--paths-per-slide",
    type=click.IntRange(1),
    default=40,
    show_default=True,
    help="Questions of each kind per slide; rounded up to a multiple of four.",
)
@click.option("--seed", type=int, default=42, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes of this machine.")
@click.option(
    "--ray",
    metavar="ADDRESS|local",
    help="Run on a Ray cluster instead: slides and --work on storage that all machines share. local: on this machine.",
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for finished work, which is kept: later builds of more slides read only the new ones.",
)
@click.option(
    "--splits",
    "split_table",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV with columns patient,split, as in grounding/splits.csv. Default: that of the build in --out, if any.",
)
@click.option(
    "--stop-after", type=click.Choice(STAGES[:-1]), help="Stop after this stage; the same command goes on from there."
)
@click.option("--kinds", type=NameList(GROUNDING_KINDS), default=",".join(GROUNDING_KINDS), show_default=True)
@click.option("--views", type=NameList(tuple(SHORT)), default=",".join(SHORT), show_default=True)
@click.option(
    "--size",
    "sizes",
    type=ViewSizeList(),
    default=(),
    help="Pixels per side, kept exactly. Default: 512, or less, with a note, on a slide too small for it.",
)
@click.option(
    "--mpp",
    type=click.FloatRange(0, min_open=True),
    help="Um per pixel of level 0, in place of what the slides state.",
)
@click.option(
    "--distractors", type=click.Choice(["same-slide", "cross-slide"]), default="same-slide", show_default=True
)
@click.option(
    "--min-tissue",
    "least_tissue",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Minimum share of tissue in 40x and 200x fields; a quarter of it in 10x fields.",
)
@click.option(
    "--patients",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV with columns slide,patient. Default: from TCGA names, else each slide is a patient.",
)
def slides(
    places: Sequence[Path],
    out: Path,
    paths_per_slide: int,
    workers: int,
    ray: str | None,
    work: Path | None,
    split_table: Path | None,
    stop_after: str | None,
    kinds: tuple[str, ...],
    views: tuple[str, ...],
    patients: Path | None,
    **chosen: Any,
) -> None:
    """Build cross-scale grounding questions from slides: any file that OpenSlide opens, or folders of them.

    Four kinds, their truth known from geometry: zoom-in, zoom-out, origin, bridge. If interrupted, run it again: it
    resumes. The same slides, seed and split table give the same bytes, whatever --workers and --ray.
    """
    views = tuple(SHORT[view] for view in views)
    _check_sizes(dict(chosen["sizes"]), views)
    paths = -(-paths_per_slide // GROUP_SIZE) * GROUP_SIZE
    if paths != paths_per_slide:
        click.echo(
            f"--paths-per-slide {paths_per_slide} is rounded up to {paths}: groups have four questions", err=True
        )
    settings = GroundingSettings(paths, kinds=_possible(kinds, views), views=views, **chosen)
    from dataset_script.slides.build import build_slides
    from dataset_script.slides.build_cache import work_root
    from dataset_script.slides.build_report import summary_lines
    from dataset_script.slides.slide_files import find_slides, read_patients, read_splits
    from scale_vqa_eval.release_folder.write import check_out, exclusive_release

    root = work.absolute() if work is not None else work_root(out)
    real_root, real_out = (Path(os.path.realpath(folder)) for folder in (root, out))
    if real_root.is_relative_to(real_out) or real_out.is_relative_to(real_root):
        raise click.UsageError("--work and --out: expected two folders, neither inside the other")
    check_out(out)  # fail before hours of reading, not after
    found = find_slides(places)
    named = read_patients(found, patients)
    splits = read_splits(split_table) if split_table is not None else None
    cores = available_cores()
    if workers > cores:
        click.echo(f"--workers {workers}: this machine has {cores} cores", err=True)
    last_stage = stop_after or STAGES[-1]
    with exclusive_release(out), exclusive_output(root, "--work"):
        notify = partial(click.echo, err=True)
        report = build_slides(found, named, settings, out, workers, notify, work, ray, splits, last_stage)
    if report is None:
        click.echo(f"stopped after {last_stage}; run the same command without --stop-after to go on", err=True)
        return
    for line in summary_lines(report):
        click.echo(line, err=True)
    parts = ", ".join(f"{split} {count}" for split, count in report.splits.items())
    click.echo(f"{out}: grounding with {parts} questions")


def _possible(kinds: tuple[str, ...], views: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the kinds that the views allow; prints the others.

    Raises:
        click.UsageError: where none is left.
    """
    possible = tuple(kind for kind in kinds if set(VIEWS_OF[kind]) <= set(views))
    if not possible:
        needs = "; ".join(f"{kind} needs {', '.join(VIEWS_OF[kind])}" for kind in kinds)
        raise click.UsageError(f"--views leaves no kind of question: {needs}")
    for kind in kinds:
        if kind not in possible:
            click.echo(f"{kind} is left out: it shows {', '.join(VIEWS_OF[kind])}", err=True)
    return possible


def _check_sizes(sizes: dict[str, int], views: tuple[str, ...]) -> None:
    """Checks that sizes asked for by number nest.

    Raises:
        click.UsageError: where a view would be less than twice as wide as the next one in it.
    """
    for outer, inner in itertools.pairwise(views):
        if (outer in sizes or inner in sizes) and side_of(outer, sizes) < MIN_RATIO * side_of(inner, sizes):
            raise click.UsageError(
                f"--size: the {MAGNIFICATION[outer]} view ({side_of(outer, sizes):g} um) must be at least "
                f"{MIN_RATIO:g} times as wide as the {MAGNIFICATION[inner]} view ({side_of(inner, sizes):g} um)"
            )
