"""Makes the release folders and the untrained model of ``make learn`` from a folder of synthetic slides.

A model that starts from nothing has no English to spend time on, so a question becomes its dimension, and an option
the phrases in which it differs from the other three: *nodular infiltrate at 10x, lymphocytes at 200x* becomes
*nodular, lymphocytes*. Options are in alphabetical order. Which image goes with which option is as before, and so is
what the text reveals: a group's four texts are the same, and each option is right once. Leaky questions, made as the
benchmark's own, are the counter-example.

A square of tissue may be rotated by a quarter and mirrored; each path is shown in all eight ways, so that a thousand
paths are enough to learn from.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import pyarrow as pa
from PIL import Image

from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.write import row_groups, staged_release, write_shards
from scale_vqa_eval.schema import DIMENSIONS, LETTERS, VIEWS
from training_recipes.rows import dimension_names, load_rows, question_of
from training_recipes.tiny_model import make_tiny_model

CONFIG: Final = "phantom"
JOINT: Final = ", "
"""Text between the features of an option."""
ROTATIONS: Final = (None, *(way for way in Image.Transpose))
"""The eight ways of a square: as it is, and PIL's seven."""
_NOTE: Final = "**Synthetic, not tissue.** Made by `make learn` from a phantom folder: {what}"


@dataclass(frozen=True, slots=True)
class ShortQuestion:
    """A question in few words, in place of a row's own columns.

    Attributes:
        question: the dimension, as a question.
        options: one phrase for each feature.
        answer: index of the right one.
        rationale: the features seen, each with the letters of the options that name it.
    """

    question: str
    options: tuple[str, ...]
    answer: int
    rationale: str


@dataclass(frozen=True)
class LearnPath:
    """A path: dimension -> row, and dimension -> question."""

    rows: dict[str | None, Mapping[str, Any]]
    questions: dict[str | None, Question]


