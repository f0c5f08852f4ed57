"""What every backend gets, and what it gives back: the one interface between a run and a model."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from PIL import Image

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.predict.items import Ask, Item
from scale_vqa_eval.predict.pictures import Picture, PictureStore
from scale_vqa_eval.predict.prompt import Prompt
from scale_vqa_eval.predict.resolution import UNREADABLE, Bounds, EncodedImages, decoded
from scale_vqa_eval.predict.sampling import Sampling


@dataclass(frozen=True)
class Job:
    """How the questions are asked.

    Attributes:
        model: folder, Hub id or the name a server knows it by.
        store: where the images are.
        structured: allow complete answers only (constrained decoding).
        options: further settings of the backend, as the user gave them.
    """

    model: str
    prompt: Prompt
    sampling: Sampling
    bounds: Bounds
    store: PictureStore
    structured: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    _encoded: EncodedImages = field(default_factory=EncodedImages, repr=False, compare=False)
    _reading: Lock = field(default_factory=Lock, repr=False, compare=False)

    def image(self, picture: Picture) -> Image.Image:
        """Returns an image as RGB inside the bounds."""
        return decoded(self._content(picture), picture.name, self.bounds)

    def uri(self, picture: Picture) -> str:
        """Returns an image inside the bounds as a data URI; several threads may ask."""
        return self._encoded.uri(self._content(picture), picture.name, self.bounds)

    def pixels(self, picture: Picture) -> int:
        """Returns width x height of an image inside the bounds, from its header; 0 where it has none to be read."""
        try:
            with Image.open(io.BytesIO(self._content(picture))) as header:
                return math.prod(self.bounds.size(*header.size))
        except (InputError, *UNREADABLE):
            return 0  # the question that shows it says what is wrong

    def _content(self, picture: Picture) -> bytes:
        with self._reading:  # stores are for one thread
            return self.store.read(picture)

    def chat(self, ask: Ask) -> list[dict[str, Any]]:
        """Returns the messages as OpenAI-compatible servers read them."""
        parts: list[dict[str, Any]] = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": self.uri(part)}}
            for part in ask.content(self.prompt)
        ]
        return self._with_system(parts, [{"type": "text", "text": self.prompt.system}])

    def conversation(self, ask: Ask) -> list[dict[str, Any]]:
        """Returns the messages as a transformers processor reads them."""
        parts: list[dict[str, Any]] = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": self.image(part)}
            for part in ask.content(self.prompt)
        ]
        return self._with_system(parts, [{"type": "text", "text": self.prompt.system}])

    def _with_system(self, parts: list[dict[str, Any]], system: list[dict[str, Any]]) -> list[dict[str, Any]]:
        user = {"role": "user", "content": parts}
        return [{"role": "system", "content": system}, user] if self.prompt.system else [user]

    def choices(self, ask: Ask) -> list[str]:
        """Returns the complete answers of a question."""
        return self.prompt.choices(len(ask.options))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to one question.

    Attributes:
        responses: one text a sample.
        finish: why the first answer ended (``stop``, ``length``, ...), None where unknown.
        prompt_tokens: of one sample, None where unknown.
        completion_tokens: of all samples together, None where unknown.
        cached_tokens: of the prompt of one sample, taken from a prefix cache; None where unknown.
    """

    responses: tuple[str, ...]
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


class Sink(Protocol):
    """Takes what becomes of each question, as it becomes."""

    def keep(self, ask: Ask, answer: Answer) -> None:
        """An answer; it is on disk when this returns."""

    def fail(self, ask: Ask, reason: str) -> None:
        """No answer, and why."""


class Backend(Protocol):
    """A way to ask a model."""

    def identity(self, job: Job) -> dict[str, Any]:
        """What an answer depends on beside the job, such as a digest of local weights."""

    def versions(self) -> dict[str, str]:
        """Versions of the packages at work."""

    def check(self, job: Job, paths: Sequence[Sequence[Ask]]) -> list[str]:
        """Preflight check: raises InputError if the model cannot serve these requests; returns warnings."""

    def run(self, job: Job, paths: Sequence[Sequence[Ask]], sink: Sink) -> None:
        """Asks everything; ``paths`` has one list a path, whose questions share their images."""


def hardest(paths: Sequence[Sequence[Ask]], job: Job) -> Ask:
    """Returns what a check asks first: of the questions with most images those with most pixels, there the longest."""
    asks = [ask for path in paths for ask in path]
    most = max(ask.pictures for ask in asks)
    pixels: dict[tuple[str, int], int] = {}  # the questions of a path share their views

    def weight(ask: Ask) -> tuple[int, int]:
        views, options = ask.item.views, ask.item.option_pictures
        key = (ask.item.path, options[0].row if options else -1)
        if key not in pixels:
            pixels[key] = sum(map(job.pixels, (*views, *options)))
        return pixels[key], _length(ask)

    return max((ask for ask in asks if ask.pictures == most), key=weight)


def _length(ask: Ask) -> int:
    return len(ask.item.question.question) + sum(map(len, ask.options))


def images_digest(items: Sequence[Item], store: PictureStore) -> str | None:
    """Returns the SHA-256 over the bytes of all images in the questions' order, None where there is no image."""
    digest, count = hashlib.sha256(), 0
    for item in items:
        for picture in (*item.views, *item.option_pictures):
            content = store.read(picture)
            digest.update(f"{item.question.id} {picture.column} {picture.option} {len(content)}\n".encode() + content)
            count += 1
    return digest.hexdigest() if count else None


def model_digest(folder: Path) -> str | None:
    """Returns a SHA-256 over a local model: small files whole, weights by size and both ends; None for no folder.

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
