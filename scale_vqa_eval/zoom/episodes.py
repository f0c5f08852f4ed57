"""``scale-vqa predict --zoom``: episodes of a model that chooses where to look, by the machinery of ``predict``.

A model is asked in one of three ways, of which a check before the run takes the first that the server or the chat
template takes: ``tool`` (tool calls, images in the tool results), ``user`` (tool calls, images in a user turn after
them) and ``text`` (the tools described in the prompt, calls written as text, observations as user turns).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click
from jinja2 import TemplateError

from scale_vqa_eval.chat_replies import CallResult
from scale_vqa_eval.errors import InputError, Problem, first_line
from scale_vqa_eval.llm import LLMSession
from scale_vqa_eval.predict.backend import AnswerSink, InferenceConfig, ModelAnswer
from scale_vqa_eval.predict.images import ImageSource, data_uri, decode_image
from scale_vqa_eval.predict.local_backends import (
    REFUSALS,
    TransformersBackend,
    generated,
    tokens_of,
)
from scale_vqa_eval.predict.openai_backend import OpenAIBackend, Preflight, QuestionRun, request_body
from scale_vqa_eval.predict.prompts import Prompt
from scale_vqa_eval.predict.requests import Request, VisualQuestion
from scale_vqa_eval.scale_vqa_acc.parsing import parse_response
from scale_vqa_eval.text import restore_thoughts
from scale_vqa_eval.zoom.environment import TOOLS, Budget, ZoomEnvironment, call_tool, first_messages, with_files
from scale_vqa_eval.zoom.questions import ZoomQuestion, slide_files, slides_digest

PROTOCOLS: Final = ("tool", "user", "text")
MAX_SAID: Final = 4000
"""Characters kept of what a model writes in one turn."""
_CALL: Final = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_DESCRIPTION: Final = (
    "\n\n# Tools\nYou may call these functions:\n<tools>\n{tools}\n</tools>\nFor each call write a JSON object with "
    'its name and arguments inside <tool_call> </tool_call>:\n<tool_call>\n{{"name": ..., "arguments": {{...}}}}\n'
    "</tool_call>"
)
Encode = Callable[[bytes], dict[str, Any]]


class Episode:
    """A conversation about one question.

    Args:
        environment: its own environment.
        request: the question.
        prompt: the words.
        protocol: one of ``PROTOCOLS``.
        encode: turns a JPEG into the part of a message that the reader expects.

    Attributes:
        messages: the conversation so far.
        turns: turns of the model so far.
        last: what the model wrote in its last turn.
    """

    def __init__(
        self, environment: ZoomEnvironment, request: Request, prompt: Prompt, protocol: str, encode: Encode
    ) -> None:
        self.environment, self.protocol, self.encode = environment, protocol, encode
        self.turns, self.last = 0, ""
        question = request.item.question
        self.messages = first_messages(prompt, question)
        self.messages[-1]["content"] += self._encoded(environment.reset(question.id))
        if protocol == "text":
            tools = _DESCRIPTION.format(tools="\n".join(map(json.dumps, TOOLS)))
            system = {"role": "system", "content": [{"type": "text", "text": f"{prompt.system or ''}{tools}".strip()}]}
            self.messages = [system, self.messages[-1]]

    @property
    def done(self) -> bool:
        """Whether the question is answered, or the turns are used up."""
        return self.environment.letter is not None or self.turns >= self.environment.turns

    def take(self, text: str, calls: Sequence[Mapping[str, Any]] = ()) -> None:
        """Carries out what a model writes and calls in one turn.

        Args:
            text: what it writes; calls may be in it, inside of ``<tool_call>``.
            calls: calls of tools as the API gives them.
        """
        environment, start = self.environment, len(self.environment.steps)
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is not text
        self.turns, self.last = self.turns + 1, text
        said, written = text, [] if calls else _written_calls(text)
        if self.protocol != "text" and written and all(isinstance(name, str) for name, _ in written):
            # the model's own template or server shows calls apart from the text
            calls = [
                {
                    "id": f"call_{self.turns}_{number}",
                    "type": "function",
                    "function": {"name": name, "arguments": asked},
                }
                for number, (name, asked) in enumerate(written)
            ]
            text = text[: text.find("<tool_call>")].strip()
        observations: list[tuple[str, list[dict[str, Any]]]] = []
        for call in calls:
            function = call["function"]
            parts = call_tool(environment, function["name"], function["arguments"])
            observations.append((call["id"], self._encoded(parts)))
        if not calls:
            letter = parse_response(text).letter
            if letter and not written:
                shown = environment.answer(letter)
            else:
                shown = [
                    part for one in written or [("none", {})] for part in self._encoded(call_tool(environment, *one))
                ]
            observations.append(("", shown))
        environment.steps[start]["said"] = said[:MAX_SAID]
        self.messages.append({"role": "assistant", "content": text, **({"tool_calls": list(calls)} if calls else {})})
        following: list[dict[str, Any]] = []
        for identity, parts in observations:
            if identity and self.protocol != "tool":
                following += [part for part in parts if part["type"] != "text"]
                parts = [part for part in parts if part["type"] == "text"]
            if identity:
                self.messages.append({"role": "tool", "tool_call_id": identity, "content": parts})
            else:
                following += parts
        if following:
            self.messages.append({"role": "user", "content": following})

    def more(self) -> dict[str, Any]:
        """Returns the fields of the predictions file: what was used, what was in view, every step."""
        return {"zoom": self.environment.record | {"turns": self.turns, "steps": self.environment.steps}}

    @property
    def response(self) -> str:
        """The answer as ``score`` reads it; without one, what the model wrote last."""
        letter = self.environment.letter
        return self.last if letter is None else f"<answer>{letter}</answer>"

    def _encoded(self, parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        files = with_files(self.environment, parts)
        return [dict(part) if content is None else self.encode(content) for part, content in files]


def _written_calls(text: str) -> list[tuple[Any, Any]]:
    """Returns name and arguments of the calls that are written in a text; one that cannot be read has no name.

    >>> _written_calls('<tool_call>{"name": "answer", "arguments": {"letter": "B"}}</tool_call>')
    [('answer', '{"letter": "B"}')]
    """
    calls = []
    for content in _CALL.findall(text.rpartition("</think>")[2]):
        try:
            call = json.loads(content)
        except (ValueError, RecursionError):
            call = None
        known = isinstance(call, dict)
        calls.append((call.get("name"), json.dumps(call.get("arguments"))) if known else (None, content.strip()))
    return calls


@dataclass
class ZoomSetup:
    """What the episodes of a run share.

    Attributes:
        make: makes an environment.
        protocol: one of ``PROTOCOLS``; ``auto`` until the check has chosen one.
    """

    make: Callable[[], ZoomEnvironment]
    protocol: str = "auto"

    def candidates(self) -> Sequence[str]:
        """Returns the protocols to try, in order."""
        return PROTOCOLS if self.protocol == "auto" else (self.protocol,)

    def episode(self, request: Request, prompt: Prompt, encode: Encode, protocol: str | None = None) -> Episode:
        """Starts an episode."""
        return Episode(self.make(), request, prompt, protocol or self.protocol, encode)

    def sample(self, request: Request, prompt: Prompt, encode: Encode, protocol: str) -> Episode:
        """Returns an episode in which one look was taken: what a server or a template has to read."""
        episode = self.episode(request, prompt, encode, protocol)
        left, top, right, bottom = episode.environment.steps[0]["box"]
        look = {"x_um": (left + right) / 2, "y_um": (top + bottom) / 2, "view": "10x"}
        if protocol == "text":
            episode.take(f"<tool_call>{json.dumps({'name': 'look', 'arguments': look})}</tool_call>")
        else:
            function = {"name": "look", "arguments": json.dumps(look)}
            episode.take("", [{"id": "call_0", "type": "function", "function": function}])
        return episode


class ZoomOpenAI(OpenAIBackend):
    """Episodes over a server with OpenAI's chat completions API."""

    def __init__(self, server: OpenAIBackend, setup: ZoomSetup) -> None:
        super().__init__(server.url, server.settings)
        self.setup = setup

    def check(self, config: InferenceConfig, paths: Sequence[Sequence[Request]]) -> list[str]:
        """Chooses the protocol with a sample conversation, and refuses what the run cannot survive."""
        notes = asyncio.run(_ZoomPreflight(self, config, paths).go())
        if self.setup.protocol == "user":
            notes.append("the server accepts no images in tool results: they follow in a user message")
        elif self.setup.protocol == "text":
            notes.append(
                "the server accepts no tools: they are described in the prompt, and calls are read from texts"
            )
        return notes

    def run(self, config: InferenceConfig, paths: Sequence[Sequence[Request]], sink: AnswerSink) -> None:
        # each question by itself: episodes of one slide share only its overview
        asyncio.run(_ZoomRun(self, config, [[request] for path in paths for request in path], sink).go())

    def body(self, config: InferenceConfig, request: Request) -> dict[str, Any]:
        """Returns the fields of a request beside model and messages."""
        body = request_body(self, config, request, 0)
        return body if self.setup.protocol == "text" else {"tools": TOOLS} | body


