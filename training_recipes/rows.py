"""Turns rows of Scale-VQA into trainer rows: ``prompt``, ``images`` and what rewards and targets need.

A trainer row asks exactly what ``scale-vqa predict`` asks: the same prompt, order of images and resolution bounds.
Images stay encoded until a batch needs them.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, first_line, preview
from scale_vqa_eval.predict import DEFAULT_PROMPT
from scale_vqa_eval.predict.images import (
    OPTION_IMAGES,
    PIXELS,
    UNREADABLE,
    Bounds,
    ImageRef,
    ProcessorBounds,
    decode_image,
    embedded_bytes,
    stated_bounds,
)
from scale_vqa_eval.predict.prompts import Prompt, build_messages, load_prompt
from scale_vqa_eval.predict.requests import Request, VisualQuestion
from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.read import resolve_data
from scale_vqa_eval.schema import ALL_DIMENSIONS, LETTERS, VIEWS, patient_of

NUMBER: Final = "row_number"
"""Column with the row's number in the data, for messages."""
TARGET: Final = "target"
"""Column with the text that SFT learns."""
Sized = tuple[ImageRef, tuple[int, int]]
"""An image and its (width, height) inside the bounds."""


@dataclass(frozen=True)
class PromptFormat:
    """How a row is asked.

    Attributes:
        prompt: the words around the question.
        views: views to show, if the row has them.
        bounds: minimum and maximum pixels of an image.
        blind: show no image; the text stays the same.
        blind_share: show none for this share of the rows, drawn by their number.
    """

    prompt: Prompt
    views: tuple[str, ...] = VIEWS
    bounds: Bounds = field(default_factory=Bounds)
    blind: bool = False
    blind_share: float = 0.0

    def hides(self, number: int) -> bool:
        """Tells whether the row of this number in the data is asked without images."""
        return self.blind or random.Random(number).random() < self.blind_share


def prompt_format(
    prompt: str = DEFAULT_PROMPT,
    views: Sequence[str] = VIEWS,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    blind: bool = False,
) -> PromptFormat:
    """Returns a checked prompt format, views in scale order.

    Raises:
        InputError: for an unknown prompt or view, or a minimum above the maximum.
    """
    problems = [
        Problem("views", f"some of {', '.join(VIEWS)}", preview(view), "name views of the data")
        for view in views
        if view not in VIEWS
    ]
    if min_pixels is not None and max_pixels is not None and min_pixels > max_pixels:
        problems.append(Problem("min_pixels", f"at most max_pixels, {max_pixels}", str(min_pixels), "swap the bounds"))
    if problems:
        raise InputError(problems)
    ordered = tuple(view for view in VIEWS if view in views)
    return PromptFormat(load_prompt(prompt), ordered, Bounds(min_pixels, max_pixels), blind)


def with_processor_bounds(shape: PromptFormat, processor: Any) -> PromptFormat:
    """Writes the bounds into the processor, and returns the format with the sizes that it gives.

    The processor is saved with each checkpoint, and prediction reads it. Processors of Qwen's kind apply the bounds;
    others resize to a fixed size or by other rules: their images are brought inside the bounds before. Without bounds
    in the format, those that the processor states from an earlier training are used.
    """
    images, bounds = processor.image_processor, shape.bounds
    if bounds == Bounds() and (stated := stated_bounds(getattr(images, PIXELS, None))) is None:
        return shape
    bounds = bounds if bounds != Bounds() else stated
    limits = [getattr(images, "size", {}).get(name) for name in ("shortest_edge", "longest_edge")]
    if None not in limits and hasattr(images, "merge_size"):
        maximum = bounds.maximum or max(limits[1], bounds.minimum or 0)
        minimum = bounds.minimum or min(limits[0], maximum)
        images.size = {"shortest_edge": minimum, "longest_edge": maximum}
        bounds = ProcessorBounds(minimum, maximum, images.patch_size * images.merge_size)
    setattr(images, PIXELS, bounds.as_dict())
    return replace(shape, bounds=bounds)


