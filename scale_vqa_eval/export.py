"""``scale-vqa export``: questions in the formats of VLMEvalKit, spreadsheets and scripts.

The formats of trainers are in ``training_recipes.export``, fields of slides in ``dataset_script.slides.export``.
Images are written as ``predict`` sends them; see ``predict.images.sent_image``.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import atomic_path, exclusive_output
from scale_vqa_eval.predict import IMAGES_OPTION
from scale_vqa_eval.predict.images import OPTION_IMAGES, Bounds, ImageFolder, sent_image
from scale_vqa_eval.predict.requests import Request, read_visual_questions, rotated
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import LETTERS, VIEWS
from scale_vqa_eval.scoring.tool_results import ROTATION_STEP

Command = TypeVar("Command", bound=Callable[..., Any])
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_MAX_TABLE_BYTES: Final = 10**9
"""VLMEvalKit unpacks larger tables in a different way, in 32 processes."""
_SPECIAL_NAMES: Final = ("mmbench", "ccbench", "circular", "mmcr", "mmmu", "mmt", "mmsci", "lego")
"""VLMEvalKit scores datasets differently if their name contains one of these."""


def question_options(split: str | None) -> Callable[[Command], Command]:
    """Returns a decorator that adds the options of all exports of questions; ``split`` is the default split."""
    shown = split or "all"
    options = (
        click.option("--data", required=True, help="Release folder, Hub id, Parquet, or JSON/JSONL/CSV."),
        click.option("--config", help="Config of a release folder or Hub id.  [default: its default]"),
        click.option("--split", default=split, help=f"Split to export.  [default: {shown}]"),
        click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder."),
        IMAGES_OPTION,
        click.option("--min-pixels", type=click.IntRange(min=1), help="Minimum pixels of an image."),
        click.option("--max-pixels", type=click.IntRange(min=1), help="Maximum pixels of an image."),
    )

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.command("csv")
@question_options(None)
@click.option("--no-images", is_flag=True, help="Write the texts only.")
def csv_table(**given: Any) -> None:
    """Write questions as CSV for spreadsheets, with the images as files.

    An apostrophe is put before a text that a spreadsheet would run as a formula; JSONL leaves texts unchanged.
    """
    _write_questions("csv", **given)


@click.command()
@question_options(None)
@click.option("--no-images", is_flag=True, help="Write the texts only.")
def jsonl(**given: Any) -> None:
    """Write questions as JSONL, with the images as files."""
    _write_questions("jsonl", **given)


def _write_questions(
    kind: str,
    data: str,
    config: str | None,
    split: str | None,
    out: Path,
    images: Path | None,
    no_images: bool,
    **pixels: int | None,
) -> None:
    items, source = read_visual_questions(data, split, config, images, no_images)
    path = out / f"{'-'.join(filter(None, (config, split))) or 'questions'}.{kind}"
    with exclusive_output(out):
        folder = ImageFolder(out, _bounds(**pixels))

        def rows() -> Iterator[dict[str, Any]]:
            for item in items:
                files = {view.column: folder.add(source.read(view), item.question.id) for view in item.views}
                row: dict[str, Any] = _texts(item.question) | {"image_path": files}
                row[OPTION_IMAGES] = [folder.add(source.read(image), item.question.id) for image in item.option_images]
                yield row

        with atomic_path(path, "name another --out") as partial:
            if kind == "jsonl":
                with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
            else:
                letters = LETTERS[: max(len(item.question.options) for item in items)]
                with partial.open("w", encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    writer.writerows(_spreadsheet(rows(), letters, any(item.option_images for item in items)))
    click.echo(f"{path}: {len(items)} questions")


def _texts(question: Question) -> dict[str, Any]:
    """Returns the text fields of a question, named as ``read_questions`` reads them."""
    return {
        "id": question.id,
        "split": question.split,
        "question": question.question,
        "options": dict(zip(LETTERS, question.options, strict=False)),
        "answer": question.letter,
        "dimension": question.dimension,
        "wsi_name": question.slide,
        "patient_id": question.patient,
        "path_id": question.path_id,
        "group": question.group,
        "rationale": question.rationale,
    }


def _spreadsheet(rows: Iterable[Mapping[str, Any]], letters: str, option_images: bool) -> Iterator[list[str]]:
    """Yields the header and the rows of a spreadsheet, with one column per option and per image."""
    marks = [f"image_{letter}" for letter in letters] if option_images else []
    head: list[str] = []
    for row in rows:
        cells: dict[str, Any] = {}
        for name, value in row.items():
            if name == "options":
                cells |= {letter: value.get(letter) for letter in letters}
            elif name == "image_path":
                cells |= {view: value.get(view) for view in VIEWS}
            elif name == OPTION_IMAGES:
                cells |= dict.fromkeys(marks) | dict(zip(marks, value, strict=False))
            else:
                cells[name] = value
        if not head:
            head = list(cells)
            yield head
        texts = ["" if value is None else str(value) for value in cells.values()]
        yield [f"'{text}" if text.startswith(_FORMULA) else text for text in texts]


@click.command()
@question_options("test")
@click.option("--name", help="Name of the dataset.  [default: ScaleVQA_<config>_<split>]")
@click.option("--circular", is_flag=True, help="Add every rotation of the options, for VLMEvalKit's CircularEval.")
@click.option("--image-files", is_flag=True, help="Write images as files, and their paths into the table.")
def vlmevalkit(
    data: str,
    config: str | None,
    split: str | None,
    out: Path,
    images: Path | None,
    name: str | None,
    circular: bool,
    image_files: bool,
    **pixels: int | None,
) -> None:
    """Write tables for VLMEvalKit and EvalScope: NAME.tsv, and its blind control without images, NAME_blind.tsv.

    Give the folder named by $LMUData as --out.
    """
    name = _table_name(name, f"ScaleVQA_{config or 'default'}_{split or 'all'}", circular)
    items, source = read_visual_questions(data, split, config, images, blind=False)
    if bare := [item.question.id for item in items if not item.images]:
        found = f"{len(bare)} without, the first {preview(bare[0])}"
        hint = "VLMEvalKit would skip them silently; choose another config, or export jsonl"
        raise InputError(Problem(data, "an image in every row", found, hint))
    letters = LETTERS[: max(len(item.question.options) for item in items)]
    requests = [
        (number + ROTATION_STEP * (rotation or 0), Request(item, rotation))
        for rotation in (range(len(letters)) if circular else (None,))
        for number, item in enumerate(items)
        if rotation is None or rotation < len(item.question.options)
    ]
    hints = any(item.option_images for item in items)
    rows = [_vlmevalkit_row(index, request, letters, split, hints) for index, request in requests]
    _check_as_pandas_reads(rows)
    with exclusive_output(out):
        folder = ImageFolder(out, _bounds(**pixels))
        written: dict[str, tuple[int, str]] = {}

        def cells(index: int, request: Request) -> dict[str, str]:
            """Returns the image cells of a row; the images of an earlier row are given as the index of that row."""
            item = request.item
            refs = (*item.views, *rotated(item.option_images, request.rotation or 0))
            contents = [source.read(image) for image in refs]
            if image_files:
                names = [folder.add(content, item.question.id) for content in contents]
                return {"image_path": repr([str((out / name).absolute()) for name in names])}
            key = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()
            if key in written:
                return {"image": str(written[key][0]), "image_path": written[key][1]}
            sent = [sent_image(content, item.question.id, folder.bounds)[1] for content in contents]
            # VLMEvalKit does not overwrite files, so they are named by their content
            names = [f"{hashlib.sha256(content).hexdigest()[:32]}.png" for content in sent]
            written[key] = index, _literal(names)
            return {"image": _literal([base64.b64encode(content).decode("ascii") for content in sent])} | {
                "image_path": written[key][1]
            }

        _write_table(out / f"{name}_blind.tsv", rows)
        pairs = zip(rows, requests, strict=True)
        _write_table(out / f"{name}.tsv", ({**row, **cells(*request)} for row, request in pairs))
    for path in (out / f"{name}.tsv", out / f"{name}_blind.tsv"):
        click.echo(f"{path}: {len(rows)} rows")


def _table_name(name: str | None, usual: str, circular: bool) -> str:
    """Returns the name of a table; a name that makes VLMEvalKit score differently is refused."""
    wanted = re.sub(r"[^A-Za-z0-9_-]+", "-", usual) if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9_-]+", wanted) or any(part in wanted.lower() for part in _SPECIAL_NAMES):
        expected = f"letters, digits, _ and -, without {', '.join(_SPECIAL_NAMES)}, which change VLMEvalKit's scoring"
        raise InputError(Problem("--name", expected, preview(wanted), "name another --name"))
    return f"{wanted}_circular" if circular else wanted


def _vlmevalkit_row(index: int, request: Request, letters: str, split: str | None, hints: bool) -> dict[str, str]:
    question, options = request.item.question, dict(zip(letters, request.options, strict=False))
    hint = {"hint": ""} if hints else {}
    if request.item.option_images:  # VLMEvalKit puts all images before the text
        shown = enumerate(options, len(request.item.views) + 1)
        hint = {
            "hint": f"Of the images, {', '.join(f'number {number} is option {letter}' for number, letter in shown)}."
        }
    return {
        "index": str(index),
        "id": question.id,
        "question": question.question,
        **hint,
        **{letter: options.get(letter, "") for letter in letters},
        "answer": LETTERS[request.gold],
        "category": question.dimension or "none",
        "split": question.split or split or "all",
    }


def _literal(texts: Sequence[str]) -> str:
    """Returns names or base64 in VLMEvalKit's format: a single text as it is, several as a Python list."""
    return texts[0] if len(texts) == 1 else repr(list(texts))