def _uri_part(config: InferenceConfig) -> Encode:
    def part(content: bytes) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": data_uri(content, "a field", config.bounds)}}

    return part


class _ZoomPreflight(Preflight):
    backend: ZoomOpenAI

    async def _asked(self, session: LLMSession, request: Request) -> CallResult:
        setup, result = self.backend.setup, CallResult(failure="not asked")
        for protocol in setup.candidates():
            setup.protocol, encode = protocol, _uri_part(self.config)
            episode = await asyncio.to_thread(setup.sample, request, self.config.prompt, encode, protocol)
            result = await self._tried(session, episode.messages, self.backend.body(self.config, request))
            refused = (result.failure or "").startswith(("status 400", "status 415", "status 422", "status 500"))
            if result.fatal or result.refused or not refused:
                break
        return result if result.failure is None or not result.tool_calls else CallResult()


class _ZoomRun(QuestionRun):
    backend: ZoomOpenAI

    async def _results(self, session: LLMSession, request: Request) -> tuple[Sequence[CallResult], ModelAnswer | None]:
        config, setup = self.config, self.backend.setup
        episode = await asyncio.to_thread(setup.episode, request, config.prompt, _uri_part(config))
        results: list[CallResult] = []
        while not episode.done:
            body = self.backend.body(config, request)
            key = hashlib.sha256(repr((request.key, episode.turns, config.model, body)).encode()).hexdigest()
            result = await session.ask(config.model, episode.messages, body, key, retry_malformed=True)
            results.append(result)
            if result.failure is not None and not result.tool_calls:
                return [result], None
            text = restore_thoughts(result.text or "", result.reasoning)
            await asyncio.to_thread(episode.take, text, result.tool_calls)
        counts = [result.completion_tokens for result in results]
        return [CallResult(text=episode.response)], ModelAnswer(
            responses=(episode.response,),
            finish=results[-1].finish if episode.environment.letter is not None else "turns",
            prompt_tokens=results[-1].prompt_tokens,
            completion_tokens=None if None in counts else sum(count for count in counts if count is not None),
            more=episode.more(),
        )


