"""Reads multiple-choice questions of any benchmark, images left aside: the input of the audit and the controls.

``read_questions`` takes a release folder, a Hub id, a ``.parquet`` file, or a JSON list, JSONL or CSV with question,
options and answer; the authors' format is one of those. What a field may be called is in ``FIELD_NAMES``.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.release_folder.read import Record, read_records
from scale_vqa_eval.schema import LETTERS, QUESTION_TYPES, patient_of, row_id

FIELD_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "id": ("id", "question_id", "qid"),
    "question": ("question", "prompt", "query", "stem"),
    "options": ("options", "choices"),
    "answer": ("answer", "answer_index", "correct_answer", "label", "gold", "target"),
    "rationale": ("rationale", "explanation"),
    "dimension": ("dimension", "question_type", "category", "subject", "type"),
    "slide": ("wsi_name", "slide", "slide_id", "file_id", "image_path", "image"),
    "patient": ("patient_id", "patient", "case_id", "case"),
    "path_id": ("path_id",),
    "source": ("source",),
    "group": ("group",),
    "split": ("split",),
}
"""Field -> names under which a file may carry it, the first present is taken; ``extra_info`` is looked into too."""


@dataclass(frozen=True, slots=True)
class Question:
    """One multiple-choice question without its images.

    Attributes:
        id: the row id; ``row N`` where the file has none.
        question: the stem.
        options: 2 to 26 option texts in letter order.
        answer: 0-based index of the gold option.
        dimension: name of the reasoning dimension, None where the file has none.
        slide: slide name, None where unknown.
        patient: patient name, None where unknown.
        path_id: the diagnostic path, None where unknown.
        rationale: the released rationale, None where there is none.
        group: exchange group, None outside of one.
        split: split of a release folder, else None.
        images: view -> image path as the file names it; empty where the file names none.
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
        """What questions are clustered by: the patient, else the slide, else the question itself."""
        return self.patient or self.slide or self.id


def read_questions(data: str | Path, split: str | None = None, config: str | None = None) -> list[Question]:
    """Reads every question of a file, a release folder or a Hub id.

    Args:
        data: release folder, ``.parquet``, ``.json`` (list), ``.jsonl``, ``.csv``, Hub id ``org/name``, or
            ``scale-vqa``, the bare name of what is prepared.
        split: keep this split only; None keeps all.
        config: config of a release folder; None takes ``default`` where there is one, else the first.

    Raises:
        InputError: with every fault of the input: file, row, expected, found, fix.
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
            problems.append(
                Problem(
                    record.location, "an id of its own", f"the id of {seen[key]}: {preview(question.id)}", "rename one"
                )
            )
        seen[key] = record.location
        questions.append(question)
    if not questions and not problems:
        found = "no row" if split is None else f"no row of split {split!r}"
        problems.append(
            Problem(str(data), "at least one question", found, "name a file or a split that has questions")
        )
    if problems:
        raise InputError(problems)
    return questions


def _question(record: Record, problems: list[Problem]) -> Question | None:
    """Turns one record into a question; appends what is wrong with it to ``problems`` and returns None then."""
    row, location = record.row, record.location
    stem = _field(row, "question")
    options = _options(row)
    if not isinstance(stem, str) or not stem.strip():
        expected = f"a question text under one of {', '.join(FIELD_NAMES['question'])}"
        problems.append(Problem(location, expected, preview(stem), "add the text"))
        return None
    if isinstance(options, str):
        hint = "give a JSON list, an object A, B, ... or columns A, B, ..."
        problems.append(Problem(location, "2 to 26 option texts", options, hint))
        return None
    gold = _gold(row, options)
    if isinstance(gold, str):
        last = LETTERS[len(options) - 1]
        expected = f"an answer that is a letter A-{last}, an index 0-{len(options) - 1} or the text of one option"
        problems.append(Problem(location, expected, gold, "correct the answer"))
        return None
    return _assembled(record, stem, options, gold)


def _assembled(record: Record, stem: str, options: tuple[str, ...], gold: int) -> Question:
    row = record.row
    kind = _text(_field(row, "dimension"))
    slide, path_id = _text(_field(row, "slide")), _text(_field(row, "path_id"))
    patient = _text(_field(row, "patient")) or (patient_of(slide) if slide else None)
    identity = _text(_field(row, "id"))
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
        patient=patient,
        path_id=path_id,
        rationale=_text(_field(row, "rationale")),
        group=_text(_field(row, "group")),
        split=record.split or _text(_field(row, "split")),
        images=named,
    )


def _field(row: Mapping[str, Any], name: str) -> Any:
    """Returns the first value present under the names of a field, at the top or in ``extra_info``."""
    extra = row.get("extra_info")
    for key in FIELD_NAMES[name]:
        for place in (row, extra if isinstance(extra, Mapping) else {}):
            value = place.get(key)
            if value is not None and value != "" and not isinstance(value, Mapping):
                return value
    return None


def _text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value).strip() or None


def _options(row: Mapping[str, Any]) -> tuple[str, ...] | str:
    """Returns the option texts in letter order, or a line that says what was found instead."""
    raw = next((row[key] for key in FIELD_NAMES["options"] if row.get(key) is not None), None)
    if raw is None:
        raw = {letter: row[letter] for letter in LETTERS if row.get(letter) not in (None, "")} or None
    if isinstance(raw, str):
        raw = _literal(raw)
    if isinstance(raw, Mapping):
        letters = [str(key).strip().upper() for key in raw]
        if sorted(letters) != list(LETTERS[: len(letters)]):
            return f"options lettered {', '.join(sorted(letters)) or 'not at all'}"
        raw = [text for _, text in sorted(zip(letters, raw.values(), strict=True), key=lambda pair: pair[0])]
    if not isinstance(raw, list | tuple):
        return preview(raw)
    texts = tuple(text if isinstance(text, str) else "" if text is None else str(text) for text in raw)
    if not 2 <= len(texts) <= len(LETTERS):
        return f"{len(texts)} options"
    empty = [LETTERS[index] for index, text in enumerate(texts) if not text.strip()]
    return f"an empty option {', '.join(empty)}" if empty else texts


def _literal(text: str) -> Any:
    """Reads a list or object written as JSON or as a Python literal; returns the text itself where it is neither."""
    for reader in (json.loads, ast.literal_eval):
        try:
            return reader(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return text


def _gold(row: Mapping[str, Any], options: tuple[str, ...]) -> int | str:
    """Returns the 0-based index of the gold option, or a line that says what was found instead."""
    raw = _field(row, "answer")
    if isinstance(raw, bool) or raw is None:
        return f"the answer {preview(raw)}"
    if isinstance(raw, int | float):
        return int(raw) if raw == int(raw) and 0 <= raw < len(options) else f"the answer {preview(raw)}"
    readings = set(_readings(str(raw).strip(), options))
    if len(readings) == 1:
        return readings.pop()
    return f"the answer {preview(raw)}" + (", which can be read as more than one option" if readings else "")


def _readings(answer: str, options: tuple[str, ...]) -> Iterator[int]:
    bare = answer.strip("().: ").upper()
    if len(bare) == 1 and bare in LETTERS[: len(options)]:
        yield LETTERS.index(bare)
    elif answer.isascii() and answer.isdigit() and int(answer) < len(options):
        yield int(answer)
    yield from (index for index, text in enumerate(options) if text.strip() == answer)
