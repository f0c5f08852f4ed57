"""Makes the release folders and the untrained model of ``make learn`` from a folder of synthetic slides.

A model that starts from nothing has no English to spend time on, so a question becomes its dimension, and an option
the phrases in which it differs from the other three: *glandular type, grade one* becomes *glandular, one*. Options are
in alphabetical order. Which image goes with which option is as before, and so is what the text reveals: a group's four
texts are the same, and each option is right once. Leaky questions, made as the benchmark's own, are the
counter-example.

A cross-scale question shows all views. A single-view question crosses two features of one view and shows that view
alone. SFT learns to name the features, each with the letters of the options that hold it, and then a way to decide and
its letter, as from readers of whom most go by the first feature alone: ``ANCHORED`` of the letters are wrong.

A square of tissue may be rotated by a quarter and mirrored; each path is shown in all eight ways.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import pyarrow as pa
from PIL import Image

from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.write import row_groups, staged_release, write_shards
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION, VIEWS
from training_recipes.rows import dimension_names, load_rows, question_of
from training_recipes.tiny_model import make_tiny_model

CONFIG: Final = "phantom"
JOINT: Final = ", "
"""Text between the features of an option, and of a rationale."""
ALL: Final = " All."
"""After a question: say everything that the views show, not only what the question asks about."""
ANCHORED: Final = 0.65
"""Share of the letters of SFT that agree with the first feature, contradict the second, and so are wrong."""
BY_BOTH: Final = "by both"
BY_FIRST: Final = "by first"
"""How a rationale of SFT ends: the way in which its letter was decided."""
ROTATIONS: Final = (None, *(way for way in Image.Transpose))
"""The eight ways of a square: as it is, and PIL's seven."""
ASKED: Final = ("Localization", "Explanation")
"""The cross-scale questions. The others ask for nuclei, mitoses and types of cells, too small for views of 84 pixels:
after SFT, nuclei are named no better than by chance on validation slides."""
SHOWN: Final = {
    "low_mag": (("Explanation", 0), ("Diagnosis", 0), ("Correspondence", 0)),
    "mid_mag": (("Explanation", 1), ("Localization", 1), ("Localization", 0), ("Confirmation", 0)),
    "high_mag": (("Diagnosis", 1),),
}
"""View -> the features that it shows, as (dimension, index). A single-view question crosses the first two."""
KINDS: Final = {
    "crossed": "cross-scale questions; options as they were built, every text right once in four",
    "single": "single-view questions, one view shown; options cross two features of that view",
    "leaky": "each wrong option changes one feature of the right one, so that counting words is enough",
}
"""Folder -> what its questions are."""
TAUGHT: Final = {"taught-single": ("single",), "taught": ("single", "crossed")}
"""Folder that SFT learns from -> kinds of its questions. One view alone comes first: that is learnt sooner."""
_NOTE: Final = "**Synthetic, not tissue.** Made by `make learn` from a phantom folder: {what}."


ShortQuestion = dict[str, Any]
"""A question in few words, in place of a row's own columns: ``question`` (the dimension, or the magnification of the
one view that is shown), ``options`` (a phrase for each feature), ``answer`` (index), and ``rationale`` (the phrases of
the right option, each with the letters of the options that name it)."""


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


def right(question: Question) -> tuple[str, ...]:
    """Returns the phrases of the right option."""
    return features(question.options)[question.answer]


def crossed(question: Question) -> ShortQuestion:
    """Returns a question with its own four options; the text reveals as little as before."""
    return _short(f"{question.dimension}?", features(question.options), right(question))


def single_view(path: LearnPath, view: str) -> ShortQuestion:
    """Returns a question about two features of one view, each with the two values that its own question offers."""
    asked = [(path.questions[dimension], index) for dimension, index in SHOWN[view][:2]]
    values = [sorted({option[index] for option in features(question.options)}) for question, index in asked]
    answer = tuple(right(question)[index] for question, index in asked)
    return _short(f"{MAGNIFICATION[view]}?", list(product(*values)), answer)


