"""Draws the views of one phantom slide into an archive: the work that is dealt out to processes."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Final

from dataset_script.phantom.plan import SlidePlan
from dataset_script.phantom.slide import PhantomSlide
from scale_vqa_eval.errors import Problem

QUALITY: Final = 88
"""JPEG quality of the views."""


def archive_of(root: Path, plan: SlidePlan) -> Path:
    """Returns where the views of a slide lie once they are drawn."""
    return root / f"{plan.name}.zip"


def draw_slide(task: tuple[SlidePlan, Path, Path | None, int]) -> tuple[Problem, ...]:
    """Draws the views of one slide into an archive, and its slide file where one is wanted, unless that is done."""
    plan, root, slide_files, side = task
    slide = PhantomSlide(plan)
    archive = archive_of(root, plan)
    if not archive.exists():
        partial = archive.with_name(f".{archive.name}.{os.getpid()}")
        with zipfile.ZipFile(partial, "w") as file:
            for number, path in enumerate(plan.paths):
                for name, view in slide.views(number).items():
                    buffer = io.BytesIO()
                    slide.view_image(view, side).save(buffer, "JPEG", quality=QUALITY)
                    file.writestr(f"{path.path_id}/{name}.jpg", buffer.getvalue())
        partial.replace(archive)
    if slide_files is not None:
        from dataset_script.phantom.slide_files import write_slide

        write_slide(slide, slide_files / f"{plan.name}.tif")
    return ()
