"""Reads the authors' JSON: one list of rows a split, every structural fault named with file, row and field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import Problem, preview
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import QUESTION_TYPES, VIEWS, patient_of, row_id

OPTION_LETTERS: Final = ("A", "B", "C", "D")


@dataclass(frozen=True, slots=True)
class Release:
    """What the files of a release hold.

    Attributes:
        questions: the rows that are whole, in file order; ``images`` of each holds the views that are not null.
        image_names: place (for messages) and path of every image that any row names, faulty rows included.
        problems: every structural fault.
    """

    questions: list[Question]
    image_names: list[tuple[str, str]]
    problems: list[Problem]


def read_release(files: Mapping[str, Path]) -> Release:
    """Reads the JSON files of a release; nothing is raised, so that one run names every fault.

    Args:
        files: split -> JSON file, a list of rows in the authors' format.
    """
    release = Release([], [], [])
    first: dict[str, str] = {}
    for split, path in files.items():
        for number, raw in enumerate(_load(path, release.problems), 1):
            location = f"{path}, row {number}"
            checker = _RowChecker(location)
            question = checker.question(raw, split)
            if question is not None and question.id in first:
                found = f"{preview(question.id)}, which is {first[question.id]}"
                checker.problem(
                    "an id of its own (wsi_name::path_id::question_type)", found, "rename or remove one row"
                )
            release.problems.extend(checker.problems)
            release.image_names.extend((checker.location, name) for _, name in checker.images)
            if question is not None:
                first.setdefault(question.id, location)
                release.questions.append(question)
    return release


def _load(path: Path, problems: list[Problem]) -> Iterator[object]:
    """Yields the rows of a JSON list; a file that cannot be read is one fault and yields nothing."""
    try:
        data = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_without_twins)
    except json.JSONDecodeError as error:
        location = f"{path}, line {error.lineno}, column {error.colno}"
        problems.append(Problem(location, "JSON", error.msg, "fix the file"))
        return
    except UnicodeDecodeError as error:
        problems.append(Problem(f"{path}, byte {error.start}", "UTF-8", error.reason, "save the file as UTF-8"))
        return
    except (RecursionError, OSError) as error:
        problems.append(Problem(str(path), "a JSON file", preview(error), "fix the file"))
        return
    if not isinstance(data, list) or not data:
        found = "an empty list" if data == [] else type(data).__name__
        problems.append(Problem(str(path), "a JSON list of rows", found, "give the released file of one split"))
        return
    yield from data


class _Twins(dict[str, Any]):
    """An object whose JSON has a key twice; ``twins`` names them."""

    twins: tuple[str, ...] = ()


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    marked = _Twins(found)
    keys = [key for key, _ in pairs]
    marked.twins = tuple(sorted({key for key in keys if keys.count(key) > 1}))
    return marked


class _RowChecker:
    """Checks one row field by field and gathers its faults."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.problems: list[Problem] = []
        self.images: tuple[tuple[str, str], ...] = ()

    def problem(self, expected: str, found: str, hint: str) -> None:
        self.problems.append(Problem(self.location, expected, found, hint))

    def question(self, raw: object, split: str) -> Question | None:
        """Returns the question of a row, or None where a fault was found."""
        row = self._object(raw, "the row")
        if row is None:
            return None
        extra = self._object(row.get("extra_info"), "extra_info") or {}
        slide, path_id = (self._text(extra, name) for name in ("wsi_name", "path_id"))
        kind = extra.get("question_type")
        if not isinstance(kind, str) or kind not in QUESTION_TYPES:
            kind = None
            self.problem(
                f"extra_info.question_type in {', '.join(QUESTION_TYPES)}",
                preview(extra.get("question_type")),
                "name the type",
            )
        identity = row_id(slide, path_id, kind) if slide and path_id and kind else None
        if identity:
            self.location += f" ({identity})"
        stem = self._text(row, "question")
        options = self._options(row.get("options"))
        answer = row.get("answer")
        if answer not in OPTION_LETTERS:
            self.problem("answer in A, B, C, D", preview(answer), "name the letter of one option")
        rationale = None if row.get("rationale") is None else self._text(row, "rationale")
        self.images = self._images(row.get("image_path"))
        if self.problems or identity is None or kind is None or stem is None or options is None:
            return None
        return Question(
            id=identity,
            question=stem,
            options=options,
            answer=OPTION_LETTERS.index(str(answer)),
            dimension=QUESTION_TYPES[kind],
            slide=slide,
            patient=patient_of(str(slide)),
            path_id=path_id,
            rationale=rationale,
            split=split,
            images=self.images,
        )

    def _object(self, value: object, name: str) -> Mapping[str, Any] | None:
        if isinstance(value, _Twins):
            self.problem(f"each key of {name} once", f"twice: {', '.join(value.twins)}", "remove one of the two")
        if not isinstance(value, dict):
            self.problem(f"{name} to be an object", preview(value), "follow the released format")
            return None
        return value

    def _text(self, row: Mapping[str, Any], name: str) -> str | None:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            if not any("\ud800" <= character <= "\udfff" for character in value):
                return value
            self.problem(f"{name}: whole Unicode characters", preview(value), "remove the lone surrogate")
            return None
        self.problem(f"{name}: a text that is not empty", preview(value), "write the text")
        return None

    def _options(self, raw: object) -> tuple[str, ...] | None:
        options = self._object(raw, "options")
        if options is None:
            return None
        missing = [letter for letter in OPTION_LETTERS if letter not in options]
        more = [preview(letter) for letter in options if letter not in OPTION_LETTERS]
        if missing:
            self.problem("options A, B, C, D", f"no {', '.join(missing)}", "add what is missing")
        if more:
            self.problem("options A, B, C, D and no other", f"also {', '.join(more)}", "remove what is too much")
        texts = [self._text(options, letter) for letter in OPTION_LETTERS if letter in options]
        return None if missing or more or None in texts else tuple(text for text in texts if text)

    def _images(self, raw: object) -> tuple[tuple[str, str], ...]:
        paths = self._object(raw, "image_path")
        if paths is None:
            return ()
        strange = [preview(name) for name in paths if name not in VIEWS]
        if strange:
            self.problem(f"views {', '.join(VIEWS)}", ", ".join(strange), "name the view as the release does")
        for view in VIEWS:
            if paths.get(view) is not None:
                self._text(paths, view)
        return tuple((view, paths[view]) for view in VIEWS if isinstance(paths.get(view), str))