def load_rows(data: str, config: str | None, split: str, dimensions: Iterable[str] | None = None) -> Any:
    """Loads one split with ``load_dataset``, images left encoded.

    Args:
        data: the bare name ``scale-vqa``, a release folder or a Hub id.
        config: name of the config, or None for the data's default.
        split: name of the split.
        dimensions: keep rows of these dimensions; None or empty keeps all.

    Returns:
        ``datasets.Dataset`` with the columns of a release and ``row_number``.

    Raises:
        InputError: if data, config, split or dimension do not exist, or columns of a release are missing.
    """
    from datasets import Dataset, DatasetInfo, Image, List, get_dataset_split_names, load_dataset

    data = resolve_data(data)
    location = data if config is None else f"{data}, config {config}"
    try:
        splits = get_dataset_split_names(data, config)
        if split not in splits:
            raise InputError(Problem(location, f"a split {split!r}", ", ".join(splits), "name one of those"))
        rows = load_dataset(data, config, split=split)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        hint = "name a release folder, a Hub id, or `scale-vqa` once prepared (`scale-vqa prepare`); see docs/data.md"
        raise InputError(
            Problem(location, "a data set in the release's format", first_line(error, 240), hint)
        ) from error
    missing = [name for name in ("id", "question", "options", "answer") if name not in rows.column_names]
    if missing:
        found = preview(f"columns {', '.join(rows.column_names)}", 200)
        raise InputError(Problem(location, f"the columns {', '.join(missing)}", found, "see docs/data.md"))
    # cast_column would copy a list of images; this copies nothing
    features = rows.features.copy()
    features |= {view: Image(decode=False) for view in VIEWS if view in features}
    features |= {OPTION_IMAGES: List(Image(decode=False))} if OPTION_IMAGES in features else {}
    rows = Dataset(rows.data, info=DatasetInfo(features=features), split=rows.split)
    return _of_dimensions(rows.add_column(NUMBER, list(range(len(rows)))), list(dimensions or ()))


def _of_dimensions(rows: Any, wanted: Sequence[str]) -> Any:
    if not wanted:
        return rows
    if unknown := [name for name in wanted if name not in ALL_DIMENSIONS]:
        expected = f"some of {', '.join(ALL_DIMENSIONS)}"
        raise InputError(Problem("dimensions", expected, ", ".join(unknown), "correct the name"))
    names = dimension_names(rows) or []
    values = [None if value is None else names[value] for value in rows["dimension"]]
    if not set(wanted) & set(values):
        found = f"rows of {', '.join(sorted(set(values) - {None}))} only"
        raise InputError(Problem("dimensions", f"rows of {', '.join(wanted)}", found, "name another dimension"))
    return rows.select([row for row, value in enumerate(values) if value in wanted])


def dimension_names(rows: Any) -> list[str] | None:
    """Returns the class names of the column ``dimension``, or None if there is no such column."""
    return list(rows.features["dimension"].names) if "dimension" in rows.column_names else None


def questions_of(rows: Any) -> list[Question]:
    """Returns the questions of some rows; images are not read."""
    held = rows.with_format(None)
    columns = [name for name in held.column_names if name not in (*VIEWS, OPTION_IMAGES)]
    names = dimension_names(held)
    return [question_of(row, names) for row in held.select_columns(columns).to_list()]


def question_of(row: Mapping[str, Any], names: Sequence[str] | None = None) -> Question:
    """Returns a row's question without its images."""
    dimension = row.get("dimension")
    answer, slide = row["answer"], row.get("wsi_name")
    return Question(
        id=row["id"],
        question=row["question"],
        options=tuple(row["options"]),
        answer=answer if isinstance(answer, int) else LETTERS.index(answer),
        dimension=names[dimension] if names is not None and isinstance(dimension, int) else dimension,
        slide=slide,
        patient=row.get("patient_id") or (patient_of(slide) if slide else None),  # as a score reads it
        path_id=row.get("path_id"),
        rationale=row.get("rationale"),
        group=row.get("group"),
    )


def images_of(row: Mapping[str, Any], shape: PromptFormat) -> list[ImageRef]:
    """Returns the images that a row is asked with, in the order of the prompt."""
    number = row.get(NUMBER, 0)
    if shape.hides(number):
        return []
    views = [ImageRef(number, view) for view in shape.views if row.get(view) is not None]
    return views + [ImageRef(number, OPTION_IMAGES, index) for index in range(len(row.get(OPTION_IMAGES) or ()))]


