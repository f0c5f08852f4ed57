"""The language models of the curation: their prompts, their JSON replies, and repeated tries within a budget."""

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
    """A reply that cannot be used: ``outcome`` is in ``prompts/reasons.yaml``, ``detail`` says what was found."""

    def __init__(self, outcome: str, detail: str) -> None:
        assert outcome in load_prompt("reasons")["replies"], outcome
        super().__init__(f"{outcome}: {detail}")
        self.outcome, self.detail = outcome, detail


@functools.cache
def load_prompt(name: str) -> Mapping[str, Any]:
    """Returns the content of a file of ``prompts/``: ``decompose``, ``generate``, ``analyse`` or ``reasons``."""
    found = yaml.safe_load((files("dataset_script.curate") / f"prompts/{name}.yaml").read_text("utf-8"))
    assert isinstance(found, Mapping)
    return found


def prompt_ids() -> dict[str, dict[str, str]]:
    """Returns name -> id and hash of each prompt: the report shows a text that changed under its id."""
    prompts = {name: load_prompt(name) for name in ("decompose", "generate", "analyse")}
    return {name: {"id": prompt["id"], "sha256": sha256_json(prompt)} for name, prompt in prompts.items()}


def chat_messages(system: str, data: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    """Returns system text and data as messages; the data is JSON, so that no text in it can end it early."""
    return (
        {"role": "system", "content": system},
        {"role": "user", "content": json.dumps(data, ensure_ascii=False, indent=1)},
    )


def object_schema(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON schema of an object that has exactly these fields."""
    return {
        "type": "object",
        "properties": dict(fields),
        "required": list(fields),
        "additionalProperties": False,
    }


def failed_call(failure: str) -> str:
    """Returns the outcome of a call without an answer.

    >>> failed_call("status 429: slow down"), failed_call("timeout: no answer in time, at every try")
    ('rate-limited', 'timeout')
    """
    if failure.startswith("status"):
        status = failure.split()[1].rstrip(":")
        return "rate-limited" if status == "429" else "server-error" if status >= "500" else "request-refused"
    kinds = {"malformed": "malformed-reply", "timeout": "timeout", "refusal": "refusal"}
    return next((outcome for start, outcome in kinds.items() if failure.startswith(start)), "connection")


def json_object(reply: ChatReply) -> dict[str, Any]:
    """Returns the JSON object of a reply; a code fence, a thought before it and text around it are accepted.

    Raises:
        BadReply: if the call failed, or the reply is a refusal, empty, cut off, or has no JSON object.
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
    """Returns a text field of a reply on one line, empty if it is absent and not required.

    Raises:
        BadReply: ``schema``, if it is not a text, is absent though required, or is longer than ``limit`` characters.
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
        label: the path or row id that it is about.
        messages: the request.
        read: turns the JSON of the reply into the value; raises ``BadReply`` if it cannot be used.
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
    """Returns the settings with the part of budget and calls that has not been spent."""
    budget = None if settings.budget is None else max(0.0, settings.budget - spent.cost)
    calls = None if settings.max_calls is None else max(0, settings.max_calls - spent.calls)
    return replace(settings, budget=budget, max_calls=calls)


def add_spending(total: Spending, more: Mapping[str, float]) -> None:
    """Adds the fields of a spending to a total."""
    for name, value in more.items():
        setattr(total, name, getattr(total, name) + value)


@dataclass
class RoleClient:
    """The endpoint of a role with the file of its answers for one shard.

    Attributes:
        settings: the endpoint.
        answers: the file that keeps the answers.
        progress: show a bar on standard error.
        spent: cost of the answers so far, earlier runs included; the clients of all shards of a role share it.
    """

    settings: RoleSettings
    answers: Path
    progress: bool = True
    spent: Spending = field(default_factory=Spending)
    _known: dict[str, ChatReply] = field(default_factory=dict)

    def _ask(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        """Returns one reply per request; what this client or an earlier run has an answer to is not asked again."""
        limits = remaining(self.settings.chat, self.spent)
        chat = LLMClient(self.settings.base_url, self.settings.model, self.answers, limits)
        keys = [chat.key(request) for request in requests]
        fresh = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._known}
        replies = chat.complete(list(fresh.values()), self.progress) if fresh else []
        add_spending(self.spent, asdict(chat.spending))
        if chat.stopped:
            hint = f"raise the limit of role {self.settings.name}, or bring its endpoint back, and run it again"
            expected = f"answers of {chat.model} at {chat.name}"
            raise InputError(Problem(f"role {self.settings.name}", expected, chat.stopped, f"{hint} to go on"))
        answered = dict(zip(fresh, replies, strict=True))
        self._known |= {key: reply for key, reply in answered.items() if reply.failure is None}
        return [self._known.get(key) or answered[key] for key in keys]

    def solve(self, tasks: Sequence[RoleTask[T]], tries: int) -> list[TaskResult[T]]:
        """Asks until each task has a value or has failed ``tries`` times; each retry names what was wrong.

        Raises:
            InputError: if a limit or the endpoint itself stopped the calls; the answers so far are kept.
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
    """Shows the model its reply and the problem; the number of the attempt makes each try another request."""
    again = (
        f"Your reply number {attempt} cannot be used: {error}. Reply once more to the task above, with one JSON "
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
    return settings.model_copy(update={"sampling": {**settings.sampling, "response_format": form}})


def outcomes(results: Sequence[TaskResult[Any]]) -> dict[str, dict[str, int]]:
    """Counts failed tries by outcome (``tries``), and tasks without a value by their last outcome (``lost``)."""
    tried = Counter(outcome for result in results for outcome, _ in result.failed)
    lost = Counter(result.failed[-1][0] for result in results if result.value is None)
    return {"tries": dict(sorted(tried.items())), "lost": dict(sorted(lost.items()))}
