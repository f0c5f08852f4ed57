"""Reads predictions files and matches responses with questions.

A line of ``predictions.jsonl`` is a JSON object with ``id``, ``response`` and other fields. The provenance of the run
(model, prompt, sampling, data hash) is in the fields ``provenance`` and ``versions`` of the first line, or is the
complete first line, without ``id`` and ``response``. Results of other evaluation tools are read by ``tool_results``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import sha256_file
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import Numbers
from scale_vqa_eval.scale_vqa_acc.parsing import Mode, ParsedBatch, parse_batch
from scale_vqa_eval.scoring.tool_results import lmms_eval_row, tool_lines

SETTING_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "model": ("model",),
    "prompt_id": ("prompt_id", "prompt"),
    "sampling": ("sampling",),
    "backend": ("backend",),
    "ablation": ("ablation", "ablate"),
}
"""Setting in a results file -> possible names in a predictions file, in its provenance or in every row."""
MAX_NAMED: Final = 1000
"""Maximum number of ids in an error; the others are counted."""
_BARE: Final = re.compile(r"[\s(\[*\"']*[A-Za-z][\s)\].:*\"']*")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One response.

    Attributes:
        id: row id of the question.
        response: the model's text, or None for a failed call.
        line: 1-based line number.
        rotation: number of places by which the options were rotated (CircularEval), or None.
        error: error message of a failed call, or None.
        finish: finish reason reported by the backend (``stop``, ``length``), or None.
        zoom: record of an episode of ``predict --zoom``, or None.
    """

    id: str
    response: str | None
    line: int
    rotation: int | None = None
    error: str | None = None
    finish: str | None = None
    zoom: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Predictions:
    """A predictions file.

    Attributes:
        path: the file.
        rows: the responses in file order.
        provenance: provenance of the run; empty if it states none.
        settings: setting of ``SETTING_NAMES`` -> value, or None if it is not stated or differs between rows.
        digest: SHA-256 of the file.
        mixed: setting of ``SETTING_NAMES`` -> its values, if rows or provenance state several.
    """

    path: Path
    rows: tuple[Prediction, ...]
    provenance: Mapping[str, Any]
    settings: Mapping[str, Any]
    digest: str
    mixed: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def read_predictions(path: str | Path) -> Predictions:
    """Reads a predictions file.

    Raises:
        InputError: lists every line that is not a JSON object, missing id or response, and repeated id.
    """
    path = Path(path)
    problems: list[Problem] = []
    provenance: dict[str, Any] = {}
    rows: list[Prediction] = []
    seen: dict[tuple[str, int | None], int] = {}
    stated: dict[str, list[Any]] = {name: [] for name in SETTING_NAMES}
    for number, row in _objects(path, problems):
        if number == 1:
            provenance = _provenance(row)
            if provenance is row:
                continue
        prediction = _prediction(row, f"{path}, line {number}", number, problems)
        if prediction is None:
            continue
        key = (prediction.id, prediction.rotation)
        if key in seen:
            found = f"the id of line {seen[key]}: {preview(prediction.id)}"
            problems.append(Problem(f"{path}, line {number}", "a unique id", found, "keep one of the two"))
        seen[key] = number
        rows.append(prediction)
        for name, values in stated.items():
            value = _first(row, SETTING_NAMES[name])
            if value is not None and value not in values:
                values.append(value)
    if not rows and not problems:
        problems.append(Problem(str(path), "at least one response", "none", "run `scale-vqa predict` again"))
    if problems:
        raise InputError(problems)
    settings = {name: values[0] if len(values) == 1 else None for name, values in stated.items()}
    about = {name: value for name in settings if (value := _first(provenance, SETTING_NAMES[name])) is not None}
    for name, value in about.items():
        stated[name] += [value] if stated[name] and value not in stated[name] else []
    mixed = {name: values for name, values in stated.items() if len(values) > 1}
    return Predictions(path, tuple(rows), provenance, settings | about, sha256_file(path), mixed)


