"""Backend ``openai``: any server that speaks OpenAI's chat completions, asked so that its caches are of use.

The first question of a path goes alone; once it is answered the others follow at once, so that a prefix cache holds
the images (which stand first) when they come. Meanwhile other paths' first questions fill the free places.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final

from openai import APIError, AsyncOpenAI

from scale_vqa_eval.chat.calls import Outcome, Pacer, ask, endpoint_name, open_client
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict.items import Ask
from scale_vqa_eval.predict.job import Answer, Job, Sink, hardest

DOWN_AFTER: Final = 20
"""So many questions one after another without a word from the server end the run: it is down."""

_SERVER_GONE = re.compile(r"connection:|timeout:|status (?:429|5\d\d)")
_CUT_SHORT = re.compile(r"output limit was reached", re.IGNORECASE)
"""What a model that reasons unseen says of one token: it was asked, and could answer."""
_CONTEXT_MEND: Final = "give fewer --max-pixels or --max-tokens, or start the server with a longer context"
_MENDS: Final = (
    (
        re.compile(r"max_completion_tokens"),
        "give --option max_completion_tokens=N, which is sent in the place of --max-tokens",
    ),
    (
        re.compile(
            r"'?(temperature|top_p|seed|structured_outputs)'?.*(not support|only the default|unrecognized)|"
            r"(unsupported|unrecognized|unknown).*(temperature|top_p|seed|structured_outputs)",
            re.IGNORECASE,
        ),
        "the server does not take this field: give the value that it takes by --option, such as temperature=1",
    ),
    (
        re.compile(r"at most \d+ image|too many images|image count|number of images", re.IGNORECASE),
        "let the server take more images a question (vLLM: --limit-mm-per-prompt)",
    ),
    (
        re.compile(r"multimodal|vision|image input|image_url|does not support image", re.IGNORECASE),
        "name a model that reads images, or ask --ablate blind",
    ),
    (
        re.compile(r"context|max_model_len|max_tokens|too long|tokens", re.IGNORECASE),
        _CONTEXT_MEND,
    ),
)


@dataclass(frozen=True)
class OpenAIBackend:
    """A server.

    Attributes:
        url: base address, such as ``http://localhost:8000/v1``.
        concurrency: calls in flight at most.
        per_minute: HTTP requests a minute at most; None for no limit.
        retries: of one call, with back-off.
        timeout: seconds for one HTTP request.
        key_variable: environment variable that holds the API key.
    """

    url: str
    concurrency: int = 16
    per_minute: float | None = None
    retries: int = 4
    timeout: float = 600.0
    key_variable: str = "OPENAI_API_KEY"

    def identity(self, job: Job) -> dict[str, Any]:
        """A server's name is no part of it: the same model may move to another address."""
        return {}

    def versions(self) -> dict[str, str]:
        return {"openai": version("openai")}

    def check(self, job: Job, paths: Sequence[Sequence[Ask]]) -> None:
        """Asks the server for its models, and the hardest question for one token."""
        asyncio.run(self._check(job, hardest(paths, job)))

    def run(self, job: Job, paths: Sequence[Sequence[Ask]], sink: Sink) -> None:
        asyncio.run(_Run(self, job, paths, sink).go())

    def client(self) -> AsyncOpenAI:
        """Returns a client; it belongs to one event loop."""
        return open_client(self.url, self.key_variable, self.timeout, self.retries, Pacer(self.per_minute))

    async def _check(self, job: Job, first: Ask) -> None:
        location = f"{endpoint_name(self.url)}, model {job.model}"
        async with self.client() as client:
            context = await self._context(client, job, location)
            body = request_body(job, first, 0) | {_token_field(job): 1}
            outcome = await ask(client, job.model, job.chat(first), body, "check")
        if outcome.failure is not None and not _CUT_SHORT.search(outcome.failure):
            hint = "start the server, or correct --base-url"
            if outcome.failure.startswith(("status 401", "status 403")):
                hint = f"put the server's key into ${self.key_variable}, or name another variable by --key-variable"
            elif not _SERVER_GONE.match(outcome.failure):
                hints = (text for pattern, text in _MENDS if pattern.search(outcome.failure))
                hint = next(hints, "see the server's log")
            asked = f"an answer to {first.item.question.id} with {first.pictures} images"
            raise InputError(Problem(location, asked, outcome.failure, hint))
        needed = (outcome.prompt_tokens or 0) + job.sampling.max_tokens
        if context is not None and needed > context:
            found = f"{outcome.prompt_tokens} of the prompt and {job.sampling.max_tokens} of --max-tokens"
            raise InputError(Problem(location, f"at most {context} tokens a question", found, _CONTEXT_MEND))

    async def _context(self, client: AsyncOpenAI, job: Job, location: str) -> int | None:
        """Returns the server's context where it tells; raises where it lists models and this is none of them."""
        try:
            models = {model.id: model async for model in client.models.list()}
        except (APIError, ValueError, TypeError, AttributeError):
            return None  # not every server lists its models; the question that follows says what is wrong
        if models and job.model not in models:
            names = ", ".join(sorted(models)[:5])
            raise InputError(
                Problem(location, f"a model that the server has ({names})", preview(job.model), "name one")
            )
        length = getattr(models.get(job.model), "max_model_len", None)
        return length if isinstance(length, int) else None