def shown_images(rows: Any, shape: PromptFormat, location: str = "data") -> list[tuple[Sized, ...]]:
    """Returns the images that each row is asked with and their sizes inside the bounds; no image is decoded.

    Raises:
        InputError: if an image is not embedded, or its header cannot be read.
    """
    columns = [name for name in (NUMBER, *shape.views, OPTION_IMAGES) if name in rows.column_names]
    found: list[tuple[Sized, ...]] = []
    for table in rows.select_columns(columns).with_format("arrow").iter(batch_size=64):
        for index in range(table.num_rows):
            row: dict[str, Any] = {NUMBER: table[NUMBER][index].as_py()}
            row |= {name: cell for name in columns if (cell := table[name][index]).is_valid and name != NUMBER}
            images = images_of(row, shape)
            sizes = [shape.bounds.size(*_header(row[image.column], image, location)) for image in images]
            found.append(tuple(zip(images, sizes, strict=True)))
    return found


def _header(cell: Any, image: ImageRef, location: str) -> tuple[int, int]:
    """Returns (width, height) of an image in an Arrow cell; only the pages of its header are read."""
    import pyarrow as pa
    from PIL import Image

    content = (cell if image.option is None else cell[image.option])["bytes"]
    if not content.is_valid:
        embedded_bytes(cell.as_py(), image, location)  # raises with the reason
    # the second is for decoders (TIFF) that need a file of Python's own; it copies the bytes
    for reader in (lambda: pa.BufferReader(content.as_buffer()), lambda: io.BytesIO(content.as_py())):
        with suppress(*UNREADABLE), Image.open(reader()) as header:
            return header.size
    return decode_image(content.as_py(), f"{location}, {image.name}", Bounds()).size  # raises with the reason


def messages_of(question: Question, images: Sequence[ImageRef], shape: PromptFormat) -> list[dict[str, Any]]:
    """Returns the messages of a question, with a placeholder for each of its images."""
    views = tuple(image for image in images if image.option is None)
    item = VisualQuestion(question, views, tuple(images[len(views) :]), question.id)
    return build_messages(shape.prompt, Request(item).content(shape.prompt), lambda _: {"type": "image"})


def assistant(text: str) -> dict[str, Any]:
    """Returns the turn that SFT learns."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


class Transform:
    """A transform of ``datasets`` that makes one trainer row of one row; picklable, for loader processes."""

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        made = [self.one(dict(zip(batch, values, strict=True))) for values in zip(*batch.values(), strict=True)]
        return {name: [row[name] for row in made] for name in made[0]}

    def one(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns one trainer row; raises InputError if an image is missing or cannot be decoded."""
        raise NotImplementedError


@dataclass(frozen=True)
class TrainerRow(Transform):
    """Makes trainer rows of rows of a release.

    A trainer row has ``id``, ``prompt`` (messages with image placeholders), ``images`` (RGB, in their order),
    ``answer`` (gold letter), ``option_count``, ``image_count``, ``views`` (those shown), ``dimension``, ``cluster``;
    ``completion`` if the rows have a ``target``, and ``blind_prior`` if they have one.
    """

    shape: PromptFormat
    location: str
    names: tuple[str, ...] | None = None

    def one(self, row: Mapping[str, Any]) -> dict[str, Any]:
        question, images = question_of(row, self.names), images_of(row, self.shape)
        location = f"{self.location}, {question.id}"
        contents = [embedded_bytes(row[image.column], image, self.location) for image in images]
        made = {
            "id": question.id,
            "prompt": messages_of(question, images, self.shape),
            "images": [decode_image(content, location, self.shape.bounds) for content in contents],
            "answer": question.letter,
            "option_count": len(question.options),
            "image_count": len(images),
            "views": [image.column for image in images if image.option is None],
            "dimension": question.dimension,
            "cluster": question.cluster,
        }
        if row.get(TARGET) is not None:
            made["completion"] = [assistant(row[TARGET])]
        return made | {name: row[name] for name in ("blind_prior",) if name in row}


def trainer_row(rows: Any, shape: PromptFormat, location: str = "data") -> TrainerRow:
    """Returns the transform of rows that ``load_rows`` gave; ``rows.with_transform`` takes it."""
    return TrainerRow(shape, location, tuple(names) if (names := dimension_names(rows)) else None)
