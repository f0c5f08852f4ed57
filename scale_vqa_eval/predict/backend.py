"""Interface between a run and a model: settings, backends, answers, and the predictions file.

Each answer is written to disk at once, so that a killed run can be continued. A line of the predictions file is a JSON
object with ``id`` and ``response``; ``rotation`` in a circular run; ``responses`` if several were sampled; ``finish``
and token counts if the backend reports them; and ``run``, a digest of the provenance. The first line also has
``provenance`` and ``versions``. Questions without an answer are written with the reason to ``<file>.failures.jsonl``,
whose first line of a run has the provenance as well, and to the predictions file once their failures are accepted.
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
from typing import Any, Final, Protocol, Self

from PIL import Image

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import atomic_write, sha256_json
from scale_vqa_eval.predict.images import UNREADABLE, Bounds, EncodedImages, ImageRef, ImageSource, decode_image
from scale_vqa_eval.predict.prompts import Prompt, build_messages
from scale_vqa_eval.predict.requests import Request
from scale_vqa_eval.scale_vqa_acc.parsing import parse_response
from scale_vqa_eval.store import Journal, encode_record

NEUTRAL: Final = {"repetition_penalty": 1.0, "top_k": 0, "min_p": 0.0}
"""Sampling values that are switched off in every run, whatever a checkpoint's generation config says."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings; greedy by default.

    Attributes:
        max_tokens: maximum length of an answer in tokens.
        temperature: 0 for greedy decoding.
        top_p: nucleus sampling threshold.
        n: number of sampled answers per question, among which the majority is taken.
        seed: answer k is sampled with ``seed + k``.
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
            found = "0, which gives the same answer every time"
            problems.append(Problem("--n", "a --temperature above 0", found, "give a temperature"))
        if problems:
            raise InputError(problems)


@dataclass(frozen=True)
class InferenceConfig:
    """Settings of a run.

    Attributes:
        model: folder, Hub id, or model name on a server.
        source: source of the images.
        structured: constrain decoding to complete answers.
        options: other settings of the backend, as given by the user.
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
        """Returns an image as RGB within the pixel bounds."""
        return decode_image(self._content(image), image.name, self.bounds)

    def uri(self, image: ImageRef) -> str:
        """Returns an image within the pixel bounds as a data URI; thread-safe."""
        return self._encoded.uri(self._content(image), image.name, self.bounds)

    def pixels(self, image: ImageRef) -> int:
        """Returns width x height of an image within the pixel bounds, from its header, or 0 if it is unreadable."""
        try:
            with Image.open(io.BytesIO(self._content(image))) as header:
                return math.prod(self.bounds.size(*header.size))
        except (InputError, *UNREADABLE):
            return 0  # reported when the question is asked

    def _content(self, image: ImageRef) -> bytes:
        with self._reading:  # image sources are not thread-safe
            return self.source.read(image)

    def server_messages(self, request: Request) -> list[dict[str, Any]]:
        """Returns the messages in the format of OpenAI-compatible servers and vLLM."""
        parts = request.content(self.prompt)
        return build_messages(
            self.prompt, parts, lambda image: {"type": "image_url", "image_url": {"url": self.uri(image)}}
        )

    def processor_messages(self, request: Request) -> list[dict[str, Any]]:
        """Returns the messages in the format of transformers processors."""
        parts = request.content(self.prompt)
        return build_messages(self.prompt, parts, lambda image: {"type": "image", "image": self.image(image)})


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """A model's answer to one question.

    Attributes:
        responses: one text per sample.
        finish: finish reason of the first sample (``stop``, ``length``, ...), or None if unknown.
        prompt_tokens: prompt tokens of one sample, or None if unknown.
        completion_tokens: completion tokens of all samples, or None if unknown.
        cached_tokens: prompt tokens of one sample from a prefix cache, or None if unknown.
        more: other fields of its line in the predictions file.
    """

    responses: tuple[str, ...]
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


class AnswerSink(Protocol):
    """Receives the result of each question as soon as it is available."""

    def keep(self, request: Request, answer: ModelAnswer) -> None:
        """Stores an answer; returns once it is on disk."""

    def fail(self, request: Request, reason: str) -> None:
        """Stores the reason why a question has no answer."""


class Backend(Protocol):
    """Runs a model."""

    def identity(self, config: InferenceConfig) -> dict[str, Any]:
        """Provenance of the backend in addition to the configuration, such as a digest of local weights."""

    def versions(self) -> dict[str, str]:
        """Versions of the packages used."""

    def check(self, config: InferenceConfig, paths: Sequence[Sequence[Request]]) -> list[str]:
        """Preflight check: raises InputError if the model cannot serve these requests; returns warnings."""

    def run(self, config: InferenceConfig, paths: Sequence[Sequence[Request]], sink: AnswerSink) -> None:
        """Asks all questions; ``paths`` has one list per diagnostic path, whose questions share their images."""


def readable_messages(
    requests: Sequence[Request], messages: Callable[[Request], list[dict[str, Any]]], sink: AnswerSink
) -> list[tuple[Request, list[dict[str, Any]]]]:
    """Returns requests with their messages; a request with an unreadable image is passed to ``sink.fail``."""
    found = []
    for request in requests:
        try:
            found.append((request, messages(request)))
        except InputError as error:
            sink.fail(request, str(error))
    return found


def context_problem(location: str, context: int, prompt_tokens: int | None, max_tokens: int, hint: str) -> Problem:
    """Returns the problem of a prompt and an answer that do not fit into a model's context."""
    found = f"{prompt_tokens} of the prompt and {max_tokens} of --max-tokens"
    return Problem(location, f"at most {context} tokens a question", found, hint)


