"""Backend ``openai``: any server with OpenAI's chat completions API.

The first question of a path is asked alone. When it is answered, the others follow at once and find the images, which
come first in the prompt, in the server's prefix cache. First questions of other paths use the free connections.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final

from scale_vqa_eval.chat_replies import CallResult
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.llm import ChatSettings, LLMSession, run_workers
from scale_vqa_eval.predict.backend import (
    NEUTRAL,
    AnswerSink,
    InferenceConfig,
    ModelAnswer,
    context_problem,
    largest_request,
)
from scale_vqa_eval.predict.requests import Request
from scale_vqa_eval.text import restore_thoughts

MAX_UNREACHABLE: Final = 20
"""The run stops after this many questions in a row without a reply, because the server seems to be down."""

_UNREACHABLE: Final = re.compile(r"connection:|timeout:|status (?:429|5\d\d)")
_CUT_SHORT: Final = re.compile(r"output limit was reached", re.IGNORECASE)
"""Error of a model with hidden reasoning that may generate only one token; the check counts it as an answer."""
_NO_CREDIT: Final = re.compile(r"status 402|insufficient_quota")
_TOO_LARGE: Final = re.compile(r"status 413|too large|image\b.*\b(?:exceed|larger|size|dimension)", re.IGNORECASE)
_CONTEXT_HINT: Final = "give fewer --max-pixels or --max-tokens, or start the server with a longer context"
_MINIMUM_HINT: Final = "give more --max-tokens"
_HINTS: Final = (
    (
        r"tokens?\b.*(?:minimum|at least|>=|greater than)|(?:minimum|at least|>=) ?\d* (?:output )?tokens",
        _MINIMUM_HINT,
    ),
    (
        r"only.*\bstream|\bstream(?:ing)?\b.*(?:only|mode|must|required|enable)",
        "give --option stream=true: this model answers in a stream only",
    ),
    (r"max_completion_tokens", "give --option max_completion_tokens=N, which is sent in place of --max-tokens"),
    (
        r"'?(temperature|top_p|seed|structured_outputs)'?.*(not support|only the default|unrecognized)|"
        r"(unsupported|unrecognized|unknown).*(temperature|top_p|seed|structured_outputs)",
        "the server does not accept this field: set a value that it accepts with --option, such as temperature=1",
    ),
    (
        r"at most \d+ image|too many images|image count|number of images",
        "allow more images per question on the server (vLLM: --limit-mm-per-prompt)",
    ),
    (
        r"multimodal|vision|image input|image_url|does not support image",
        "name a model that accepts images, or use --ablate blind",
    ),
    (r"context|max_model_len|max_tokens|too long|tokens", _CONTEXT_HINT),
)
"""Pattern of an error that all questions, or the largest, would get -> how to fix it."""

_NEUTRAL_SAMPLING: Final = {**NEUTRAL, "top_k": -1}
"""Sent to the servers in ``_ENGINES``, which would otherwise use the values of the model's generation config."""
_ENGINES: Final = ("vllm", "sglang")


@dataclass
class OpenAIBackend:
    """An OpenAI-compatible server.

    Attributes:
        url: base URL, such as ``http://localhost:8000/v1``.
        settings: settings of the calls, except ``sampling``, which comes from the run.
        own_fields: additional fields for this kind of server, set by ``check``.
    """

    url: str
    settings: ChatSettings = field(default_factory=lambda: ChatSettings(concurrency=16, retries=4, timeout=600.0))
    own_fields: dict[str, Any] = field(default_factory=dict)

    def identity(self, config: InferenceConfig) -> dict[str, Any]:
        """The URL is not part of the provenance, because a model may be moved to another server."""
        return {"other_sampling": f"{NEUTRAL} if the server is vLLM or SGLang, else the server's own"}

    def versions(self) -> dict[str, str]:
        return {"httpx": version("httpx")}

    def check(self, config: InferenceConfig, paths: Sequence[Sequence[Request]]) -> list[str]:
        """Lists the server's models and generates one token for the largest question; returns warnings.

        Raises InputError only for errors that all questions would get: no connection, a wrong key or model, an
        unsupported request; not for a content filter, or an error that another question does not get.
        """
        return asyncio.run(Preflight(self, config, paths).go())

    def run(self, config: InferenceConfig, paths: Sequence[Sequence[Request]], sink: AnswerSink) -> None:
        asyncio.run(QuestionRun(self, config, paths, sink).go())


