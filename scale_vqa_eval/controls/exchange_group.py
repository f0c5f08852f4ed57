"""Questions whose text does not reveal the answer: exchange groups, and options that are the product of two features.

The four items of an exchange group have the same question text, and as options their four right answers in the same
order. A deterministic text-only reader gives one letter for all four, so it is right on exactly one: 25% of the items
and no complete group. ``control``, ``curate``, ``build slides`` and ``build phantom`` make such groups; ``audit``
finds them by their text.

Factorial options are the product {a, a'} x {b, b'} of two features. If instead each wrong option differs from the
right one in one feature, the right option is the centre of the four, and a text-only reader finds it by counting
words. In the product, each option shares a feature with two others and none with the third, so no option is the
centre. The meaning of the words ("necrosis" is right more often than not) is not controlled: for that, draw the truth
uniformly, or make exchange groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, Generic, TypeVar

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.questions import Question
from scale_vqa_eval.text import negations, words

GROUP_SIZE: Final = 4

Member = TypeVar("Member", bound=Hashable)


@dataclass(frozen=True)
class ExchangeGroup(Generic[Member]):
    """Items that share one text; option i is right for the i-th member.

    Args:
        name: name of the group, unique in its dataset.
        members: the items in option order, as row numbers, row ids or other identifiers.

    Raises:
        ValueError: if an item is a member twice.

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
        """Whether the answers of the group's items, in any order, contain each option exactly once."""
        return sorted(answers) == list(range(len(self.members)))


def find_exchange_groups(questions: Sequence[Question]) -> list[list[int]]:
    """Finds sets of questions with the same text and options in which every option is right equally often.

    Args:
        questions: any questions; their column ``group`` is not used.

    Returns:
        Ascending row numbers of each set, in order of first appearance; groups with the same text are one set.

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


@dataclass(frozen=True, slots=True)
class CrossedOptions:
    """Four options in letter order, and the index of the right one."""

    options: tuple[str, str, str, str]
    answer: int


def crossed_options(
    first: tuple[str, str],
    second: tuple[str, str],
    truth: tuple[int, int],
    order: Sequence[int] = (0, 1, 2, 3),
    template: str = "{first}, {second}",
    question: str = "",
    length_slack: int = 0,
) -> CrossedOptions:
    """Builds four options as the product of two features with two values each.

    All four options have the same number of words, overlaps with the other three, negations (``text.NEGATION``) and
    words of the question, and their lengths differ by at most ``length_slack`` characters. A probe that uses any of
    these scores the four alike. If ``length_slack`` is above 0, the longest option is at chance only if each option is
    right equally often.

    Args:
        first: the two values of the first feature, as phrases.
        second: the two values of the second feature.
        truth: index of the true value of each feature.
        order: letter order, as a permutation of (first, second) = (0, 0), (0, 1), (1, 0), (1, 1).
        template: text of an option, with ``{first}`` and ``{second}``.
        question: text of the question, for the words that options share with it.
        length_slack: maximum difference of lengths in characters.

    Raises:
        InputError: listing the differences between options that these phrases cause.
        ValueError: if ``truth`` or ``order`` has another form.

    >>> crossed_options(("round nuclei", "oval nuclei"), ("many mitoses", "rare mitoses"), (0, 1), length_slack=1)
    ... # doctest: +NORMALIZE_WHITESPACE
    CrossedOptions(options=('round nuclei, many mitoses', 'round nuclei, rare mitoses', 'oval nuclei, many mitoses',
                            'oval nuclei, rare mitoses'), answer=1)
    """
    if sorted(order) != [0, 1, 2, 3]:
        raise ValueError(f"order must be a permutation of 0, 1, 2, 3, not {preview(order)}")
    if any(index not in (0, 1) for index in truth) or len(truth) != 2:
        raise ValueError(f"truth must be two indices 0 or 1, not {preview(truth)}")
    texts = [template.format(first=a, second=b) for a, b in product(first, second)]
    problems = geometry_problems(texts, question, length_slack)
    if problems:
        raise InputError(problems)
    placed = [texts[index] for index in order]
    return CrossedOptions((placed[0], placed[1], placed[2], placed[3]), list(order).index(2 * truth[0] + truth[1]))


def geometry_problems(options: Sequence[str], question: str = "", length_slack: int = 0) -> list[Problem]:
    """Returns the geometric differences between options as problems; an empty list if there are none.

    Args:
        options: two or more option texts.
        question: text of the question.
        length_slack: maximum difference of lengths in characters.
    """
    texts = [words(option) for option in options]
    asked = set(words(question))
    location = "crossed options"
    problems = []
    if len({frozenset(text) for text in texts}) < len(options):
        found = "options with the same words: " + preview(list(options), 300)
        problems.append(Problem(location, "four options that differ in their words", found, "choose other values"))
    profiles = [
        {
            "words": len(own),
            "overlap with the others": _overlaps(number, texts),
            "negations": len(negations(option)),
            "words of the question": len(set(own) & asked),
        }
        for number, (own, option) in enumerate(zip(texts, options, strict=True))
    ]
    for profile, option in zip(profiles[1:], options[1:], strict=True):
        for name, value in profiles[0].items():
            if value != profile[name]:
                found = f"{value} in {preview(options[0])} and {profile[name]} in {preview(option)}"
                hint = "choose phrases with equally many words and negations that share no words, or all"
                problems.append(Problem(location, f"the same {name} in every option", found, hint))
    lengths = [len(option) for option in options]
    if max(lengths) - min(lengths) > length_slack:
        expected = f"lengths that differ by at most {length_slack} characters"
        hint = "choose phrases of equal length, or set length_slack and draw the truth uniformly"
        problems.append(Problem(location, expected, f"{min(lengths)} to {max(lengths)} characters", hint))
    return problems


def _overlaps(number: int, texts: Sequence[Sequence[str]]) -> tuple[tuple[int, int], ...]:
    """Returns the sorted (intersection, union) sizes of distinct words with each other option."""
    own = set(texts[number])
    others = (set(other) for index, other in enumerate(texts) if index != number)
    return tuple(sorted((len(own & other), len(own | other)) for other in others))
