"""Selects the rows of a run by dimension, difficulty and length, and reports the rows that are left out.

The tokens of every prompt are counted before training, so that no row is truncated, skipped or found too long later.
Text is counted by the tokenizer, image tokens from the image sizes in the headers. The count of the longest row is
compared with the processor's. If they differ, the processor counts every row.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import atomic_write
from scale_vqa_eval.scoring.score import questions_digest
from training_recipes.arguments import RecipeArguments
from training_recipes.rewards import blind_priors
from training_recipes.rows import (
    NUMBER,
    TARGET,
    PromptFormat,
    Transform,
    assistant,
    load_rows,
    messages_of,
    questions_of,
    shown_images,
    trainer_row,
)
from training_recipes.trainer import encoded

_BATCH: Final = 256
_NAMED: Final = 20
Counts = npt.NDArray[np.int64]
LeftOut = list[tuple[str, str]]
"""(id, reason) of the rows that are left out."""


@dataclass(frozen=True)
class Candidates:
    """Rows to select from, with the data for counting their tokens.

    Attributes:
        rows: ``datasets.Dataset`` without a transform.
        transform: transform into trainer rows.
        location: name of the data in messages.
        messages: (n,) messages of each prompt, with image placeholders.
        sizes: (n,) (width, height) of each row's images within the bounds.
        left_out: (id, reason) of rows that are already left out.
        digest: hash of the data, or None for the hash of the selected questions.
        hidden: ids of the rows whose images are deliberately left out.
    """

    rows: Any
    transform: Transform
    location: str
    messages: Sequence[list[dict[str, Any]]]
    sizes: Sequence[Sequence[tuple[int, int]]]
    left_out: LeftOut = field(default_factory=list)
    digest: str | None = None
    hidden: Set[str] = frozenset()


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of each row: text of the prompt, images, and completion to learn (0 if none); each (n,)."""

    text: Counts
    image: Counts
    completion: Counts

    @property
    def prompt(self) -> Counts:
        return self.text + self.image

    @property
    def total(self) -> Counts:
        return self.prompt + self.completion


@dataclass(frozen=True)
class ChosenRows:
    """Selected rows.

    Attributes:
        rows: trainer rows; images are decoded on access.
        location: name of the data in messages.
        left_out: (id, reason) of the rows that were left out.
        tokens: (minimum, maximum) tokens of prompt plus completion.
        digest: hash of the questions, as in a results file.
    """

    rows: Any
    location: str
    left_out: LeftOut
    tokens: tuple[int, int]
    digest: str


def candidates(
    recipe: RecipeArguments,
    shape: PromptFormat,
    split: str,
    training: bool = True,
    targets: Callable[[Any], tuple[Any, LeftOut]] | None = None,
    blind_prior: str | None = None,
) -> Candidates:
    """Loads a split of a release as candidates.

    Raises:
        InputError: if there are no rows, an id occurs twice, or no row has an image.
    """
    location = ":".join(part for part in (recipe.data, recipe.data_config, split) if part)
    rows = load_rows(recipe.data, recipe.data_config, split, recipe.dimensions)
    shape = replace(shape, blind_share=getattr(recipe, "blind_share", 0.0) if training else 0.0)
    left_out: LeftOut = []
    if not len(rows):
        raise InputError(Problem(location, "rows", "none", "name another split"))
    name, count = Counter(rows["id"]).most_common(1)[0]
    if count > 1:
        found = f"{preview(name)} {count} times"
        raise InputError(Problem(location, "unique row ids", found, "fix the ids"))
    if training and recipe.difficulty is not None:
        rows, left_out = learnable(rows, recipe.difficulty)
    if targets is not None:
        rows, without = targets(rows)
        left_out = [*left_out, *without]
        if not len(rows):
            found = f"none of {len(without)}, the first: {without[0][1]}"
            raise InputError(Problem(location, "rows with a text to learn", found, "choose other rationales"))
    if blind_prior is not None:
        rows = rows.add_column("blind_prior", blind_priors(blind_prior, rows["id"]))
    return candidates_of(rows, shape, location, left_out)


def candidates_of(
    rows: Any, shape: PromptFormat, location: str = "data", left_out: LeftOut | None = None
) -> Candidates:
    """Returns rows of a release as candidates; raises InputError if no row has an image, or one cannot be read."""
    images = shown_images(rows, shape, location)
    if not shape.blind and not any(images):
        hint = "name another data_config or other views"
        raise InputError(Problem(location, "rows with images of the chosen views", "none", hint))
    messages = [
        messages_of(question, [image for image, _ in row], shape)
        for question, row in zip(questions_of(rows), images, strict=True)
    ]
    sizes = [[size for _, size in row] for row in images]
    hidden = {name for name, number in zip(rows["id"], rows[NUMBER], strict=True) if shape.hides(number)}
    return Candidates(
        rows, trainer_row(rows, shape, location), location, messages, sizes, left_out or [], hidden=hidden
    )