class Preflight:
    """The check before a run."""

    def __init__(self, backend: OpenAIBackend, config: InferenceConfig, paths: Sequence[Sequence[Request]]) -> None:
        self.backend, self.config, self.paths = backend, config, paths
        self.largest = largest_request(paths, config)

    async def go(self) -> list[str]:
        async with LLMSession(self.backend.url, self.backend.settings) as session:
            self.location = f"{session.name}, model {self.config.model}"
            models = await session.models() or {}
            listed = models.get(self.config.model) or models.get(f"{self.config.model}:latest") or {}
            self.names = ", ".join(sorted(models)[:5])
            if any(entry.get("owned_by") in _ENGINES for entry in models.values()):
                self.backend.own_fields = dict(_NEUTRAL_SAMPLING)
            notes = []
            if models and not listed:
                notes.append(
                    f"the server lists the models {self.names} and not {preview(self.config.model)}; asking it"
                )
            result = await self._asked(session, self.largest)
            if result.failure is not None and not _CUT_SHORT.search(result.failure):
                notes.append(await self._judged(session, result))
        context = listed.get("max_model_len")
        needed = (result.prompt_tokens or 0) + self.config.sampling.max_tokens
        if isinstance(context, int) and needed > context:
            tokens = self.config.sampling.max_tokens
            raise InputError(context_problem(self.location, context, result.prompt_tokens, tokens, _CONTEXT_HINT))
        return notes

    async def _asked(self, session: LLMSession, request: Request) -> CallResult:
        messages = self.config.server_messages(request)
        return await self._tried(session, messages, request_body(self.backend, self.config, request, 0))

    async def _tried(self, session: LLMSession, messages: list[dict[str, Any]], body: dict[str, Any]) -> CallResult:
        """Asks for one token, then for a complete answer if the server refuses such a low limit."""
        limit = "max_completion_tokens" if "max_completion_tokens" in self.config.options else "max_tokens"
        result = await session.ask(self.config.model, messages, body | {limit: 1}, "check")
        failure = result.failure or ""
        clear = result.fatal or result.refused or self._hint(result) not in (None, _CONTEXT_HINT, _MINIMUM_HINT)
        if clear or not failure.startswith("status 4") or _CUT_SHORT.search(failure):
            return result
        return await session.ask(self.config.model, messages, body, "check with a whole answer")

    async def _judged(self, session: LLMSession, result: CallResult) -> str:
        """Returns a warning about a failed check; raises InputError if no question would be answered."""
        failure = result.failure or ""
        shown = f"the check with {self.largest.item.question.id} got no answer ({failure}); going on"
        if result.refused:
            return shown
        hint = self._hint(result)
        if hint is None:
            others = [request for path in self.paths for request in path if request is not self.largest]
            if not others:
                return shown
            second = await self._asked(session, min(others, key=lambda request: (request.image_count, request.key[0])))
            if second.failure is None or second.refused:
                return shown
            hint = "see the server's log; if it is busy, wait and run the same command again"
            if failure.startswith("malformed"):
                hint = f"check that --base-url is the address of the API; otherwise {hint}"
            elif _TOO_LARGE.search(failure):
                hint = "give fewer --max-pixels, or raise the server's limit on the size of images and requests"
        asked = f"an answer to {self.largest.item.question.id} with {self.largest.image_count} images"
        raise InputError(Problem(self.location, asked, failure, hint))

    def _hint(self, result: CallResult) -> str | None:
        """Returns how to fix an error that all questions would get, or None if others may be answered."""
        failure, url = result.failure or "", self.backend.url.rstrip("/")
        status = failure.removeprefix("status ")[:3]
        if failure.startswith("connection:"):
            return "start the server, or correct --base-url"
        if status in ("401", "403"):
            variable = self.backend.settings.api_key_env
            return f"put the server's key into ${variable}, or name another variable by --api-key-env"
        if (status in ("404", "405") or failure.startswith("malformed")) and not re.search(r"/v\d", url):
            return "add the path of the API to the address, usually /v1: --base-url .../v1"
        if _NO_CREDIT.search(failure):
            return "add credit to the account of this key, then run the same command again"
        if result.fatal:
            known = f", or name one of its models ({self.names})" if self.names else ""
            return f"correct --base-url{known}"
        if _UNREACHABLE.match(failure) or failure.startswith("malformed"):
            return None
        return next((hint for pattern, hint in _HINTS if re.search(pattern, failure, re.IGNORECASE)), None)


