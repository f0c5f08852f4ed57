"""The demo: builds a release folder, loads it by name, scores blind baselines and a pixel baseline, writes a page.

python tools/demo.py                      phantom slides (synthetic, for teaching; no claim about pathology)
python tools/demo.py --slides DIR         grounding questions from real slides
python tools/demo.py --release DIR        the authors' JSON files in DIR (train/val/test.json), images below it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from datasets import Dataset, concatenate_datasets, disable_progress_bars, load_dataset
from demo_page import PIXELS, write_page
from pixel_baseline import answer_by_pixels

from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.scale_vqa_acc.clustered import ClusteredInterval, clustered_interval
from scale_vqa_eval.schema import ALL_DIMENSIONS, VIEWS
from scale_vqa_eval.scoring.baselines import BASELINES, as_response

IMAGES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"}


@dataclass(frozen=True)
class Run:
    """Which questions the demo is about: where they come from, and how they are built."""

    config: str
    title: str
    caution: str
    command: tuple[str, ...]


@click.command()
@click.option("--slides", type=click.Path(exists=True, path_type=Path), help="A slide or a folder of slides.")
@click.option("--release", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The authors' files.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@click.option("--phantoms", default=24, show_default=True, help="Number of phantom slides.")
def main(slides: Path | None, release: Path | None, out: Path, phantoms: int) -> None:
    """Build, load, score, show."""
    if slides and release:
        raise click.UsageError("name --slides or --release, not both")
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    folder = out.resolve() / "scale-vqa"
    run = plan(slides, release, folder, phantoms)
    say(f"$ scale-vqa {' '.join(run.command)}")
    if subprocess.run([sys.executable, "-m", "scale_vqa_eval.cli", *run.command]).returncode:
        raise SystemExit("the build failed; see its message above")
    rows = load(folder, run.config)
    questions = read_questions(folder, config=run.config)
    if [question.id for question in questions] != list(rows["id"]):
        raise SystemExit("the loaded rows are not the rows of the folder")
    say(f"{len(rows)} questions loaded; answering them")
    answers = answer(questions, rows)
    scores = {name: by_dimension(questions, picks) for name, picks in answers.items()}
    for name, picks in answers.items():
        write_predictions(out / f"{name}.jsonl", questions, picks)
    click.echo(table(scores, questions))
    page = out / "index.html"
    write_page(page, run.title, run.caution, rows, questions, scores, answers)
    say(f"{page} written; {time.monotonic() - started:.0f} s in all")


def say(text: str) -> None:
    click.echo(text, err=True)


def plan(slides: Path | None, release: Path | None, folder: Path, phantoms: int) -> Run:
    """Decides what is built and what must be said of it."""
    out = ("--out", str(folder))
    if slides:
        few = ("--paths-per-slide", "12")
        caution = "Grounding questions made from slide geometry; their answers need no pathologist."
        return Run("grounding", "Real slides", caution, ("build", "slides", str(slides), *few, *out))
    if release:
        files = [release / f"{split}.json" for split in ("train", "val", "test")]
        named = [part for file in files if file.is_file() for part in ("--json", f"{file.stem}={file}")]
        if not named:
            raise click.UsageError(f"{release} has none of train.json, val.json, test.json")
        root = release / "images" if (release / "images").is_dir() else release
        images = ("--images", str(root)) if any(p.suffix.lower() in IMAGES for p in root.rglob("*")) else ()
        caution = "The released questions: many of them can be answered without images; see the audit."
        config = "default" if images else "text"
        return Run(config, "The authors' release", caution, ("build", "release", *named, *images, *out))
    caution = "Synthetic slides: drawn by a program, for tests and teaching. They allow no claim about pathology."
    return Run("phantom", "Synthetic slides", caution, ("build", "phantom", "--slides", str(phantoms), *out))


def load(folder: Path, config: str) -> Dataset:
    """Loads every split by the bare name, as a user does in the folder's parent."""
    disable_progress_bars()
    home = os.getcwd()
    os.chdir(folder.parent)
    try:
        splits = load_dataset("scale-vqa", config)
    finally:
        os.chdir(home)
    return concatenate_datasets([splits[name] for name in splits])


def answer(questions: Sequence[Question], rows: Dataset) -> dict[str, list[int]]:
    """Answers every question by each baseline; the pixel baseline needs images."""
    answers = {name: [pick(question) for question in questions] for name, pick in BASELINES.items()}
    if VIEWS[0] in rows.column_names:
        answers[PIXELS] = answer_by_pixels(rows, rows.features["dimension"].names)
    else:
        say("no images in this folder: the pixel baseline is left out")
    return answers


def by_dimension(questions: Sequence[Question], picks: Sequence[int]) -> dict[str, ClusteredInterval]:
    """Returns dimension -> accuracy with its interval clustered by patient; ``all`` is last."""
    correct = np.array([pick == question.answer for pick, question in zip(picks, questions, strict=True)], dtype=float)
    clusters = np.array([question.cluster for question in questions])
    dimensions = np.array([question.dimension for question in questions])
    found = {}
    for dimension in sorted(set(dimensions), key=ALL_DIMENSIONS.index):
        part = dimensions == dimension
        found[str(dimension)] = clustered_interval(correct[part], clusters[part].tolist())
    return found | {"all": clustered_interval(correct, clusters.tolist())}


def table(scores: dict[str, dict[str, ClusteredInterval]], questions: Sequence[Question]) -> str:
    """Returns the table of accuracies in percent with 95% intervals, one row a baseline."""
    columns = list(next(iter(scores.values())))
    lines = [" | ".join([f"{'baseline':10}", *(f"{column:>20}" for column in columns)])]
    lines.append("-|-".join(["-" * 10, *("-" * 20 for _ in columns)]))
    for name, row in scores.items():
        cells = [f"{100 * r.mean:5.1f} [{100 * r.ci_low:5.1f}, {100 * r.ci_high:5.1f}]" for r in row.values()]
        lines.append(" | ".join([f"{name:10}", *(f"{cell:>20}" for cell in cells)]))
    chance = np.mean([1 / len(question.options) for question in questions])
    whole = next(iter(scores.values()))["all"]
    seen = f"{PIXELS} sees the images, the others do not" if PIXELS in scores else "none of these sees an image"
    lines.append(f"{whole.n} questions, {whole.clusters} patients, chance {100 * chance:.1f}%; {seen}")
    return "\n".join(lines)


def write_predictions(path: Path, questions: Sequence[Question], picks: Sequence[int]) -> None:
    """Writes a predictions file that ``scale-vqa score`` reads."""
    with path.open("w", encoding="utf-8") as lines:
        for question, pick in zip(questions, picks, strict=True):
            lines.write(json.dumps({"id": question.id, "response": as_response(pick), "model": path.stem}) + "\n")


if __name__ == "__main__":
    main()