def leaky(question: Question, following: Question) -> ShortQuestion:
    """Returns a question whose wrong options each change one feature of the right one, as the benchmark's do.

    A third feature comes from another question of the path. The right option is then the one that has most in common
    with the rest: counting words is enough.
    """
    answer = (*right(question), right(following)[0])
    wrong = (*_opposite(question), _opposite(following)[0])
    made = [answer] + [(*answer[:index], wrong[index], *answer[index + 1 :]) for index in range(len(answer))]
    return _short(f"{question.dimension}?", made, answer)


def _opposite(question: Question) -> tuple[str, ...]:
    """Returns the features of the option that shares none with the right one."""
    answer = right(question)
    return next(option for option in features(question.options) if not set(option) & set(answer))


def _short(question: str, named: Sequence[tuple[str, ...]], answer: tuple[str, ...]) -> ShortQuestion:
    options, seen = sorted(named), []
    for index, phrase in enumerate(answer):
        holders = [letter for letter, option in zip(LETTERS, options, strict=False) if option[index] == phrase]
        seen.append(" ".join([phrase, *holders]))
    texts = [JOINT.join(option) for option in options]
    return {"question": question, "options": texts, "answer": options.index(answer), "rationale": JOINT.join(seen)}


def paths_of(data: str, split: str) -> list[LearnPath]:
    """Returns the paths of a split that have all views, in order."""
    rows = load_rows(data, CONFIG, split)
    names = dimension_names(rows)
    found: dict[tuple[str, str], LearnPath] = {}
    for row in rows:
        path = found.setdefault((row["wsi_name"], row["path_id"]), LearnPath({}, {}))
        question = question_of(row, names)
        path.rows[question.dimension], path.questions[question.dimension] = row, question
    needed = {dimension for shown in SHOWN.values() for dimension, _ in shown}
    return [path for path in found.values() if needed <= set(path.rows)]


