"""Counts the tokens of every prompt before training, so that no row is cut, skipped or found too long on the way.

Text is tokenised by the real tokenizer; image tokens follow from the images' sizes, read from their headers: no image
is decoded. The longest row is then put through the whole processor, and the two counts have to agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict.images import OPTION_IMAGES, UNREADABLE, Bounds, ImageRef, decode_image, embedded_bytes
from training_recipes.batches import encoded
from training_recipes.rows import (
    NUMBER,
    TARGET,
    Shape,
    TrainerRow,
    assistant,
    conversation,
    labels,
    question_of,
    texts,
)

_BATCH: Final = 256
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lengths:
    """Tokens of each row: of the prompt's text, of its images, of the completion to learn (0 without one)."""

    text: Counts
    image: Counts
    completion: Counts

    @property
    def prompt(self) -> Counts:
        return self.text + self.image

    @property
    def total(self) -> Counts:
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class Unfit:
    """A row that cannot be trained on, and why."""

    id: str
    reason: str


def count_tokens(
    rows: Any, shape: Shape, processor: Any, pictures: Sequence[tuple[ImageRef, ...]], location: str = "data"
) -> Lengths:
    """Returns the tokens of each row.

    Args:
        rows: what ``load_rows`` gave, filtered, without a transform.
        shape: how they are asked.
        processor: of the model to train.
        pictures: what ``shown_images`` says of the same rows.
        location: what a message calls the data.

    Raises:
        InputError: where an image's header cannot be read, a text holds the model's own image token, or the processor
            makes another number of tokens of the longest row.
    """
    names = tuple(labels(rows, "dimension")) if "dimension" in rows.column_names else None
    make = TrainerRow(shape, location, names)
    return measured(
        processor,
        rows["id"],
        _messages(rows, shape, pictures, names),
        _sizes(rows, shape, pictures, location),
        rows[TARGET] if TARGET in rows.column_names else None,
        lambda place: make.one(rows[place]),
    )


def measured(
    processor: Any,
    ids: Sequence[str],
    messages: Sequence[list[dict[str, Any]]],
    sizes: Sequence[Sequence[tuple[int, int]]],
    targets: Sequence[str] | None,
    make: Callable[[int], Mapping[str, Any]],
) -> Lengths:
    """Returns the tokens of each row from its messages and the sizes of its images.

    Args:
        processor: of the model to train.
        ids: (n,) what a message calls a row.
        messages: (n,) messages with image places.
        sizes: (n,) (width, height) of each image, in the places' order.
        targets: (n,) completions to learn, None for none.
        make: returns the trainer row at a place; called for the longest.

    Raises:
        InputError: as ``count_tokens`` does.
    """
    if not len(ids):
        return Lengths(*(np.zeros(0, np.int64) for _ in range(3)))
    written: list[str] = []
    for start in range(0, len(messages), _BATCH):
        batch = list(messages[start : start + _BATCH])
        written += processor.apply_chat_template(batch, tokenize=False, add_generation_prompt=True)
    counts = np.array([len(row) for row in sizes])
    _check_places(ids, written, counts, processor)
    per_size = _tokens_of_sizes(processor, sizes, ids)
    image = np.array([sum(per_size[size] for size in row) for row in sizes], np.int64)
    # the one place that the template has for an image is counted among the text's tokens
    text = _tokenised(processor, written) - counts
    completion = np.zeros(len(ids), np.int64) if targets is None else _completions(processor, targets)
    lengths = Lengths(text, image, completion)
    _check_longest(processor, lengths, make)
    return lengths


def unfit_rows(
    rows: Any, lengths: Lengths, pictures: Sequence[tuple[ImageRef, ...]], bound: int | None
) -> list[Unfit]:
    """Returns the rows without an image and those longer than ``bound`` tokens (completion included), by id.

    Rows without images are unfit beside rows with images: trainers cannot mix them.
    """
    none = [not row for row in pictures]
    mixed = any(none) and not all(none)
    found = []
    for row, identity in enumerate(rows["id"]):
        if mixed and none[row]:
            found.append(Unfit(identity, "none of the chosen views has an image"))
        elif bound is not None and lengths.total[row] > bound:
            parts = f"{lengths.text[row]} of text, {lengths.image[row]} of images"
            parts += f", {lengths.completion[row]} to learn" if lengths.completion[row] else ""
            found.append(Unfit(identity, f"{lengths.total[row]} tokens ({parts}), the bound is {bound}"))
    return found


def _messages(
    rows: Any, shape: Shape, pictures: Sequence[tuple[ImageRef, ...]], names: Sequence[str] | None
) -> list[list[dict[str, Any]]]:
    """Returns each row's messages with image places; no image is read."""
    found = []
    for row, views in zip(texts(rows), pictures, strict=True):
        cells: dict[str, Any] = {picture.column: {} for picture in views if picture.option is None}
        cells[OPTION_IMAGES] = [{} for picture in views if picture.option is not None]
        found.append(conversation({**row, **cells}, question_of(row, names), shape)[0])
    return found


