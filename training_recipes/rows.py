"""Turns rows of Scale-VQA into trainer rows: ``prompt``, ``images`` and what rewards and targets need.

A trainer row asks exactly what ``scale-vqa predict`` asks: the same prompt, the same order of images, the same bounds
of resolution. Images stay encoded until a batch needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict.images import OPTION_IMAGES, Bounds, ImageRef, decode_image, embedded_bytes, image_presence
from scale_vqa_eval.predict.prompts import Prompt, load_prompt
from scale_vqa_eval.predict.requests import Request, VisualQuestion
from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.read import resolve_data
from scale_vqa_eval.schema import ALL_DIMENSIONS, LETTERS, VIEWS, patient_of

NUMBER: Final = "row_number"
"""Column that tells a message which row of the data it speaks of."""
TARGET: Final = "target"
"""Column with the text that SFT is to learn."""


@dataclass(frozen=True)
class Shape:
    """How a row is asked.

    Attributes:
        prompt: what stands around the question.
        views: views to show, where the row has them.
        bounds: least and most pixels of an image.
        blind: show no image at all; the text stays the same.
    """

    prompt: Prompt
    views: tuple[str, ...] = VIEWS
    bounds: Bounds = field(default_factory=Bounds)
    blind: bool = False


def make_shape(
    prompt: str = "published",
    views: Sequence[str] = VIEWS,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    blind: bool = False,
) -> Shape:
    """Returns a shape, its parts checked.

    Raises:
        InputError: for an unknown prompt or view, or bounds that cross.
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
    return Shape(load_prompt(prompt), ordered, Bounds(min_pixels, max_pixels), blind)


def load_rows(data: str, config: str | None, split: str) -> Any:
    """Loads one split with ``load_dataset``, images left encoded.

    Args:
        data: the bare name ``scale-vqa``, a release folder or a Hub id.
        config: name of the config, None for the data's default.
        split: name of the split.

    Returns:
        ``datasets.Dataset`` with the columns of a release and ``row_number``.

    Raises:
        InputError: where data, config or split are not there, or columns of a release are missing.
    """
    from datasets import get_dataset_split_names, load_dataset

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
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "name a release folder, a Hub id, or `scale-vqa` once prepared (`scale-vqa prepare`); see docs/data.md"
        raise InputError(Problem(location, "a data set in the release's format", preview(first, 240), hint)) from error
    missing = [name for name in ("id", "question", "options", "answer") if name not in rows.column_names]
    if missing:
        found = f"columns {', '.join(rows.column_names)}"
        raise InputError(
            Problem(location, f"the columns {', '.join(missing)}", preview(found, 200), "see docs/data.md")
        )
    return _encoded(rows).add_column(NUMBER, list(range(len(rows))))


def _encoded(rows: Any) -> Any:
    """Returns the same rows, images left as bytes; nothing is copied (``cast_column`` copies a list of images)."""
    from datasets import Dataset, DatasetInfo, Image, List

    features = rows.features.copy()
    features |= {view: Image(decode=False) for view in VIEWS if view in features}
    if OPTION_IMAGES in features:
        features[OPTION_IMAGES] = List(Image(decode=False))
    return Dataset(rows.data, info=DatasetInfo(features=features), split=rows.split)


def of_dimensions(rows: Any, dimensions: Iterable[str] | None) -> Any:
    """Keeps the rows of some dimensions; None keeps all.

    Raises:
        InputError: for a name that is no dimension, or where no row is left.
    """
    if not dimensions:
        return rows
    wanted = list(dimensions)
    unknown = [name for name in wanted if name not in ALL_DIMENSIONS]
    if unknown:
        hint = "correct the name"
        raise InputError(Problem("dimensions", f"some of {', '.join(ALL_DIMENSIONS)}", ", ".join(unknown), hint))
    names = labels(rows, "dimension")
    kept = [row for row, value in enumerate(rows["dimension"]) if value is not None and names[value] in wanted]
    if not kept:
        there = ", ".join(sorted({names[value] for value in rows["dimension"] if value is not None}))
        hint = "name another dimension"
        raise InputError(Problem("dimensions", f"rows of {', '.join(wanted)}", f"rows of {there} only", hint))
    return rows.select(kept)


def labels(rows: Any, column: str) -> list[str]:
    """Returns the names of a class column."""
    names: list[str] = rows.features[column].names
    return names


