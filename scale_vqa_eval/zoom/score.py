"""``scale-vqa zoom``: what models that chose where to look used, saw and answered, beside their controls."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from scale_vqa_eval.errors import InputError, Problem, validated
from scale_vqa_eval.files import atomic_write, write_json
from scale_vqa_eval.scale_vqa_acc.clustered import clustered_interval, paired_difference
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION
from scale_vqa_eval.scoring.predictions import Answers, Predictions, join, read_predictions
from scale_vqa_eval.scoring.score import consistency_warnings, read_each
from scale_vqa_eval.text import aligned, html_environment, interval, one_line, p_value, percent, points
from scale_vqa_eval.zoom.questions import BoxUm, SlideStore, ZoomQuestion, read_zoom_questions, slide_files

PAGE_PX: Final = 256
"""Side of a field on the page; the slide itself is shown at ``OVERVIEW_PAGE_PX``."""
OVERVIEW_PAGE_PX: Final = 640


class _Step(BaseModel):
    call: str
    arguments: dict[str, Any] = {}
    box: BoxUm | None = None
    mpp: float = Field(default=1.0, gt=0)
    px: int = Field(default=1, ge=1, le=8192)
    sha256: str | None = None
    refused: str | None = None
    said: str | None = None
    hit: bool = False


class _Episode(BaseModel):
    """The field ``zoom`` of a line."""

    slide: str
    looks: int = Field(ge=0)
    pixels: int = Field(ge=0)
    refused: int = Field(ge=0)
    hit: bool | None
    hit_at: int | None
    steps: list[_Step]


@dataclass(frozen=True)
class ZoomRun:
    """A run with its episodes in the order of the questions; a question that failed has an empty episode."""

    predictions: Predictions
    answers: Answers
    episodes: tuple[_Episode, ...]

    @property
    def control(self) -> str:
        """The control that it is, or ``model``."""
        return str(self.predictions.provenance.get("ablation") or "model")

    @property
    def looks(self) -> int:
        """Looks that it was allowed; as many as it used where it does not say."""
        stated = self.predictions.provenance.get("zoom")
        allowed = stated.get("looks") if isinstance(stated, Mapping) else None
        return allowed if isinstance(allowed, int) else max(episode.looks for episode in self.episodes)


def read_run(path: str | Path, questions: Sequence[ZoomQuestion]) -> ZoomRun:
    """Reads a predictions file of ``predict --zoom``.

    Raises:
        InputError: where it is not one, or its questions are others than these.
    """
    predictions = read_predictions(path)
    answers = join(predictions, [item.question for item in questions])
    rows = {row.id: row for row in predictions.rows}
    episodes, problems = [], []
    for question in answers.questions:
        row = rows[question.id]
        location = f"{path}, line {row.line}, zoom"
        if row.zoom is None and row.response is not None:
            problems.append(Problem(location, "looks and steps", "none", "name a file of `predict --zoom`"))
            continue
        empty = {"slide": "", "looks": 0, "pixels": 0, "refused": 0, "hit": False, "hit_at": None, "steps": []}
        try:
            episodes.append(validated(_Episode, empty if row.zoom is None else row.zoom, location))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return ZoomRun(predictions, answers, tuple(episodes))


def run_figures(run: ZoomRun) -> dict[str, Any]:
    """Returns the figures of a run.

    ``curve`` has for each number of looks k the share of questions that were answered right with at most k looks, and
    the share whose evidence was in view after k. A question that took more looks counts as wrong at k: what a model
    would answer under a smaller budget is measured by another run, with ``--looks``.
    """
    answers, episodes = run.answers, run.episodes
    looks = np.array([episode.looks for episode in episodes])
    seen = np.array([np.inf if episode.hit_at is None else episode.hit_at for episode in episodes])
    knows = all(episode.hit is not None for episode in episodes)

    def share(values: Any, rows: Any = slice(None)) -> dict[str, Any]:
        found = clustered_interval(values[rows], np.array(answers.clusters)[rows].tolist()).as_dict()
        return {"mean": found["mean"], "interval": [found["ci_low"], found["ci_high"]], "n": found["n"]}

    hits = np.isfinite(seen).astype(np.float64)
    names = np.array([name or "none" for name in answers.dimensions or ["none"] * len(episodes)])
    return {
        "file": str(run.predictions.path),
        "model": run.predictions.settings["model"],
        "control": run.control,
        "looks_allowed": run.looks,
        "questions": len(episodes),
        "patients": len(set(answers.clusters)),
        "accuracy": share(answers.correct),
        "evidence": share(hits) if knows else None,
        "accuracy_with_evidence": share(answers.correct, hits > 0) if knows and hits.any() else None,
        "accuracy_without_evidence": share(answers.correct, hits == 0) if knows and not hits.all() else None,
        "looks": float(looks.mean()),
        "pixels": float(np.mean([episode.pixels for episode in episodes])),
        "refused": float(np.mean([episode.refused for episode in episodes])),
        "unanswered": int((answers.parsed.letters == 0).sum()),
        "by_kind": {
            name: {"accuracy": share(answers.correct, names == name), "evidence": share(hits, names == name)}
            for name in dict.fromkeys(names.tolist())
        },
        "curve": [
            {"looks": k, "accuracy": share(answers.correct * (looks <= k)), "evidence": share((seen <= k) * 1.0)}
            for k in range(run.looks + 1)
        ],
    }


def compared(runs: Sequence[ZoomRun]) -> list[dict[str, Any]]:
    """Returns the paired, clustered difference of the first run to each other one."""
    first, found = runs[0], []
    for other in runs[1:]:
        pair = paired_difference(first.answers.correct, other.answers.correct, first.answers.clusters).as_dict()
        named = {"model": other.predictions.settings["model"], "control": other.control, "looks_allowed": other.looks}
        found.append({"file": str(other.predictions.path), **named, **pair})
    return found


def figures_table(runs: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]]) -> str:
    """Returns the runs as a table of text, then the differences of the first to the others."""
    head = ["run", "accuracy", "95% interval", "evidence seen", "95% interval", "looks", "Mpx", "refused", "no answer"]
    rows = [head]
    for run in runs:
        seen = run["evidence"]
        name = f"{one_line(str(run['model']))}, {run['control']}, {run['looks_allowed']} looks"
        rows.append(
            [
                name,
                percent(run["accuracy"]["mean"]),
                interval(run["accuracy"]["interval"]),
                "-" if seen is None else percent(seen["mean"]),
                "-" if seen is None else interval(seen["interval"]),
                f"{run['looks']:.1f}",
                f"{run['pixels'] / 1e6:.2f}",
                f"{run['refused']:.1f}",
                str(run["unanswered"]),
            ]
        )
    lines = [aligned(rows), f"{runs[0]['questions']} questions of {runs[0]['patients']} patients"]
    for one in differences:
        ends = f"{points(one['ci_low'])} to {points(one['ci_high'])}"
        other = f"{one_line(str(one['model']))}, {one['control']}, {one['looks_allowed']} looks"
        lines.append(f"minus {other}: {points(one['difference'])} ({ends}), p {p_value(one['p_value'])}")
    return "\n".join(lines)


def write_page(
    path: Path, run: ZoomRun, questions: Sequence[ZoomQuestion], slides: SlideStore, limit: int, figures: Any
) -> None:
    """Writes trajectories as one HTML page without scripts: the slide with the boxes in order, what was seen and said.

    Fields are read from the slides again; one whose hash is not that of the run is marked.

    Raises:
        InputError: where a slide cannot be read, or the page not written.
    """
    environment = html_environment("scale_vqa_eval.zoom", trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "interval": interval, "points": points}
    by_id, given_mpp = {item.question.id: item for item in questions}, {item.slide: item.mpp for item in questions}
    rows = zip(run.answers.questions, run.answers.correct, run.answers.parsed.letters, run.episodes, strict=True)
    blind = run.control == "blind"
    shown = []
    for question, right, letter, episode in list(rows)[:limit]:
        item, mpp = by_id[question.id], given_mpp.get(episode.slide)
        shown.append(
            {
                "question": question,
                "options": list(zip(LETTERS, question.options, strict=False)),
                "letter": chr(letter) if letter else "no answer",
                "right": bool(right),
                "episode": episode,
                "extent": slides.facts(episode.slide, mpp)[1] if episode.slide else None,
                "overview": _picture(slides.overview(episode.slide, mpp, OVERVIEW_PAGE_PX), OVERVIEW_PAGE_PX)
                if episode.slide
                else None,
                "query": _picture(item.query.read_bytes(), PAGE_PX) if item.query else None,
                "evidence": [(MAGNIFICATION[one.view], box) for one in item.evidence for box in one.boxes],
                "steps": [(step, *_seen(step, episode.slide, mpp, slides, blind)) for step in episode.steps],
            }
        )
    page = environment.get_template("trajectories.html.j2").render(
        episodes=shown, total=len(run.episodes), figures=figures, model=run.predictions.settings["model"]
    )
    atomic_write(path, page, "name another --html")


def _seen(step: _Step, slide: str, mpp: float | None, slides: SlideStore, blind: bool) -> tuple[str | None, bool]:
    """Returns the field of a step as a data URI, read again, and whether it is what the run showed."""
    if step.call != "look" or step.box is None or step.sha256 is None or blind:
        return None, True
    left, top, right, bottom = step.box
    try:
        content = slides.region(slide, mpp, (left + right) / 2, (top + bottom) / 2, step.mpp, step.px)
    except InputError:
        return None, False
    return _picture(content, PAGE_PX), hashlib.sha256(content).hexdigest() == step.sha256


def _picture(content: bytes, px: int) -> str:
    with Image.open(io.BytesIO(content)) as image:
        small = image.convert("RGB")
    small.thumbnail((px, px))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--data", required=True, help="The questions that were asked: folder or zoom.jsonl of `build zoom`.")
@click.option("--split", help="Split that was asked.  [default: all]")
@click.option("--slides", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of the slides.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write the figures as JSON.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write trajectories of the first run.")
@click.option("--page-limit", type=click.IntRange(1), default=40, show_default=True, help="Trajectories on the page.")
def zoom(
    runs: Sequence[Path],
    data: str,
    split: str | None,
    slides: Path | None,
    json_path: str | None,
    html: Path | None,
    page_limit: int,
) -> None:
    """Score RUNS of predict --zoom: accuracy, evidence seen, looks and pixels; the first is compared with the others.

    Give the run of a model first, then its controls (--ablate blind, wrong-slide, overview-only, random-walk,
    oracle-path), or the same model with other --looks.
    """
    questions, root = read_zoom_questions(data, split, slides)
    read = read_each(lambda path: read_run(path, questions), runs)
    for run in read:
        for line in consistency_warnings(run.predictions, [item.question for item in questions]):
            click.echo(f"warning: {one_line(line)}", err=True)
    figures, differences = [run_figures(run) for run in read], compared(read)
    if html is not None:
        write_page(html, read[0], questions, slide_files(root), page_limit, figures[0])
        click.echo(f"{html}: {min(page_limit, len(questions))} trajectories", err=True)
    if json_path is not None:
        write_json(json_path, {"runs": figures, "differences": differences}, "name another --json")
    click.echo(figures_table(figures, differences))
