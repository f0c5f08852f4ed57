"""Reads ``predictions.jsonl``: one JSON object a line, ``{"id": ..., "response": ...}`` and whatever else a run notes.

The run's account of itself (model, prompt, sampling, data hash, versions) is the field ``provenance`` of the first
line, with ``versions`` beside it, or an object of its own on the first line, without ``id`` and ``response``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview

PROVENANCE_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "model": ("model",),
    "prompt_id": ("prompt_id", "prompt"),
    "sampling": ("sampling",),
    "backend": ("backend",),
    "ablation": ("ablation", "ablate"),
}
"""Field of a results file -> names under which a run may note it, in its first line or in every row."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One response.

    Attributes:
        id: row id of the question.
        response: the model's text, None where the run noted a failure instead.
        line: line of the file, counted from 1.
        rotation: places that the options were turned by (CircularEval), None where they stood as released.
        error: what the run noted about a failed response.
    """

    id: str
    response: str | None
    line: int
    rotation: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class Predictions:
    """A predictions file.

    Attributes:
        path: the file.
        rows: the responses in file order.
        account: what the run says of itself; empty where it says nothing.
        noted: field of ``PROVENANCE_FIELDS`` -> its value; None where it is not noted or the rows disagree.
        digest: SHA-256 of the file's bytes.
    """

    path: Path
    rows: tuple[Prediction, ...]
    account: Mapping[str, Any]
    noted: Mapping[str, Any]
    digest: str


def read_predictions(path: str | Path) -> Predictions:
    """Reads a predictions file.

    Raises:
        InputError: with every fault: what is no JSON object (line and column), a missing id or response, an id twice.
    """
    path = Path(path)
    problems: list[Problem] = []
    account: dict[str, Any] = {}
    rows: list[Prediction] = []
    seen: dict[tuple[str, int | None], int] = {}
    notes = _Notes()
    for number, row in _objects(path, problems):
        if number == 1:
            account = _account(row)
            if account is row:
                continue
        prediction = _prediction(row, f"{path}, line {number}", number, problems)
        if prediction is None:
            continue
        key = (prediction.id, prediction.rotation)
        if key in seen:
            found = f"the id of line {seen[key]}: {preview(prediction.id)}"
            problems.append(Problem(f"{path}, line {number}", "an id of its own", found, "keep one of the two"))
        seen[key] = number
        notes.add(row)
        rows.append(prediction)
    if not rows and not problems:
        problems.append(Problem(str(path), "at least one response", "none", "run `scale-vqa predict` again"))
    if problems:
        raise InputError(problems)
    noted = {field: notes.value(field, account) for field in PROVENANCE_FIELDS}
    return Predictions(path, tuple(rows), account, noted, hashlib.sha256(path.read_bytes()).hexdigest())


def _account(row: dict[str, Any]) -> dict[str, Any]:
    """Returns what the first line says of the run: the line itself where it is no prediction."""
    if "id" not in row and "response" not in row:
        return row
    stated, versions = row.get("provenance"), row.get("versions")
    account = dict(stated) if isinstance(stated, Mapping) else {}
    return account | {"versions": versions} if isinstance(versions, Mapping) else account


def _objects(path: Path, problems: list[Problem]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object); what is none is noted as a fault."""
    try:
        # lone surrogates are kept: a model's text may hold them, and no rule minds
        with path.open(encoding="utf-8-sig", errors="surrogatepass") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                location = f"{path}, line {number}"
                try:
                    row = json.loads(line.rstrip("\r\n"))
                except (json.JSONDecodeError, RecursionError) as error:
                    column = getattr(error, "colno", 1)
                    hint = "fix the line" if line.endswith("\n") else "the file ends within a line: finish the run"
                    problems.append(
                        Problem(f"{location}, column {column}", "one JSON object a line", preview(line), hint)
                    )
                    continue
                if isinstance(row, dict):
                    yield number, row
                else:
                    problems.append(
                        Problem(location, "a JSON object", preview(row), 'write {"id": ..., "response": ...}')
                    )
    except UnicodeDecodeError as error:
        problems.append(Problem(str(path), "text in UTF-8", preview(str(error)), "save it as UTF-8"))
    except OSError as error:
        problem = Problem(str(path), "a predictions file", error.strerror or type(error).__name__, "check the name")
        raise InputError(problem) from error


def _prediction(row: dict[str, Any], location: str, number: int, problems: list[Problem]) -> Prediction | None:
    identity, rotation, error = row.get("id"), row.get("rotation"), row.get("error")
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
        problems.append(
            Problem(location, "a number of places or null in the field 'rotation'", preview(rotation), "correct it")
        )
    if len(problems) > before:
        return None
    return Prediction(str(identity), row["response"], number, rotation, None if error is None else str(error))


class _Notes:
    """Gathers what the rows say of their run, as far as they agree."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}
        self._disagree: set[str] = set()

    def add(self, row: Mapping[str, Any]) -> None:
        for field, names in PROVENANCE_FIELDS.items():
            value = _first(row, names)
            if value is None or field in self._disagree:
                continue
            if self._found.setdefault(field, value) != value:
                self._disagree.add(field)

    def value(self, field: str, account: Mapping[str, Any]) -> Any:
        stated = _first(account, PROVENANCE_FIELDS[field])
        if stated is not None:
            return stated
        return None if field in self._disagree else self._found.get(field)


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)