class ZoomTransformers(TransformersBackend):
    """Episodes of a model on this machine, a batch of them at a time, turn by turn."""

    def __init__(self, batch_size: int, setup: ZoomSetup) -> None:
        super().__init__(batch_size)
        self.setup = setup

    def check(self, config: InferenceConfig, paths: Sequence[Sequence[Request]]) -> list[str]:
        """Loads the model and chooses the protocol: the first in which its chat template shows tools and results."""
        processor, _ = self._load(config)
        first, found = paths[0][0], "no way to show the result of a look"
        for protocol in self.setup.candidates():
            episode = self.setup.sample(first, config.prompt, _pil_part(config), protocol)
            observation = episode.environment.steps[-1].get("refused") or "Looks left:"
            try:
                text = processor.apply_chat_template(episode.messages, tools=TOOLS, tokenize=False)
                tokens_of(processor, [episode.messages], TOOLS if protocol != "text" else None)
            except (*REFUSALS, TemplateError) as error:
                found = f"{type(error).__name__}: {first_line(error)}"
                continue
            pictures = str(text).count(getattr(processor, "image_token", "<image>"))
            wanted = len(episode.environment.images)
            called = protocol == "text" or ('"x_um"' in text and '"look"' in text)
            if observation in text.rpartition("x_um")[2] and called and pictures >= wanted:
                self.setup.protocol = protocol
                return [] if protocol == "tool" else [f"the chat template is used by the protocol {protocol}"]
        hint = "name a model whose chat template takes several images"
        raise InputError(Problem(f"model {config.model}", "a chat template for conversations", found, hint))

    def run(self, config: InferenceConfig, paths: Sequence[Sequence[Request]], sink: AnswerSink) -> None:
        import torch

        processor, model = self._load(config)
        requests = [request for path in paths for request in path]
        tools = None if self.setup.protocol == "text" else TOOLS
        for start in range(0, len(requests), self.batch_size):
            active: list[tuple[Request, Episode]] = []
            for request in requests[start : start + self.batch_size]:
                try:
                    active.append((request, self.setup.episode(request, config.prompt, _pil_part(config))))
                except InputError as error:
                    sink.fail(request, str(error))
            while active:
                try:
                    inputs = tokens_of(processor, [episode.messages for _, episode in active], tools)
                    answers = generated(processor, model, config, inputs.to(model.device))
                except (*REFUSALS, torch.OutOfMemoryError) as error:
                    for request, _ in active:
                        sink.fail(request, f"{type(error).__name__}: {first_line(error)}; try a smaller --batch-size")
                    break
                for (request, episode), (texts, _, finish) in zip(active, answers, strict=True):
                    episode.take(restore_thoughts(texts[0]))
                    if episode.done:
                        ended = finish if episode.environment.letter is not None else "turns"
                        sink.keep(request, ModelAnswer((episode.response,), ended, more=episode.more()))
                active = [(request, episode) for request, episode in active if not episode.done]


