"""What is asked: a question with its images in scale order, and the turns of its options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.predict.pictures import OPTION_IMAGES, NoPictures, Picture, PictureStore, open_pictures
from scale_vqa_eval.predict.prompt import Prompt, filled
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item:
    """One question with the images it is asked with.

    Attributes:
        question: id, stem, options, gold.
        views: context images in scale order, low to high; only those that exist.
        option_pictures: one image an option, or none.
        path: the diagnostic path; questions of one path share their images.
    """

    question: Question
    views: tuple[Picture, ...]
    option_pictures: tuple[Picture, ...]
    path: str

    @property
    def patient(self) -> str:
        """Whose images they are."""
        return self.question.cluster


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to put to a model: an item with its options turned by ``rotation`` places.

    ``rotation`` is None outside of the circular ablation. Turned by r, place j shows option (j + r) modulo their
    number. Where the options are images the images turn and the text beside them stays: it names places.
    """

    item: Item
    rotation: int | None = None

    @property
    def key(self) -> tuple[str, int | None]:
        """What an answer is filed under."""
        return self.item.question.id, self.rotation

    @property
    def pictures(self) -> int:
        """Number of images."""
        return len(self.item.views) + len(self.item.option_pictures)

    @property
    def options(self) -> tuple[str, ...]:
        """Option texts as shown."""
        texts = self.item.question.options
        return texts if self.item.option_pictures else turned(texts, self.rotation or 0)

    @property
    def gold(self) -> int:
        """Place of the gold option as shown.

        >>> item = Item(Question("q", "?", ("w", "x", "y", "z"), 2), (), (), "p")
        >>> [Ask(item, turn).gold for turn in range(4)]
        [2, 1, 0, 3]
        """
        count = len(self.item.question.options)
        return (self.item.question.answer - (self.rotation or 0)) % count

    def content(self, prompt: Prompt) -> list[str | Picture]:
        """Returns the user turn: views, then option images each after its letter, then the text."""
        parts: list[str | Picture] = []
        for view in self.item.views:
            if prompt.view_label:
                magnification = MAGNIFICATION[view.column]
                parts.append(filled(prompt.view_label, view=view.column, magnification=magnification))
            parts.append(view)
        for letter, picture in zip(LETTERS, turned(self.item.option_pictures, self.rotation or 0), strict=False):
            parts += [filled(prompt.option_label, letter=letter), picture]
        return [*parts, prompt.text(self.item.question.question, self.options)]


def turned(values: tuple[T, ...], places: int) -> tuple[T, ...]:
    """Returns the values moved ``places`` to the front.

    >>> turned(("a", "b", "c"), 1)
    ('b', 'c', 'a')
    """
    return values[places:] + values[:places]


def read_items(
    data: str, split: str | None, config: str | None, images: Path | None, blind: bool
) -> tuple[list[Item], PictureStore]:
    """Reads the questions of a release folder, Parquet file, Hub id or question file, and where their images lie.

    Args:
        data: as ``read_questions`` takes it.
        split: name of the split, None for all.
        config: config of a release folder, None for its first choice.
        images: folder that a question file's image paths are relative to; None for the file's own folder.
        blind: the images are not to be asked with, so none need be there.

    Raises:
        InputError: where questions or images break the contract, an id is there twice, or no row has an image.
    """
    questions = read_questions(data, split, config)
    twice = [name for name, count in Counter(question.id for question in questions).items() if count > 1]
    if twice:
        found = f"{len(twice)} ids in more than one split, the first {twice[0]!r}"
        raise InputError(Problem(data, "an id of its own for every question", found, "name one split by --split"))
    store = NoPictures() if blind else open_pictures(data, split, config, questions, images)
    items = [_item(row, question, store) for row, question in enumerate(questions)]
    if not blind and not any(item.views or item.option_pictures for item in items):
        hint = (
            "name each row's files in image_path as {view: file} (`scale-vqa build single` does so for one image a "
            "question), build the release folder with --images, or ask --ablate blind"
        )
        raise InputError(Problem(data, "questions with images", "no image in any row", hint))
    return items, store


def _item(row: int, question: Question, store: PictureStore) -> Item:
    path = f"{question.slide}::{question.path_id}" if question.slide and question.path_id else question.id
    views = tuple(Picture(row, view) for view in store.views(row))
    options = tuple(Picture(row, OPTION_IMAGES, place) for place in range(store.options(row)))
    if options and len(options) != len(question.options):
        expected = f"{len(question.options)} option images, one an option"
        raise InputError(Problem(f"{question.id}, {OPTION_IMAGES}", expected, str(len(options)), "fix the row"))
    return Item(question, views, options, path)


def asks_by_path(items: Iterable[Item], circular: bool) -> list[list[Ask]]:
    """Returns what is to be asked, one list a path in order of first appearance: its questions share their images.

    Option images are a question's own: such questions share their context views only, which stand first.
    """
    paths: dict[str, list[Ask]] = {}
    for item in items:
        turns: Sequence[int | None] = range(len(item.question.options)) if circular else [None]
        paths.setdefault(item.path, []).extend(Ask(item, turn) for turn in turns)
    return list(paths.values())


def with_views_of(item: Item, donor: Item) -> Item:
    """Returns a question with the context views of another."""
    return replace(item, views=donor.views)
