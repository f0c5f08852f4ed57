"""Chooses the rows of a run: dimensions, difficulty, views, length; what is left out is named."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.scoring.score import questions_digest
from training_recipes.arguments import RecipeArguments
from training_recipes.difficulty import learnable
from training_recipes.preflight import Lengths, Unfit, count_tokens, unfit_rows
from training_recipes.rollouts import blind_priors
from training_recipes.rows import Shape, load_rows, of_dimensions, question_of, shown_images, texts, trainer_rows

_NAMED = 20
Targets = Callable[[Any], tuple[Any, list[Unfit]]]
"""Adds a ``target`` column to rows and says which rows have none."""


@dataclass(frozen=True)
class Selection:
    """Rows to train or validate on.

    Attributes:
        rows: trainer rows, images still encoded.
        location: what a message calls them.
        left_out: rows that were dropped, and why.
        tokens: (least, most) of prompt and completion together.
        digest: hash of the questions, as a results file gives it.
    """

    rows: Any
    location: str
    left_out: tuple[Unfit, ...]
    tokens: tuple[int, int]
    digest: str


def select(
    recipe: RecipeArguments,
    shape: Shape,
    processor: Any,
    split: str,
    limit: int | None,
    seed: int,
    bound: int | None,
    targets: Targets | None = None,
    blind_prior: str | None = None,
    training: bool = True,
) -> Selection:
    """Loads a split and returns what a run reads of it.

    Args:
        recipe: its data, dimensions, and policy about rows that do not fit.
        shape: how rows are asked.
        processor: of the model.
        split: name of the split.
        limit: most rows, drawn by ``seed``; None for all.
        seed: of the draw.
        bound: most tokens of a row, completion included.
        targets: what gives rows a text to learn.
        blind_prior: predictions without images.
        training: keep only what the difficulty file says can be learnt.

    Raises:
        InputError: where nothing is left, the data has no images, or rows do not fit and are not to be dropped.
    """
    location = ":".join(part for part in (recipe.data, recipe.data_config, split) if part)
    rows = of_dimensions(load_rows(recipe.data, recipe.data_config, split), recipe.dimensions)
    _check_ids(rows, location)
    left_out: list[Unfit] = []
    if training and recipe.difficulty is not None:
        rows, easy = learnable(rows, recipe.difficulty)
        left_out += easy
    if targets is not None:
        rows, without = targets(rows)
        left_out += without
    pictures = shown_images(rows, shape)
    if not shape.blind and not any(pictures):
        hint = "name another data_config or views; a data set without images cannot teach to look"
        raise InputError(Problem(location, "rows with images of the chosen views", "none", hint))
    lengths = count_tokens(rows, shape, processor, pictures, location)
    rows, lengths, unfit = _fitting(rows, lengths, unfit_rows(rows, lengths, pictures, bound), recipe, location)
    if limit is not None and limit < len(rows):
        kept = sorted(random.Random(seed).sample(range(len(rows)), limit))
        rows, lengths = rows.select(kept), _at(lengths, kept)
    if blind_prior is not None:
        rows = rows.add_column("blind_prior", blind_priors(blind_prior, rows["id"]))
    digest = questions_digest(question_of(row) for row in texts(rows))
    tokens = (int(lengths.total.min()), int(lengths.total.max()))
    return Selection(trainer_rows(rows, shape, location), location, (*left_out, *unfit), tokens, digest)


def _check_ids(rows: Any, location: str) -> None:
    """Checks that there are rows, and that an id names one of them: rates and priors are found by it."""
    if not len(rows):
        raise InputError(Problem(location, "rows", "none", "name another split"))
    name, count = Counter(rows["id"]).most_common(1)[0]
    if count > 1:
        raise InputError(
            Problem(location, "an id of its own for every row", f"{preview(name)} {count} times", "fix the ids")
        )


def _fitting(
    rows: Any, lengths: Lengths, unfit: Sequence[Unfit], recipe: RecipeArguments, location: str
) -> tuple[Any, Lengths, list[Unfit]]:
    """Returns the rows that fit; refuses, where that is wanted or nothing is left."""
    if unfit and (recipe.unfit_rows == "refuse" or len(unfit) == len(rows)):
        hint = "raise the bound, lower max_pixels, or drop such rows with unfit_rows: drop"
        raise InputError([Problem(f"{location}, {row.id}", "a row that fits", row.reason, hint) for row in unfit])
    names = {row.id for row in unfit}
    kept = [place for place, identity in enumerate(rows["id"]) if identity not in names]
    return rows.select(kept), _at(lengths, kept), list(unfit)


def _at(lengths: Lengths, kept: Sequence[int]) -> Lengths:
    return Lengths(lengths.text[kept], lengths.image[kept], lengths.completion[kept])


def tell(selection: Selection, folder: str | Path, name: str) -> None:
    """Says on stderr what was chosen; rows left out go, with their reasons, to ``<folder>/left_out_<name>.jsonl``."""
    least, most = selection.tokens
    print(
        f"{name}: {len(selection.rows)} rows of {selection.location}, {least} to {most} tokens each", file=sys.stderr
    )
    path = Path(folder, f"left_out_{name}.jsonl")
    path.unlink(missing_ok=True)
    if not selection.left_out:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": row.id, "reason": row.reason}) + "\n" for row in selection.left_out]
    path.write_text("".join(lines), encoding="utf-8")
    for row in selection.left_out[:_NAMED]:
        print(f"{name}: left out {row.id}: {row.reason}", file=sys.stderr)
    more = len(selection.left_out) - _NAMED
    print(
        f"{name}: {len(selection.left_out)} rows left out" + (f", {more} more in {path}" if more > 0 else ""),
        file=sys.stderr,
    )