def features(options: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns, for each option, its phrases without the words that all options share.

    >>> features(["glandular type, grade one", "glandular type, grade two",
    ...           "sheetlike type, grade one", "sheetlike type, grade two"])
    [('glandular', 'one'), ('glandular', 'two'), ('sheetlike', 'one'), ('sheetlike', 'two')]
    """
    clauses = [[clause.split() for clause in option.split(JOINT)] for option in options]
    shared = set.intersection(*({word for clause in option for word in clause} for option in clauses))
    return [tuple(" ".join(word for word in clause if word not in shared) for clause in option) for option in clauses]


def crossed(question: Question, others: Sequence[str] = ()) -> ShortQuestion:
    """Returns a question with its own four options; the text reveals as little as before."""
    named = features(question.options)
    return _short(question, named, named[question.answer], others)


def leaky(question: Question, following: Question, others: Sequence[str] = ()) -> ShortQuestion:
    """Returns a question whose wrong options each change one feature of the right one, as the benchmark's do.

    A third feature comes from another question of the path. The right option is then the one that has most in common
    with the rest: counting words is enough.
    """
    named, third = features(question.options), features(following.options)
    right = (*named[question.answer], third[following.answer][0])
    wrong = (*_opposite(named, question.answer), _opposite(third, following.answer)[0])
    made = [right] + [(*right[:index], wrong[index], *right[index + 1 :]) for index in range(len(right))]
    return _short(question, made, right, others)


def _opposite(named: Sequence[tuple[str, ...]], answer: int) -> tuple[str, ...]:
    """Returns the features of the option that shares none with the right one."""
    right = named[answer]
    return next(option for option in named if all(a != b for a, b in zip(option, right, strict=True)))


def _short(
    question: Question, named: Sequence[tuple[str, ...]], right: tuple[str, ...], others: Sequence[str]
) -> ShortQuestion:
    options, seen = sorted(named), []
    for index, phrase in enumerate(right):
        holders = [letter for letter, option in zip(LETTERS, options, strict=False) if option[index] == phrase]
        seen.append(" ".join([phrase, *holders]))
    rationale = "Seen: " + JOINT.join(seen) + "."
    if others:
        rationale += " Also: " + JOINT.join(others) + "."
    texts = tuple(JOINT.join(option) for option in options)
    return ShortQuestion(f"{question.dimension}?", texts, options.index(right), rationale)


def paths_of(data: str, split: str) -> list[LearnPath]:
    """Returns the paths of a split in order."""
    rows = load_rows(data, CONFIG, split)
    names = dimension_names(rows)
    found: dict[tuple[str, str], LearnPath] = {}
    for row in rows:
        path = found.setdefault((row["wsi_name"], row["path_id"]), LearnPath({}, {}))
        question = question_of(row, names)
        path.rows[question.dimension], path.questions[question.dimension] = row, question
    return list(found.values())


def short_question(path: LearnPath, dimension: str, leak: bool, everything: bool) -> ShortQuestion:
    """Returns one question of a path; ``everything`` adds what the path's other questions ask about."""
    question = path.questions[dimension]
    others = [other for name in DIMENSIONS if name != dimension and (other := path.questions.get(name))]
    seen = [phrase for other in others for phrase in features(other.options)[other.answer]] if everything else []
    if not leak:
        return crossed(question, seen)
    following = path.questions[DIMENSIONS[(DIMENSIONS.index(dimension) + 1) % len(DIMENSIONS)]]
    return leaky(question, following, seen)


def rotated_rows(paths: Sequence[LearnPath], leak: bool) -> Iterator[dict[str, Any]]:
    """Yields training rows: every path in eight ways, each with one of its questions and all that is to be seen."""
    for number, way in enumerate(ROTATIONS):
        for index, path in enumerate(paths):
            there = [name for name in DIMENSIONS if name in path.rows]
            dimension = there[(index + number) % len(there)]
            row = _row(path, dimension, short_question(path, dimension, leak, everything=True))
            yield row | {"id": f"{row['id']}::turn-{number}"} | {view: _rotated(row[view], way) for view in VIEWS}


def plain_rows(paths: Sequence[LearnPath], leak: bool) -> Iterator[dict[str, Any]]:
    """Yields every question of every path, images as they are."""
    for path in paths:
        for dimension in path.rows:
            yield _row(path, dimension, short_question(path, dimension, leak, everything=False))


def _row(path: LearnPath, dimension: str, short: ShortQuestion) -> dict[str, Any]:
    row = {name: value for name, value in path.rows[dimension].items() if name != "row_number"}
    row |= {"question": short.question, "options": list(short.options), "answer": short.answer}
    return row | {"rationale": short.rationale}


def _rotated(cell: Mapping[str, Any] | None, way: Any) -> dict[str, Any] | None:
    if cell is None or way is None:
        return dict(cell) if cell is not None else None
    with Image.open(io.BytesIO(cell["bytes"])) as image:
        buffer = io.BytesIO()
        image.transpose(way).save(buffer, "JPEG", quality=95)
    return {"bytes": buffer.getvalue(), "path": f"{way}-{cell['path']}"}


def write_folder(
    out: Path, splits: Mapping[str, Callable[[], Iterator[dict[str, Any]]]], schema: Any, what: str
) -> None:
    """Writes a release folder."""
    with staged_release(out, {CONFIG}, {CONFIG: _NOTE.format(what=what)}) as staging:
        for split, rows in splits.items():
            write_shards(staging / CONFIG, split, schema, _tables(rows(), schema))


def _tables(rows: Iterator[dict[str, Any]], schema: Any) -> Iterator[Any]:
    yield from (pa.Table.from_pylist(part, schema=schema) for part in row_groups(rows))


@click.group()
def main() -> None:
    """Make the folders and the model of `make learn`."""


@main.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--val-paths", default=40, show_default=True, help="Paths of the validation split that are kept.")
def folders(data: Path, out: Path, val_paths: int) -> None:
    """Write OUT/crossed, OUT/answers (crossed options) and OUT/leaky from the phantom folder DATA."""
    schema = load_rows(str(data), CONFIG, "train").remove_columns("row_number").features.arrow_schema
    train, val, test = (paths_of(str(data), split) for split in ("train", "val", "test"))
    val = val[:val_paths]
    kinds = {
        "crossed": "options as they were built, every text right once in four",
        "leaky": "each wrong option changes one feature of the right one, so that counting words is enough",
    }
    for name, kind in kinds.items():
        leak = name == "leaky"
        splits = {
            "train": partial(rotated_rows, train, leak),
            "val": partial(plain_rows, val, leak),
            "test": partial(plain_rows, test, leak),
        }
        write_folder(out / name, splits, schema, f"few words, images rotated; {kind}.")
    plain = {"train": partial(plain_rows, train, False), "val": partial(plain_rows, val, False)}
    write_folder(out / "answers", plain, schema, "few words; rationales name the question's own features only.")


@main.command()
@click.argument("data")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True)
def model(data: str, folder: Path, seed: int) -> None:
    """Write the untrained model, about a million weights, to FOLDER; each word of the questions in DATA is a token."""
    rows = load_rows(data, CONFIG, "train").select_columns(["question", "options", "rationale"])
    texts = [f"{row['question']} {' '.join(row['options'])} {row['rationale']}" for row in rows]
    frame = "<|im_start|>user\n<|im_start|>assistant\n<think> </think> <answer>A</answer>  - A - B - C - D"
    language = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 4}
    tower = {"hidden_size": 96, "depth": 3, "num_heads": 3, "fullatt_block_indexes": [0, 1, 2]}
    corpus = [*texts, *[frame] * len(texts)]
    make_tiny_model(folder, seed, corpus, gain=1.0, vocabulary=800, context=512, text=language, vision=tower)


if __name__ == "__main__":
    main()
