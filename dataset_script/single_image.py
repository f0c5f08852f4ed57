"""``scale-vqa build single``: converts questions with one image to rows for predict, score and report.

The layout is that of PathMMU (Sun et al. 2024, arXiv:2401.16355) in its public readers: subset -> split -> rows with
``question``, ``options`` ("A) ..."), ``answer`` ("B) ..."), ``explanation`` and an image name. Lists of rows and
split -> rows are accepted too.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click

from dataset_script.image_files import check_images
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import atomic_write, parse_json
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.schema import LETTERS, VIEWS

IMAGE_FIELDS: Final = ("img", "image", "image_path")
_LETTERED: Final = re.compile(r"\(?([A-Z])[).:]\s+(?=\S)")


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder that image names are relative to.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The rows (JSON).")
@click.option("--image-field", help="Field with the image name.  [default: img, image or image_path]")
@click.option("--view", type=click.Choice(VIEWS), default="mid_mag", show_default=True, help="Column of the image.")
def single(file: Path, images: Path, out: Path, image_field: str | None, view: str) -> None:
    """Convert the single-image questions of FILE (JSON, PathMMU's layout) to rows with one view.

    The output is a JSON file, because a release folder requires four options and its own dimensions.
    """
    if out.suffix.lower() != ".json":
        raise click.BadParameter(f"rows are written as .json, found {out.name!r}", param_hint="--out")
    problems: list[Problem] = []
    rows: list[dict[str, Any]] = []
    locations: list[str] = []
    for single_row in read_single(file):
        try:
            rows.append(one_view_row(single_row, view, image_field))
            locations.append(single_row.location)
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(problems)
    text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    problems = _unreadable(text, locations)
    problems += check_images(images, [(at, row["image_path"][view]) for at, row in zip(locations, rows, strict=True)])
    if problems:
        raise InputError(problems)
    atomic_write(out, text, "name another --out")
    click.echo(f"{out}: {len(rows)} questions on {len({row['wsi_name'] for row in rows})} images")


@dataclass(frozen=True, slots=True)
class SingleImageRow:
    """A row of the input with its subset and split (or None), its number, and its location for messages."""

    row: Mapping[str, Any]
    subset: str | None
    split: str | None
    number: int
    location: str


def read_single(path: Path) -> Iterator[SingleImageRow]:
    """Yields the rows of a JSON file: a list, split -> list, or subset -> split -> list.

    Raises:
        InputError: if the file has another form.
    """
    try:
        content = parse_json(path.read_bytes().decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise InputError(Problem(str(path), "JSON in UTF-8", preview(error), "fix the file")) from error
    yield from _rows(path, content, ())


def _rows(path: Path, content: Any, names: tuple[str, ...]) -> Iterator[SingleImageRow]:
    where = "".join(f", {name}" for name in names)
    if isinstance(content, list):
        for number, row in enumerate(content, 1):
            location = f"{path}{where}, row {number}"
            if not isinstance(row, Mapping):
                raise InputError(Problem(location, "an object with fields", preview(row), "fix the row"))
            subset, split = (names[0] if len(names) == 2 else None), (names[-1] if names else None)
            yield SingleImageRow(row, subset, split, number, location)
    elif isinstance(content, Mapping) and content and len(names) < 2:
        for name, part in content.items():
            yield from _rows(path, part, (*names, name))
    else:
        expected = "a list of rows, split -> list, or subset -> split -> list"
        raise InputError(Problem(f"{path}{where}", expected, preview(content), "convert the file"))


def one_view_row(source: SingleImageRow, view: str, field: str | None) -> dict[str, Any]:
    """Returns a row in the authors' layout with one image.

    Letters before the options are removed, because prompts add them. The questions of an image form one path and one
    cluster, because the patients are unknown.

    Args:
        source: the row.
        view: column of the image, whose magnification is unknown.
        field: field with the image name, or None for the first of ``IMAGE_FIELDS`` that the row has.

    Raises:
        InputError: if the row has no image name.
    """
    row = source.row
    names = (field,) if field else IMAGE_FIELDS
    image = next((row[name] for name in names if row.get(name)), None)
    if not isinstance(image, str):
        expected = f"an image name under {', '.join(names)}"
        found = preview(f"the fields {', '.join(map(str, row))}", 200)
        raise InputError(Problem(source.location, expected, found, "give the field with --image-field"))
    options, answer = _unlettered(row.get("options"), row.get("answer"))
    made = {
        "id": "::".join(part for part in (source.subset, source.split, str(source.number)) if part),
        "question": row.get("question"),
        "options": options,
        "answer": answer,
        "rationale": row.get("explanation") or row.get("rationale"),
        "image_path": {view: image},
        "dimension": source.subset,
        "wsi_name": image,
        "path_id": image,
        "split": source.split,
    }
    return {name: value for name, value in made.items() if value is not None}


def _unlettered(options: Any, answer: Any) -> tuple[Any, Any]:
    """Removes "A) " from the options if all have their letters in order, and converts the answer to a letter."""
    if not isinstance(options, list) or not all(isinstance(text, str) for text in options):
        return options, answer
    matches = [match for text in options if (match := _LETTERED.match(text))]
    if not matches or "".join(match[1] for match in matches) != LETTERS[: len(options)]:
        return options, answer
    if options.count(answer) == 1:
        answer = LETTERS[options.index(answer)]
    return [text[match.end() :] for text, match in zip(options, matches, strict=True)], answer


def _unreadable(text: str, locations: list[str]) -> list[Problem]:
    """Returns the problems of reading the rows as questions, with their locations in the input."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        atomic_write(file, text)
        try:
            read_questions(file)
        except InputError as error:
            own = {f"{file}, row {number}": location for number, location in enumerate(locations, 1)}
            return [replace(one, location=own.get(one.location, one.location)) for one in error.problems]
    return []
