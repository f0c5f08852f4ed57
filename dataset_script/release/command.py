"""``scale-vqa build release``: the authors' JSON files and images into a release folder."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
from tqdm import tqdm

from dataset_script.image_files import check_images, inside
from dataset_script.release.read import read_release
from scale_vqa_eval.audit.defects import KINDS, Defect, find_defects
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.write import write_release

MADE_FROM_RELEASE: Final = frozenset({"default", "text", "exchange", "screened"})


class SplitFile(click.ParamType):
    """An option value ``split=FILE``."""

    name = "split=file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Path]:
        split, _, file = value.partition("=")
        if not re.fullmatch(r"\w+(?:\.\w+)*", split) or not file:
            self.fail(f"expected SPLIT=FILE such as test=test.json, found {value!r}", param, ctx)
        path = Path(file)
        if not path.is_file():
            self.fail(f"{split}: no file at {file!r}", param, ctx)
        return split, path


@click.command()
@click.option(
    "--json", "files", type=SplitFile(), multiple=True, required=True, metavar="SPLIT=FILE", help="May be repeated."
)
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that image paths are relative to; without it only the text config is built.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The release folder, such as scale-vqa.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Also write the defects as JSON here.")
def release(files: Sequence[tuple[str, Path]], images: Path | None, out: Path, report: Path | None) -> None:
    """Build a release folder from the authors' JSON files.

    Known defects (rationale letters, duplicate options, null views, ...) are reported by row id and kept; a structural
    fault stops the build: all are listed, exit 1, and nothing is written.
    """
    by_split = dict(files)
    if len(by_split) < len(files):
        raise click.UsageError("--json names a split twice")
    found = read_release(by_split)
    problems = found.problems + (check_images(images, found.image_names) if images is not None else [])
    if problems:
        raise InputError(problems)
    questions = found.questions
    defects = find_defects(questions)
    _report(defects, len(questions))
    splits = {split: [q for q in questions if q.split == split] for split in by_split}
    tables: dict[str, dict[str, Iterator[dict[str, Any]]]] = {}
    if images is not None:
        tables["default"] = {split: _rows(members, images) for split, members in splits.items()}
    else:
        click.echo("no --images: the folder gets the text config only, without image columns", err=True)
    tables["text"] = {split: _rows(members, None) for split, members in splits.items()}
    as_json = json.dumps([asdict(defect) for defect in defects], indent=1, ensure_ascii=False) + "\n"
    note = _note(questions, defects, images is not None)
    write_release(
        out,
        tables,
        dict.fromkeys(tables, note),
        files={f"{config}/defects.json": as_json.encode() for config in tables},
        drop=MADE_FROM_RELEASE,
    )
    if report is not None:
        report.write_text(as_json, encoding="utf-8")
    sizes = ", ".join(f"{split} {len(members)}" for split, members in splits.items())
    click.echo(f"{out}: {' and '.join(tables)} with {sizes} questions, {len(defects)} known defects reported")


def _rows(questions: Sequence[Question], root: Path | None) -> Iterator[dict[str, Any]]:
    """Yields the rows of a split, image files read as they are: memory holds one at a time."""
    for question in tqdm(questions, "rows written", disable=None if root else True):
        row = {
            "id": question.id,
            "question": question.question,
            "options": list(question.options),
            "answer": question.letter,
            "rationale": question.rationale,
            "dimension": question.dimension,
            "wsi_name": question.slide,
            "patient_id": question.patient,
            "path_id": question.path_id,
            "source": "Scale-VQA release (arXiv:2606.17412)",
        }
        for view, name in question.images if root is not None else ():
            file = inside(root, name)
            if not isinstance(file, Path):
                raise OSError(f"{question.id}: image {name!r} was there when it was checked and is now {file}")
            row[view] = {"bytes": file.read_bytes(), "path": name}
        yield row


def _report(defects: Sequence[Defect], rows: int) -> None:
    """Names every defect on stderr, a line each."""
    for defect in defects:
        click.echo(f"defect: {defect.kind}: {defect.id}: {defect.detail}", err=True)
    counts = Counter(defect.kind for defect in defects)
    listed = "; ".join(f"{counts[kind]} x {meaning}" for kind, meaning in KINDS.items() if counts[kind])
    click.echo(f"{rows} rows kept, defects: {listed or 'none'}", err=True)


def _note(questions: Sequence[Question], defects: Sequence[Defect], with_images: bool) -> str:
    """The card's account of the rows: where they come from, what is known to be wrong with them."""
    slides = {question.slide for question in questions}
    patients = {question.patient for question in questions}
    counts = Counter(defect.kind for defect in defects)
    lines = [
        "The questions as the authors of Scale-VQA released them (arXiv:2606.17412), split and all, kept as it is:",
        f"{len(questions)} questions on {len(slides)} slides of {len(patients)} patients. The patient of a TCGA slide",
        "is the first 12 characters of its barcode; every other slide counts as a patient of its own (assumed).",
        "The released files carry no licence; this folder adds none.",
        "",
    ]
    if not with_images:
        lines += ["Built without image files: there is no config with images.", ""]
    if counts:
        lines += ["Known defects, listed by row id in `defects.json` beside the Parquet files:", ""]
        lines += [f"- {counts[kind]} x {meaning}" for kind, meaning in KINDS.items() if counts[kind]]
    else:
        lines += ["No known defect was found."]
    return "\n".join(lines)
