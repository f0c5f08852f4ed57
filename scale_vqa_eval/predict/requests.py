"""Requests to a model: a question with its images in scale order, rotations of its options, and ablations.

An ablation changes the images of a question, to measure how much the accuracy depends on them:

- ``blind``: no images. The text is identical to the text with images and does not mention that they are missing, so
  that the images are the only difference between the two runs.
- ``guess``: no images, and the user message ends with the instruction to guess (Mirage, arXiv:2603.21687).
- ``blank``: each image is replaced by a uniform grey image of the same size.
- ``no-low``, ``no-mid``, ``no-high``: one context view is removed (Phan et al., arXiv:2606.17412, ablate scales).
- ``shuffled``: context views of a path of another patient. Option images are not changed.
- ``circular``: every rotation of the options (CircularEval; Liu et al. 2023, "MMBench", arXiv:2307.06281).
"""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from PIL import Image, ImageOps

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.predict import DROPPED_VIEW, WITHOUT_IMAGES
from scale_vqa_eval.predict.images import OPTION_IMAGES, UNREADABLE, ImageRef, ImageSource, open_images
from scale_vqa_eval.predict.prompts import Prompt, filled
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VisualQuestion:
    """A question with its images.

    Attributes:
        question: id, stem, options, gold option.
        views: the existing context images, from low to high magnification.
        option_images: one image per option, or empty.
        path: id of the diagnostic path, whose questions share their images.
    """

    question: Question
    views: tuple[ImageRef, ...]
    option_images: tuple[ImageRef, ...]
    path: str

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """Views and option images."""
        return *self.views, *self.option_images


@dataclass(frozen=True, slots=True)
class Request:
    """A question to ask a model, with its options rotated by ``rotation`` (None without the circular ablation).

    With rotation r, position j shows option (j + r) modulo the number of options. If the options are images, only the
    images are rotated, because their texts name positions.
    """

    item: VisualQuestion
    rotation: int | None = None

    @property
    def key(self) -> tuple[str, int | None]:
        """Key of the answer in the predictions file."""
        return self.item.question.id, self.rotation

    @property
    def image_count(self) -> int:
        """Number of images."""
        return len(self.item.images)

    @property
    def options(self) -> tuple[str, ...]:
        """Option texts in the order in which they are shown."""
        texts = self.item.question.options
        return texts if self.item.option_images else rotated(texts, self.rotation or 0)

    @property
    def gold(self) -> int:
        """Index of the gold option in the order in which they are shown.

        >>> item = VisualQuestion(Question("q", "?", ("w", "x", "y", "z"), 2), (), (), "p")
        >>> [Request(item, rotation).gold for rotation in range(4)]
        [2, 1, 0, 3]
        """
        count = len(self.item.question.options)
        return (self.item.question.answer - (self.rotation or 0)) % count

    def content(self, prompt: Prompt) -> list[str | ImageRef]:
        """Returns the parts of the user message: views, option images each after its letter, and the text."""
        parts: list[str | ImageRef] = []
        for view in self.item.views:
            if prompt.view_label:
                magnification = MAGNIFICATION[view.column]
                parts.append(filled(prompt.view_label, view=view.column, magnification=magnification))
            parts.append(view)
        for letter, image in zip(LETTERS, rotated(self.item.option_images, self.rotation or 0), strict=False):
            parts += [filled(prompt.option_label, letter=letter), image]
        return [*parts, prompt.text(self.item.question.question, self.options)]


def rotated(values: tuple[T, ...], places: int) -> tuple[T, ...]:
    """Moves the first ``places`` values to the end.

    >>> rotated(("a", "b", "c"), 1)
    ('b', 'c', 'a')
    """
    return values[places:] + values[:places]


def read_visual_questions(
    data: str, split: str | None, config: str | None, images: Path | None, blind: bool
) -> tuple[list[VisualQuestion], ImageSource]:
    """Reads questions and the source of their images.

    Args:
        data: release folder, Parquet file, Hub id or question file; see ``read_questions``.
        split: split to read, or None for all splits.
        config: config of a release folder, or None for its default.
        images: folder that the image paths of a question file are relative to, or None for the file's folder.
        blind: do not use images, which then need not exist.

    Raises:
        InputError: if a question or image is invalid, an id occurs twice, or no row has an image.
    """
    questions = read_questions(data, split, config)
    twice = [name for name, count in Counter(question.id for question in questions).items() if count > 1]
    if twice:
        found = f"{len(twice)} ids in more than one split, the first {twice[0]!r}"
        raise InputError(Problem(data, "a unique id for every question", found, "name one split by --split"))
    source = ImageSource() if blind else open_images(data, split, config, questions, images)
    items = [_visual_question(row, question, source) for row, question in enumerate(questions)]
    if not blind and not any(item.images for item in items):
        hint = (
            "name each row's files in image_path as {view: file} (`scale-vqa build single` does so for one image a "
            "question), build the release folder with --images, or run without images (predict --ablate blind, "
            "export --no-images)"
        )
        raise InputError(Problem(data, "questions with images", "no image in any row", hint))
    return items, source


