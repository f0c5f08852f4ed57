"""Reads multiple-choice questions of any benchmark, without their images.

``read_questions`` reads a release folder, a Hub id, a ``.parquet`` file, or a JSON list, JSONL or CSV file with
question, options and answer, such as the authors' files. ``release_folder.read.FIELD_NAMES`` lists the field names.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.release_folder.read import FIELD_NAMES, Record, read_records
from scale_vqa_eval.schema import LETTERS, QUESTION_TYPES, patient_of, row_id

_TEXTS: Final = ("id", "dimension", "slide", "patient", "path_id", "rationale", "group")


@dataclass(frozen=True, slots=True)
class Question:
    """One multiple-choice question without its images.

    Attributes:
        id: row id, or ``row N`` if the file has no ids.
        question: the stem.
        options: 2 to 26 option texts in letter order.
        answer: 0-based index of the gold option.
        dimension: reasoning dimension, or None if not stated.
        slide: slide name, or None if unknown.
        patient: patient name, or None if unknown.
        path_id: diagnostic path, or None if unknown.
        rationale: the released rationale, or None.
        group: exchange group, or None if the question is in no group.
        split: split that the question was read from, or None if not stated.
        images: pairs of view and image path, as stated in the file.
    """

    id: str
    question: str
    options: tuple[str, ...]
    answer: int
    dimension: str | None = None
    slide: str | None = None
    patient: str | None = None
    path_id: str | None = None
    rationale: str | None = None
    group: str | None = None
    split: str | None = None
    images: tuple[tuple[str, str], ...] = ()

    @property
    def letter(self) -> str:
        """Letter of the gold option."""
        return LETTERS[self.answer]

    @property
    def cluster(self) -> str:
        """Cluster id for statistics: the patient, else the slide, else the question id."""
        return unicodedata.normalize("NFC", self.patient or self.slide or self.id)

    def as_row(self, source: str) -> dict[str, Any]:
        """Returns a row of a release folder without images; ``source`` is the value of its source column."""
        names = {"slide": "wsi_name", "patient": "patient_id"}
        same = ("id", "question", "dimension", "slide", "patient", "path_id", "rationale", "group")
        row = {names.get(name, name): getattr(self, name) for name in same}
        return row | {"options": list(self.options), "answer": self.letter, "source": source}


def read_questions(data: str | Path, split: str | None = None, config: str | None = None) -> list[Question]:
    """Reads every question of a file, a release folder or a Hub id.

    Args:
        data: release folder, ``.parquet``, ``.json`` (list), ``.jsonl`` or ``.csv`` file, Hub id ``org/name``, or the
            name ``scale-vqa`` (see ``release_folder.read.resolve_data``).
        split: split to read, or None for all splits.
        config: config of a release folder, or None for ``default`` (the first config if there is no ``default``).

    Raises:
        InputError: lists every problem of the input.
    """
    questions: list[Question] = []
    problems: list[Problem] = []
    seen: dict[tuple[str | None, str], str] = {}
    for record in read_records(data, split, config):
        question = _question(record, problems)
        if question is None:
            continue
        key = (question.split, question.id)
        if key in seen:
            found = f"the id of {seen[key]}: {preview(question.id)}"
            problems.append(Problem(record.location, "a unique id", found, "rename one"))
        seen[key] = record.location
        questions.append(question)
    if not questions and not problems:
        hint = "name a file that has questions"
        problems.append(Problem(str(data), "at least one question", "no row", hint))
    if problems:
        raise InputError(problems)
    return questions


def _question(record: Record, problems: list[Problem]) -> Question | None:
    """Returns the question of a record, or None after appending the record's problems to ``problems``."""
    row, location = record.row, record.location
    stem = next(_values(row, "question"), None)
    if not isinstance(stem, str) or not stem.strip():
        expected = f"a question text under one of {', '.join(FIELD_NAMES['question'])}"
        known = any(name in row for name in FIELD_NAMES["question"])
        found = preview(stem) if known or stem else f"only the fields {preview(', '.join(map(str, row)))}"
        problems.append(Problem(location, expected, found, "add the text"))
        return None
    options = _options(row)
    if isinstance(options, str):
        hint = "give a JSON list, an object A, B, ... or columns A, B, ..."
        problems.append(Problem(location, "2 to 26 option texts", options, hint))
        return None
    gold = _gold(next(_values(row, "answer"), None), options)
    if isinstance(gold, str):
        last = LETTERS[len(options) - 1]
        expected = f"an answer that is a letter A-{last}, an index 0-{len(options) - 1} or the text of one option"
        problems.append(Problem(location, expected, gold, "correct the answer"))
        return None
    fields = {name: _text(row, name, location, problems) for name in _TEXTS}
    slide, path_id, kind = fields["slide"], fields["path_id"], fields["dimension"]
    identity = fields["id"]
    if identity is None:
        identity = row_id(slide, path_id, kind) if slide and path_id and kind else f"row {record.number}"
    images = row.get("image_path")
    named = tuple((str(view), path) for view, path in images.items() if path) if isinstance(images, Mapping) else ()
    return Question(
        id=identity,
        question=stem,
        options=options,
        answer=gold,
        dimension=QUESTION_TYPES.get(kind, kind) if kind else None,
        slide=slide,
        patient=fields["patient"] or (patient_of(slide) if slide else None),
        path_id=path_id,
        rationale=fields["rationale"],
        group=fields["group"],
        split=record.split,
        images=named,
    )


