"""Reads ``predictions.jsonl``: one JSON object a line, ``{"id": ..., "response": ...}`` and further fields of the run.

What a run states of itself (model, prompt, sampling, data hash, versions) is the field ``provenance`` of the first
line, with ``versions`` beside it, or an object of its own on the first line, without ``id`` and ``response``. Results
of other evaluation tools are read too (``tool_results``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
"""Setting of a results file -> names under which a run may state it, in its first line or in every row."""
MAX_NAMED: Final = 1000
"""Maximum number of ids of one kind that an error lists; the others are counted."""
_BARE: Final = re.compile(r"[\s(\[*\"']*[A-Za-z][\s)\].:*\"']*")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One response.

    Attributes:
        id: row id of the question.
        response: the model's text, or None for a failed call.
        line: line of the file, counted from 1.
        rotation: places that the options were rotated by (CircularEval), or None.
        error: the run's message about a failed call, or None.
        finish: why the answer ended as the backend gives it (``stop``, ``length``), or None.
        zoom: what a model that chose where to look used and saw (``predict --zoom``), or None.
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
        provenance: what the run states of itself; empty if nothing.
        settings: name of ``SETTING_NAMES`` -> its value, or None if it is not stated or the rows disagree.
        digest: SHA-256 of the file's bytes.
    """

    path: Path
    rows: tuple[Prediction, ...]
    provenance: Mapping[str, Any]
    settings: Mapping[str, Any]
    digest: str


def read_predictions(path: str | Path) -> Predictions:
    """Reads a predictions file.

    Raises:
        InputError: with every problem: a line that is not a JSON object (line and column), a missing id or response,
            a repeated id.
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
            problems.append(Problem(f"{path}, line {number}", "an id of its own", found, "keep one of the two"))
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
    settings |= {name: value for name in settings if (value := _first(provenance, SETTING_NAMES[name])) is not None}
    return Predictions(path, tuple(rows), provenance, settings, sha256_file(path))


def _provenance(row: dict[str, Any]) -> dict[str, Any]:
    """Returns what the first line states of the run: the line itself if it is not a prediction."""
    if "id" not in row and "response" not in row:
        return row
    stated, versions = row.get("provenance"), row.get("versions")
    provenance = dict(stated) if isinstance(stated, Mapping) else {}
    return provenance | {"versions": versions} if isinstance(versions, Mapping) else provenance


def _objects(path: Path, problems: list[Problem]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object); other lines become problems."""
    if path.is_file() and (found := tool_lines(path)) is not None:
        yield from enumerate(found, 1)
        return
    try:
        # lone surrogates are kept: a model's text may hold them, and no parsing rule depends on them
        with path.open(encoding="utf-8-sig", errors="surrogatepass") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                location = f"{path}, line {number}"
                try:
                    row = json.loads(line.rstrip("\r\n"))
                except (ValueError, RecursionError) as error:  # ValueError: also an integer of thousands of digits
                    location = f"{location}, column {getattr(error, 'colno', 1)}"
                    hint = "fix the line" if line.endswith("\n") else "the file ends within a line: finish the run"
                    problems.append(Problem(location, "one JSON object a line", preview(line), hint))
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
        problems.append(Problem(location, expected, preview(row["response"]), "give the text as it came"))
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
    """Questions and the responses to them, in the order of the questions.

    Attributes:
        questions: n questions; one that was asked with rotated options occurs once per rotation.
        gold: (n,) ASCII code of the right letter under the rotation.
        options: (n,) number of options.
        parsed: letters and parse outcomes of the responses.
        bare: number of responses that are a bare letter, such as ``B`` or ``(b)``, without tags.
        failed: number of responses that the run marked as failed calls (they are among the unparsed).
        circular: whether every question was asked under every rotation of its options.
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
        right: npt.NDArray[np.bool_] = self.parsed.letters == self.gold
        return right.astype(np.float64)

    @property
    def clusters(self) -> list[str]:
        """(n,) patient of each question, else its slide, else its id."""
        return [question.cluster for question in self.questions]

    @property
    def clustered(self) -> bool:
        """Whether the data names a patient or slide of any question."""
        return any(question.patient or question.slide for question in self.questions)

    @property
    def dimensions(self) -> list[str | None] | None:
        """(n,) dimension of each question, or None if the data names none."""
        names = [question.dimension for question in self.questions]
        return names if any(name is not None for name in names) else None


def join(predictions: Predictions, questions: Sequence[Question], mode: Mode = "reference") -> Answers:
    """Finds the response to each question.

    Raises:
        InputError: naming every question without a response, every response without a question, every id that the
            data has twice, and missing rotations of a circular run.
    """
    by_id = {question.id: question for question in questions}
    asked: dict[str, dict[int | None, Prediction]] = {}
    for row in predictions.rows:
        asked.setdefault(row.id, {})[row.rotation] = row
    problems = [*_mismatches(predictions, questions, asked), *_missing_rotations(predictions, by_id, asked)]
    if problems:
        raise InputError(problems)
    rows = [(question, row) for question in questions for _, row in sorted(asked[question.id].items(), key=_rotation)]
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
    """Raises InputError if two runs were asked the same questions under different rotations of their options."""
    if first.questions != second.questions or not np.array_equal(first.gold, second.gold):
        expected = "two runs asked under the same rotations of the options"
        found = "a circular run and one that is not" if first.circular != second.circular else "different ones"
        raise InputError(Problem("the two runs", expected, found, "run both with or without --ablate circular"))


def _mismatches(
    predictions: Predictions, questions: Sequence[Question], asked: dict[str, dict[int | None, Prediction]]
) -> list[Problem]:
    location = str(predictions.path)
    known: set[str] = set()
    repeated: list[str] = []
    for question in questions:
        if question.id in known:
            repeated.append(question.id)
        known.add(question.id)
    missing = [question.id for question in questions if question.id not in asked]
    extra = [identity for identity in asked if identity not in known]
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


def _rotation(item: tuple[int | None, Prediction]) -> int:
    return item[0] or 0
