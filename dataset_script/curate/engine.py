"""Runs the shards of a step: one after the other here, or as tasks of Ray Data on one machine or many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

T = TypeVar("T")
Row = dict[str, Any]
ENGINES: Final = ("local", "ray")


def run_shards(engine: str, function: Callable[[T], Row], tasks: Sequence[T]) -> list[Row]:
    """Returns what a function made of each task, in order.

    Args:
        engine: ``local``, or ``ray`` for Ray Data: a task is a row there, the rows stream through the cluster, and the
            results are the same. ``ray.init`` is left to the caller; without it Ray starts on this machine.
        function: a function of a module; it reads and writes files of its own shard.
        tasks: one for each shard; they can be pickled.
    """
    if engine == "local":
        return [function(task) for task in tasks]
    import ray.data

    from scale_vqa_eval.errors import InputError

    rows = ray.data.from_items([{"place": place, "task": task} for place, task in enumerate(tasks)])
    rows = rows.repartition(len(tasks))
    done = rows.map(_guarded, fn_args=(function,)).take_all()
    problems = [problem for row in done for problem in row["faults"]]
    if problems:
        raise InputError(problems)
    return [row["done"] for row in sorted(done, key=lambda row: row["place"])]


def _guarded(row: Row, function: Callable[[Any], Row]) -> Row:
    """Runs one task; a fault comes back as a value, so that the other tasks finish and keep what they paid for."""
    from scale_vqa_eval.errors import InputError

    try:
        return {"place": row["place"], "done": function(row["task"]), "faults": []}
    except InputError as error:
        return {"place": row["place"], "done": {}, "faults": list(error.problems)}