def _values(row: Mapping[str, Any], name: str) -> Iterator[Any]:
    """Yields the values under the names of a field, at the top level or in ``extra_info``; objects are skipped."""
    extra = row.get("extra_info")
    for key in FIELD_NAMES[name]:
        for fields in (row, extra if isinstance(extra, Mapping) else {}):
            value = fields.get(key)
            if value is not None and value != "" and not isinstance(value, Mapping):
                yield value


def _text(row: Mapping[str, Any], name: str, location: str, problems: list[Problem]) -> str | None:
    """Returns a field as text or None; a value of another type, such as a decoded image, is a problem."""
    values = [value for value in _values(row, name) if not (isinstance(value, float) and math.isnan(value))]
    for value in values:
        parts = value if isinstance(value, list | tuple) else [value]
        if all(part is None or isinstance(part, str | Number | list | Mapping) for part in parts):
            integral = isinstance(value, float) and value.is_integer()  # pandas stores integers with nulls as floats
            return str(int(value) if integral else value).strip() or None
    if values and name != "slide":  # the field names of a slide include those of image columns
        expected = f"a text or a number under one of {', '.join(FIELD_NAMES[name])}"
        found = f"a value of type {type(values[0]).__name__}"
        problems.append(Problem(location, expected, found, "convert the field"))
    return None


def _options(row: Mapping[str, Any]) -> tuple[str, ...] | str:
    """Returns the option texts in letter order, or a description of what was found instead."""
    raw = next((row[key] for key in FIELD_NAMES["options"] if row.get(key) is not None), None)
    if raw is None:
        raw = {letter: row[letter] for letter in LETTERS if not _missing(row.get(letter))} or None
    if isinstance(raw, str):
        raw = _literal(raw)
    if isinstance(raw, Mapping):
        letters = [str(key).strip().upper() for key in raw]
        if sorted(letters) != list(LETTERS[: len(letters)]):
            return f"options lettered {', '.join(sorted(letters)) or 'not at all'}"
        raw = [text for _, text in sorted(zip(letters, raw.values(), strict=True), key=lambda pair: pair[0])]
    if not isinstance(raw, list | tuple):
        return preview(raw)
    if not 2 <= len(raw) <= len(LETTERS):
        return f"{len(raw)} options"
    strange = [type(text).__name__ for text in raw if text is not None and not isinstance(text, str | Number)]
    if strange:
        return f"an option of type {strange[0]}"
    texts = tuple("" if _missing(text) else str(text) for text in raw)
    empty = [LETTERS[index] for index, text in enumerate(texts) if not text.strip()]
    return f"an empty option {', '.join(empty)}" if empty else texts


def _missing(value: Any) -> bool:
    """Returns whether an option is null, empty, or NaN, which pandas writes for a cell without a value."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _literal(text: str) -> Any:
    """Parses a list or object written as JSON or as a Python literal; returns other texts unchanged."""
    if not text.lstrip().startswith(("[", "{", "(")):
        return text
    for reader in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return reader(text)
    return text


def _gold(raw: Any, options: tuple[str, ...]) -> int | str:
    """Returns the 0-based index of the gold option, or a description of what was found instead."""
    if isinstance(raw, bool) or raw is None:
        return f"the answer {preview(raw)}"
    if isinstance(raw, int | float):
        return int(raw) if 0 <= raw < len(options) and raw == int(raw) else f"the answer {preview(raw)}"
    if not isinstance(raw, str):
        return f"an answer of type {type(raw).__name__}"
    matches = set(_matches(raw.strip(), options))
    if len(matches) == 1:
        return matches.pop()
    return f"the answer {preview(raw)}" + (", which can be read as more than one option" if matches else "")


def _matches(answer: str, options: tuple[str, ...]) -> Iterator[int]:
    """Yields the index of every option that an answer may refer to by letter, index or text."""
    bare = answer.strip("().: ").upper()
    if len(bare) == 1 and bare in LETTERS[: len(options)]:
        yield LETTERS.index(bare)
    elif answer.isascii() and answer.isdigit() and len(answer) < 10 and int(answer) < len(options):
        yield int(answer)
    yield from (index for index, text in enumerate(options) if text.strip() == answer)