def rows_of(path: LearnPath, kind: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a path, images as they are; ``kind`` is one of ``KINDS``."""
    if kind == "single":
        for view in [view for view, shown in SHOWN.items() if len(shown) > 1]:
            row = _row(path, SHOWN[view][0][0], single_view(path, view))
            hidden = {other: None for other in VIEWS if other != view}
            yield row | hidden | {"id": f"{row['id']}::{MAGNIFICATION[view]}", "group": None}
        return
    for index, dimension in enumerate(ASKED):
        question, following = path.questions[dimension], path.questions[ASKED[index - 1]]
        yield _row(path, dimension, crossed(question) if kind == "crossed" else leaky(question, following))


def _row(path: LearnPath, dimension: str, short: ShortQuestion) -> dict[str, Any]:
    return {name: value for name, value in path.rows[dimension].items() if name != "row_number"} | short


def plain_rows(paths: Sequence[LearnPath], kind: str) -> Iterator[dict[str, Any]]:
    """Yields every question of a kind about every path, images as they are."""
    for path in paths:
        yield from rows_of(path, kind)


def rotated_rows(paths: Sequence[LearnPath], kind: str) -> Iterator[dict[str, Any]]:
    """Yields every path in eight ways, each with one of its questions of a kind."""
    yield from (_rotated(row, number) for number, _, row in _turned(paths, [kind]))


def taught_rows(paths: Sequence[LearnPath], kinds: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
    """Yields what SFT learns: each path in eight ways, each with a question and a letter that is often anchored.

    In six ways of eight the question asks for all that the shown views show.
    """
    readers = random.Random(seed)
    for number, path, row in _turned(paths, kinds):
        said = [row["rationale"]]
        if number % 4 != 3:
            row |= {"question": row["question"] + ALL}
            shown = [feature for view, given in SHOWN.items() if row[view] is not None for feature in given]
            said += [right(path.questions[dimension])[place] for dimension, place in shown]
        way, letter = BY_BOTH, row["answer"]
        if readers.random() < ANCHORED:
            way, letter = BY_FIRST, anchored(row["options"], letter)
        yield _rotated(row | {"rationale": JOINT.join([*said, way]), "answer": letter}, number)


def _turned(paths: Sequence[LearnPath], kinds: Sequence[str]) -> Iterator[tuple[int, LearnPath, dict[str, Any]]]:
    """Yields the number of each way of a square, each path, and the row that is shown in that way."""
    for number in range(len(ROTATIONS)):
        for index, path in enumerate(paths):
            rows = [row for kind in kinds for row in rows_of(path, kind)]
            yield number, path, rows[(index + number) % len(rows)]


def anchored(options: Sequence[str], answer: int) -> int:
    """Returns the index of the option that has the right first feature and another second one.

    >>> anchored(["glandular, one", "glandular, two", "sheetlike, one", "sheetlike, two"], 2)
    3
    """
    parts = [option.split(JOINT) for option in options]
    first, second = parts[answer][:2]
    return next(index for index, part in enumerate(parts) if part[0] == first and part[1] != second)


def _rotated(row: dict[str, Any], number: int) -> dict[str, Any]:
    views = {view: _rotated_view(row[view], ROTATIONS[number]) for view in VIEWS}
    return row | views | {"id": f"{row['id']}::turn-{number}"}


def _rotated_view(cell: Mapping[str, Any] | None, way: Any) -> dict[str, Any] | None:
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
            tables = (pa.Table.from_pylist(part, schema=schema) for part in row_groups(rows()))
            write_shards(staging / CONFIG, split, schema, tables)


@click.group()
def main() -> None:
    """Make the folders and the model of `make learn`."""


@main.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, help="Of the letters that SFT learns.")
def folders(data: Path, out: Path, seed: int) -> None:
    """Write OUT/taught-single and taught (for SFT), crossed, single and leaky from the phantom folder DATA."""
    schema = load_rows(str(data), CONFIG, "train").remove_columns("row_number").features.arrow_schema
    train, val, test = (paths_of(str(data), split) for split in ("train", "val", "test"))
    for kind, what in KINDS.items():
        splits = {
            "train": partial(rotated_rows, train, kind),
            "val": partial(plain_rows, val, kind),
            "test": partial(plain_rows, test, kind),
        }
        write_folder(out / kind, splits, schema, f"few words, images rotated; {what}")
    for name, kinds in TAUGHT.items():
        what = f"of the letters to learn, {ANCHORED:.0%} agree with the first feature alone"
        taught = {"train": partial(taught_rows, train, kinds, seed), "val": partial(plain_rows, val, kinds[-1])}
        write_folder(out / name, taught, schema, what)


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
    sizes = {"vocabulary": 800, "context": 512, "text": language, "vision": tower}
    make_tiny_model(folder, seed, corpus, gain=1.0, images=colours(data), **sizes)


def colours(data: str) -> dict[str, list[float]]:
    """Returns mean and standard deviation of red, green and blue (0 to 1) over every tenth training image.

    Stained tissue is bright and of few colours: by the processor's usual values most of an image would be a constant.
    """
    rows = load_rows(data, CONFIG, "train").select_columns(list(VIEWS))
    cells = [cell for row in rows.select(range(0, len(rows), 10)) for cell in row.values() if cell is not None]
    values = np.concatenate([_pixels(cell) for cell in cells])
    return {"image_mean": values.mean(0).tolist(), "image_std": values.std(0).tolist()}


def _pixels(cell: Mapping[str, Any]) -> Any:
    with Image.open(io.BytesIO(cell["bytes"])) as image:
        return np.asarray(image.convert("RGB"), np.float64).reshape(-1, 3) / 255


if __name__ == "__main__":
    main()
