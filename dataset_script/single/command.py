"""``scale-vqa build single``: questions with one image, as rows that predict, score and report take."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click

from dataset_script.image_files import check_images
from dataset_script.single.rows import one_view_row, read_single
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.schema import VIEWS


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder that image names are relative to.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The rows (JSON).")
@click.option("--image-field", help="Field with the image's name.  [default: img, image or image_path]")
@click.option("--view", type=click.Choice(VIEWS), default="mid_mag", show_default=True, help="Where the image goes.")
def single(file: Path, images: Path, out: Path, image_field: str | None, view: str) -> None:
    """Write the single-image questions of FILE (JSON, PathMMU's layout) as rows with one view.

    A release folder holds four options and its own dimensions; these rows keep theirs, so they stay a JSON file.
    """
    if out.suffix.lower() != ".json":
        raise click.BadParameter(f"rows are written as .json, found {out.name!r}", param_hint="--out")
    placed = list(read_single(file))
    problems: list[Problem] = []
    rows = []
    for one in placed:
        try:
            rows.append((one.location, one_view_row(one, view, image_field)))
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(problems)
    text = json.dumps([row for _, row in rows], ensure_ascii=False, indent=1) + "\n"
    problems = _unreadable(text, [location for location, _ in rows])
    problems += check_images(images, [(location, row["image_path"][view]) for location, row in rows])
    if problems:
        raise InputError(problems)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    partial.replace(out)
    click.echo(f"{out}: {len(rows)} questions on {len({row['wsi_name'] for _, row in rows})} images")


def _unreadable(text: str, places: list[str]) -> list[Problem]:
    """Returns what keeps the rows from being read as questions, each fault at its place in the input."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "rows.json"
        made.write_text(text, encoding="utf-8")
        try:
            read_questions(made)
        except InputError as error:
            own = {f"{made}, row {number}": place for number, place in enumerate(places, 1)}
            return [
                Problem(own.get(one.location, one.location), one.expected, one.found, one.hint)
                for one in error.problems
            ]
    return []
