"""Reads ``predictions.jsonl``: one JSON object a line, ``{"id": ..., "response": ...}`` and further fields of the run.

What a run states of itself (model, prompt, sampling, data hash, versions) is the field ``provenance`` of the first
line, with ``versions`` beside it, or an object of its own on the first line, without ``id`` and ``response``. Results
of other evaluation tools are read too (``tool_results``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import sha256_file
from scale_vqa_eval.scoring.tool_results import lmms_eval_row, tool_lines

SETTING_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "model": ("model",),
    "prompt_id": ("prompt_id", "prompt"),
    "sampling": ("sampling",),
    "backend": ("backend",),
    "ablation": ("ablation", "ablate"),
}
"""Setting of a results file -> names under which a run may state it, in its first line or in every row."""


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