def _pil_part(config: InferenceConfig) -> Encode:
    def part(content: bytes) -> dict[str, Any]:
        return {"type": "image", "image": decode_image(content, "a field", config.bounds)}

    return part


def zoom_backend(
    given: Mapping[str, Any], questions: Sequence[ZoomQuestion], root: Any, plain: Any
) -> tuple[OpenAIBackend | TransformersBackend, dict[str, Any]]:
    """Returns the backend of a run with ``--zoom``, and what its answers depend on beside the usual provenance.

    Args:
        given: the options of ``predict``.
        questions: the questions.
        root: folder of the slides.
        plain: the backend of a run without ``--zoom``.

    Raises:
        InputError: where a control needs slides of two patients and there is one.
    """
    budget = Budget(given["looks"], given["look_px"], given["look_pixels"], given["overview_px"])
    slides, by_id = slide_files(root), {item.question.id: item for item in questions}

    def make() -> ZoomEnvironment:
        return ZoomEnvironment(slides, by_id, budget, given["ablate"], given["seed"])

    make()
    setup = ZoomSetup(make, given["zoom_protocol"])
    about = {
        "slides_hash": slides_digest(root, questions),
        "looks": budget.looks,
        "look_px": budget.px,
        "look_pixels": budget.pixels,
        "overview_px": budget.overview_px,
        "protocol": given["zoom_protocol"],
    }
    backend = (
        ZoomOpenAI(plain, setup) if isinstance(plain, OpenAIBackend) else ZoomTransformers(plain.batch_size, setup)
    )
    return backend, {"zoom": about}


def zoom_requests(questions: Sequence[ZoomQuestion]) -> tuple[list[VisualQuestion], ImageSource]:
    """Returns the questions as ``predict`` runs them; their images come from the environment."""
    return [VisualQuestion(item.question, (), (), item.slide) for item in questions], ImageSource()


def check_options(given: Mapping[str, Any]) -> None:
    """Raises UsageError where options do not go together with ``--zoom``."""
    if given["backend"] == "vllm":
        raise click.UsageError("--zoom: start vLLM's server (vllm serve) and ask it with --backend openai")
    for name in [name for name in ("structured", "config", "images") if given[name]] + ["n"] * (given["samples"] != 1):
        raise click.UsageError(f"--zoom does not go together with --{name}")
