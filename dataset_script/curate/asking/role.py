"""A role: asks its endpoint, keeps every answer, asks again where a reply cannot be used, and counts what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from dataset_script.curate.asking.replies import BadReply, json_object
from dataset_script.curate.asking.settings import RoleSettings
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.llm import ChatReply, ChatRequest, LLMClient, Spending

Message = Mapping[str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class Task(Generic[T]):
    """One thing wanted of a model.

    Attributes:
        label: whom it is about: the path or row id.
        messages: what is asked.
        read: turns the reply's JSON into the value; raises ``BadReply`` where it cannot be used.
    """

    label: str
    messages: tuple[Message, ...]
    read: Callable[[dict[str, Any]], T]


@dataclass(frozen=True)
class Result(Generic[T]):
    """What became of a task: its value, or None and the outcome of the last try; ``failed`` names that of each try."""

    label: str
    value: T | None
    failed: tuple[tuple[str, str], ...] = ()


@dataclass
class Role:
    """An endpoint in its role, with the file of its answers.

    Attributes:
        settings: the endpoint.
        answers: the journal of its answers.
        progress: show a bar on standard error.
        spent: what the answers used so far have cost, in this run and before.
    """

    settings: RoleSettings
    answers: Path
    progress: bool = True
    spent: Spending = field(default_factory=Spending)
    known: dict[str, ChatReply] = field(default_factory=dict)

    def ask(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        """Returns a reply a request; what this role or an earlier run has an answer to is not asked again.

        Raises:
            InputError: where a limit or the endpoint itself stopped the asking; the answers so far are kept.
        """
        limits = self.settings.chat
        left = replace(
            limits,
            budget=None if limits.budget is None else max(0.0, limits.budget - self.spent.cost),
            max_calls=None if limits.max_calls is None else max(0, limits.max_calls - self.spent.calls),
        )
        chat = LLMClient(self.settings.base_url, self.settings.model, self.answers, left)
        keys = [chat.key(request) for request in requests]
        fresh = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.known}
        if fresh:
            replies = chat.complete(list(fresh.values()), self.progress)
            for name, value in asdict(chat.spending).items():
                setattr(self.spent, name, getattr(self.spent, name) + value)
            if chat.stopped:
                hint = f"raise the limit of role {self.settings.name}, or bring its endpoint back, and run it again"
                expected = f"answers of {chat.model} at {chat.name}"
                raise InputError(Problem(f"role {self.settings.name}", expected, chat.stopped, f"{hint} to go on"))
            self.known |= {key: reply for key, reply in zip(fresh, replies, strict=True) if reply.failure is None}
        else:
            replies = []
        failed = dict(zip(fresh, replies, strict=True))
        return [self.known.get(key) or failed[key] for key in keys]

    def solve(self, tasks: Sequence[Task[T]], tries: int) -> list[Result[T]]:
        """Asks until each task has a value or has failed ``tries`` times; the model is told what was wrong."""
        results: list[Result[T] | None] = [None] * len(tasks)
        failed: list[list[tuple[str, str]]] = [[] for _ in tasks]
        messages = [task.messages for task in tasks]
        for turn in range(tries):
            waiting = [place for place, result in enumerate(results) if result is None]
            if not waiting:
                break
            replies = self.ask([self._request(tasks[place].label, messages[place]) for place in waiting])
            for place, reply in zip(waiting, replies, strict=True):
                try:
                    value = tasks[place].read(json_object(reply))
                    results[place] = Result(tasks[place].label, value, tuple(failed[place]))
                except BadReply as error:
                    failed[place].append((error.outcome, error.detail))
                    if reply.failure is None and turn + 1 < tries:
                        messages[place] = _repaired(tasks[place].messages, reply, error, turn)
        return [
            result or Result(task.label, None, tuple(why))
            for task, result, why in zip(tasks, results, failed, strict=True)
        ]

    def _request(self, label: str, messages: tuple[Message, ...]) -> ChatRequest:
        return ChatRequest(messages, label)


def _repaired(asked: tuple[Message, ...], reply: ChatReply, error: BadReply, turn: int) -> tuple[Message, ...]:
    """Shows the model its reply and the fault; the turn is named, so that no two tries are the same request."""
    again = (
        f"Your reply number {turn + 1} cannot be used: {error}. Reply once more to the task above, with one JSON "
        "object of the form asked for and nothing else."
    )
    said = (reply.text or "(empty)")[:2000]
    return (*asked, {"role": "assistant", "content": said}, {"role": "user", "content": again})


def with_format(settings: RoleSettings, name: str, schema: Mapping[str, Any]) -> RoleSettings:
    """Returns the role with its ``response_format`` in the sampling, which is part of every answer's key."""
    if settings.structured == "none":
        return settings
    form: dict[str, Any] = {"type": "json_object"}
    if settings.structured == "json_schema":
        form = {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": dict(schema)}}
    chat = replace(settings.chat, sampling={**settings.chat.sampling, "response_format": form})
    return replace(settings, chat=chat)


def outcomes(results: Sequence[Result[Any]]) -> dict[str, dict[str, int]]:
    """Counts tries that failed by outcome (``tries``), and tasks that failed for good by their last (``lost``)."""
    tried = Counter(outcome for result in results for outcome, _ in result.failed)
    lost = Counter(result.failed[-1][0] for result in results if result.value is None)
    return {"tries": dict(sorted(tried.items())), "lost": dict(sorted(lost.items()))}