def _check_as_pandas_reads(rows: Sequence[Mapping[str, str]]) -> None:
    """Raises InputError naming every cell that pandas, which VLMEvalKit uses, would not read back unchanged.

    pandas reads ``None`` or ``NA`` as a missing cell, and VLMEvalKit then drops that option; it reads ``0.50`` as 0.5.
    """
    import pandas as pd

    file = io.StringIO()
    _write_rows(file, rows)
    file.seek(0)
    read = pd.read_csv(file, sep="\t")
    problems = []
    for number, row in enumerate(rows):
        for name, text in row.items():
            value: Any = read[name].iat[number]
            if text and str(value) != text:
                found = f"{preview(text)}, which it reads as {'missing' if pd.isna(value) else preview(str(value))}"
                hint = "change the text, or export jsonl"
                problems.append(Problem(f"{row['id']}, {name}", "a text that pandas reads unchanged", found, hint))
    if problems:
        raise InputError(problems)


def _write_table(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    with atomic_path(path, "name another --out") as partial:
        with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            _write_rows(file, rows)
        if (size := partial.stat().st_size) > _MAX_TABLE_BYTES:
            hint = "write the images as files (--image-files), or reduce them (--max-pixels)"
            expected = f"a table of at most {_MAX_TABLE_BYTES:,} bytes, which VLMEvalKit reads without unpacking it"
            raise InputError(Problem(str(path), expected, f"{size:,}", hint))


def _write_rows(file: Any, rows: Iterable[Mapping[str, str]]) -> None:
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(file, list(row), delimiter="\t", lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)


def _bounds(min_pixels: int | None, max_pixels: int | None) -> Bounds:
    if min_pixels is not None and max_pixels is not None and min_pixels > max_pixels:
        raise click.BadParameter(f"at most --max-pixels, {max_pixels}; found {min_pixels}", param_hint="--min-pixels")
    return Bounds(min_pixels, max_pixels)
