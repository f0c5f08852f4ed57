"""What a control reads and writes: questions beside the rows they came from, and rows in the authors' format."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.question_files import read_records, release_files
from scale_vqa_eval.questions import FIELD_NAMES, Question, read_questions
from scale_vqa_eval.schema import DIMENSIONS, LETTERS, QUESTION_TYPES, VIEWS, row_id

ORGAN_FIELDS: Final = ("organ", "primary_site", "anatomic_site", "tissue", "site")
_TYPES: Final = {dimension: question_type for question_type, dimension in QUESTION_TYPES.items()}
_OWN_PLACE = ("id", "question", "options", "answer", "rationale", "dimension", "group")
_LAID_OUT: Final = {
    *(name for field in _OWN_PLACE for name in FIELD_NAMES[field]),
    *LETTERS,
    *VIEWS,
    "image_path",
    "extra_info",
}
"""Fields of a row of another format that have a place of their own in the authors' format."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a control changes in a row.

    Attributes:
        question: the question text.
        options: option texts.
        answer: 0-based index of the gold option.
        rationale: the rationale that may stay, None drops it.
        group: exchange group.
        sources: for each option the id of the row whose right answer it is.
    """

    question: str
    options: tuple[str, ...]
    answer: int
    rationale: str | None
    group: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """The input of a control.

    Attributes:
        questions: every question, in the order of the file.
        rows: the row of each as the file has it, without image bytes; ``image_path`` names the images.
    """

    questions: list[Question]
    rows: list[Mapping[str, Any]]

    @property
    def organs(self) -> list[str | None]:
        """Organ of each question, in lower case; None where the file names none."""
        return [_organ(row) for row in self.rows]

    @property
    def views(self) -> list[frozenset[str]]:
        """Views that each question has an image for; empty where the file does not say."""
        return [frozenset(view for view, path in _images(row).items() if path) for row in self.rows]


def read_source(data: str | Path, split: str | None = None, config: str | None = None) -> Source:
    """Reads the questions of ``data`` and the rows they stand in; see ``read_questions``."""
    questions = read_questions(data, split, config)
    files = _parquet_files(data, config)
    paths = {location: images for file in files for location, images in _named_images(file)}
    rows: list[Mapping[str, Any]] = []
    for record in read_records(data, split, config):
        images = paths.get(record.location)
        rows.append({**record.row, "image_path": images} if images else record.row)
    assert len(rows) == len(questions)  # read_questions raises where it leaves a row out
    return Source(questions, rows)


def authors_row(question: Question, row: Mapping[str, Any], change: Change | None = None) -> dict[str, Any]:
    """Returns a question as a row of the authors' format, its own fields kept.

    Args:
        question: the question.
        row: the row that it was read from; one in the authors' format stays as it is but for the change.
        change: what the control changes; None where it only chose the row.
    """
    in_format = isinstance(row.get("options"), Mapping) and isinstance(row.get("extra_info"), Mapping)
    result = copy.deepcopy(dict(row)) if in_format else _fresh(question, row)
    extra = result["extra_info"]
    if question.split is not None:
        extra["split"] = question.split
    if change is not None:
        result["question"] = change.question
        result["options"] = dict(zip(LETTERS, change.options, strict=False))
        result["answer"] = LETTERS[change.answer]
        result["rationale"] = change.rationale
        extra["group"] = change.group
        extra["option_sources"] = dict(zip(LETTERS, change.sources, strict=False))
    return result


def write_rows(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a JSON list, or JSON lines where the name ends in ``.jsonl``; the file appears whole or not at all."""
    if out.suffix.lower() == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        text = json.dumps(list(rows), ensure_ascii=False, indent=2) + "\n"
    write_whole(out, text)


def write_whole(out: Path, text: str) -> None:
    """Writes a text file beside its place and moves it there; surrogates that UTF-8 cannot hold are escaped."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    os.replace(partial, out)


def _fresh(question: Question, row: Mapping[str, Any]) -> dict[str, Any]:
    """Lays a row of another format out as the authors do; fields that they have not go into ``extra_info``."""
    kind = _TYPES[question.dimension] if question.dimension in DIMENSIONS else question.dimension
    known = {"wsi_name": question.slide, "patient_id": question.patient, "path_id": question.path_id}
    extra = {name: value for name, value in known.items() if value is not None}
    extra |= {"question_type": kind} if kind else {}
    inner = row.get("extra_info")
    others = {**row, **(inner if isinstance(inner, Mapping) else {})}
    extra |= {name: value for name, value in others.items() if name not in _LAID_OUT | set(extra) and _plain(value)}
    result: dict[str, Any] = {
        "question": question.question,
        "options": dict(zip(LETTERS, question.options, strict=False)),
        "answer": question.letter,
        "rationale": question.rationale,
        "image_path": _images(row) or row.get("image_path"),
        "extra_info": extra,
    }
    derived = row_id(question.slide, question.path_id, kind) if question.slide and question.path_id and kind else None
    return result if question.id == derived else {"id": question.id, **result}


def _plain(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _images(row: Mapping[str, Any]) -> dict[str, Any]:
    images = row.get("image_path")
    return dict(images) if isinstance(images, Mapping) else {}


def _organ(row: Mapping[str, Any]) -> str | None:
    extra = row.get("extra_info")
    for place in (row, extra if isinstance(extra, Mapping) else {}):
        for name in ORGAN_FIELDS:
            if isinstance(value := place.get(name), str) and value.strip():
                return value.strip().casefold()
    return None


def _parquet_files(data: str | Path, config: str | None) -> list[Path]:
    path = Path(data)
    if path.is_dir():
        return [file for files in release_files(path, config).values() for file in files]
    return [path] if path.suffix.lower() == ".parquet" else []


def _named_images(file: Path) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yields place and view -> path of the image for every row of a Parquet file, without reading an image's bytes."""
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file)
    leaves = {parquet.schema.column(index).path for index in range(len(parquet.schema.names))}
    views = [view for view in VIEWS if f"{view}.path" in leaves]
    if not views:
        return
    number = 0
    for batch in parquet.iter_batches(columns=[f"{view}.path" for view in views], batch_size=4096):
        for row in batch.to_pylist():
            number += 1
            # an image without a name is there all the same
            names = {view: row[view] and (row[view]["path"] or f"{view} without a name") for view in views}
            yield f"{file}, row {number}", {view: names.get(view) for view in VIEWS}
