"""Runs tasks in this process, in a pool of processes that ends with its parent, or on a Ray cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from tqdm import tqdm

from scale_vqa_eval.errors import InputError, Problem, preview

Task = TypeVar("Task")
TaskRunner = Callable[[Callable[[Task], tuple[Problem, ...]], Iterable[Task]], Iterator[tuple[Problem, ...]]]
Submit = Callable[[Callable[[Task], tuple[Problem, ...]], Task], "Future[tuple[Problem, ...]]"]

IN_FLIGHT: Final = 2
"""Tasks per worker that are handed out at a time, so that a long list of tasks does not fill memory."""
RETRIES: Final = 3
"""Times that Ray runs a task again whose worker or machine was lost."""
RAY_STORE_BYTES: Final = 200 * 2**20
"""Object store of a local Ray: results are small, images go through files."""
_RERUN: Final = "free memory or use fewer workers, then run the same command again: finished work is kept"


def available_cores() -> int:
    """Returns the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_pool(workers: int, ray: str | None = None) -> Iterator[TaskRunner]:
    """Yields a function that runs tasks here, in ``workers`` processes or on Ray, and yields results as they come.

    Tasks of a worker that was killed are run again; one that loses its worker each time is reported as a problem.

    Args:
        workers: processes; 1 runs the tasks in this process. With ``ray="local"``, its number of cores if above 1.
        ray: address of a Ray cluster, or ``local`` for one on this machine that ends with this process.

    Raises:
        InputError: if there is no Ray cluster at that address.
    """
    if ray is not None:
        with _ray_runner(ray, workers) as run:
            yield run
    elif workers == 1:
        yield lambda function, tasks: (function(task) for task in tasks)
    else:
        with _pool_runner(workers) as run:
            yield run


def run_all(
    run: TaskRunner[Task], function: Callable[[Task], tuple[Problem, ...]], tasks: Sequence[Task], what: str
) -> None:
    """Runs all tasks under a progress bar; raises InputError with all of their problems once every task has ended."""
    problems: set[Problem] = set()
    for found in tqdm(run(function, tasks), desc=what, total=len(tasks), unit="task"):
        problems |= set(found)
    if problems:
        raise InputError(sorted(problems))


def _results(
    submit: Submit[Task],
    limit: int,
    function: Callable[[Task], tuple[Problem, ...]],
    tasks: Iterable[Task],
    lost: list[Task],
    losses: tuple[type[Exception], ...] = (BrokenProcessPool,),
) -> Iterator[tuple[Problem, ...]]:
    """Yields results as they come, with at most ``limit`` tasks handed out; tasks that end in a loss go to ``lost``.

    After a broken pool no task is handed out any more.
    """
    pending: dict[Future[tuple[Problem, ...]], Task] = {}
    waiting = iter(tasks)
    broken = False
    while True:
        while not broken and len(pending) < limit and (task := next(waiting, None)) is not None:
            try:
                pending[submit(function, task)] = task
            except BrokenProcessPool:
                lost.append(task)
                broken = True
        if not pending:
            return
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            task = pending.pop(future)
            try:
                yield future.result()
            except losses as error:
                lost.append(task)
                broken |= isinstance(error, BrokenProcessPool)


@contextmanager
def _pool_runner(workers: int) -> Iterator[TaskRunner]:
    with contextlib.ExitStack() as stack:
        pools: list[ProcessPoolExecutor] = []

        def run(
            function: Callable[[Task], tuple[Problem, ...]], tasks: Iterable[Task]
        ) -> Iterator[tuple[Problem, ...]]:
            waiting = iter(tasks)
            while True:
                if not pools:
                    pools.append(stack.enter_context(_pool(workers)))
                lost: list[Task] = []
                yield from _results(pools[0].submit, IN_FLIGHT * workers, function, waiting, lost)
                if not lost:
                    return
                pools.clear()
                for task in lost:  # one of them may kill every worker that runs it: each is run again alone
                    again: list[Task] = []
                    with _pool(1) as pool:
                        yield from _results(pool.submit, 1, function, [task], again)
                    if again:
                        yield (_lost(task, "its process was killed twice"),)

        yield run


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    # spawned, not forked: a slide handle or a thread of this process must not be inherited
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent, initargs=(os.getpid(),)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _lost(task: object, found: str) -> Problem:
    first = task[0] if isinstance(task, tuple) else task
    return Problem(
        str(getattr(first, "slide", getattr(first, "name", first))), "a worker that finishes", found, _RERUN
    )


@contextmanager
def _ray_runner(address: str, workers: int) -> Iterator[TaskRunner]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise: nothing would be done on a busy machine
    import ray

    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        cores = workers if workers > 1 else available_cores()
        options |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": RAY_STORE_BYTES}
    host, _, port = address.rpartition("//")[2].rpartition(":")
    try:
        if host and port.isdecimal():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(**options)
    except (OSError, RuntimeError, ValueError, OverflowError) as error:
        expected, hint = "the address of a Ray cluster", "start one with `ray start --head`, or give --ray local"
        raise InputError(Problem(f"--ray {address}", expected, preview(str(error), 160), hint)) from error

    from ray import exceptions

    losses = (exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.OutOfMemoryError)

    def run(function: Callable[[Task], tuple[Problem, ...]], tasks: Iterable[Task]) -> Iterator[tuple[Problem, ...]]:
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(function)
        limit = IN_FLIGHT * max(1, int(ray.cluster_resources().get("CPU", 1)))
        lost: list[Task] = []
        yield from _results(lambda _, task: remote.remote(task).future(), limit, function, tasks, lost, losses)
        yield from ((_lost(task, f"its worker was lost {RETRIES + 1} times"),) for task in lost)

    try:
        yield run
    finally:
        with contextlib.suppress(Exception):
            ray.shutdown()


def _end_with_parent(parent: int) -> None:
    """Ends a worker whose parent was killed, which would wait for tasks forever, and silently at Ctrl-C."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
