"""A pool of processes that runs tasks in order and ends with its parent."""

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

from scale_vqa_eval.errors import Problem

Task = TypeVar("Task")
TaskRunner = Callable[[Callable[[Task], tuple[Problem, ...]], Iterable[Task]], Iterator[tuple[Problem, ...]]]

IN_FLIGHT: Final = 128
"""Tasks per worker that are handed out at a time, so that a long list of tasks does not fill memory."""


def available_cores() -> int:
    """Returns the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_pool(workers: int) -> Iterator[TaskRunner]:
    """Yields a function that runs tasks in order, here or in ``workers`` processes, and yields their results."""
    if workers == 1:
        yield lambda function, tasks: (function(task) for task in tasks)
        return
    # spawned, not forked: a slide handle or a thread of this process must not be inherited
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
    """Ends a worker whose parent was killed; it would wait for tasks forever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
