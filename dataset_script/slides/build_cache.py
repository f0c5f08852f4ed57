"""The work folder of a build of slides: finished work per slide, so that a build resumes, and grows by the new slides.

Each slide has a sub-folder whose name stands for the slide file, the settings and the software that its bytes depend
on: a file with its final name is complete and current, and nothing needs to be checked twice. The folder may lie on
storage that several machines share.
"""

from __future__ import annotations

import platform
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

from dataset_script.slides.field_images import read_measures, write_regions
from dataset_script.slides.plan import FieldPlan, GroundingSettings, plan_slide
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import atomic_write, sha256_json
from scale_vqa_eval.wsi import OpenSlideSource

FORMAT: Final = 8
"""Raised when the bytes of plans or archives change for the same settings."""
BATCH: Final = 2
"""Groups in one archive."""


@dataclass(frozen=True)
class SlideWork:
    """The work on one slide.

    Attributes:
        slide: the slide file.
        folder: its sub-folder.
    """

    slide: Path
    folder: Path

    @property
    def plan_file(self) -> Path:
        """Path of the plan."""
        return self.folder / "plan.json"

    def plan(self) -> FieldPlan:
        """Returns the plan, which must exist."""
        return _read_plan(self.plan_file)

    def write_plan(self, plan: FieldPlan) -> None:
        """Writes the plan."""
        atomic_write(self.plan_file, plan.to_json())

    def archive(self, layout: str, group: int) -> Path:
        """Returns the archive with the regions of a group (by number in its layout)."""
        return self.folder / f"{layout}-{group // BATCH:06d}.zip"

    def batches(self) -> Iterator[tuple[str, int]]:
        """Yields (layout, first group) of every archive that the plan asks for."""
        for layout, groups in self.plan().groups.items():
            yield from ((layout, start) for start in range(0, len(groups), BATCH))

    def read(self, layout: str, group: int, name: str) -> bytes:
        """Returns one file of an archive."""
        return _read_image(self.archive(layout, group), name)

    def measures(self, layout: str, group: int) -> dict[str, list[float]]:
        """Returns name -> measures of the archive that holds a group."""
        return _read_measures(self.archive(layout, group))


def work_root(out: Path) -> Path:
    """Returns the hidden work folder that belongs to a release folder."""
    out = out.absolute()
    return out.with_name(f".{out.name}.slides")


def slide_work(root: Path, slide: Path, settings: GroundingSettings) -> SlideWork:
    """Returns the work on a slide, in a folder named after everything that it depends on.

    A slide file is identified by its name, size and time of change.
    """
    state = slide.stat()
    inputs = [FORMAT, slide.stem, state.st_size, state.st_mtime_ns, asdict(settings), _packages()]
    return SlideWork(slide, root / sha256_json(inputs)[:32])


@cache
def _packages() -> dict[str, str]:
    names = ("openslide-python", "openslide-bin", "pillow", "numpy", "scipy", "scikit-image", "simplejpeg")
    return {name: version(name) for name in names}


def make_plan(task: tuple[SlideWork, GroundingSettings]) -> tuple[Problem, ...]:
    """Plans one slide unless that is done; returns the problems of the slide."""
    work, settings = task
    if work.plan_file.exists():
        return ()
    try:
        _check_machine(work, settings)
        with OpenSlideSource(work.slide, settings.mpp) as source:
            plan = plan_slide(source, settings)
            work.write_plan(replace(plan, notes=(*source.notes, *plan.notes)))
    except InputError as error:
        return error.problems
    return ()


def make_regions(task: tuple[SlideWork, GroundingSettings, tuple[tuple[str, int], ...]]) -> tuple[Problem, ...]:
    """Reads the regions of some batches of groups of a slide, unless that is done; returns the problems of the slide.

    Args:
        task: the work, the settings, and the (layout, first group) of each batch.
    """
    work, settings, batches = task
    left = [batch for batch in batches if not work.archive(*batch).exists()]
    if not left:
        return ()
    try:
        _check_machine(work, settings)
        with OpenSlideSource(work.slide, settings.mpp) as source:
            for layout, start in left:
                kinds = settings.kinds_of(layout)
                write_regions(
                    work.archive(layout, start),
                    source,
                    work.plan().groups[layout][start : start + BATCH],
                    show_context="bridge" in kinds,
                    show_parents=bool({"zoom-in", "zoom-out", "bridge"} & set(kinds)),
                    mark="origin" in kinds,
                )
    except InputError as error:
        return error.problems
    return ()


def _check_machine(work: SlideWork, settings: GroundingSettings) -> None:
    """Raises InputError unless this machine has the slide, unchanged, and the software of the build."""
    location = f"{work.slide} on {platform.node()}"
    if not work.slide.exists():
        hint = "put the slides on storage that every machine mounts under the same path"
        raise InputError(Problem(location, "the slide", "no such file", hint))
    if slide_work(work.folder.parent, work.slide, settings) != work:
        expected = "the slide and the package versions that the build began with"
        hint = "install the same versions on every machine, leave slides unchanged, and run the command again"
        raise InputError(Problem(location, expected, "others", hint))


@lru_cache(maxsize=4)
def _read_plan(path: Path) -> FieldPlan:
    return FieldPlan.from_json(path.read_bytes())


@lru_cache(maxsize=64)
def _read_measures(path: Path) -> dict[str, list[float]]:
    return read_measures(path)


@lru_cache(maxsize=128)
def _read_image(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)
