"""Tasks for worker pools whose worker is killed while it runs them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from scale_vqa_eval.errors import Problem

Task = tuple[Path, Path]


def once(task: Task) -> tuple[Problem, ...]:
    """Kills its worker the first time that the task's slide is worked on; writes a file named after the slide."""
    slide, folder = task
    mark = folder / f"{slide.stem}.tried"
    if slide.stem == "b" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / slide.stem).touch()
    return ()


def always(task: Task) -> tuple[Problem, ...]:
    """Kills its worker whenever slide b is worked on; writes a file named after any other."""
    slide, folder = task
    if slide.stem == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / slide.stem).touch()
    return ()
