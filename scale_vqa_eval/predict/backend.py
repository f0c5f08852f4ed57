"""The interface between a run and a model: how it is asked, what it answers, and what every backend provides."""

from __future__ import annotations

import hashlib
import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import Any, Final, Protocol

from PIL import Image

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.predict.images import (
    UNREADABLE,
    Bounds,
    EncodedImages,
    ImageRef,
    ImageSource,
    decode_image,
)
from scale_vqa_eval.predict.prompts import Prompt, build_messages
from scale_vqa_eval.predict.requests import Request
from scale_vqa_eval.scale_vqa_acc.parsing import parse_response

NEUTRAL: Final = {"repetition_penalty": 1.0, "top_k": 0, "min_p": 0.0}
"""Sampling values that no backend takes from a checkpoint's generation config: off in every run (top_k 0 is off)."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Greedy by default; with a temperature, ``n`` answers per question and a vote among them.

    Attributes:
        max_tokens: maximum length of one answer.
        temperature: 0 is greedy.
        top_p: share of the probability that is drawn from.
        n: answers per question.
        seed: answer k is drawn with ``seed + k``.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    seed: int = 42

    def __post_init__(self) -> None:
        checks = {
            "max-tokens": (self.max_tokens >= 1, "1 or more", self.max_tokens),
            "temperature": (0 <= self.temperature < math.inf, "0 or more", self.temperature),
            "top-p": (0 < self.top_p <= 1, "above 0, at most 1", self.top_p),
            "n": (self.n >= 1, "1 or more", self.n),
        }
        problems = [
            Problem(f"--{name}", expected, str(value), "correct it")
            for name, (holds, expected, value) in checks.items()
            if not holds
        ]
        if self.n > 1 and self.temperature == 0:
            problems.append(Problem("--n", "a --temperature above 0", "0: all answers the same", "give a temperature"))
        if problems:
            raise InputError(problems)


@dataclass(frozen=True)
class InferenceConfig:
    """How the questions are asked.

    Attributes:
        model: folder, Hub id, or the name that a server knows.
        source: where the images are.
        structured: allow complete answers only (constrained decoding).
        options: further settings of the backend, as the user gave them.
    """

    model: str
    prompt: Prompt
    sampling: Sampling
    bounds: Bounds
    source: ImageSource
    structured: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    _encoded: EncodedImages = field(default_factory=EncodedImages, repr=False, compare=False)
    _reading: Lock = field(default_factory=Lock, repr=False, compare=False)

    def image(self, image: ImageRef) -> Image.Image:
        """Returns an image as RGB inside the bounds."""
        return decode_image(self._content(image), image.name, self.bounds)

    def uri(self, image: ImageRef) -> str:
        """Returns an image inside the bounds as a data URI; safe to use from several threads."""
        return self._encoded.uri(self._content(image), image.name, self.bounds)

    def pixels(self, image: ImageRef) -> int:
        """Returns width x height of an image inside the bounds, from its header; 0 where that cannot be read."""
        try:
            with Image.open(io.BytesIO(self._content(image))) as header:
                return math.prod(self.bounds.size(*header.size))
        except (InputError, *UNREADABLE):
            return 0  # the question that shows it says what is wrong

    def _content(self, image: ImageRef) -> bytes:
        with self._reading:  # sources are for one thread
            return self.source.read(image)

    def server_messages(self, request: Request) -> list[dict[str, Any]]:
        """Returns the messages as OpenAI-compatible servers and vLLM read them."""

        def part(image: ImageRef) -> dict[str, Any]:
            return {"type": "image_url", "image_url": {"url": self.uri(image)}}

        return build_messages(self.prompt, request.content(self.prompt), part)

    def processor_messages(self, request: Request) -> list[dict[str, Any]]:
        """Returns the messages as a transformers processor reads them."""

        def part(image: ImageRef) -> dict[str, Any]:
            return {"type": "image", "image": self.image(image)}

        return build_messages(self.prompt, request.content(self.prompt), part)

    def choices(self, request: Request) -> list[str]:
        """Returns the complete answers of a question."""
        return self.prompt.choices(len(request.options))


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """What a model answers to one question.

    Attributes:
        responses: one text per sample.
        finish: why the first answer ended (``stop``, ``length``, ...), None where unknown.
        prompt_tokens: of one sample, None where unknown.
        completion_tokens: of all samples together, None where unknown.
        cached_tokens: prompt tokens of one sample that came from a prefix cache, None where unknown.
        more: further fields of its line in the predictions file.
    """

    responses: tuple[str, ...]
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


class AnswerSink(Protocol):
    """Takes the result of each question as soon as it is known."""

    def keep(self, request: Request, answer: ModelAnswer) -> None:
        """Takes an answer; it is on disk when this returns."""

    def fail(self, request: Request, reason: str) -> None:
        """Takes the reason why there is no answer."""


class Backend(Protocol):
    """A way to ask a model."""

    def identity(self, config: InferenceConfig) -> dict[str, Any]:
        """What an answer depends on beside the configuration, such as a digest of local weights."""

    def versions(self) -> dict[str, str]:
        """Versions of the packages used."""

    def check(self, config: InferenceConfig, paths: Sequence[Sequence[Request]]) -> list[str]:
        """Preflight check: raises InputError if the model cannot serve these requests; returns warnings."""

    def run(self, config: InferenceConfig, paths: Sequence[Sequence[Request]], sink: AnswerSink) -> None:
        """Asks everything; ``paths`` has one list per path, whose questions share their images."""


def readable_messages(
    requests: Sequence[Request], messages: Callable[[Request], list[dict[str, Any]]], sink: AnswerSink
) -> list[tuple[Request, list[dict[str, Any]]]]:
    """Returns requests with their messages; one whose image cannot be read fails alone."""
    found = []
    for request in requests:
        try:
            found.append((request, messages(request)))
        except InputError as error:
            sink.fail(request, str(error))
    return found


def majority_vote(responses: Sequence[str], options: int) -> str:
    """Returns the first response that names the letter most responses name (strict rule; ties: the one drawn first).

    Where none can be read it is the first response, which then counts as unparsed. The vote is this project's choice:
    the paper reports single answers.

    >>> majority_vote(["<answer>B</answer>", "no idea", "<answer>A</answer>", "So <answer>A</answer>"], 4)
    '<answer>A</answer>'
    """
    letters = [parse_response(response, "strict", options).letter for response in responses]
    counts = Counter(letter for letter in letters if letter is not None)
    if not counts:
        return responses[0]
    most = max(counts.values())
    return next(text for text, letter in zip(responses, letters, strict=True) if letter and counts[letter] == most)


def largest_request(paths: Sequence[Sequence[Request]], config: InferenceConfig) -> Request:
    """Returns what a check asks first: of the requests with most images those with most pixels, then the longest."""
    requests = [request for path in paths for request in path]
    most = max(request.image_count for request in requests)
    pixels: dict[tuple[str, int], int] = {}  # the questions of a path share their views

    def weight(request: Request) -> tuple[int, int]:
        item = request.item
        key = (item.path, item.option_images[0].row if item.option_images else -1)
        if key not in pixels:
            pixels[key] = sum(map(config.pixels, item.images))
        return pixels[key], len(item.question.question) + sum(map(len, request.options))

    return max((request for request in requests if request.image_count == most), key=weight)


def installed_versions(*names: str) -> dict[str, str]:
    """Returns package -> version of those that are installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def model_digest(folder: Path) -> str | None:
    """Returns a SHA-256 over a local model: small files completely, weights by size and both ends; None for no folder.

    Weights are sampled (the first and last MiB of each file): training changes them, and reading 16 GB takes a minute.
    """
    if not folder.is_dir():
        return None
    digest, edge = hashlib.sha256(), 2**20
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        size = path.stat().st_size
        with path.open("rb") as file:
            content = file.read() if size <= 16 * edge else file.read(edge)
            if size > 16 * edge:
                file.seek(-edge, 2)
                content += file.read(edge)
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()
