"""Chat completions from any OpenAI-compatible endpoint, each asked for, and paid for, once.

Every answer is kept on disk under the hash of what was asked (endpoint, model, messages, sampling, repeat), so a run
that was killed, limited or refused goes on where it stopped. A failed call is kept with its reason and made again next
time. What a kill can cost is the calls in flight at that moment, at most ``concurrency`` of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tqdm import tqdm

from scale_vqa_eval.chat.calls import Outcome, Pacer, ask, endpoint_name, open_client
from scale_vqa_eval.chat.journal import Journal
from scale_vqa_eval.errors import InputError, Problem

DEFAULT_SAMPLING: Final[Mapping[str, Any]] = MappingProxyType({"temperature": 0.0, "max_tokens": 512})
FAILURES_IN_A_ROW: Final = 20
"""So many failed calls one after another end the run: the endpoint is down."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One thing to ask: messages, a label for people (the row id), and which repeat it is."""

    messages: tuple[Mapping[str, Any], ...]
    label: str = ""
    repeat: int = 0


@dataclass(frozen=True, slots=True)
class ChatReply:
    """The answer to one request; ``text`` is None and ``failure`` says why where there is none."""

    request: ChatRequest
    text: str | None
    failure: str | None
    finish: str | None
    cached: bool


@dataclass(frozen=True)
class ChatSettings:
    """How an endpoint is asked.

    Attributes:
        sampling: fields of the request beside model and messages; part of the cache key.
        concurrency: calls in flight at a time, at most.
        per_minute: HTTP requests a minute, retries included, at most; None for no limit.
        retries: of one call, with back-off, Retry-After honoured.
        timeout: seconds for one HTTP request.
        prices: money for a million prompt tokens and a million completion tokens; None where unknown.
        budget: money that the requests of one ``complete`` may cost, what earlier runs paid for them included; needs
            ``prices``. No call starts that could break it: until the server has counted, a prompt is taken as one
            token a byte and an answer as ``max_tokens``.
        max_calls: answered calls that they may take, those of earlier runs included.
        key_variable: environment variable that holds the API key.
    """

    sampling: Mapping[str, Any] = field(default_factory=lambda: dict(DEFAULT_SAMPLING))
    concurrency: int = 8
    per_minute: float | None = None
    retries: int = 5
    timeout: float = 120.0
    prices: tuple[float, float] | None = None
    budget: float | None = None
    max_calls: int | None = None
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        limits = {"concurrency": self.concurrency, "per_minute": self.per_minute, "timeout": self.timeout}
        for name, value in limits.items():
            if value is not None and not value > 0:
                raise InputError(Problem(f"chat {name}", "a number above 0", str(value), "correct it"))
        if self.budget is not None and self.prices is None:
            raise InputError(Problem("chat budget", "prices beside it", "none", "give the price of a million tokens"))
        if self.budget is not None and self.answer_tokens is None:
            raise InputError(Problem("chat budget", "max_tokens in the sampling", "none", "bound the answers' length"))

    @property
    def answer_tokens(self) -> int | None:
        """Most tokens that an answer may have, None for no bound."""
        bound = self.sampling.get("max_completion_tokens", self.sampling.get("max_tokens"))
        return int(bound) if bound is not None else None


@dataclass(slots=True)
class Spending:
    """What the answers to some requests have cost, in this run and before; ``cost`` needs prices to be known."""

    calls: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    cost: float = 0.0

    def add(self, record: Mapping[str, Any]) -> None:
        """Adds one record of the cache file; ``uncounted`` are answers for which the server gave no usage."""
        if record.get("failure") is not None:
            self.failed += 1
            return
        self.calls += 1
        self.uncounted += record.get("prompt_tokens") is None or record.get("completion_tokens") is None
        self.prompt_tokens += record.get("prompt_tokens") or 0
        self.completion_tokens += record.get("completion_tokens") or 0
        self.cost += record.get("cost") or 0.0


