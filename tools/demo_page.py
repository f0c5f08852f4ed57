"""The demo's page: plot, table and example questions with their nested views, in one self-contained file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from datasets import Dataset
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import ClusteredInterval
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION, VIEWS

matplotlib.use("svg")
import matplotlib.pyplot as plt

HERE: Final = Path(__file__).resolve().parent
PIXELS: Final = "pixels"
"""Name of the one baseline that sees the images."""

Scores = Mapping[str, Mapping[str, ClusteredInterval]]


def write_page(
    path: Path,
    title: str,
    caution: str,
    rows: Dataset,
    questions: Sequence[Question],
    scores: Scores,
    answers: Mapping[str, Sequence[int]],
) -> None:
    """Writes one self-contained HTML page: plot, table, example questions with their views; all text escaped."""
    template = Environment(loader=FileSystemLoader(HERE), autoescape=True).get_template("demo_page.html.j2")
    page = template.render(
        title=title,
        caution=caution,
        plot=base64.b64encode(plot(scores, questions).encode()).decode(),
        scores=scores,
        columns=list(next(iter(scores.values()))),
        examples=list(examples(rows, questions, answers)),
        looks=PIXELS,
        n=len(questions),
        patients=len({question.cluster for question in questions}),
    )
    path.write_text(page, encoding="utf-8")


def plot(scores: Scores, questions: Sequence[Question]) -> str:
    """Returns an SVG of accuracy by dimension with intervals, one colour a baseline."""
    columns = list(next(iter(scores.values())))
    matplotlib.rcParams["svg.hashsalt"] = "scale-vqa"
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    width = 0.8 / len(scores)
    for index, (name, row) in enumerate(scores.items()):
        means = np.array([row[column].mean for column in columns])
        low = means - [row[column].ci_low for column in columns]
        high = np.array([row[column].ci_high for column in columns]) - means
        places = np.arange(len(columns)) + (index - (len(scores) - 1) / 2) * width
        colour = "#b5306a" if name == PIXELS else ("#9aa5b1", "#6b7a8c", "#44505e")[index % 3]
        axes.bar(places, 100 * means, width * 0.92, label=name, color=colour)
        bars = 100 * np.clip([low, high], 0, None)
        axes.errorbar(places, 100 * means, bars, fmt="none", ecolor="#222", elinewidth=0.9, capsize=2)
    chance = 100 * np.mean([1 / len(question.options) for question in questions])
    axes.axhline(chance, color="#222", linestyle="--", linewidth=0.9, label="chance")
    axes.set(xticks=np.arange(len(columns)), xticklabels=columns, ylim=(0, 105), ylabel="accuracy (%), 95% interval")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=len(scores) + 1, frameon=False, loc="upper left", fontsize=8)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return buffer.getvalue()


def examples(
    rows: Dataset, questions: Sequence[Question], answers: Mapping[str, Sequence[int]], per_dimension: int = 1
) -> Iterator[dict[str, Any]]:
    """Yields the first questions of every dimension with their views as data URIs."""
    preview: dict[str | None, int] = {}
    for place, question in enumerate(questions):
        if preview.get(question.dimension, 0) == per_dimension:
            continue
        preview[question.dimension] = preview.get(question.dimension, 0) + 1
        row = rows[place]
        views = [(f"{MAGNIFICATION[view]}", picture(row[view])) for view in VIEWS if row.get(view) is not None]
        pictures = [picture(image) for image in row.get("option_images") or []]
        options = [
            {"letter": LETTERS[index], "text": text, "picture": pictures[index] if pictures else None}
            for index, text in enumerate(question.options)
        ]
        yield {
            "question": question,
            "views": views,
            "options": options,
            "picks": {name: LETTERS[picks[place]] for name, picks in answers.items()},
        }


def picture(image: Image.Image, side: int = 300) -> str:
    """Returns an image as a data URI of at most ``side`` pixels."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
