"""Rows with one view from benchmarks that ask about a single image.

The layout is that of PathMMU (Sun et al. 2024, arXiv:2401.16355) as its public readers take it: subset -> split ->
rows with ``question``, ``options`` ("A) ..."), ``answer`` ("B) ..."), ``explanation`` and an image name. Lists of rows
and split -> rows are read too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.schema import LETTERS

IMAGE_FIELDS: Final = ("img", "image", "image_path")
_LETTERED: Final = re.compile(r"\(?([A-Z])[).:]\s+(?=\S)")


@dataclass(frozen=True, slots=True)
class Placed:
    """A row of the input, with its subset and split (None where the file has none) and its place for messages."""

    row: Mapping[str, Any]
    subset: str | None
    split: str | None
    number: int
    location: str


def read_single(path: Path) -> Iterator[Placed]:
    """Yields the rows of a JSON file: a list, split -> list, or subset -> split -> list.

    Raises:
        InputError: where the file is none of those.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(Problem(str(path), "JSON in UTF-8", preview(error), "fix the file")) from error
    yield from _rows(path, content, ())


def one_view_row(placed: Placed, view: str, field: str | None) -> dict[str, Any]:
    """Returns a row in the authors' layout whose one image is ``view``.

    Letters that stand before every option are taken off, as a prompt adds its own. Questions of one image are one
    path and one cluster: the file says nothing of patients.

    Args:
        placed: the row.
        view: the column that the image is put into; the file says nothing of its magnification.
        field: field with the image's name; None for the first of ``IMAGE_FIELDS``.

    Raises:
        InputError: where the row names no image.
    """
    row = placed.row
    names = (field,) if field else IMAGE_FIELDS
    image = next((row[name] for name in names if row.get(name)), None)
    if not isinstance(image, str):
        found = f"the fields {', '.join(map(str, row))}"
        raise InputError(
            Problem(
                placed.location,
                f"an image name under {', '.join(names)}",
                preview(found, 200),
                "name it by --image-field",
            )
        )
    options, answer = _unlettered(row.get("options"), row.get("answer"))
    parts = [part for part in (placed.subset, placed.split, str(placed.number)) if part]
    made = {
        "id": "::".join(parts),
        "question": row.get("question"),
        "options": options,
        "answer": answer,
        "rationale": row.get("explanation") or row.get("rationale"),
        "image_path": {view: image},
        "dimension": placed.subset,
        "wsi_name": image,
        "path_id": image,
        "split": placed.split,
    }
    return {name: value for name, value in made.items() if value is not None}


def _rows(path: Path, content: Any, names: tuple[str, ...]) -> Iterator[Placed]:
    place = "".join(f", {name}" for name in names)
    if isinstance(content, list):
        for number, row in enumerate(content, 1):
            location = f"{path}{place}, row {number}"
            if not isinstance(row, Mapping):
                raise InputError(Problem(location, "an object with fields", preview(row), "fix the row"))
            subset, split = (names[0] if len(names) == 2 else None), (names[-1] if names else None)
            yield Placed(row, subset, split, number, location)
    elif isinstance(content, Mapping) and content and len(names) < 2:
        for name, part in content.items():
            yield from _rows(path, part, (*names, name))
    else:
        expected = "a list of rows, split -> list, or subset -> split -> list"
        raise InputError(Problem(f"{path}{place}", expected, preview(content), "convert the file"))


def _unlettered(options: Any, answer: Any) -> tuple[Any, Any]:
    """Takes "A) " off every option where each has its own letter, in order; the answer becomes a letter with them."""
    if not isinstance(options, list) or not all(isinstance(text, str) for text in options):
        return options, answer
    found = [_LETTERED.match(text) for text in options]
    if not found or [match and match.group(1) for match in found] != list(LETTERS[: len(options)]):
        return options, answer
    if options.count(answer) == 1:
        answer = LETTERS[options.index(answer)]
    return [text[match.end() :] for text, match in zip(options, found, strict=True) if match], answer
