"""Limits of a role that works on several shards: what is left of them, or a share where shards run side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from dataset_script.curate.asking.settings import RoleSettings


def left_over(role: RoleSettings, spent: Mapping[str, float]) -> RoleSettings:
    """Returns a role whose limits are what earlier shards left of them."""
    chat = role.chat
    budget = None if chat.budget is None else max(0.0, chat.budget - spent.get("cost", 0.0))
    calls = None if chat.max_calls is None else max(0, chat.max_calls - int(spent.get("calls", 0)))
    return replace(role, chat=replace(chat, budget=budget, max_calls=calls))


def shared_out(role: RoleSettings, share: float, workers: int) -> RoleSettings:
    """Returns a role for one of the shards that run at the same time.

    Args:
        role: the whole role.
        share: part of budget and calls, 0 to 1.
        workers: how many run at a time: they share the pace; each has the whole concurrency.
    """
    chat = role.chat
    budget = None if chat.budget is None else chat.budget * share
    calls = None if chat.max_calls is None else int(chat.max_calls * share)
    pace = None if chat.per_minute is None else chat.per_minute / workers
    return replace(role, chat=replace(chat, budget=budget, max_calls=calls, per_minute=pace))


def summed(accounts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Adds plain accounts up: numbers and counts by name are added, lists joined.

    >>> summed([{"n": 1, "lost": [1], "by": {"a": 1}}, {"n": 2, "lost": [2], "by": {"b": 1}}])
    {'n': 3, 'lost': [1, 2], 'by': {'a': 1, 'b': 1}}
    """
    total: dict[str, Any] = {}
    for account in accounts:
        for name, value in account.items():
            if isinstance(value, Mapping):
                total[name] = summed([total.get(name, {}), value])
            elif isinstance(value, list):
                total[name] = [*total.get(name, []), *value]
            else:
                total[name] = total.get(name, 0) + value
    return total


def spent_by(accounts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Adds spendings up."""
    total: Counter[str] = Counter()
    for account in accounts:
        total.update(account)  # type: ignore[arg-type]
    return dict(total)
