"""The interface between a run and a model: how it is asked, what it answers, and the file that keeps the answers.

In the predictions file each answer is appended and on disk at once, so that a killed run continues as the same run.
One JSON object a line: ``id`` and ``response``; ``rotation`` in a circular run; ``responses`` if several were drawn;
``finish`` and token counts as the backend gives them; ``run``, the digest of what was asked. The first line also has
``provenance``, from which that digest is made, and ``versions``. Questions without an answer are in
``<file>.failures.jsonl`` with the reason (the first line of a run there has the provenance too). They are in the
predictions file only once their failures are accepted.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Final, Protocol, Self

from PIL import Image

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import atomic_write, sha256_json
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
from scale_vqa_eval.store import Journal, encode_record

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


RequestKey = tuple[str, int | None]
_HEAD: Final = frozenset({"id", "rotation", "run", "provenance", "versions"})
_OTHER_RUN: Final = "it holds another run: name another --out, or give the settings of that run"


class PredictionsFile:
    """The predictions file of one run and the file of its failures; use it with ``with``.

    Args:
        path: the predictions file.
        provenance: everything that an answer depends on; a file with another provenance is refused.
        versions: of the packages used; kept, and not compared.
        requests: everything that the run asks.

    Attributes:
        answered: keys that have a line.
        failures: key -> reason, of what was asked and not answered.
        notes: what the user should know about the file.
    """

    def __init__(
        self, path: Path, provenance: Mapping[str, Any], versions: Mapping[str, str], requests: Iterable[Request]
    ) -> None:
        self.path = path
        self.provenance, self.versions = dict(provenance), dict(versions)
        self.run = sha256_json(provenance)[:16]
        self.keys: list[RequestKey] = [request.key for request in requests]
        self.answered: set[RequestKey] = set()
        self.failures: dict[RequestKey, str] = {}
        self.notes: list[str] = []
        self._failures_have_head = False
        self._answers, self._failed = Journal(path), Journal(failures_path(path))
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for journal in (self._answers, self._failed):
                stack.enter_context(journal)
                stack.callback(_remove_if_empty, journal)
            self._check()
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def keep(self, key: RequestKey, fields: Mapping[str, Any]) -> None:
        """Writes one answer and returns once it is on disk; a second answer to the same question is refused."""
        if key in self.answered:
            raise ValueError(f"{key} has an answer already")
        self._answers.append(self._line(key, fields, first=not self._answers.records))
        self.answered.add(key)
        self.failures.pop(key, None)

    def fail(self, key: RequestKey, reason: str) -> None:
        """Records that a question has no answer, and why."""
        record: dict[str, Any] = {"id": key[0], "rotation": key[1], "reason": reason, "run": self.run}
        if not self._failures_have_head:
            record |= {"provenance": self.provenance, "versions": self.versions}
            self._failures_have_head = True
        self._failed.append(record)
        self.failures[key] = reason

    def accept_failures(self) -> None:
        """Writes a null response, which is scored as wrong, with the reason for each question that failed."""
        for key, reason in list(self.failures.items()):
            self.keep(key, {"response": None, "error": reason})

    def sort_and_rewrite(self) -> None:
        """Puts a complete file into the order of the questions in one rename: the same run gives the same bytes."""
        rows = {_key(record): record for record in self._answers.records}
        lines = []
        for index, key in enumerate(self.keys):
            fields = {name: value for name, value in rows[key].items() if name not in _HEAD}
            lines.append(encode_record(self._line(key, fields, first=index == 0)))
        content = b"".join(lines)
        if content != self.path.read_bytes():
            hint = "free disk space for a second copy of the file, then run the same command again: no answer is lost"
            atomic_write(self.path, content, hint)

    def _line(self, key: RequestKey, fields: Mapping[str, Any], first: bool) -> dict[str, Any]:
        line: dict[str, Any] = {"id": key[0], **fields, "run": self.run}
        if key[1] is not None:
            line["rotation"] = key[1]
        return line | {"provenance": self.provenance, "versions": self.versions} if first else line

    def _check(self) -> None:
        """Compares what the files hold with the run that is to continue."""
        known = set(self.keys)
        if self._answers.records:
            self._check_head(self._answers.records[0])
        for number, record in enumerate(self._answers.records, 1):
            key, location = _key(record), f"{self.path}, line {number}"
            if record.get("run") != self.run:
                raise InputError(Problem(location, f"run {self.run}", preview(record.get("run")), _OTHER_RUN))
            if key in self.answered:
                found = f"a second one of {preview(key[0])}"
                raise InputError(Problem(location, "one line per question", found, "remove it"))
            if key not in known:
                raise InputError(Problem(location, "an id of the data", preview(key[0]), "remove the line"))
            self.answered.add(key)
        for record in self._failed.records:
            if record.get("run") == self.run:
                self._failures_have_head = True
                if _key(record) in known - self.answered:
                    self.failures[_key(record)] = str(record.get("reason"))
        if self._answers.repaired_bytes:
            torn = f"a torn last line of {self._answers.repaired_bytes} bytes is removed"
            self.notes.append(f"{self.path}: {torn}; its question is asked again")
        if self.answered:
            self.notes.append(f"{self.path}: continuing after {len(self.answered)} of {len(self.keys)} answers")

    def _check_head(self, head: Mapping[str, Any]) -> None:
        found = head.get("provenance")
        location = f"{self.path}, line 1"
        if not isinstance(found, Mapping):
            raise InputError(Problem(location, "the provenance of a run", "none", _OTHER_RUN))
        names = sorted({*found, *self.provenance})
        problems = [
            Problem(f"{location}, {name}", preview(self.provenance.get(name)), preview(found.get(name)), _OTHER_RUN)
            for name in names
            if found.get(name) != self.provenance.get(name)
        ]
        if problems:
            raise InputError(problems)
        before = head.get("versions")
        if isinstance(before, Mapping) and dict(before) != self.versions:
            names = sorted({*before, *self.versions})
            changed = [f"{name} {before.get(name)} -> {self.versions.get(name)}" for name in names]
            self.notes.append(f"versions changed since the run began: {', '.join(changed)}")
            self.versions = dict(before)


def failures_path(path: Path) -> Path:
    """Returns the path of the file of questions without an answer."""
    return path.with_name(f"{path.name}.failures.jsonl")


def _key(record: Mapping[str, Any]) -> RequestKey:
    rotation = record.get("rotation")
    return str(record.get("id")), rotation if isinstance(rotation, int) else None


def _remove_if_empty(journal: Journal) -> None:
    """Removes the file that opening a journal created, where nothing was written to it."""
    if not journal.records and not journal.repaired_bytes:
        journal.path.unlink(missing_ok=True)
