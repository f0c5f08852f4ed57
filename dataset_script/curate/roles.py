"""Calls of the curation's language models: prompts, JSON replies, and retries within a budget."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import yaml

from dataset_script.curate.work import RoleSettings
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import sha256_json
from scale_vqa_eval.llm import ChatReply, ChatRequest, ChatSettings, LLMClient, Spending

_REFUSAL: Final = re.compile(
    r"^\W*(?:(?:i(?:'|\u2019)?m|i am|we are)\s+(?:very\s+|so\s+)?(?:sorry|unable|not able|afraid)"
    r"|sorry\b|i\s+(?:can(?:'|\u2019)?t|can ?not|won(?:'|\u2019)?t|must decline|will not)\b|as an ai\b"
    r"|unfortunately,? i\b)",
    re.IGNORECASE,
)
_FENCE: Final = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_THOUGHT: Final = re.compile(r"<think>.*?</think>", re.DOTALL)
T = TypeVar("T")


class BadReply(ValueError):
    """A reply that cannot be used; ``outcome`` is a name in ``prompts/reasons.yaml``."""

    def __init__(self, outcome: str, detail: str) -> None:
        assert outcome in load_prompt("reasons")["replies"], outcome
        super().__init__(f"{outcome}: {detail}")
        self.outcome, self.detail = outcome, detail


@functools.cache
def load_prompt(name: str) -> Mapping[str, Any]:
    """Returns a file of ``prompts/``: ``decompose``, ``generate``, ``analyse`` or ``reasons``."""
    found = yaml.safe_load((files("dataset_script.curate") / f"prompts/{name}.yaml").read_text("utf-8"))
    assert isinstance(found, Mapping)
    return found


def prompt_ids() -> dict[str, dict[str, str]]:
    """Returns name -> id and hash of each prompt; the hash shows a change of text that kept its id."""
    prompts = {name: load_prompt(name) for name in ("decompose", "generate", "analyse")}
    return {name: {"id": prompt["id"], "sha256": sha256_json(prompt)} for name, prompt in prompts.items()}


def chat_messages(system: str, data: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    """Returns system text and data as messages; the data is JSON, so that no text can break out of it."""
    return (
        {"role": "system", "content": system},
        {"role": "user", "content": json.dumps(data, ensure_ascii=False, indent=1)},
    )


def object_schema(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON schema of an object that has exactly these fields."""
    required = {"required": list(fields), "additionalProperties": False}
    return {"type": "object", "properties": dict(fields), **required}


def failed_call(failure: str) -> str:
    """Returns the outcome of a failed call.

    >>> failed_call("status 429: slow down"), failed_call("timeout: no answer in time, at every try")
    ('rate-limited', 'timeout')
    """
    if failure.startswith("status"):
        status = failure.split()[1].rstrip(":")
        return "rate-limited" if status == "429" else "server-error" if status >= "500" else "request-refused"
    kinds = {"malformed": "malformed-reply", "timeout": "timeout", "refusal": "refusal"}
    return next((outcome for start, outcome in kinds.items() if failure.startswith(start)), "connection")


def json_object(reply: ChatReply) -> dict[str, Any]:
    """Returns the JSON object of a reply, with or without code fence, thoughts, and text around it.

    Raises:
        BadReply: if the call failed, or the reply is a refusal, is empty or cut off, or has no JSON object.
    """
    if reply.failure is not None:
        raise BadReply(failed_call(reply.failure), reply.failure)
    if reply.finish == "content_filter":
        raise BadReply("refusal", "stopped by the endpoint's content filter")
    text, cut_off = _THOUGHT.sub("", reply.text or "").strip(), reply.finish == "length"
    if not text:
        raise BadReply("truncated" if cut_off else "empty", "no text")
    fenced = [match.group(1).strip() for match in _FENCE.finditer(text)]
    for part in (*fenced, text, text[max(0, text.find("{")) :]):
        try:
            value, _ = json.JSONDecoder().raw_decode(part)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    shown = " ".join(text.split())[:160]
    if _REFUSAL.match(text):
        raise BadReply("refusal", shown)
    raise BadReply("truncated" if cut_off else "malformed-json", shown)


def text_field(value: Mapping[str, Any], name: str, limit: int, required: bool = True) -> str:
    """Returns a text field of a reply on one line; an optional field that is absent is empty.

    Raises:
        BadReply: ``schema``, if it is not a string, is absent though required, or is longer than ``limit``.
    """
    found = value.get(name)
    if found is None and not required:
        return ""
    if not isinstance(found, str) or (required and not found.strip()):
        raise BadReply("schema", f"{name} is {type(found).__name__}, not a text")
    line = " ".join(found.split())
    if len(line) > limit:
        raise BadReply("schema", f"{name} has {len(line)} characters, more than {limit}")
    return line


@dataclass(frozen=True)
class RoleTask(Generic[T]):
    """One request to a model.

    Attributes:
        label: path key or row id.
        messages: the request.
        read: converts the JSON of the reply into the value; raises ``BadReply`` if it cannot be used.
    """

    label: str
    messages: tuple[Mapping[str, str], ...]
    read: Callable[[dict[str, Any]], T]