def _check_places(ids: Sequence[str], written: Sequence[str], counts: Counts, processor: Any) -> None:
    """Checks that no text holds one of the tokens that stand for an image or a video."""
    image, video = (getattr(processor, name, None) for name in ("image_token", "video_token"))
    problems = []
    for token, there in ((image, counts), (video, np.zeros_like(counts))):
        if token is None:
            continue
        problems += [
            Problem(f"row {identity}", f"{count} tokens {token}", f"{text.count(token)}", "fix the text, it holds one")
            for identity, text, count in zip(ids, written, there, strict=True)
            if text.count(token) != count
        ]
    if problems:
        raise InputError(problems)


def _sizes(
    rows: Any, shape: Shape, pictures: Sequence[tuple[ImageRef, ...]], location: str
) -> list[tuple[tuple[int, int], ...]]:
    """Returns (width, height) of each row's images inside the bounds, from their headers."""
    rows = rows.flatten_indices() if rows._indices is not None else rows
    columns = {name: rows.data.column(name) for name in {picture.column for row in pictures for picture in row}}
    numbers = rows[NUMBER]
    sizes = []
    for row, shown_here in enumerate(pictures):
        found = []
        for picture in shown_here:
            cell = columns[picture.column][row]
            there = ImageRef(numbers[row], picture.column, picture.option)
            found.append(shape.bounds.size(*_header(cell, there, location)))
        sizes.append(tuple(found))
    return sizes


def _header(cell: Any, picture: ImageRef, location: str) -> tuple[int, int]:
    """Returns (width, height) of an image in an Arrow cell; of a memory-mapped one the header's pages are read."""
    import pyarrow as pa
    from PIL import Image

    scalar = cell if picture.option is None else cell[picture.option]
    content = scalar["bytes"]
    if not content.is_valid:
        embedded_bytes(cell.as_py(), picture, location)  # raises with the reason
    try:
        with Image.open(pa.BufferReader(content.as_buffer())) as image:
            return image.size
    except UNREADABLE:
        # some decoders (TIFF) want a file of Python's own; what is no image fails here as well, and says why
        return decode_image(content.as_py(), f"{location}, {picture.name}", Bounds()).size


def _tokens_of_sizes(
    processor: Any, sizes: Sequence[Sequence[tuple[int, int]]], ids: Sequence[str]
) -> Mapping[tuple[int, int], int]:
    """Returns the tokens of an image of each (width, height) that occurs.

    Raises:
        InputError: naming the rows with an image that the processor refuses, such as one far too thin.
    """
    found, refused = {}, {}
    for size in sorted({size for row in sizes for size in row}):
        try:
            found[size] = _tokens_of(processor, size)
        except ValueError as error:
            refused[size] = preview(str(error), 120)
    if refused:
        hint = "cut the image to another shape, or leave the row out"
        raise InputError(
            [
                Problem(f"row {identity}", "images that the model can take", f"{w} x {h} px: {refused[w, h]}", hint)
                for identity, row in zip(ids, sizes, strict=True)
                for w, h in row
                if (w, h) in refused
            ]
        )
    return found


def _tokens_of(processor: Any, size: tuple[int, int]) -> int:
    """Returns the tokens of an image, by the processor's own arithmetic where it tells it."""
    from PIL import Image

    width, height = size
    if hasattr(processor, "_get_num_multimodal_tokens"):  # the name by which serving engines ask it too
        return int(processor._get_num_multimodal_tokens(image_sizes=[(height, width)]).num_image_tokens[0])
    place = processor.image_token
    alone = len(processor.tokenizer(place)["input_ids"]) - 1
    return len(processor(text=[place], images=[[Image.new("RGB", size)]])["input_ids"][0]) - alone


def _tokenised(processor: Any, written: Sequence[str]) -> Counts:
    found: list[int] = []
    for start in range(0, len(written), _BATCH):
        batch = processor.tokenizer(list(written[start : start + _BATCH]), add_special_tokens=False)
        found += [len(ids) for ids in batch["input_ids"]]
    return np.array(found, np.int64)


def _completions(processor: Any, targets: Sequence[str]) -> Counts:
    """Returns the tokens that follow the prompt, the template's end of turn included."""
    turns = [
        [{"role": "user", "content": [{"type": "text", "text": ""}]}, assistant(target)] for target in ["", *targets]
    ]
    opened = processor.apply_chat_template(turns[0][:1], tokenize=False, add_generation_prompt=True)
    full = processor.apply_chat_template(turns[1:], tokenize=False)
    return _tokenised(processor, [text[len(opened) :] for text in full])


def _check_longest(processor: Any, lengths: Lengths, make: Callable[[int], Mapping[str, Any]]) -> None:
    """Puts the longest prompt through the whole processor: a count that is wrong must not decide what is dropped."""
    place = int(lengths.prompt.argmax())
    row = make(place)
    real = int(encoded(processor, [row])["input_ids"].shape[1])
    if real != lengths.prompt[place]:
        expected, found = f"{real} tokens, as the processor makes", f"{lengths.prompt[place]} by the preflight"
        hint = "the preflight cannot count for this processor: report it with the model's name"
        raise InputError(Problem(f"row {row['id']}", expected, found, hint))
