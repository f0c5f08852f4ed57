"""Does the slow work on slides: plans, then regions, in one process or several, each result written by itself."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Final, TypeVar

from dataset_script.slides.plan import plan_slide
from dataset_script.slides.region_files import write_regions
from dataset_script.slides.regions import OpenSlideSource
from dataset_script.slides.settings import Settings
from dataset_script.slides.work_folder import BATCH, SlideWork
from scale_vqa_eval.errors import InputError, Problem

Task = TypeVar("Task")
Run = Callable[[Callable[[Task], tuple[Problem, ...]], Iterable[Task]], Iterator[tuple[Problem, ...]]]

IN_FLIGHT: Final = 128
"""Tasks a worker that are handed out at a time, so that a long list of tasks does not pile up in memory."""


def make_plan(task: tuple[SlideWork, Settings]) -> tuple[Problem, ...]:
    """Plans one slide unless that is done; returns what was wrong with the slide."""
    work, settings = task
    if work.plan_file.exists():
        return ()
    try:
        with OpenSlideSource(work.slide, settings.mpp) as source:
            work.write_plan(plan_slide(source, settings))
    except InputError as error:
        return error.problems
    return ()


def make_regions(task: tuple[SlideWork, Settings, str, int]) -> tuple[Problem, ...]:
    """Reads the regions of one batch of fours unless that is done; returns what was wrong with the slide."""
    work, settings, layout, start = task
    path = work.archive(layout, start)
    if path.exists():
        return ()
    kinds = settings.kinds_of(layout)
    fours = work.plan().fours[layout][start : start + BATCH]
    try:
        with OpenSlideSource(work.slide, settings.mpp) as source:
            write_regions(
                path,
                source,
                fours,
                show_frame="bridge" in kinds,
                show_outer=bool({"zoom-in", "zoom-out", "bridge"} & set(kinds)),
                mark="origin" in kinds,
            )
    except InputError as error:
        return error.problems
    return ()


@contextmanager
def worker_pool(workers: int) -> Iterator[Run]:
    """Gives a function that runs tasks and yields their results in order, in this process or in ``workers`` others."""
    if workers == 1:
        yield lambda function, tasks: (function(task) for task in tasks)
        return
    # spawned, not forked: a slide handle or a thread of this process must not be inherited half-way
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent, initargs=(os.getpid(),)) as pool:

        def run(
            function: Callable[[Task], tuple[Problem, ...]], tasks: Iterable[Task]
        ) -> Iterator[tuple[Problem, ...]]:
            waiting = iter(tasks)
            while handed := list(islice(waiting, IN_FLIGHT * workers)):
                yield from pool.map(function, handed)

        try:
            yield run
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _end_with_parent(parent: int) -> None:
    """Lets a worker end when its parent was killed; it would wait for tasks for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
