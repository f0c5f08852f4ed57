"""Client for OpenAI-compatible chat servers, used by ``predict``, ``audit --chat`` and ``curate``.

``LLMSession`` makes single calls: it limits the rate, retries failed calls, honours Retry-After, parses the common
reply formats, and removes keys from messages. ``LLMClient.complete`` makes many calls within a budget and stores each
answer on disk under the hash of the request (endpoint, model, messages, sampling, repeat). A run that was killed or
stopped continues where it ended, and no answer is paid for twice: at most the calls in flight are lost. A failed call
is stored with its reason and repeated in the next run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import re
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from ssl import SSLContext
from types import MappingProxyType
from typing import Any, Final, Self
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import httpx
from tqdm import tqdm

from scale_vqa_eval.chat_replies import MESSAGE_LIMIT, CallResult, read_reply
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import sha256_json
from scale_vqa_eval.store import Journal

DEFAULT_SAMPLING: Final[Mapping[str, Any]] = MappingProxyType({"temperature": 0.0, "max_tokens": 512})
MAX_FAILURES_IN_A_ROW: Final = 20
"""The run stops after this many failed calls in a row, because the server seems to be down."""
_RETRIED_STATUS: Final = frozenset({408, 409, 425, 429, *range(500, 600)})
_MAX_RETRY_AFTER: Final = 600.0
_LIST_SECONDS: Final = 15.0
_KEY_LIKE: Final = re.compile(r"\b(?:sk|pk|key|Bearer)[-_ ][A-Za-z0-9*_\-./+=]{8,}")
NO_KEY: Final = "none"
"""Sent in place of a missing API key, which local servers do not need."""
_MIN_SECRET: Final = 4
_KEY_PIECE: Final = 6
"""A substring of the key of this length is masked in messages."""


@dataclass(frozen=True)
class ChatSettings:
    """Settings of the calls to a server.

    Attributes:
        sampling: fields of the request beside model and messages; part of the cache key.
        concurrency: maximum number of calls in flight.
        per_minute: maximum number of HTTP requests per minute, retries included; None for no limit.
        retries: number of retries of a call, with exponential back-off; Retry-After is honoured.
        timeout: seconds for one HTTP request.
        prices: prices of a million prompt tokens and of a million completion tokens, or None if unknown.
        budget: maximum cost of the requests of one ``complete``, including earlier runs; needs ``prices``. A call that
            could exceed it is not started: before the server reports usage, a prompt counts as one token per byte and
            an answer as ``max_tokens``.
        max_calls: maximum number of answered calls, including earlier runs.
        api_key_env: environment variable that holds the API key.
    """

    sampling: Mapping[str, Any] = field(default_factory=lambda: dict(DEFAULT_SAMPLING))
    concurrency: int = 8
    per_minute: float | None = None
    retries: int = 5
    timeout: float = 120.0
    prices: tuple[float, float] | None = None
    budget: float | None = None
    max_calls: int | None = None
    api_key_env: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        limits = {"concurrency": self.concurrency, "per_minute": self.per_minute, "timeout": self.timeout}
        for name, value in limits.items():
            if value is not None and not value > 0:
                raise InputError(Problem(f"chat {name}", "a number above 0", str(value), "correct it"))
        if self.budget is not None and self.prices is None:
            raise InputError(Problem("chat budget", "prices too", "none", "give the price of a million tokens"))
        if self.budget is not None and self.answer_tokens is None:
            raise InputError(Problem("chat budget", "max_tokens in the sampling", "none", "limit the answers' length"))

    @property
    def answer_tokens(self) -> int | None:
        """Maximum number of tokens in an answer, or None for no limit."""
        limit = self.sampling.get("max_completion_tokens", self.sampling.get("max_tokens"))
        return int(limit) if limit is not None else None


def endpoint_name(url: str) -> str:
    """Returns a URL without user, password and trailing slash, as it is shown in files and messages.

    >>> endpoint_name("http://me:secret@localhost:8000/v1/")
    'http://localhost:8000/v1'

    Raises:
        InputError: if it is not an http(s) URL, or has a query, which may contain a key and would not be sent.
    """
    expected = "the base address of an OpenAI-compatible API, such as http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:  # such as a port that is not a number
        raise InputError(Problem("chat endpoint", expected, "a malformed address", "correct it")) from error
    if not valid:
        raise InputError(Problem("chat endpoint", expected, preview(bare), "give scheme, host and path"))
    if parts.query or parts.fragment:
        raise InputError(Problem("chat endpoint", expected, f"{bare} with a query", "remove the query"))
    if bare.endswith("/chat/completions"):
        shorter = bare.removesuffix("/chat/completions")
        raise InputError(Problem("chat endpoint", expected, bare, f"leave out /chat/completions: {shorter}"))
    return bare


def api_key(variable: str) -> str:
    """Returns the API key in an environment variable, stripped of white space, or ``none`` if it is unset.

    Raises:
        InputError: if it has characters that an HTTP header cannot contain; the message shows no part of the key.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        found = "line breaks, control characters or non-ASCII characters in it"
        raise InputError(Problem(f"${variable}", "an API key on one line", found, "set it to the key only"))
    return key or NO_KEY