def _token_field(job: Job) -> str:
    return "max_completion_tokens" if "max_completion_tokens" in job.options else "max_tokens"


def request_body(job: Job, asked: Ask, sample: int) -> dict[str, Any]:
    """Returns the fields of a request beside model and messages; options of the user's come last and win."""
    sampling = job.sampling
    body: dict[str, Any] = {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens}
    if sampling.temperature > 0:
        body |= {"top_p": sampling.top_p, "seed": sampling.seed + sample}
    if job.structured:
        body["structured_outputs"] = {"choice": job.choices(asked)}
    if "max_completion_tokens" in job.options:
        del body["max_tokens"]
    return body | dict(job.options)


@dataclass
class _Run:
    """One pass over the open questions."""

    backend: OpenAIBackend
    job: Job
    paths: Sequence[Sequence[Ask]]
    sink: Sink
    silent: list[tuple[Ask, str]] = field(default_factory=list)
    fatal: str | None = None

    async def go(self) -> None:
        """Asks everything; raises InputError once the server refuses every call or is gone."""
        self.waiting = deque((path[0], path[1:]) for path in self.paths if path)
        self.leading, self.changed = 0, asyncio.Condition()
        try:
            async with self.backend.client() as client, asyncio.TaskGroup() as workers:
                for _ in range(min(self.backend.concurrency, sum(map(len, self.paths)))):
                    workers.create_task(self._work(client))
        except BaseExceptionGroup as group:
            raise next(_input_errors(group), group) from None
        if self.fatal:
            location = f"{endpoint_name(self.backend.url)}, model {self.job.model}"
            hint = f"check the server and ${self.backend.key_variable}, then run the same command again to go on"
            raise InputError(Problem(location, "answers", self.fatal, hint))
        for asked, reason in self.silent:
            self.sink.fail(asked, reason)

    async def _work(self, client: AsyncOpenAI) -> None:
        while (next_one := await self._next()) is not None:
            asked, followers = next_one
            try:
                await self._ask(client, asked)
            finally:
                async with self.changed:
                    self.leading -= bool(followers)
                    # before other paths: what the server's cache holds now may be gone later
                    self.waiting.extendleft((follower, ()) for follower in reversed(followers))
                    self.changed.notify_all()

    async def _next(self) -> tuple[Ask, Sequence[Ask]] | None:
        """Waits for a question that may be asked now; None once there will be none."""
        async with self.changed:
            while not self.waiting and self.leading and not self.fatal:
                await self.changed.wait()
            if self.fatal or not self.waiting:
                return None
            found = self.waiting.popleft()
            self.leading += bool(found[1])
            return found

    async def _ask(self, client: AsyncOpenAI, asked: Ask) -> None:
        try:
            # in a thread: decoding and encoding three images would hold up the other calls
            messages = await asyncio.to_thread(self.job.chat, asked)
        except InputError as error:
            self.sink.fail(asked, str(error))
            return
        outcomes = [await self._outcome(client, asked, messages, sample) for sample in range(self.job.sampling.n)]
        broken = next((outcome for outcome in outcomes if outcome.failure is not None), None)
        if broken is None:
            self._spoke()
            self.sink.keep(asked, _answer(outcomes))
        elif broken.fatal:
            self.fatal = self.fatal or f"refused: {broken.failure}"
        elif _SERVER_GONE.match(broken.failure or ""):
            self.silent.append((asked, broken.failure or ""))
            if len(self.silent) >= DOWN_AFTER and not self.fatal:
                self.fatal = f"{len(self.silent)} questions in a row without one, the last by {broken.failure}"
        else:
            self._spoke()
            self.sink.fail(asked, broken.failure or "")

    def _spoke(self) -> None:
        """The server is there, so silence before was about single questions: their failures are written down."""
        while self.silent:
            self.sink.fail(*self.silent.pop(0))

    async def _outcome(
        self, client: AsyncOpenAI, asked: Ask, messages: Sequence[dict[str, Any]], sample: int
    ) -> Outcome:
        """Asks for one sample; a garbled reply is asked for again, as a lost one is."""
        body = request_body(self.job, asked, sample)
        key = hashlib.sha256(repr((asked.key, sample, self.job.model, body)).encode()).hexdigest()
        for attempt in range(self.backend.retries + 1):
            outcome = await ask(client, self.job.model, messages, body, key)
            if outcome.failure is None or not outcome.failure.startswith("malformed"):
                break
            await asyncio.sleep(min(0.5 * 2**attempt, 8.0))
        return outcome


def _input_errors(group: BaseExceptionGroup[BaseException]) -> Iterator[InputError]:
    """Yields what is to be told of what ended the workers, such as a full disk."""
    for error in group.exceptions:
        if isinstance(error, InputError):
            yield error
        elif isinstance(error, BaseExceptionGroup):
            yield from _input_errors(error)


def _answer(outcomes: Sequence[Outcome]) -> Answer:
    counts = [outcome.completion_tokens for outcome in outcomes]
    return Answer(
        responses=tuple(outcome.text or "" for outcome in outcomes),
        finish=outcomes[0].finish,
        prompt_tokens=outcomes[0].prompt_tokens,
        completion_tokens=None if None in counts else sum(count for count in counts if count is not None),
        cached_tokens=outcomes[0].cached_tokens,
    )