def learnable(rows: Any, path: str | Path) -> tuple[Any, list[tuple[str, str]]]:
    """Returns the rows that were right in some rollouts and wrong in others, and (id, reason) of the rest.

    Raises:
        InputError: if ``path`` is not a difficulty file, lacks rows, or no row is left.
    """
    rates, ids = read_rates(path), rows["id"]
    if unknown := [name for name in ids if name not in rates]:
        found = f"none for {len(unknown)} rows, the first {preview(unknown[0])}"
        raise InputError(Problem(str(path), "a rate for every row", found, "make the file of the training split"))
    kept = [row for row, name in enumerate(ids) if 0 < rates[name][0] < rates[name][1]]
    if not kept:
        expected = "questions right in some rollouts and wrong in others"
        raise InputError(Problem(str(path), expected, "none", "draw more rollouts, or train by SFT first"))
    decided = [(name, *rates[name]) for name in ids if rates[name][0] in (0, rates[name][1])]
    reasons = [(name, f"right in {right} of {n} rollouts: nothing to learn from") for name, right, n in decided]
    return rows.select(kept), reasons


def read_rates(path: str | Path) -> dict[str, tuple[int, int]]:
    """Reads a difficulty file: row id -> (right answers, answers).

    Raises:
        InputError: if the file or a line is invalid.
    """
    rates: dict[str, tuple[int, int]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        found, hint = preview(str(error), 160), "run training_recipes/difficulty.py"
        raise InputError(Problem(str(path), "a difficulty file", found, hint)) from error
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                row = json.loads(line)
                rates[row["id"]] = (int(row["right"]), int(row["n"]))
        except (ValueError, KeyError, TypeError) as error:
            location, expected = f"{path}, line {number}", '{"id": ..., "right": ..., "n": ...}'
            raise InputError(Problem(location, expected, preview(line), "make the file again")) from error
    return rates


def fitting(
    given: Candidates, processor: Any, recipe: RecipeArguments, bound: int | None, limit: int | None, seed: int
) -> ChosenRows:
    """Returns the rows of at most ``bound`` tokens; samples ``limit`` of them by ``seed``.

    Raises:
        InputError: if no row fits, or rows do not fit and ``unfit_rows`` is not ``drop``.
    """
    counts, rows = count_tokens(given, processor), given.rows
    unfit = unfit_rows(given, counts, bound)
    if unfit and (recipe.unfit_rows == "refuse" or len(unfit) == len(rows)):
        hint = "raise the bound, lower max_pixels, or drop such rows with unfit_rows: drop"
        raise InputError([Problem(f"{given.location}, {row}", "a row that fits", why, hint) for row, why in unfit])
    names = dict(unfit)
    kept = [row for row, name in enumerate(rows["id"]) if name not in names]
    if limit is not None and limit < len(kept):
        kept = sorted(random.Random(seed).sample(kept, limit))
    rows, total = rows.select(kept), counts.total[kept]
    return ChosenRows(
        rows.with_transform(given.transform),
        given.location,
        [*given.left_out, *unfit],
        (int(total.min()), int(total.max())),
        given.digest or questions_digest(questions_of(rows)),
    )


def unfit_rows(given: Candidates, counts: TokenCounts, bound: int | None) -> LeftOut:
    """Returns (id, reason) of the rows with more than ``bound`` tokens (prompt and completion) or without images.

    Missing images are accepted if no row has an image, or if ``blind_share`` leaves them out.
    """
    some_images = any(given.sizes)
    found: LeftOut = []
    for row, (name, sizes) in enumerate(zip(given.rows["id"], given.sizes, strict=True)):
        if some_images and not sizes and name not in given.hidden:
            found.append((name, "none of the chosen views has an image"))
        elif bound is not None and counts.total[row] > bound:
            parts = f"{counts.text[row]} of text, {counts.image[row]} of images"
            parts += f", {counts.completion[row]} to learn" if counts.completion[row] else ""
            found.append((name, f"{counts.total[row]} tokens ({parts}), the bound is {bound}"))
    return found


def count_tokens(given: Candidates, processor: Any) -> TokenCounts:
    """Counts the tokens of each row; only the images of the longest row are decoded.

    Raises:
        InputError: if a text contains a special token of the model, or the processor refuses an image.
    """
    _check_special_tokens(given, processor)
    ids, written = given.rows["id"], []
    for start in range(0, len(ids), _BATCH):
        batch = list(given.messages[start : start + _BATCH])
        written += processor.apply_chat_template(batch, tokenize=False, add_generation_prompt=True)
    # the template's placeholder of each image was counted as text
    text = _token_counts(processor, written) - np.array([len(row) for row in given.sizes], np.int64)
    completion = np.zeros(len(ids), np.int64)
    if TARGET in given.rows.column_names:
        completion = _completions(processor, given.rows[TARGET])
    per_size = _tokens_of_sizes(processor, given.sizes, ids)
    counts = TokenCounts(text, np.array([sum(per_size[size] for size in row) for row in given.sizes]), completion)
    longest = int(counts.prompt.argmax())
    real = int(encoded(processor, [given.transform.one(given.rows[longest])])["input_ids"].shape[1])
    if real == counts.prompt[longest]:
        return counts
    # the tokens do not follow from the image sizes; let the processor count with blank images of the same sizes
    print(f"{given.location}: counting the tokens of every prompt with the processor", file=sys.stderr)
    prompt = [_processed(processor, *row) for row in zip(given.messages, given.sizes, strict=True)]
    return TokenCounts(text, np.array(prompt, np.int64) - text, completion)


def _processed(processor: Any, messages: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> int:
    """Returns the tokens of a prompt with blank images, counted by the processor."""
    from PIL import Image

    row = {"prompt": messages, "images": [Image.new("RGB", size) for size in sizes]}
    return int(encoded(processor, [row])["input_ids"].shape[1])


def _check_special_tokens(given: Candidates, processor: Any) -> None:
    """Checks that no text contains a special token of the model, such as an image or end-of-turn token."""
    known = processor.tokenizer.added_tokens_decoder.values()
    tokens = {str(token) for token in known if token.special} | set(processor.tokenizer.all_special_tokens)
    tokens |= {token for name in ("image_token", "video_token") if (token := getattr(processor, name, None))}
    special = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")
    targets = given.rows[TARGET] if TARGET in given.rows.column_names else [""] * len(given.rows)
    problems = []
    for name, messages, target in zip(given.rows["id"], given.messages, targets, strict=True):
        texts = [part.get("text", "") for message in messages for part in message["content"]]
        if found := special.search("\n".join([*texts, target])):
            expected = "a text without the model's special tokens"
            problems.append(Problem(f"row {name}", expected, preview(found[0]), "remove it from the text"))
    if problems:
        raise InputError(problems)


def _tokens_of_sizes(
    processor: Any, sizes: Sequence[Sequence[tuple[int, int]]], ids: Sequence[str]
) -> Mapping[tuple[int, int], int]:
    """Returns (width, height) -> tokens of such an image, for all sizes in the rows."""
    found, refused = {}, {}
    for size in sorted({size for row in sizes for size in row}):
        try:
            found[size] = _tokens_of(processor, size)
        except ValueError as error:
            refused[size] = preview(str(error), 120)
    if refused:
        expected, hint = "images that the model accepts", "crop the image to another shape, or leave the row out"
        raise InputError(
            [
                Problem(f"row {name}", expected, f"{size[0]} x {size[1]} px: {refused[size]}", hint)
                for name, row in zip(ids, sizes, strict=True)
                for size in row
                if size in refused
            ]
        )
    return found


def _tokens_of(processor: Any, size: tuple[int, int]) -> int:
    """Returns the tokens of an image, by the processor's own formula if it has one."""
    if hasattr(processor, "_get_num_multimodal_tokens"):  # serving engines use this method too
        return int(processor._get_num_multimodal_tokens(image_sizes=[size[::-1]]).num_image_tokens[0])
    image, text = {"type": "image"}, {"type": "text", "text": "?"}
    with_image, without = ([{"role": "user", "content": parts}] for parts in ([image, text], [text]))
    return _processed(processor, with_image, [size]) - _processed(processor, without, [])


def _token_counts(processor: Any, written: Sequence[str]) -> Counts:
    found: list[int] = []
    for start in range(0, len(written), _BATCH):
        batch = processor.tokenizer(list(written[start : start + _BATCH]), add_special_tokens=False)
        found += [len(ids) for ids in batch["input_ids"]]
    return np.array(found, np.int64)


def _completions(processor: Any, targets: Sequence[str]) -> Counts:
    """Returns the tokens of each completion, including the template's end of turn."""
    user = {"role": "user", "content": [{"type": "text", "text": ""}]}
    opened = processor.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    full = processor.apply_chat_template([[user, assistant(target)] for target in targets], tokenize=False)
    if not all(text.startswith(opened) for text in full):
        expected, found = "a chat template whose answers continue the generation prompt", preview(opened[-60:])
        raise InputError(Problem("chat template", expected, found, "train with a template that opens no think block"))
    return _token_counts(processor, [text[len(opened) :] for text in full])


def report_rows(chosen: ChosenRows, folder: str | Path, name: str) -> None:
    """Reports the selected rows on stderr, and writes the others to ``<folder>/left_out_<name>.jsonl``."""
    low, high = chosen.tokens
    print(f"{name}: {len(chosen.rows)} rows of {chosen.location}, {low} to {high} tokens each", file=sys.stderr)
    path = Path(folder, f"left_out_{name}.jsonl")
    path.unlink(missing_ok=True)
    if not chosen.left_out:
        return
    atomic_write(path, "".join(json.dumps({"id": row, "reason": why}) + "\n" for row, why in chosen.left_out))
    for row, why in chosen.left_out[:_NAMED]:
        print(f"{name}: left out {row}: {why}", file=sys.stderr)
    print(f"{name}: {len(chosen.left_out)} rows left out, all listed in {path}", file=sys.stderr)