def masked(message: str, *secrets: str) -> str:
    """Returns a message on one line, with secrets, parts of them and everything that looks like a key masked.

    >>> masked("Incorrect API key: abcdEFGH1234/rest of it", "abcdEFGH1234/secret")
    'Incorrect API key: [key]rest of it'
    """
    line = " ".join(message.split())
    for secret in secrets:
        for form in (secret, json.dumps(secret)[1:-1], secret.replace("/", "\\/"), quote(secret, safe="")):
            line = line.replace(form, "[key]") if len(form) >= _MIN_SECRET and secret != NO_KEY else line
        pieces = {secret[start : start + _KEY_PIECE] for start in range(len(secret) - _KEY_PIECE + 1)}
        hidden = [False] * len(line)
        for start in range(len(line) - _KEY_PIECE + 1):
            if line[start : start + _KEY_PIECE] in pieces:
                hidden[start : start + _KEY_PIECE] = [True] * _KEY_PIECE
        line = "".join(
            ("" if index and hidden[index - 1] else "[key]") if hide else letter
            for index, (letter, hide) in enumerate(zip(line, hidden, strict=True))
        )
    return _KEY_LIKE.sub("[key]", line)[:MESSAGE_LIMIT]


class LLMSession:
    """Calls to one server from one event loop; use it with ``async with``.

    Attributes:
        sent: HTTP requests so far, retries included.
    """

    def __init__(self, url: str, settings: ChatSettings) -> None:
        self.name, self.settings, self.sent = endpoint_name(url), settings, 0
        self._no_key = "" if os.environ.get(settings.api_key_env) else f" (${settings.api_key_env} is not set)"
        key, address = api_key(settings.api_key_env), httpx.URL(url.rstrip("/"))
        self._secrets = (key, unquote(address.password))
        self._gap = 60.0 / settings.per_minute if settings.per_minute else 0.0
        self._next = 0.0
        try:
            self._http = httpx.AsyncClient(
                auth=(address.username, address.password) if address.userinfo else None,
                headers={} if address.userinfo else {"Authorization": f"Bearer {key}"},
                timeout=httpx.Timeout(settings.timeout, connect=min(settings.timeout, 30.0)),
                follow_redirects=True,
                verify=_certificates(),
                limits=httpx.Limits(max_connections=None),
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise InputError(_proxy_problem(error)) from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def models(self) -> dict[str, dict[str, Any]] | None:
        """Returns id -> entry of the models that the server lists, or None if it lists none."""
        try:
            entries = (await self._send("GET", "/models", timeout=_LIST_SECONDS)).json()["data"]
            return {str(entry["id"]): entry for entry in entries} or None
        except (httpx.HTTPError, ValueError, TypeError, KeyError, RecursionError):
            return None

    async def ask(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        sampling: Mapping[str, Any],
        key: str,
        retry_malformed: bool = False,
    ) -> CallResult:
        """Makes one call, with retries, and returns its result; a failed call also returns a result.

        Args:
            model: name of the model.
            messages: chat messages.
            sampling: other fields of the request (temperature, max_tokens, seed, ...).
            key: sent as ``Idempotency-Key``; servers that support the header bill a retried request once.
            retry_malformed: retry if the reply is malformed; the server may bill both requests.
        """
        body = {"model": model, "messages": [dict(message) for message in messages], **sampling}
        for attempt in range(self.settings.retries + 1):
            result, wait = await self._once(body, key)
            garbled = retry_malformed and (result.failure or "").startswith("malformed") and not result.tool_calls
            if attempt == self.settings.retries or (wait is None and not garbled):
                break
            backoff = min(0.5 * 2**attempt, 8.0) * random.uniform(0.75, 1.0)
            await asyncio.sleep(max(backoff, wait or 0.0))
        return result

    async def _once(self, body: Mapping[str, Any], key: str) -> tuple[CallResult, float | None]:
        """Sends one request; returns its result and the minimum seconds before a retry, or None for no retry."""
        try:
            headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
            reply = await self._send("POST", "/chat/completions", content=json.dumps(body), headers=headers)
            result = self._masked(read_reply(reply.content, reply.status_code))
        except httpx.TimeoutException:
            return CallResult(failure="timeout: no answer in time, at every try"), 0.0
        except httpx.TransportError as error:
            return self._masked(CallResult(failure=f"connection: {error or type(error).__name__}")), 0.0
        except (httpx.HTTPError, ValueError, RecursionError) as error:
            return self._masked(CallResult(failure=f"malformed reply: {error}")), None
        status = re.match(r"status (\d+)", result.failure or "")
        retried = status is not None and int(status[1]) in _RETRIED_STATUS and not (result.fatal or result.refused)
        return result, _retry_after(reply.headers) if retried else None

    async def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        now = asyncio.get_running_loop().time()
        slot = max(now, self._next)
        self._next = slot + self._gap
        self.sent += 1
        if slot > now:
            await asyncio.sleep(slot - now)
        return await self._http.request(method, f"{self.name}{path}", **content)

    def _masked(self, result: CallResult) -> CallResult:
        if result.failure is None:
            return result
        failure = masked(result.failure, *self._secrets)
        failure += self._no_key if failure.startswith(("status 401", "status 403")) else ""
        return replace(result, failure=failure)


async def run_workers(count: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs ``count`` workers at the same time; the first error cancels the others and is raised."""
    tasks = [asyncio.create_task(work()) for _ in range(count)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@cache
def _certificates() -> SSLContext:
    """Returns the CA certificates; they are read once per process, because this takes 0.1 s."""
    return httpx.create_ssl_context()


def _proxy_problem(error: Exception) -> Problem:
    named = [name for name in os.environ if name.lower() in ("all_proxy", "http_proxy", "https_proxy")]
    location = f"proxy of {', '.join(f'${name}' for name in sorted(named)) or 'the system'}"
    if isinstance(error, ImportError):
        hint = "pip install 'httpx[socks]', or unset the variable"
        return Problem(location, "the package socksio for a SOCKS proxy", "none", hint)
    hint = "write it as http://HOST:PORT or socks5://HOST:PORT, or unset the variable"
    return Problem(location, "a proxy address with a scheme that httpx knows", "another one", hint)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Returns the seconds that Retry-After (seconds or a date) asks to wait, at most ten minutes."""
    text = headers.get("retry-after", "")
    try:
        milliseconds = headers.get("retry-after-ms")
        seconds = float(milliseconds) / 1000 if milliseconds else float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            seconds = 0.0
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER) if math.isfinite(seconds) else 0.0


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request: messages, a label (the row id), and an index that distinguishes repeated requests."""

    messages: tuple[Mapping[str, Any], ...]
    label: str = ""
    repeat: int = 0


@dataclass(frozen=True, slots=True)
class ChatReply:
    """The answer to one request; if ``text`` is None, ``failure`` says why."""

    request: ChatRequest
    text: str | None
    failure: str | None
    finish: str | None
    cached: bool


@dataclass(slots=True)
class Spending:
    """Calls, tokens and cost of some requests, including earlier runs; ``cost`` needs prices."""

    calls: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    cost: float = 0.0

    def add(self, record: Mapping[str, Any]) -> None:
        """Adds a record of the cache file; ``uncounted`` counts answers for which the server reported no usage."""
        if record.get("failure") is not None:
            self.failed += 1
            return
        self.calls += 1
        self.uncounted += record.get("prompt_tokens") is None or record.get("completion_tokens") is None
        self.prompt_tokens += record.get("prompt_tokens") or 0
        self.completion_tokens += record.get("completion_tokens") or 0
        self.cost += record.get("cost") or 0.0


class LLMClient:
    """A model at an endpoint, with a cache file of its answers.

    >>> client = LLMClient("http://localhost:8000/v1", "my-model", "chat.jsonl")  # doctest: +SKIP
    >>> client.complete([ChatRequest(({"role": "user", "content": "Hello"},))])[0].text  # doctest: +SKIP
    'Hello!'

    Attributes:
        spending: cost of the requests of the last ``complete``, including earlier runs.
        sent: number of HTTP requests of the last ``complete``, retries included.
        stopped: why requests of the last ``complete`` were not made, or None.
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
        """Returns the cache key: the SHA-256 of everything that the answer depends on."""
        asked = {
            "endpoint": self.name,
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
            "sampling": dict(self.settings.sampling),
            "repeat": request.repeat,
        }
        return sha256_json(asked)

    def complete(self, requests: Sequence[ChatRequest], progress: bool = True) -> list[ChatReply]:
        """Returns one reply per request, in order; requests whose answer is in the cache file are not sent.

        Raises:
            InputError: if the cache file is damaged or in use, or the endpoint refuses every call (wrong key, unknown
                model).
            KeyboardInterrupt: after Ctrl-C, once the calls in flight are answered and stored.
        """
        with Journal(self.cache_path) as journal:
            self.spending, self.sent, self.stopped = Spending(), 0, None
            keys = [self.key(request) for request in requests]
            wanted = set(keys)
            answers: dict[str, Mapping[str, Any]] = {}
            for record in journal.records:
                if record["key"] in wanted:
                    self._count_record(record, answers)
            cached = {key for key in keys if key in answers and answers[key]["failure"] is None}
            calls = {key: request for key, request in zip(keys, requests, strict=True) if key not in cached}
            title = f"{self.model} ({len(cached)} of {len(wanted)} cached)"
            if calls:
                with tqdm(total=len(calls), desc=title, unit="call", disable=not progress) as bar:
                    asyncio.run(_CompletionRun(self, journal, answers, deque(calls.items()), bar).go())
        replies = []
        for request, key in zip(requests, keys, strict=True):
            answer = answers.get(key, {"failure": f"not asked: {self.stopped}"})
            failure, finish = answer["failure"], answer.get("finish")
            replies.append(ChatReply(request, answer.get("text"), failure, finish, key in cached))
        return replies

    def _count_record(self, record: Mapping[str, Any], answers: dict[str, Mapping[str, Any]]) -> None:
        """Counts a record and stores it, unless it is a failure and there is an answer already."""
        self.spending.add(record)
        if record["failure"] is None or record["key"] not in answers:
            answers[record["key"]] = record


@dataclass
class _CompletionRun:
    """One run of a client over its open requests: workers, budget and stopping."""

    client: LLMClient
    journal: Journal
    answers: dict[str, Mapping[str, Any]]
    waiting: deque[tuple[str, ChatRequest]]
    bar: Any
    reserved: dict[str, float] = field(default_factory=dict)
    failures: int = 0
    fatal: str | None = None
    interrupted: bool = False
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def go(self) -> None:
        """Makes the calls; returns when all are made, or when the run is stopped and no call is in flight."""
        settings = self.client.settings
        async with LLMSession(self.client.endpoint, settings) as session:
            try:
                with self._first_interrupt_finishes():
                    workers = min(settings.concurrency, len(self.waiting))
                    await run_workers(workers, lambda: self._work(session))
            finally:
                self.client.sent = session.sent
        if self.interrupted:
            raise KeyboardInterrupt
        if self.fatal:
            location = f"chat endpoint {self.client.name}, model {self.client.model}"
            hint = f"check the address, the model's name and ${settings.api_key_env}"
            raise InputError(Problem(location, "an answer", self.fatal, hint))

    async def _work(self, session: LLMSession) -> None:
        while await self._admitted():
            key, request = self.waiting.popleft()
            self.reserved[key] = self._highest_cost(request)
            result = await session.ask(self.client.model, request.messages, self.client.settings.sampling, key)
            async with self.changed:
                self.reserved.pop(key)
                self._keep(key, request, result)
                self.changed.notify_all()

    async def _admitted(self) -> bool:
        """Waits until the next call fits the budget; returns False if no more calls are to be made."""
        async with self.changed:
            while True:
                if self.client.stopped or not self.waiting:
                    return False
                reason = self._over_limit(self.waiting[0][1])
                if reason is None:
                    return True
                if not self.reserved:
                    self.client.stopped = reason
                    return False
                await self.changed.wait()

    def _over_limit(self, request: ChatRequest) -> str | None:
        settings, spent = self.client.settings, self.client.spending
        if settings.max_calls is not None and spent.calls + len(self.reserved) >= settings.max_calls:
            return f"the limit of {settings.max_calls} calls is reached ({spent.calls} answered)"
        if settings.budget is not None:
            due = spent.cost + sum(self.reserved.values()) + self._highest_cost(request)
            if due > settings.budget:
                return f"the budget of {settings.budget:g} allows no further call ({spent.cost:.6g} spent)"
        return None

    def _highest_cost(self, request: ChatRequest) -> float:
        """Upper bound of a call's cost: a token has at least one byte; a chat template adds about 64 per message."""
        prices, answer = self.client.settings.prices, self.client.settings.answer_tokens
        if prices is None or answer is None:
            return 0.0
        size = len(json.dumps([dict(message) for message in request.messages], ensure_ascii=False).encode())
        return ((size + 64 * len(request.messages)) * prices[0] + answer * prices[1]) / 1e6

    def _keep(self, key: str, request: ChatRequest, result: CallResult) -> None:
        record = {
            "key": key,
            "label": request.label,
            "repeat": request.repeat,
            "endpoint": self.client.name,
            "model": self.client.model,
            "served": result.served,
            "text": result.text,
            "finish": result.finish,
            "failure": result.failure,
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "cost": self._cost(result),
        }
        self.journal.append(record)
        self.client._count_record(record, self.answers)
        self.bar.update()
        self.failures = self.failures + 1 if result.failure is not None and not result.refused else 0
        if result.fatal:
            self.fatal = result.failure
            self.client.stopped = f"the endpoint refuses every call: {result.failure}"
        elif self.failures >= MAX_FAILURES_IN_A_ROW:
            self.client.stopped = f"{self.failures} calls in a row failed, the last by {result.failure}"

    def _cost(self, result: CallResult) -> float | None:
        prices = self.client.settings.prices
        if prices is None or result.prompt_tokens is None or result.completion_tokens is None:
            return None
        return (result.prompt_tokens * prices[0] + result.completion_tokens * prices[1]) / 1e6

    @contextlib.contextmanager
    def _first_interrupt_finishes(self) -> Iterator[None]:
        """Lets calls in flight finish after the first Ctrl-C, as they are paid for; a second Ctrl-C drops them."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            self.interrupted, self.client.stopped = True, "interrupted"
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, signal.default_int_handler)

        try:
            loop.add_signal_handler(signal.SIGINT, stop)
        except (NotImplementedError, RuntimeError, ValueError):  # not the main thread, or not supported here
            yield
            return
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)
