"""The exchange group: items with one text, of which each option is right for exactly one.

Four items share the question text and have their four right answers as options in one order. A deterministic reader of
the text gives one letter for all four, so it is right on exactly one: 25% of items and no complete group. ``control``,
``curate``, ``build slides`` and ``build phantom`` make such groups; ``audit`` finds them by their text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from scale_vqa_eval.questions import Question

GROUP_SIZE: Final = 4

Member = TypeVar("Member", bound=Hashable)


@dataclass(frozen=True)
class ExchangeGroup(Generic[Member]):
    """Items that share one text; the right answer of the i-th member is option i.

    Args:
        name: name of the group, unique in its data set.
        members: the items in option order: row numbers, row ids, or whatever the maker of the group calls an item.

    Raises:
        ValueError: where an item is a member twice, so that two options would be right for it.

    >>> group = ExchangeGroup("exchange-00001", ("row 7", "row 2", "row 9", "row 4"))
    >>> group.answer_of("row 9")
    2
    >>> group.each_right_once({"row 7": 0, "row 2": 1, "row 9": 2, "row 4": 3}[item] for item in group.members)
    True
    """

    name: str
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        if len(set(self.members)) != len(self.members):
            raise ValueError(f"{self.name}: an item is a member twice: {self.members}")

    def answer_of(self, member: Member) -> int:
        """Returns the 0-based index of a member's right option."""
        return self.members.index(member)

    def each_right_once(self, answers: Sequence[int] | Iterator[int]) -> bool:
        """Returns whether the answers of the group's items, in any order, name each option exactly once."""
        return sorted(answers) == list(range(len(self.members)))


def find_exchange_groups(questions: Sequence[Question]) -> list[list[int]]:
    """Finds questions with one text and the same options in order, in which every option is right equally often.

    Args:
        questions: any questions; a ``group`` column is not needed and not read.

    Returns:
        Row numbers of each such set, ascending, in order of first appearance; sets of several groups stay together.

    >>> same = [Question(str(gold), "Which?", ("a", "b"), gold) for gold in (1, 0)]
    >>> find_exchange_groups([*same, Question("2", "Other?", ("a", "b"), 0)])
    [[0, 1]]
    """
    by_text: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for row, question in enumerate(questions):
        by_text.setdefault((question.question, question.options), []).append(row)
    found = []
    for (_, options), rows in by_text.items():
        times = Counter(questions[row].answer for row in rows)
        if len(times) == len(options) and len(set(times.values())) == 1:
            found.append(rows)
    return found