@dataclass(frozen=True)
class TaskResult(Generic[T]):
    """The value of a task, or None if every try failed; ``failed`` has the outcome and detail of each failed try."""

    label: str
    value: T | None
    failed: tuple[tuple[str, str], ...] = ()


def remaining(settings: ChatSettings, spent: Spending) -> ChatSettings:
    """Returns the settings with the remaining budget and number of calls."""
    budget = None if settings.budget is None else max(0.0, settings.budget - spent.cost)
    calls = None if settings.max_calls is None else max(0, settings.max_calls - spent.calls)
    return replace(settings, budget=budget, max_calls=calls)


def add_spending(total: Spending, more: Mapping[str, float]) -> None:
    """Adds the fields of a spending to a total."""
    for name, value in more.items():
        setattr(total, name, getattr(total, name) + value)


@dataclass
class RoleClient:
    """Client of a role for one shard.

    Attributes:
        settings: the endpoint.
        answers: file of the answers.
        progress: show a progress bar on standard error.
        spent: cost of the answers so far, earlier runs included; shared by the shards of a role.
    """

    settings: RoleSettings
    answers: Path
    progress: bool = True
    spent: Spending = field(default_factory=Spending)
    _known: dict[str, ChatReply] = field(default_factory=dict)

    def _ask(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        """Returns one reply per request; known answers, earlier runs included, are not requested again."""
        limits = remaining(self.settings.chat, self.spent)
        chat = LLMClient(self.settings.base_url, self.settings.model, self.answers, limits)
        keys = [chat.key(request) for request in requests]
        fresh = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._known}
        replies = chat.complete(list(fresh.values()), self.progress) if fresh else []
        add_spending(self.spent, asdict(chat.spending))
        if chat.stopped:
            hint = f"raise the limit of role {self.settings.name}, or restart its endpoint, then run the command again"
            expected = f"answers of {chat.model} at {chat.name}"
            raise InputError(Problem(f"role {self.settings.name}", expected, chat.stopped, hint))
        answered = dict(zip(fresh, replies, strict=True))
        self._known |= {key: reply for key, reply in answered.items() if reply.failure is None}
        return [self._known.get(key) or answered[key] for key in keys]

    def solve(self, tasks: Sequence[RoleTask[T]], tries: int) -> list[TaskResult[T]]:
        """Asks until each task has a value or has failed ``tries`` times; each retry explains the error.

        Raises:
            InputError: if a limit or a failure of the endpoint stopped the calls; answers so far are kept.
        """
        results: list[TaskResult[T] | None] = [None] * len(tasks)
        failed: list[list[tuple[str, str]]] = [[] for _ in tasks]
        messages = [task.messages for task in tasks]
        for attempt in range(1, tries + 1):
            waiting = [number for number, result in enumerate(results) if result is None]
            if not waiting:
                break
            replies = self._ask([ChatRequest(messages[number], tasks[number].label) for number in waiting])
            for number, reply in zip(waiting, replies, strict=True):
                task = tasks[number]
                try:
                    results[number] = TaskResult(task.label, task.read(json_object(reply)), tuple(failed[number]))
                except BadReply as error:
                    failed[number].append((error.outcome, error.detail))
                    if reply.failure is None:
                        messages[number] = _with_correction(task.messages, reply, error, attempt)
        return [
            result or TaskResult(task.label, None, tuple(why))
            for task, result, why in zip(tasks, results, failed, strict=True)
        ]


def _with_correction(
    asked: tuple[Mapping[str, str], ...], reply: ChatReply, error: BadReply, attempt: int
) -> tuple[Mapping[str, str], ...]:
    """Adds the reply and its problem to the messages; the attempt number keeps retries apart in the cache."""
    again = (
        f"Your reply number {attempt} cannot be used: {error}. Reply once more to the task above, with one JSON "
        "object of the form asked for and nothing else."
    )
    said = (reply.text or "(empty)")[:2000]
    return (*asked, {"role": "assistant", "content": said}, {"role": "user", "content": again})


def with_format(settings: RoleSettings, name: str, schema: Mapping[str, Any]) -> RoleSettings:
    """Returns the role with its ``response_format`` in the sampling, which is part of the cache key."""
    if settings.structured == "none":
        return settings
    form: dict[str, Any] = {"type": "json_object"}
    if settings.structured == "json_schema":
        form = {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": dict(schema)}}
    return settings.model_copy(update={"sampling": {**settings.sampling, "response_format": form}})


def outcomes(results: Sequence[TaskResult[Any]]) -> dict[str, dict[str, int]]:
    """Counts failed tries by outcome (``tries``), and tasks without a value by their last outcome (``lost``)."""
    tried = Counter(outcome for result in results for outcome, _ in result.failed)
    lost = Counter(result.failed[-1][0] for result in results if result.value is None)
    return {"tries": dict(sorted(tried.items())), "lost": dict(sorted(lost.items()))}
