"""What is asked: a question with its images in scale order, and the rotations of its options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.predict.images import OPTION_IMAGES, ImageRef, ImageSource, open_images
from scale_vqa_eval.predict.prompts import Prompt, filled
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VisualQuestion:
    """One question with the images it is asked with.

    Attributes:
        question: id, stem, options, gold option.
        views: context images that exist, in scale order, low to high.
        option_images: one image per option, or none.
        path: the diagnostic path; questions of one path share their images.
    """

    question: Question
    views: tuple[ImageRef, ...]
    option_images: tuple[ImageRef, ...]
    path: str

    @property
    def patient(self) -> str:
        """The patient, else what stands in for one."""
        return self.question.cluster

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All images."""
        return *self.views, *self.option_images


@dataclass(frozen=True, slots=True)
class Request:
    """One question to put to a model, its options rotated by ``rotation``.

    ``rotation`` is None outside of the circular ablation. Rotated by r, index j shows option (j + r) modulo their
    number. Where the options are images, the images rotate and the text beside them, which names positions, does not.
    """

    item: VisualQuestion
    rotation: int | None = None

    @property
    def key(self) -> tuple[str, int | None]:
        """What identifies its answer in the predictions file."""
        return self.item.question.id, self.rotation

    @property
    def image_count(self) -> int:
        """Number of images."""
        return len(self.item.images)

    @property
    def options(self) -> tuple[str, ...]:
        """Option texts in the order shown."""
        texts = self.item.question.options
        return texts if self.item.option_images else rotated(texts, self.rotation or 0)

    @property
    def gold(self) -> int:
        """Index of the gold option in the order shown.

        >>> item = VisualQuestion(Question("q", "?", ("w", "x", "y", "z"), 2), (), (), "p")
        >>> [Request(item, rotation).gold for rotation in range(4)]
        [2, 1, 0, 3]
        """
        count = len(self.item.question.options)
        return (self.item.question.answer - (self.rotation or 0)) % count

    def content(self, prompt: Prompt) -> list[str | ImageRef]:
        """Returns the user turn: views, then option images each after its letter, then the text."""
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
    """Returns the values with the first ``places`` moved to the end.

    >>> rotated(("a", "b", "c"), 1)
    ('b', 'c', 'a')
    """
    return values[places:] + values[:places]


def read_visual_questions(
    data: str, split: str | None, config: str | None, images: Path | None, blind: bool
) -> tuple[list[VisualQuestion], ImageSource]:
    """Reads the questions of a release folder, Parquet file, Hub id or question file, and where their images are.

    Args:
        data: as ``read_questions`` takes it.
        split: name of the split, None for all.
        config: config of a release folder, None for its default.
        images: folder that a question file's image paths are relative to; None for the file's own folder.
        blind: the images are not shown, so none need exist.

    Raises:
        InputError: where a question or image is malformed, an id occurs twice, or no row has an image.
    """
    questions = read_questions(data, split, config)
    twice = [name for name, count in Counter(question.id for question in questions).items() if count > 1]
    if twice:
        found = f"{len(twice)} ids in more than one split, the first {twice[0]!r}"
        raise InputError(Problem(data, "an id of its own for every question", found, "name one split by --split"))
    source = ImageSource() if blind else open_images(data, split, config, questions, images)
    items = [_visual_question(row, question, source) for row, question in enumerate(questions)]
    if not blind and not any(item.images for item in items):
        hint = (
            "name each row's files in image_path as {view: file} (`scale-vqa build single` does so for one image a "
            "question), build the release folder with --images, or leave the images out (predict --ablate blind, "
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
    """Returns the requests, one list per path in order of first appearance: its questions share their images.

    Option images belong to one question: such questions share their context views only, which come first.
    """
    paths: dict[str, list[Request]] = {}
    for item in items:
        rotations: Sequence[int | None] = range(len(item.question.options)) if circular else [None]
        paths.setdefault(item.path, []).extend(Request(item, rotation) for rotation in rotations)
    return list(paths.values())
