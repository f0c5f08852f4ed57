"""Converts rows of Scale-VQA into trainer rows: ``prompt``, ``images``, and columns for rewards and targets.

Trainer rows have the prompt, the order of images and the resolution bounds of ``scale-vqa predict``. Images are
decoded when a batch needs them.
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
"""Column with the index of the row in the data, for messages."""
TARGET: Final = "target"
"""Column with the text that SFT learns."""
Sized = tuple[ImageRef, tuple[int, int]]
"""An image, and its (width, height) within the bounds."""


@dataclass(frozen=True)
class PromptFormat:
    """Prompt, views and image bounds of trainer rows.

    Attributes:
        prompt: prompt template.
        views: views to use, if the row has them.
        bounds: minimum and maximum pixels of an image.
        blind: leave out all images; the text is the same.
        blind_share: share of the rows without images, chosen by row number.
    """

    prompt: Prompt
    views: tuple[str, ...] = VIEWS
    bounds: Bounds = field(default_factory=Bounds)
    blind: bool = False
    blind_share: float = 0.0

    def hides(self, number: int) -> bool:
        """Whether the row with this number is asked without images."""
        return self.blind or random.Random(number).random() < self.blind_share


def prompt_format(
    prompt: str = DEFAULT_PROMPT,
    views: Sequence[str] = VIEWS,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    blind: bool = False,
) -> PromptFormat:
    """Returns a prompt format with the views in scale order.

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
    """Sets the bounds in the processor, and returns the format with the bounds that the processor applies.

    The processor is saved with each checkpoint and used for prediction. Qwen's processors apply the bounds; for
    others, images are resized before. Without bounds in the format, those saved by an earlier training apply.
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
    """Loads a split with ``load_dataset``, without decoding images.

    Args:
        data: ``scale-vqa``, a release folder or a Hub id.
        config: name of the config, or None for the default.
        split: name of the split.
        dimensions: dimensions to keep; None or empty for all.

    Returns:
        ``datasets.Dataset`` with the columns of a release and ``row_number``.

    Raises:
        InputError: if data, config, split or dimension do not exist, or required columns are missing.
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
            Problem(location, "a dataset in the release's format", first_line(error, 240), hint)
        ) from error
    missing = [name for name in ("id", "question", "options", "answer") if name not in rows.column_names]
    if missing:
        found = preview(f"columns {', '.join(rows.column_names)}", 200)
        raise InputError(Problem(location, f"the columns {', '.join(missing)}", found, "see docs/data.md"))
    # unlike cast_column, this does not copy lists of images
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
    """Returns the questions of rows without reading their images."""
    plain = rows.with_format(None)
    columns = [name for name in plain.column_names if name not in (*VIEWS, OPTION_IMAGES)]
    names = dimension_names(plain)
    return [question_of(row, names) for row in plain.select_columns(columns).to_list()]


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
        patient=row.get("patient_id") or (patient_of(slide) if slide else None),  # the same rule as in scores
        path_id=row.get("path_id"),
        rationale=row.get("rationale"),
        group=row.get("group"),
    )


def images_of(row: Mapping[str, Any], shape: PromptFormat) -> list[ImageRef]:
    """Returns the images of a row's prompt in their order."""
    number = row.get(NUMBER, 0)
    if shape.hides(number):
        return []
    views = [ImageRef(number, view) for view in shape.views if row.get(view) is not None]
    return views + [ImageRef(number, OPTION_IMAGES, index) for index in range(len(row.get(OPTION_IMAGES) or ()))]


def shown_images(rows: Any, shape: PromptFormat, location: str = "data") -> list[tuple[Sized, ...]]:
    """Returns the images of each row's prompt and their sizes within the bounds, without decoding images.

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
    """Returns (width, height) of an image in an Arrow cell; reads only its header."""
    import pyarrow as pa
    from PIL import Image

    content = (cell if image.option is None else cell[image.option])["bytes"]
    if not content.is_valid:
        embedded_bytes(cell.as_py(), image, location)  # raises InputError
    # the second reader, which copies the bytes, is for decoders (TIFF) that need a Python file object
    for reader in (lambda: pa.BufferReader(content.as_buffer()), lambda: io.BytesIO(content.as_py())):
        with suppress(*UNREADABLE), Image.open(reader()) as header:
            return header.size
    return decode_image(content.as_py(), f"{location}, {image.name}", Bounds()).size  # raises InputError


def messages_of(question: Question, images: Sequence[ImageRef], shape: PromptFormat) -> list[dict[str, Any]]:
    """Returns the messages of a question, with a placeholder for each of its images."""
    views = tuple(image for image in images if image.option is None)
    item = VisualQuestion(question, views, tuple(images[len(views) :]), question.id)
    return build_messages(shape.prompt, Request(item).content(shape.prompt), lambda _: {"type": "image"})


def assistant(text: str) -> dict[str, Any]:
    """Returns an assistant message with the text."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


class Transform:
    """A ``datasets`` transform of rows into trainer rows; picklable."""

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [self.one(dict(zip(batch, values, strict=True))) for values in zip(*batch.values(), strict=True)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def one(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns one trainer row; raises InputError if an image is missing or cannot be decoded."""
        raise NotImplementedError


@dataclass(frozen=True)
class TrainerRow(Transform):
    """Transforms rows of a release into trainer rows.

    A trainer row has ``id``, ``prompt`` (messages with image placeholders), ``images`` (RGB), ``answer`` (letter),
    ``option_count``, ``image_count``, ``views`` (of the images), ``dimension``, ``cluster``; ``completion`` if the
    rows have a ``target``; and ``blind_prior`` if they have one.
    """

    shape: PromptFormat
    location: str
    names: tuple[str, ...] | None = None

    def one(self, row: Mapping[str, Any]) -> dict[str, Any]:
        question, images = question_of(row, self.names), images_of(row, self.shape)
        location = f"{self.location}, {question.id}"
        contents = [embedded_bytes(row[image.column], image, self.location) for image in images]
        result = {
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
            result["completion"] = [assistant(row[TARGET])]
        return result | ({"blind_prior": row["blind_prior"]} if "blind_prior" in row else {})


def trainer_row(rows: Any, shape: PromptFormat, location: str = "data") -> TrainerRow:
    """Returns the transform for rows of ``load_rows``, to be used with ``rows.with_transform``."""
    return TrainerRow(shape, location, tuple(names) if (names := dimension_names(rows)) else None)