def _visual_question(row: int, question: Question, source: ImageSource) -> VisualQuestion:
    path = f"{question.slide}::{question.path_id}" if question.slide and question.path_id else question.id
    views = tuple(ImageRef(row, view) for view in source.views(row))
    options = tuple(ImageRef(row, OPTION_IMAGES, index) for index in range(source.options(row)))
    if options and len(options) != len(question.options):
        expected = f"{len(question.options)} option images, one per option"
        raise InputError(Problem(f"{question.id}, {OPTION_IMAGES}", expected, str(len(options)), "fix the row"))
    return VisualQuestion(question, views, options, path)


def requests_by_path(items: Iterable[VisualQuestion], circular: bool) -> list[list[Request]]:
    """Returns one list of requests per path, whose questions share their context views, in order of appearance."""
    paths: dict[str, list[Request]] = {}
    for item in items:
        rotations: Sequence[int | None] = range(len(item.question.options)) if circular else [None]
        paths.setdefault(item.path, []).extend(Request(item, rotation) for rotation in rotations)
    return list(paths.values())


BLANK_COLOUR: Final = (128, 128, 128)


def ablated(
    items: Sequence[VisualQuestion], ablation: str | None, seed: int
) -> tuple[list[VisualQuestion], list[str]]:
    """Returns the questions with the images of an ablation, and notes for the user.

    Args:
        items: all questions of the split; ``shuffled`` exchanges views among them.
        ablation: one of ``predict.ABLATIONS``, or None.
        seed: seed of ``shuffled``.

    Raises:
        InputError: for ``shuffled``, if there is only one patient.
    """
    if ablation in WITHOUT_IMAGES:
        return [replace(item, views=(), option_images=()) for item in items], []
    if ablation in DROPPED_VIEW:
        return _without(items, DROPPED_VIEW[ablation])
    if ablation == "shuffled":
        return _shuffled(items, seed)
    return list(items), []


class BlankImages(ImageSource):
    """The images of another source, each replaced by a uniform image of the same size.

    An unreadable image is not replaced, so that its question fails as it would with images.
    """

    def __init__(self, source: ImageSource) -> None:
        super().__init__()
        self._source = source

    def read(self, image: ImageRef) -> bytes:
        content = self._source.read(image)
        try:
            with Image.open(io.BytesIO(content)) as original:
                size = ImageOps.exif_transpose(original).size
        except UNREADABLE:
            return content
        file = io.BytesIO()
        Image.new("RGB", size, BLANK_COLOUR).save(file, "PNG")
        return file.getvalue()


def _without(items: Sequence[VisualQuestion], view: str) -> tuple[list[VisualQuestion], list[str]]:
    kept = [replace(item, views=tuple(image for image in item.views if image.column != view)) for item in items]
    same = sum(len(before.views) == len(after.views) for before, after in zip(items, kept, strict=True))
    without = sum(not item.images for item in kept)
    notes = [f"{same} of {len(items)} questions have no {view} and are asked unchanged"] if same else []
    if without:
        notes.append(f"{without} of {len(items)} questions have no image left, as in a blind run")
    return kept, notes


def _shuffled(items: Sequence[VisualQuestion], seed: int) -> tuple[list[VisualQuestion], list[str]]:
    """Gives every path the views of another patient's path, if possible one with the same view columns."""
    paths = {item.path: item for item in reversed(items)}  # the first item of each path
    if len({item.question.cluster for item in paths.values()}) < 2:
        expected = "paths of at least two patients, to exchange their images"
        raise InputError(Problem("--ablate shuffled", expected, "one", "name data of several patients"))
    by_views: dict[tuple[str, ...], list[VisualQuestion]] = {}
    for path in sorted(paths):
        by_views.setdefault(tuple(image.column for image in paths[path].views), []).append(paths[path])
    generator = random.Random(seed)
    donors: dict[str, VisualQuestion] = {}
    for views in sorted(by_views):
        donors |= _exchanged(by_views[views], generator)
    left = sorted(set(paths) - set(donors))
    for path in left:
        patient = paths[path].question.cluster
        others = [paths[name] for name in sorted(paths) if paths[name].question.cluster != patient]
        donors[path] = generator.choice(others)
    notes = [f"{len(left)} of {len(paths)} paths get images that another path gets as well"] if left else []
    return [replace(item, views=donors[item.path].views) for item in items], notes


def _exchanged(paths: Sequence[VisualQuestion], generator: random.Random) -> dict[str, VisualQuestion]:
    """Returns path -> donor, with each path as donor once; empty if one patient has more than half of the paths.

    Paths are ordered by patient and shifted by the number of paths of the largest patient.
    """
    patients: dict[str, list[VisualQuestion]] = {}
    for item in paths:
        patients.setdefault(item.question.cluster, []).append(item)
    shift = max(map(len, patients.values()))
    if 2 * shift > len(paths):
        return {}
    names = sorted(patients)
    generator.shuffle(names)
    ordered: list[VisualQuestion] = []
    for name in names:
        members = patients[name]
        generator.shuffle(members)
        ordered += members
    return {item.path: ordered[(index + shift) % len(ordered)] for index, item in enumerate(ordered)}