class CachedChat:
    """A model behind an endpoint, with its cache file.

    >>> chat = CachedChat("http://localhost:8000/v1", "my-model", "chat.jsonl")  # doctest: +SKIP
    >>> chat.complete([ChatRequest(({"role": "user", "content": "Hello"},))])[0].text  # doctest: +SKIP
    'Hello!'

    After ``complete``: ``spending`` (on its requests, earlier runs included), ``sent`` (HTTP requests of this run,
    retries included) and ``stopped`` (why requests were left unasked, None where none was).
    """

    def __init__(
        self, endpoint: str, model: str, cache_path: str | Path, settings: ChatSettings | None = None
    ) -> None:
        self.endpoint, self.name, self.model = endpoint, endpoint_name(endpoint), model
        self.cache_path = Path(cache_path)
        self.settings = settings or ChatSettings()
        self.spending = Spending()
        self.sent = 0
        self.stopped: str | None = None

    def key(self, request: ChatRequest) -> str:
        """Returns the SHA-256 of everything that an answer depends on."""
        asked = {
            "endpoint": self.name,
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
            "sampling": dict(self.settings.sampling),
            "repeat": request.repeat,
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def complete(self, requests: Sequence[ChatRequest], progress: bool = True) -> list[ChatReply]:
        """Returns a reply a request, in order, asking only for what the cache file does not hold.

        Raises:
            InputError: where the cache file is damaged or in use, or the endpoint refuses every call (wrong key, no
                such model).
            KeyboardInterrupt: after Ctrl-C, once the calls in flight are answered and kept.
        """
        with Journal(self.cache_path) as journal:
            self.spending, self.sent, self.stopped = Spending(), 0, None
            keys = [self.key(request) for request in requests]
            wanted = set(keys)
            answers: dict[str, Mapping[str, Any]] = {}
            for record in journal.records:
                if record["key"] in wanted:
                    self._take(record, answers)
            before = {key for key in keys if key in answers and answers[key]["failure"] is None}
            open_calls = {key: request for key, request in zip(keys, requests, strict=True) if key not in before}
            title = f"{self.model} ({len(before)} of {len(wanted)} cached)"
            if open_calls:
                with tqdm(total=len(open_calls), desc=title, unit="call", disable=not progress) as bar:
                    asyncio.run(_Run(self, journal, answers, open_calls, bar).go())
            return [
                self._reply(request, key, answers, key in before) for request, key in zip(requests, keys, strict=True)
            ]

    def _take(self, record: Mapping[str, Any], answers: dict[str, Mapping[str, Any]]) -> None:
        """Books a record, read or new; an answer is never replaced by a later failure."""
        self.spending.add(record)
        if record["failure"] is None or record["key"] not in answers:
            answers[record["key"]] = record

    def _reply(
        self, request: ChatRequest, key: str, answers: Mapping[str, Mapping[str, Any]], cached: bool
    ) -> ChatReply:
        record = answers.get(key)
        if record is None:
            return ChatReply(request, None, f"not asked: {self.stopped}", None, cached=False)
        return ChatReply(request, record.get("text"), record["failure"], record.get("finish"), cached)


class _Run:
    """One pass over the open calls of a cache: workers, budget, and the ways to stop."""

    def __init__(
        self,
        chat: CachedChat,
        journal: Journal,
        answers: dict[str, Mapping[str, Any]],
        calls: Mapping[str, ChatRequest],
        bar: Any,
    ) -> None:
        self.chat, self.journal, self.answers, self.bar = chat, journal, answers, bar
        self.waiting = deque(calls.items())
        self.reserved: dict[str, float] = {}
        self.failures = 0
        self.fatal: str | None = None
        self.interrupted = False
        self.freed = asyncio.Condition()

    async def go(self) -> None:
        """Makes the calls; returns once all are made or the run is stopped and nothing is in flight."""
        settings = self.chat.settings
        pacer = Pacer(settings.per_minute)
        client = open_client(self.chat.endpoint, settings.key_variable, settings.timeout, settings.retries, pacer)
        try:
            with self._graceful():
                async with asyncio.TaskGroup() as workers:
                    for _ in range(min(settings.concurrency, len(self.waiting))):
                        workers.create_task(self._work(client))
        finally:
            self.chat.sent = pacer.sent
            await client.close()
        if self.interrupted:
            raise KeyboardInterrupt
        if self.fatal:
            location = f"chat endpoint {self.chat.name}, model {self.chat.model}"
            hint = f"check the address, the model's name and ${settings.key_variable}"
            raise InputError(Problem(location, "an answer", self.fatal, hint))

    async def _work(self, client: Any) -> None:
        settings = self.chat.settings
        while await self._admitted():
            key, request = self.waiting.popleft()
            self.reserved[key] = self._worst(request)
            outcome = await ask(client, self.chat.model, request.messages, settings.sampling, key)
            async with self.freed:
                self.reserved.pop(key)
                self._keep(key, request, outcome)
                self.freed.notify_all()

    async def _admitted(self) -> bool:
        """Waits until the next call fits the budget; False once nothing more is to be asked."""
        async with self.freed:
            while True:
                if self.chat.stopped or not self.waiting:
                    return False
                reason = self._refused(self.waiting[0][1])
                if reason is None:
                    return True
                if not self.reserved:
                    self.chat.stopped = reason
                    return False
                await self.freed.wait()

    def _refused(self, request: ChatRequest) -> str | None:
        settings, spent = self.chat.settings, self.chat.spending
        if settings.max_calls is not None and spent.calls + len(self.reserved) >= settings.max_calls:
            return f"the limit of {settings.max_calls} calls is reached ({spent.calls} answered)"
        if settings.budget is not None:
            due = spent.cost + sum(self.reserved.values()) + self._worst(request)
            if due > settings.budget:
                return f"the budget of {settings.budget:g} allows no further call ({spent.cost:.6g} spent)"
        return None

    def _worst(self, request: ChatRequest) -> float:
        """Most that a call can cost: a token is at least a byte, a chat template adds some dozen a message."""
        prices, answer = self.chat.settings.prices, self.chat.settings.answer_tokens
        if prices is None or answer is None:
            return 0.0
        size = len(json.dumps([dict(message) for message in request.messages], ensure_ascii=False).encode())
        return ((size + 64 * len(request.messages)) * prices[0] + answer * prices[1]) / 1e6

    def _keep(self, key: str, request: ChatRequest, outcome: Outcome) -> None:
        record = {
            "key": key,
            "label": request.label,
            "repeat": request.repeat,
            "endpoint": self.chat.name,
            "model": self.chat.model,
            "served": outcome.served,
            "text": outcome.text,
            "finish": outcome.finish,
            "failure": outcome.failure,
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "cost": self._cost(outcome),
        }
        self.journal.append(record)
        self.chat._take(record, self.answers)
        self.bar.update()
        self.failures = 0 if outcome.failure is None else self.failures + 1
        if outcome.fatal:
            self.fatal = outcome.failure
            self.chat.stopped = f"the endpoint refuses every call: {outcome.failure}"
        elif self.failures >= FAILURES_IN_A_ROW:
            self.chat.stopped = f"{self.failures} calls in a row failed, the last by {outcome.failure}"

    def _cost(self, outcome: Outcome) -> float | None:
        prices = self.chat.settings.prices
        if prices is None or outcome.prompt_tokens is None or outcome.completion_tokens is None:
            return None
        return (outcome.prompt_tokens * prices[0] + outcome.completion_tokens * prices[1]) / 1e6

    @contextlib.contextmanager
    def _graceful(self) -> Iterator[None]:
        """Makes the first Ctrl-C finish the calls in flight, which are paid already; a second one drops them."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            self.interrupted, self.chat.stopped = True, "interrupted"
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, signal.default_int_handler)

        try:
            loop.add_signal_handler(signal.SIGINT, stop)
        except (NotImplementedError, RuntimeError, ValueError):  # no main thread, or a platform without
            yield
            return
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)
