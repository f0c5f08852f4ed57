"""Makes the release folders of ``make learn`` out of a phantom folder: questions in few words, pictures turned.

A square of tissue may be turned by a quarter and mirrored; each path is shown in all eight ways, so that a thousand
paths are enough to learn from.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
import pyarrow as pa
from PIL import Image

from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.write import ROWS_PER_GROUP, staged_release, write_shards
from scale_vqa_eval.schema import DIMENSIONS, VIEWS
from training_recipes.learn.questions import Asked, crossed, leaky, seen_elsewhere
from training_recipes.rows import labels, load_rows, question_of

CONFIG: Final = "phantom"
TURNS: Final = (None, *(turn for turn in Image.Transpose))
"""The eight ways of a square: as it is, and PIL's seven."""
_NOTE: Final = "**A phantom, not tissue.** Made by `make learn` from a phantom folder: {what}"


@dataclass(frozen=True)
class Path_:
    """A path: dimension -> (row, question)."""

    rows: Mapping[str, Mapping[str, Any]]
    questions: Mapping[str, Question]


def paths_of(data: str, split: str) -> list[Path_]:
    """Returns the paths of a split in order."""
    rows = load_rows(data, CONFIG, split)
    names = labels(rows, "dimension")
    found: dict[tuple[str, str], list[tuple[Mapping[str, Any], Question]]] = {}
    for row in rows:
        question = question_of(row, names)
        found.setdefault((row["wsi_name"], row["path_id"]), []).append((row, question))
    return [
        Path_({q.dimension or "": row for row, q in pairs}, {q.dimension or "": q for _, q in pairs})
        for pairs in found.values()
    ]


def described(path: Path_, dimension: str, leak: bool, everything: bool) -> Asked:
    """Returns one question of a path, crossed or leaky; ``everything`` says what all questions of the path ask for."""
    question = path.questions[dimension]
    others = seen_elsewhere(path.questions, dimension) if everything else ()
    if not leak:
        return crossed(question, others)
    following = path.questions[DIMENSIONS[(DIMENSIONS.index(dimension) + 1) % len(DIMENSIONS)]]
    return leaky(question, following, others)


def turned_rows(paths: Sequence[Path_], leak: bool) -> Iterator[dict[str, Any]]:
    """Yields training rows: every path in eight ways, each with one of its questions and all that is to be seen."""
    for turn in range(len(TURNS)):
        for number, path in enumerate(paths):
            there = [name for name in DIMENSIONS if name in path.rows]
            dimension = there[(number + turn) % len(there)]
            row = _row(path, dimension, described(path, dimension, leak, everything=True))
            row["id"] = f"{row['id']}::turn-{turn}"
            row |= {view: _turned(row[view], TURNS[turn]) for view in VIEWS}
            yield row


def plain_rows(paths: Sequence[Path_], leak: bool) -> Iterator[dict[str, Any]]:
    """Yields every question of every path, pictures as they are."""
    for path in paths:
        for dimension in path.rows:
            yield _row(path, dimension, described(path, dimension, leak, everything=False))


def _row(path: Path_, dimension: str, asked: Asked) -> dict[str, Any]:
    row = {name: value for name, value in path.rows[dimension].items() if name != "row_number"}
    row |= {"question": asked.question, "options": list(asked.options), "answer": asked.answer}
    return row | {"rationale": asked.rationale}


def _turned(cell: Mapping[str, Any] | None, turn: Any) -> dict[str, Any] | None:
    if cell is None or turn is None:
        return dict(cell) if cell is not None else None
    with Image.open(io.BytesIO(cell["bytes"])) as image:
        buffer = io.BytesIO()
        image.transpose(turn).save(buffer, "JPEG", quality=95)
    return {"bytes": buffer.getvalue(), "path": f"{turn}-{cell['path']}"}


def write_folder(
    out: Path, splits: Mapping[str, Callable[[], Iterator[dict[str, Any]]]], schema: Any, what: str
) -> None:
    """Writes a release folder.

    Args:
        out: where to.
        splits: split -> its rows.
        schema: of the folder that the rows come from.
        what: sentence for the card.
    """
    with staged_release(out, {CONFIG}, {CONFIG: _NOTE.format(what=what)}) as staging:
        for split, rows in splits.items():
            write_shards(staging / CONFIG, split, schema, _tables(rows(), schema))


def _tables(rows: Iterator[dict[str, Any]], schema: Any) -> Iterator[Any]:
    while part := list(islice(rows, ROWS_PER_GROUP)):
        yield pa.Table.from_pylist(part, schema=schema)


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--val-paths", default=40, show_default=True, help="Paths of the validation split that are kept.")
def main(data: Path, out: Path, val_paths: int) -> None:
    """Write OUT/describe, OUT/answer (crossed options) and OUT/leaky from the phantom folder DATA."""
    schema = load_rows(str(data), CONFIG, "train").remove_columns("row_number").features.arrow_schema
    train, val, test = (paths_of(str(data), split) for split in ("train", "val", "test"))
    val = val[:val_paths]
    for name, leak in (("crossed", False), ("leaky", True)):
        kind = (
            "options as they were built, every text right once in four"
            if not leak
            else ("each wrong option changes one feature of the right one, so that counting words is enough")
        )
        splits = {
            "train": lambda leak=leak: turned_rows(train, leak),
            "val": lambda leak=leak: plain_rows(val, leak),
            "test": lambda leak=leak: plain_rows(test, leak),
        }
        write_folder(out / name, splits, schema, f"few words, pictures turned; {kind}.")
    plain = {"train": lambda: plain_rows(train, False), "val": lambda: plain_rows(val, False)}
    write_folder(out / "answers", plain, schema, "few words; rationales name the question's own features only.")


if __name__ == "__main__":
    main()