def majority_vote(responses: Sequence[str], options: int) -> str:
    """Returns the first response with the most frequent letter (strict parsing rule; ties go to the earlier letter).

    If no response can be parsed, returns the first one, which then counts as unparsed. The paper does not use a vote:
    it reports single answers.

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
    """Returns the request with the most images; among equals that with the most pixels, then the longest text."""
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
    """Returns package -> version of the installed packages among ``names``."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def model_digest(folder: Path) -> str | None:
    """Returns a SHA-256 of a local model folder, or None if it is not a folder.

    Of files above 16 MiB only the size and the first and last MiB are hashed: reading 16 GB would take a minute, and
    training changes all parts of the weights.
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
_OTHER_RUN: Final = "the file belongs to another run: name another --out, or use the settings of that run"


class PredictionsFile:
    """The predictions file of one run and its failures file; use it as a context manager.

    Args:
        path: the predictions file.
        provenance: everything that an answer depends on; a file with another provenance is refused.
        versions: versions of the packages used; they are recorded, but may differ between the parts of a run.
        requests: all requests of the run.

    Attributes:
        answered: keys of the requests that have a line.
        failures: key -> reason, for requests that were asked and not answered.
        notes: messages for the user about the file.
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

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def keep(self, key: RequestKey, fields: Mapping[str, Any]) -> None:
        """Writes one answer; returns once it is on disk. Raises ValueError for a second answer to a question."""
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
        """Writes a null response, which scores as wrong, and the reason for each question that failed."""
        for key, reason in list(self.failures.items()):
            self.keep(key, {"response": None, "error": reason})

    def sort_and_rewrite(self) -> None:
        """Rewrites a complete file atomically in the order of the questions, so that a run is reproducible."""
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
        """Checks that the files belong to this run, and reads which questions are done."""
        known = set(self.keys)
        if self._answers.records:
            self._check_head(self._answers.records[0])
        for number, record in enumerate(self._answers.records, 1):
            key, location = _key(record), f"{self.path}, line {number}"
            if record.get("run") != self.run:
                raise InputError(Problem(location, f"run {self.run}", preview(record.get("run")), _OTHER_RUN))
            if key in self.answered:
                found = f"a second line for {preview(key[0])}"
                raise InputError(Problem(location, "one line per question", found, "remove it"))
            if key not in known:
                raise InputError(Problem(location, "an id that is in the data", preview(key[0]), "remove the line"))
            self.answered.add(key)
        for record in self._failed.records:
            if record.get("run") == self.run:
                self._failures_have_head = True
                if _key(record) in known - self.answered:
                    self.failures[_key(record)] = str(record.get("reason"))
        if self._answers.repaired_bytes:
            torn = f"an incomplete last line of {self._answers.repaired_bytes} bytes is removed"
            self.notes.append(f"{self.path}: {torn}; its question is asked again")
        if self.answered:
            self.notes.append(f"{self.path}: continuing after {len(self.answered)} of {len(self.keys)} answers")

    def _check_head(self, head: Mapping[str, Any]) -> None:
        found = head.get("provenance")
        location = f"{self.path}, line 1"
        if not isinstance(found, Mapping):
            raise InputError(Problem(location, "the provenance of a run", "none", _OTHER_RUN))
        problems = [
            Problem(f"{location}, {name}", preview(self.provenance.get(name)), preview(found.get(name)), _OTHER_RUN)
            for name in sorted({*found, *self.provenance})
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
    """Returns the path of the failures file that belongs to a predictions file."""
    return path.with_name(f"{path.name}.failures.jsonl")


def _key(record: Mapping[str, Any]) -> RequestKey:
    rotation = record.get("rotation")
    return str(record.get("id")), rotation if isinstance(rotation, int) else None


def _remove_if_empty(journal: Journal) -> None:
    """Removes a file that was created by opening a journal and is still empty."""
    if not journal.records and not journal.repaired_bytes:
        journal.path.unlink(missing_ok=True)