def _provenance(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the provenance in the first line, which is the line itself if it is not a prediction."""
    if "id" not in row and "response" not in row:
        return row
    stated, versions = row.get("provenance"), row.get("versions")
    provenance = dict(stated) if isinstance(stated, Mapping) else {}
    return provenance | {"versions": versions} if isinstance(versions, Mapping) else provenance


def _objects(path: Path, problems: list[Problem]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line numbers and objects; lines that are not objects are appended to ``problems``."""
    if path.is_file() and (found := tool_lines(path)) is not None:
        yield from enumerate(found, 1)
        return
    try:
        # a model's text may contain lone surrogates, which no parsing rule depends on
        with path.open(encoding="utf-8-sig", errors="surrogatepass") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                location = f"{path}, line {number}"
                try:
                    row = json.loads(line.rstrip("\r\n"))
                except (ValueError, RecursionError) as error:  # also raised for an integer with thousands of digits
                    location = f"{location}, column {getattr(error, 'colno', 1)}"
                    hint = "fix the line" if line.endswith("\n") else "the file ends within a line: finish the run"
                    problems.append(Problem(location, "one JSON object per line", preview(line), hint))
                    continue
                if isinstance(row, dict):
                    yield number, lmms_eval_row(row, path, number == 1)
                else:
                    hint = 'write {"id": ..., "response": ...}'
                    problems.append(Problem(location, "a JSON object", preview(row), hint))
    except UnicodeDecodeError as error:
        problems.append(Problem(str(path), "text in UTF-8", preview(str(error)), "save it as UTF-8"))
    except OSError as error:
        problem = Problem(str(path), "a predictions file", error.strerror or type(error).__name__, "check the name")
        raise InputError(problem) from error


def _prediction(row: dict[str, Any], location: str, number: int, problems: list[Problem]) -> Prediction | None:
    identity, rotation, error, finish = (row.get(name) for name in ("id", "rotation", "error", "finish"))
    before = len(problems)
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        found = preview(identity) if "id" in row else "no such field"
        problems.append(Problem(location, "an id in the field 'id'", found, "name the question that was answered"))
    if "response" not in row:
        found = f"the fields {', '.join(map(str, row)) or 'none'}"
        problems.append(Problem(location, "the model's text in the field 'response'", preview(found), "add the text"))
    elif not isinstance(row["response"], str | None):
        expected = "text, or null for a failed call, in the field 'response'"
        problems.append(Problem(location, expected, preview(row["response"]), "write the model's text"))
    if isinstance(rotation, bool) or not isinstance(rotation, int | None):
        expected = "a number of places or null in the field 'rotation'"
        problems.append(Problem(location, expected, preview(rotation), "correct it"))
    if len(problems) > before:
        return None
    error, finish = (None if value is None else str(value) for value in (error, finish))
    zoom = row.get("zoom") if isinstance(row.get("zoom"), Mapping) else None
    return Prediction(str(identity), row["response"], number, rotation, error, finish, zoom)


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


@dataclass(frozen=True)
class Answers:
    """Questions and their responses, in the order of the questions.

    Attributes:
        questions: n questions; in a circular run a question occurs once per rotation.
        gold: (n,) ASCII code of the gold letter under the rotation.
        options: (n,) number of options.
        parsed: letters and parse outcomes of the responses.
        bare: number of responses that are a bare letter without tags, such as ``B`` or ``(b)``.
        failed: number of responses marked as failed calls, which also count as unparsed.
        circular: whether the questions were asked under every rotation of their options.
    """

    questions: tuple[Question, ...]
    gold: npt.NDArray[np.uint8]
    options: npt.NDArray[np.int64]
    parsed: ParsedBatch
    bare: int
    failed: int
    circular: bool

    @property
    def correct(self) -> Numbers:
        """(n,) 1.0 for a right response, else 0.0."""
        return np.asarray(self.parsed.letters == self.gold, np.float64)

    @property
    def clusters(self) -> list[str]:
        """(n,) cluster id of each question."""
        return [question.cluster for question in self.questions]

    @property
    def clustered(self) -> bool:
        """Whether the patient or slide of any question is known."""
        return any(question.patient or question.slide for question in self.questions)

    @property
    def dimensions(self) -> list[str | None] | None:
        """(n,) dimension of each question, or None if the data states no dimensions."""
        names = [question.dimension for question in self.questions]
        return names if any(name is not None for name in names) else None


def join(predictions: Predictions, questions: Sequence[Question], mode: Mode = "reference") -> Answers:
    """Matches responses with questions by id.

    Raises:
        InputError: lists every question without a response, response without a question, repeated id in the data, and
            missing rotation of a circular run.
    """
    by_id = {question.id: question for question in questions}
    asked: dict[str, dict[int | None, Prediction]] = {}
    for row in predictions.rows:
        asked.setdefault(row.id, {})[row.rotation] = row
    problems = [*_mismatches(predictions, questions, asked), *_missing_rotations(predictions, by_id, asked)]
    if problems:
        raise InputError(problems)
    rows = [
        (question, row)
        for question in questions
        for row in sorted(asked[question.id].values(), key=lambda row: row.rotation or 0)
    ]
    options = np.array([len(question.options) for question, _ in rows], np.int64)
    rotated = np.array([row.rotation or 0 for _, row in rows], np.int64)
    gold = (np.array([question.answer for question, _ in rows], np.int64) - rotated) % options + ord("A")
    return Answers(
        questions=tuple(question for question, _ in rows),
        gold=gold.astype(np.uint8),
        options=options,
        bare=sum(row.response is not None and _BARE.fullmatch(row.response) is not None for _, row in rows),
        parsed=parse_batch([row.response for _, row in rows], mode, options),
        failed=sum(row.error is not None for _, row in rows),
        circular=any(row.rotation is not None for _, row in rows),
    )


def check_same_rotations(first: Answers, second: Answers) -> None:
    """Raises InputError if two runs do not have the same questions under the same rotations of their options."""
    if first.questions != second.questions or not np.array_equal(first.gold, second.gold):
        expected = "two runs with the same rotations of the options"
        found = "one circular run" if first.circular != second.circular else "different rotations"
        raise InputError(Problem("the two runs", expected, found, "run both with or without --ablate circular"))


def _mismatches(
    predictions: Predictions, questions: Sequence[Question], asked: dict[str, dict[int | None, Prediction]]
) -> list[Problem]:
    location = str(predictions.path)
    counts = Counter(question.id for question in questions)
    missing = [question.id for question in questions if question.id not in asked]
    extra = [identity for identity in asked if identity not in counts]
    repeated = [identity for identity, count in counts.items() if count > 1]
    one_split = "; if the file covers one split, name it with --split" if len({q.split for q in questions}) > 1 else ""
    return [
        *_named(missing, location, "a response to every question", "no response to", "answer it" + one_split),
        *_named(extra, location, "responses to questions of the data", "a response to", "score it on its own data"),
        *_named(repeated, "the data", "each id once", "in more than one split:", "name one with --split"),
    ]


def _named(ids: list[str], location: str, expected: str, found: str, hint: str) -> list[Problem]:
    problems = [Problem(location, expected, f"{found} {identity!r}", hint) for identity in ids[:MAX_NAMED]]
    if len(ids) > MAX_NAMED:
        problems.append(Problem(location, expected, f"{found} {len(ids) - MAX_NAMED} more", hint))
    return problems


def _missing_rotations(
    predictions: Predictions, by_id: dict[str, Question], asked: dict[str, dict[int | None, Prediction]]
) -> list[Problem]:
    """Returns the questions of a circular run that lack a rotation of their options."""
    if not any(row.rotation is not None for row in predictions.rows):
        return []
    problems = []
    for identity, rotations in asked.items():
        wanted = set(range(len(by_id[identity].options))) if identity in by_id else set(rotations)
        if set(rotations) != wanted:
            found = f"{sorted(map(str, rotations))} of {identity!r}"
            expected = f"a response under each rotation 0-{len(wanted) - 1}"
            problems.append(Problem(str(predictions.path), expected, found, "finish the run"))
    return problems