def texts(rows: Any) -> list[dict[str, Any]]:
    """Returns every column but the images, as Python values; a few hundred bytes a row."""
    columns = [name for name in rows.column_names if name not in (*VIEWS, OPTION_IMAGES)]
    content: list[dict[str, Any]] = rows.select_columns(columns).to_list()
    return content


def question_of(row: Mapping[str, Any], names: Sequence[str] | None = None) -> Question:
    """Returns a row's question, images left aside.

    Args:
        row: columns of a release.
        names: names of the ``dimension`` classes.
    """
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


def shown_images(rows: Any, shape: Shape) -> list[tuple[ImageRef, ...]]:
    """Returns which images each row is asked with, in the order of the prompt; no image is read.

    Pictures count rows from 0 in ``rows`` as it stands.
    """
    rows = rows.flatten_indices() if rows._indices is not None else rows
    flags = {view: image_presence(rows.data.column(view), view) for view in shape.views if view in rows.column_names}
    counts = (
        image_presence(rows.data.column(OPTION_IMAGES), OPTION_IMAGES) if OPTION_IMAGES in rows.column_names else []
    )
    found = []
    for row in range(len(rows)):
        views = [ImageRef(row, view) for view, there in flags.items() if there[row]]
        options = [ImageRef(row, OPTION_IMAGES, place) for place in range((counts[row] or 0) if counts else 0)]
        found.append(() if shape.blind else (*views, *options))
    return found


def conversation(row: Mapping[str, Any], question: Question, shape: Shape) -> tuple[list[dict[str, Any]], list[Any]]:
    """Returns the messages of a row, images as places, and what is shown there as (cell, picture) pairs."""
    views = tuple(ImageRef(row.get(NUMBER, 0), view) for view in shape.views if row.get(view) is not None)
    cells = row.get(OPTION_IMAGES) or []
    options = tuple(ImageRef(row.get(NUMBER, 0), OPTION_IMAGES, place) for place in range(len(cells)))
    if shape.blind:
        views = options = ()
    parts: list[dict[str, Any]] = []
    images = []
    for part in Request(VisualQuestion(question, views, options, question.id)).content(shape.prompt):
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
        else:
            parts.append({"type": "image"})
            images.append((row[part.column], part))
    user = {"role": "user", "content": parts}
    if shape.prompt.system is None:
        return [user], images
    system = {"role": "system", "content": [{"type": "text", "text": shape.prompt.system}]}
    return [system, user], images


@dataclass(frozen=True)
class TrainerRow:
    """The transform from rows of a release to trainer rows; picklable, so that loader processes can have it.

    A trainer row has ``id``, ``prompt`` (messages with image places), ``images`` (RGB, in the places' order),
    ``answer`` (gold letter), ``option_count``, ``views`` (those shown), ``dimension``; ``completion`` where the rows
    have a ``target``; every other column of ours (``blind_prior``) as it is.
    """

    shape: Shape
    location: str
    names: tuple[str, ...] | None = None

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        count = len(next(iter(batch.values())))
        made = [self.one({name: values[place] for name, values in batch.items()}) for place in range(count)]
        return {name: [row[name] for row in made] for name in made[0]}

    def one(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns one trainer row.

        Raises:
            InputError: where an image is missing or cannot be decoded.
        """
        question = question_of(row, self.names)
        messages, cells = conversation(row, question, self.shape)
        images = [
            decode_image(
                embedded_bytes(cell, picture, self.location), f"{self.location}, {question.id}", self.shape.bounds
            )
            for cell, picture in cells
        ]
        made = {
            "id": question.id,
            "prompt": messages,
            "images": images,
            "answer": question.letter,
            "option_count": len(question.options),
            "views": [picture.column for _, picture in cells if picture.option is None],
            "dimension": question.dimension,
            "cluster": question.cluster,
        }
        if row.get(TARGET) is not None:
            made["completion"] = [assistant(row[TARGET])]
        if "blind_prior" in row:
            made["blind_prior"] = row["blind_prior"]
        return made


def assistant(text: str) -> dict[str, Any]:
    """Returns the turn that SFT learns."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def trainer_rows(rows: Any, shape: Shape, location: str = "data") -> Any:
    """Returns rows that turn into trainer rows as they are read; every image is decoded when its batch is.

    Args:
        rows: what ``load_rows`` gave, filtered as wanted.
        shape: how they are asked.
        location: what a message calls the data.
    """
    names = tuple(labels(rows, "dimension")) if "dimension" in rows.column_names else None
    return rows.with_transform(TrainerRow(shape, location, names))
