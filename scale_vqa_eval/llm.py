"""The client for OpenAI-compatible chat servers, used by ``predict``, ``audit --chat`` and ``curate``.

``LLMSession`` makes single calls: it keeps to a rate, retries what can be retried, honours Retry-After, reads the
reply shapes that servers use, and takes keys out of every message. ``LLMClient.complete`` asks many requests within a
budget and keeps each answer on disk under the hash of what was asked (endpoint, model, messages, sampling, repeat). A
run that was killed, limited or refused continues where it stopped, and no answer is paid for twice. A failed call is
kept with its reason and made again next time. A kill costs at most the calls in flight.
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
from types import MappingProxyType, TracebackType
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
"""After so many failed calls in a row the server counts as down, and the run ends."""
_RETRIED_STATUS: Final = frozenset({408, 409, 425, 429, *range(500, 600)})
_MAX_RETRY_AFTER: Final = 600.0
_LIST_SECONDS: Final = 15.0
_KEY_LIKE: Final = re.compile(r"\b(?:sk|pk|key|Bearer)[-_ ][A-Za-z0-9*_\-./+=]{8,}")
NO_KEY: Final = "none"
"""What is sent as the key where there is none: local servers want none."""
_MIN_SECRET: Final = 4
_KEY_PIECE: Final = 6
"""So many characters in a row that a message shares with the key are taken for a part of it."""


@dataclass(frozen=True)
class ChatSettings:
    """How a server is asked.

    Attributes:
        sampling: fields of the request beside model and messages; part of the cache key.
        concurrency: maximum of calls in flight.
        per_minute: maximum of HTTP requests a minute, retries included; None for no limit.
        retries: of one call, with back-off, Retry-After honoured.
        timeout: seconds for one HTTP request.
        prices: price of a million prompt tokens and of a million completion tokens; None where unknown.
        budget: what the requests of one ``complete`` may cost, earlier runs included; needs ``prices``. No call starts
            that could exceed it: until the server has counted, a prompt counts as one token a byte and an answer as
            ``max_tokens``.
        max_calls: maximum of answered calls, earlier runs included.
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
            raise InputError(Problem("chat budget", "prices beside it", "none", "give the price of a million tokens"))
        if self.budget is not None and self.answer_tokens is None:
            raise InputError(Problem("chat budget", "max_tokens in the sampling", "none", "limit the answers' length"))

    @property
    def answer_tokens(self) -> int | None:
        """Maximum of tokens in an answer, None for no limit."""
        limit = self.sampling.get("max_completion_tokens", self.sampling.get("max_tokens"))
        return int(limit) if limit is not None else None


def endpoint_name(url: str) -> str:
    """Returns an endpoint without user, password and trailing slash: its name in files and messages.

    >>> endpoint_name("http://me:secret@localhost:8000/v1/")
    'http://localhost:8000/v1'

    Raises:
        InputError: where it is not an http(s) address, or has a query (which may hold a key, and is not sent on).
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
        raise InputError(Problem("chat endpoint", expected, f"{bare} with a query", "leave out what follows the path"))
    if bare.endswith("/chat/completions"):
        shorter = bare.removesuffix("/chat/completions")
        raise InputError(Problem("chat endpoint", expected, bare, f"leave out /chat/completions: {shorter}"))
    return bare


def api_key(variable: str) -> str:
    """Returns the API key of an environment variable without white space around it; ``none`` where it is unset.

    Raises:
        InputError: where it holds characters that an HTTP header cannot carry; no part of it is shown.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        found = "line breaks, control characters or letters outside of ASCII inside of it"
        raise InputError(Problem(f"${variable}", "an API key on one line", found, "set it to the key alone"))
    return key or NO_KEY


