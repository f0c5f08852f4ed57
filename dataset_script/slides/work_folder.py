"""The hidden folder beside a release folder in which a build of slides keeps what is done, so that it can resume.

A slide has a sub-folder whose name stands for the slide file, the settings and the software that its bytes depend on:
what lies there under its final name is complete and current, and nothing needs to be checked twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

from dataset_script.slides.plan import SlidePlan, plan_from_json
from dataset_script.slides.region_files import read_measures
from dataset_script.slides.settings import Settings

FORMAT: Final = 1
"""Raised when the bytes that this room writes change for the same settings."""
BATCH: Final = 2
"""Fours in one archive."""


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
        """Where the plan lies."""
        return self.folder / "plan.json"

    def plan(self) -> SlidePlan:
        """Returns the plan, which must be there."""
        return _read_plan(self.plan_file)

    def write_plan(self, plan: SlidePlan) -> None:
        """Writes the plan in one move."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.plan_file.with_name(f".plan.{os.getpid()}")
        partial.write_text(json.dumps(plan.as_json(), separators=(",", ":")), encoding="utf-8")
        partial.replace(self.plan_file)

    def archive(self, layout: str, four: int) -> Path:
        """Returns where the regions of a four (by number in its layout) lie."""
        return self.folder / f"{layout}-{four // BATCH:06d}.zip"

    def batches(self) -> Iterator[tuple[str, int]]:
        """Yields (layout, first four) of every archive that the plan asks for."""
        for layout, fours in self.plan().fours.items():
            yield from ((layout, start) for start in range(0, len(fours), BATCH))

    def read(self, layout: str, four: int, name: str) -> bytes:
        """Returns one file of an archive."""
        with zipfile.ZipFile(self.archive(layout, four)) as archive:
            return archive.read(name)

    def measures(self, layout: str, four: int) -> dict[str, list[float]]:
        """Returns name -> measures of the archive that holds a four."""
        return _read_measures(self.archive(layout, four))


def work_root(out: Path) -> Path:
    """Returns the hidden folder that belongs to a release folder."""
    out = out.absolute()
    return out.with_name(f".{out.name}.slides")


def slide_work(root: Path, slide: Path, settings: Settings) -> SlideWork:
    """Returns where the work on a slide lies, under a name for everything that it depends on.

    A slide file is told by its name, its size and when it was changed.
    """
    state = slide.stat()
    packages = {
        name: version(name)
        for name in ("openslide-python", "openslide-bin", "pillow", "numpy", "scipy", "scikit-image")
    }
    inputs = [FORMAT, slide.stem, state.st_size, state.st_mtime_ns, asdict(settings), packages]
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    return SlideWork(slide, root / key[:32])


@lru_cache(maxsize=4)
def _read_plan(path: Path) -> SlidePlan:
    return plan_from_json(json.loads(path.read_text(encoding="utf-8")))


@lru_cache(maxsize=64)
def _read_measures(path: Path) -> dict[str, list[float]]:
    return read_measures(path)
