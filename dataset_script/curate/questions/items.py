"""A question with its options: two pairs of findings, crossed, and where each combination stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

from dataset_script.curate.asking.prompts import load_prompt
from dataset_script.curate.features.captions import PATH_VIEW
from dataset_script.curate.questions.drafts import Draft
from scale_vqa_eval.controls.factorial_options import geometry_problems
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import MAGNIFICATION, QUESTION_TYPES

SCALE_NAMES: Final = {**MAGNIFICATION, PATH_VIEW: "all views"}
COMBINATIONS: Final = ((0, 0), (0, 1), (1, 0), (1, 1))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path belongs, and what its captions say."""

    slide: str
    patient: str
    path_id: str
    split: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """A question that could be released.

    Attributes:
        draft: the model's part.
        place: where its path belongs.
        values: the two values of the first feature and of the second, as phrases; each pair holds one that is right.
        truth: index of the right value of each.
        order: letter order: a permutation of ``COMBINATIONS`` by number.
        sources: where each wrong value comes from: ``corpus`` (right on another path) or ``model``.
        group: name of its exchange set: four items with one text, each option right once.
    """

    draft: Draft
    place: Place
    values: tuple[tuple[str, str], tuple[str, str]]
    truth: tuple[int, int]
    order: tuple[int, int, int, int]
    sources: tuple[str, str]
    group: str | None = None

    @property
    def id(self) -> str:
        """Row id."""
        return self.draft.id

    @property
    def options(self) -> tuple[str, ...]:
        """Option texts in letter order."""
        return option_texts(self.draft, self.values, self.order)

    @property
    def answer(self) -> int:
        """Index of the right option."""
        return self.order.index(2 * self.truth[0] + self.truth[1])

    @property
    def exact(self) -> bool:
        """Whether the four options have one geometry: as many words, overlaps and letters, whatever is right."""
        return not geometry_problems(self.options, self.draft.question)

    def question(self, rationale: str | None = None) -> Question:
        """Returns the question as the audit reads it."""
        return Question(
            id=self.id,
            question=self.draft.question,
            options=self.options,
            answer=self.answer,
            dimension=QUESTION_TYPES[self.draft.question_type],
            slide=self.place.slide,
            patient=self.place.patient,
            path_id=self.place.path_id,
            rationale=rationale,
            group=self.group,
            split=self.place.split,
        )

    def as_row(self) -> dict[str, Any]:
        """Returns plain values for a file; the path's place is not repeated."""
        return {
            "draft": self.draft.as_row(),
            "values": [list(pair) for pair in self.values],
            "truth": list(self.truth),
            "order": list(self.order),
            "sources": list(self.sources),
            "group": self.group,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any], places: Mapping[str, Place]) -> Item:
        """Reads what ``as_row`` gave."""
        draft = Draft.from_row(row["draft"])
        first, second = (tuple(pair) for pair in row["values"])
        return cls(
            draft,
            places[draft.path],
            (first, second),  # type: ignore[arg-type]
            tuple(row["truth"]),  # type: ignore[arg-type]
            tuple(row["order"]),  # type: ignore[arg-type]
            tuple(row["sources"]),  # type: ignore[arg-type]
            row["group"],
        )


def option_texts(
    draft: Draft, values: tuple[tuple[str, str], tuple[str, str]], order: Sequence[int]
) -> tuple[str, ...]:
    """Returns the four products of two pairs of values as options in letter order."""
    template = load_prompt("generate")["types"][draft.question_type]["option"]
    texts = [
        template.format(
            first=spelled(first),
            second=spelled(second),
            first_scale=SCALE_NAMES[draft.first.scale],
            second_scale=SCALE_NAMES[draft.second.scale],
        )
        for first, second in product(*values)
    ]
    texts = [text[0].upper() + text[1:] for text in texts]
    return tuple(texts[number] for number in order)


def spelled(value: str) -> str:
    """Returns a finding as it stands within an option: no capital that only the start of a sentence gave it.

    >>> spelled("Compact stroma."), spelled("CD3 positive cells"), spelled("HER2")
    ('compact stroma', 'CD3 positive cells', 'HER2')
    """
    bare = value.strip(" .;,")
    head = bare.split(" ", 1)[0]
    return bare[0].lower() + bare[1:] if head[1:] == head[1:].lower() and not any(c.isdigit() for c in head) else bare


def named_combination(item: Item, letter: int) -> int:
    """Returns which combination a rationale means by A (0), B, C or D: both right, first alone, second alone, none."""
    first, second = COMBINATIONS[letter]
    right = item.truth
    return 2 * (right[0] if not first else 1 - right[0]) + (right[1] if not second else 1 - right[1])


def with_order(item: Item, order: Sequence[int]) -> Item:
    """Returns an item with its options in another order."""
    a, b, c, d = order
    return replace(item, order=(a, b, c, d))
