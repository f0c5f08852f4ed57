"""Questions for other tools: VLMEvalKit, spreadsheets, scripts (``export``), and Inspect on the Hub (``build hub``).

The formats of trainers are in ``training_recipes.export``, fields of slides in ``dataset_script.slides.export``.
Images are written as ``predict`` sends them; see ``predict.images.sent_image``. ``inspect eval hf/ORG/NAME`` gives
each sample one text and one image, as a data URI, without our code: for it, the views of a question are side by side,
with magnification and scale bar, and the option images below, each with its letter.
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
import yaml
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import atomic_path, exclusive_output, sha256_json
from scale_vqa_eval.predict import DEFAULT_PROMPT, IMAGES_OPTION, PROMPT_HELP
from scale_vqa_eval.predict.images import (
    OPTION_IMAGES,
    Bounds,
    ImageFolder,
    ImageRef,
    decode_image,
    embedded_bytes,
    sent_image,
)
from scale_vqa_eval.predict.prompts import Prompt, load_prompt
from scale_vqa_eval.predict.requests import Request, read_visual_questions, rotated
from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.card import HUB, HUB_PROMPT
from scale_vqa_eval.release_folder.read import release_configs, release_files
from scale_vqa_eval.release_folder.write import ROWS_PER_GROUP, check_out, write_release
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION, MPP, VIEWS
from scale_vqa_eval.scoring.tool_results import ROTATION_STEP

Command = TypeVar("Command", bound=Callable[..., Any])
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_MAX_TABLE_BYTES: Final = 10**9
"""VLMEvalKit unpacks larger tables in a different way, in 32 processes."""
_SPECIAL_NAMES: Final = ("mmbench", "ccbench", "circular", "mmcr", "mmmu", "mmt", "mmsci", "lego")
"""VLMEvalKit scores datasets differently if their name contains one of these."""

SIDE: Final = 512
"""Longer side of a view in the composed image, in pixels."""
MIN_TEXT: Final = 20
"""Minimum height of text in pixels when the composed image is scaled to 1,024 px, as many models do."""
_GAP, _STRIP, _TEXT = 16, 56, 36
_BAR: Final = 0.4
"""Maximum length of a scale bar as a share of the view's width."""


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


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default="scale-vqa")
@click.option("--config", help="Config to convert.  [default: the one that loads without a name]")
@click.option("--prompt", "prompt_name", default=DEFAULT_PROMPT, show_default=True, help=PROMPT_HELP)
def hub(folder: Path, config: str | None, prompt_name: str) -> None:
    """Add the config `hub` to a release FOLDER: each question as one text and one composed image.

    `scale-vqa publish dataset` then writes eval.yaml, and `inspect eval hf/ORG/NAME` asks the questions, with and
    without their images.
    """
    config = config or next((name for name in release_configs(folder) if name != HUB), HUB)
    if config in (HUB, "text"):
        raise click.BadParameter(f"the config {config} has no images to compose", param_hint="--config")
    prompt, splits = load_prompt(prompt_name), release_files(folder, config)
    check_out(folder)
    tables = {split: _composed_rows(files, prompt, f"{config}, {split}") for split, files in splits.items()}
    note = (
        f"The rows of `{config}`, each with the text that a model is asked (`prompt`, by the prompt "
        f"`{prompt.id}@{prompt.version}`, hash `{prompt.digest}`) and one image (`composite`, a data URI): the views "
        f"side by side, low to high, scaled to {SIDE} px, and option images below. Magnifications and scale bars are "
        "the nominal ones of the views. Scores on composed images are not those on separate images."
    )
    content = yaml.safe_dump(prompt.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)
    write_release(folder, {HUB: tables}, {HUB: note}, files={HUB_PROMPT: content.encode()})
    click.echo(f"{folder}: {HUB} from {config}, {', '.join(splits)}")


def _composed_rows(files: Sequence[Path], prompt: Prompt, location: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a split; consecutive rows with the same images share one composed image."""
    import pyarrow.parquet as pq

    shards = [pq.ParquetFile(file) for file in files]
    total = sum(shard.metadata.num_rows for shard in shards)
    last = ("", "")
    rows = (row for shard in shards for batch in shard.iter_batches(ROWS_PER_GROUP) for row in batch.to_pylist())
    for number, row in enumerate(tqdm(rows, f"{location} composed", total=total, disable=None)):
        parts = {ImageRef(number, view): row.pop(view, None) for view in VIEWS}
        options = row.pop(OPTION_IMAGES, None) or []
        contents = {ref: embedded_bytes(cell, ref, location) for ref, cell in parts.items() if cell}
        for index in range(len(options)):
            ref = ImageRef(number, OPTION_IMAGES, index)
            contents[ref] = embedded_bytes(options, ref, location)
        if not contents:
            hint = "build the config with images, or name another --config"
            raise InputError(Problem(f"{location}, {row['id']}", "at least one image", "none", hint))
        key = sha256_json([(ref.column, hashlib.sha256(one).hexdigest()) for ref, one in contents.items()])
        if key != last[0]:
            decoded = {ref: decode_image(one, f"{row['id']}, {ref.column}", Bounds()) for ref, one in contents.items()}
            last = key, _uri(compose(decoded))
        yield {**row, "prompt": prompt.text(row["question"], row["options"]), "composite": last[1]}


def _uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def compose(images: dict[ImageRef, Image.Image]) -> Image.Image:
    """Composes the views side by side, with magnification and scale bar, and the option images with letters below.

    Labels are in white strips above and below the views. Text is at least ``MIN_TEXT`` pixels high once the image is
    scaled to 1,024 pixels.
    """
    views = {ref.column: image for ref, image in images.items() if ref.option is None}
    options = [image for ref, image in images.items() if ref.option is not None]
    columns = max(len(views), min(len(options), 4), 1)
    width = columns * SIDE + (columns + 1) * _GAP
    rows = [list(views.items())] * bool(views)
    lettered = list(zip(LETTERS, options, strict=False))
    rows += [lettered[first : first + 4] for first in range(0, len(options), 4)]
    text = max(_TEXT, round(MIN_TEXT * width / 1024) + 4)
    page = Image.new("RGB", (width, len(rows) * (SIDE + 2 * _STRIP) + _GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(text)
    for number, row in enumerate(rows):
        top = number * (SIDE + 2 * _STRIP)
        for column, (name, image) in enumerate(row):
            factor = SIDE / max(image.size)
            size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
            left = _GAP + column * (SIDE + _GAP)
            page.paste(image.resize(size, Image.Resampling.LANCZOS), (left, top + _STRIP))
            label = f"{MAGNIFICATION[name]} ({MPP[name]:g} um/px)" if name in MPP else f"{name}."
            draw.text((left, top + _STRIP / 2), label, fill="black", font=font, anchor="lm")
            if name in MPP:
                length = bar_length(_BAR * size[0] * MPP[name] / factor)
                end, y = left + length * factor / MPP[name], top + _STRIP + size[1] + _STRIP / 2
                draw.rectangle((left, y - 6, end, y + 6), fill="black")
                bar = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} um"
                draw.text((end + _GAP, y), bar, fill="black", font=font, anchor="lm")
    return page


def bar_length(limit: float) -> float:
    """Returns the largest round length of a scale bar that is at most ``limit`` (um).

    >>> bar_length(2048), bar_length(512), bar_length(102.4), bar_length(0.7)
    (2000.0, 500.0, 100.0, 0.5)
    """
    steps = (10.0**power * digit for power in range(-3, 7) for digit in (1, 2, 5))
    return max((step for step in steps if step <= limit), default=limit)