def request_body(backend: OpenAIBackend, config: InferenceConfig, request: Request, sample: int) -> dict[str, Any]:
    """Returns the fields of a request besides model and messages; the user's --option values override the others."""
    sampling = config.sampling
    body: dict[str, Any] = {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens}
    body |= backend.own_fields
    if sampling.temperature > 0:
        body |= {"top_p": sampling.top_p, "seed": sampling.seed + sample}
    if config.structured:
        body["structured_outputs"] = {"choice": config.prompt.choices(len(request.options))}
    if "max_completion_tokens" in config.options:
        del body["max_tokens"]
    return body | dict(config.options)


@dataclass
class QuestionRun:
    """One run over the open questions."""

    backend: OpenAIBackend
    config: InferenceConfig
    paths: Sequence[Sequence[Request]]
    sink: AnswerSink
    unreachable: list[tuple[Request, str]] = field(default_factory=list)
    fatal: str | None = None

    async def go(self) -> None:
        """Asks all questions; raises InputError if the server refuses every call or is down."""
        self.waiting = deque((path[0], path[1:]) for path in self.paths if path)
        self.leading, self.changed = 0, asyncio.Condition()
        settings = self.backend.settings
        async with LLMSession(self.backend.url, settings) as session:
            workers = min(settings.concurrency, sum(map(len, self.paths)))
            await run_workers(workers, lambda: self._work(session))
        if self.fatal:
            location = f"{session.name}, model {self.config.model}"
            hint = f"check the server and ${settings.api_key_env}, then run the same command again to go on"
            raise InputError(Problem(location, "answers", self.fatal, hint))
        for request, reason in self.unreachable:
            self.sink.fail(request, reason)

    async def _work(self, session: LLMSession) -> None:
        while (following := await self._next()) is not None:
            request, followers = following
            try:
                await self._ask(session, request)
            finally:
                async with self.changed:
                    self.leading -= bool(followers)
                    # before other paths, while the images are in the server's cache
                    self.waiting.extendleft((follower, ()) for follower in reversed(followers))
                    self.changed.notify_all()

    async def _next(self) -> tuple[Request, Sequence[Request]] | None:
        """Waits for the next question and returns it with its followers, or None if there is none left."""
        async with self.changed:
            while not self.waiting and self.leading and not self.fatal:
                await self.changed.wait()
            if self.fatal or not self.waiting:
                return None
            found = self.waiting.popleft()
            self.leading += bool(found[1])
            return found

    async def _ask(self, session: LLMSession, request: Request) -> None:
        try:
            results, answer = await self._results(session, request)
        except InputError as error:
            self.sink.fail(request, str(error))
            return
        failed = next((result for result in results if result.failure is not None), None)
        reason = "" if failed is None else failed.failure or ""
        if failed is not None and failed.fatal:
            self.fatal = self.fatal or f"refused: {reason}"
        elif _UNREACHABLE.match(reason):
            self.unreachable.append((request, reason))
            if len(self.unreachable) >= MAX_UNREACHABLE and not self.fatal:
                self.fatal = f"{len(self.unreachable)} questions in a row without one, the last by {reason}"
        else:
            while self.unreachable:  # the server is up, so earlier failures concern single questions
                self.sink.fail(*self.unreachable.pop(0))
            if failed is None:
                self.sink.keep(request, answer or _answer(results))
            else:
                self.sink.fail(request, reason)

    async def _results(self, session: LLMSession, request: Request) -> tuple[Sequence[CallResult], ModelAnswer | None]:
        """Asks one question; returns the results of its calls, and the answer if the calls are not its samples."""
        # in a thread, because encoding images would block the other calls
        messages = await asyncio.to_thread(self.config.server_messages, request)
        results = []
        for sample in range(self.config.sampling.n):
            body = request_body(self.backend, self.config, request, sample)
            key = hashlib.sha256(repr((request.key, sample, self.config.model, body)).encode()).hexdigest()
            results.append(await session.ask(self.config.model, messages, body, key, retry_malformed=True))
        return results, None


def _answer(results: Sequence[CallResult]) -> ModelAnswer:
    counts = [result.completion_tokens for result in results]
    return ModelAnswer(
        responses=tuple(restore_thoughts(result.text or "", result.reasoning) for result in results),
        finish=results[0].finish,
        prompt_tokens=results[0].prompt_tokens,
        completion_tokens=None if None in counts else sum(count for count in counts if count is not None),
        cached_tokens=results[0].cached_tokens,
    )