def masked(message: str, *secrets: str) -> str:
    """Returns one line of a message with everything that is, is part of, or looks like a secret taken out.

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

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def models(self) -> dict[str, dict[str, Any]] | None:
        """Returns id -> entry of the models that the server lists; None where it lists none."""
        try:
            entries = (await self._send("GET", "/models", timeout=_LIST_SECONDS)).json()["data"]
            return {str(entry["id"]): entry for entry in entries} or None
        except (httpx.HTTPError, ValueError, TypeError, KeyError):
            return None

    async def ask(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        sampling: Mapping[str, Any],
        key: str,
        retry_malformed: bool = False,
    ) -> CallResult:
        """Asks once, retries included, and returns the result; failures are results too.

        Args:
            model: name of the model.
            messages: chat messages.
            sampling: further fields of the request (temperature, max_tokens, seed, ...).
            key: sent as ``Idempotency-Key``, so that a server that knows the header bills a retried request once.
            retry_malformed: ask again where the reply is garbled; the server may bill both.
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
        """Sends one request; returns its result, and how long to wait at least before a retry, None for no retry."""
        try:
            headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
            reply = await self._send("POST", "/chat/completions", content=json.dumps(body), headers=headers)
            result = self._masked(read_reply(reply.content, reply.status_code))
        except httpx.TimeoutException:
            return CallResult(failure="timeout: no answer in time, at every try"), 0.0
        except httpx.TransportError as error:
            return self._masked(CallResult(failure=f"connection: {error or type(error).__name__}")), 0.0
        except (httpx.HTTPError, ValueError) as error:
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
    """Runs ``count`` copies of a worker; the first error, such as a full disk, ends the others and is raised."""
    tasks = [asyncio.create_task(work()) for _ in range(count)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@cache
def _certificates() -> SSLContext:
    """Returns the certificates that servers are checked against; reading them takes 0.1 s, so once a process."""
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
    """Returns the seconds that a server asks to wait (Retry-After in seconds or as a date), at most ten minutes."""
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
    """One request: messages, a label for people (the row id), and the number of its repeat."""

    messages: tuple[Mapping[str, Any], ...]
    label: str = ""
    repeat: int = 0


@dataclass(frozen=True, slots=True)
class ChatReply:
    """The answer to one request; where ``text`` is None, ``failure`` says why."""

    request: ChatRequest
    text: str | None
    failure: str | None
    finish: str | None
    cached: bool


@dataclass(slots=True)
class Spending:
    """What the answers to some requests have cost, earlier runs included; ``cost`` needs prices."""

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


class LLMClient:
    """A model behind an endpoint, with the file that keeps its answers.

    >>> client = LLMClient("http://localhost:8000/v1", "my-model", "chat.jsonl")  # doctest: +SKIP
    >>> client.complete([ChatRequest(({"role": "user", "content": "Hello"},))])[0].text  # doctest: +SKIP
    'Hello!'

    After ``complete``: ``spending`` (on its requests, earlier runs included), ``sent`` (HTTP requests of this run,
    retries included) and ``stopped`` (why requests were not made, or None).
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
        return sha256_json(asked)

    def complete(self, requests: Sequence[ChatRequest], progress: bool = True) -> list[ChatReply]:
        """Returns one reply per request, in order; only what the cache file does not hold is asked.

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
                    self._count_record(record, answers)
            cached = {key for key in keys if key in answers and answers[key]["failure"] is None}
            calls = {key: request for key, request in zip(keys, requests, strict=True) if key not in cached}
            title = f"{self.model} ({len(cached)} of {len(wanted)} cached)"
            if calls:
                with tqdm(total=len(calls), desc=title, unit="call", disable=not progress) as bar:
                    asyncio.run(_CompletionRun(self, journal, answers, deque(calls.items()), bar).go())
            return [
                self._reply(request, key, answers, key in cached) for request, key in zip(requests, keys, strict=True)
            ]

    def _count_record(self, record: Mapping[str, Any], answers: dict[str, Mapping[str, Any]]) -> None:
        """Counts a record, read or new; an answer is never replaced by a later failure."""
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


@dataclass
class _CompletionRun:
    """One pass over the open calls of a client: workers, budget, and the ways to stop."""

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
        """Makes the calls; returns once all are made or the run is stopped and nothing is in flight."""
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
        """Waits until the next call fits the budget; False once no more calls are to be made."""
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
        """Upper bound of a call's cost: a token is at least a byte, a chat template adds some dozen a message."""
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
        """Makes the first Ctrl-C finish the calls in flight, which are paid already; a second one drops them."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            self.interrupted, self.client.stopped = True, "interrupted"
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, signal.default_int_handler)

        try:
            loop.add_signal_handler(signal.SIGINT, stop)
        except (NotImplementedError, RuntimeError, ValueError):  # not the main thread, or a platform without it
            yield
            return
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)
