"""Factorial options: four options as the product of two features, so that the geometry of the options says nothing.

Where each wrong option differs from the right one in one feature, the right one is the centre of the four, and a
text-only reader finds it by counting words. In a product {a, a'} x {b, b'} every option shares a feature with two
others and none with the third: no option is the centre, whichever is right. What the words mean ("necrosis" is right
more often than not) is not controlled: against that, draw the truth uniformly, or make exchange groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.text import negations, words


@dataclass(frozen=True, slots=True)
class CrossedOptions:
    """Four options in letter order and the index of the right one."""

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

    Guarantee, whichever option is right: all four have the same number of words, the same overlaps with the other
    three, as many negations (``text.NEGATION``), as many words of the question, and lengths that differ by at most
    ``length_slack`` characters. A probe that scores options by any of these scores the four alike. With
    ``length_slack`` above 0, the longest or shortest option is right once in four only if each option is equally often
    the right one.

    Args:
        first: the two values of the first feature, as phrases.
        second: the two values of the second feature.
        truth: index of the true value of each feature.
        order: the letter order: a permutation of (first, second) = (0, 0), (0, 1), (1, 0), (1, 1).
        template: text of an option, with ``{first}`` and ``{second}``.
        question: text of the question, for the words that options share with it.
        length_slack: greatest difference of length in characters.

    Raises:
        InputError: where the phrases do not allow the guarantee; it says which options differ in what.
        ValueError: where ``truth`` or ``order`` has another form.

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
    """Returns in what the geometry of the options tells them apart; an empty list where it does not.

    Args:
        options: two option texts or more.
        question: text of the question.
        length_slack: greatest difference of length in characters.
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
                hint = "choose phrases of equally many words and negations that share no words, or all"
                problems.append(Problem(location, f"the same {name} in every option", found, hint))
    lengths = [len(option) for option in options]
    if max(lengths) - min(lengths) > length_slack:
        expected = f"lengths that differ by {length_slack} characters at most"
        hint = "choose phrases of equal length, or allow for it by length_slack and draw the truth uniformly"
        problems.append(Problem(location, expected, f"{min(lengths)} to {max(lengths)} characters", hint))
    return problems


def _overlaps(number: int, texts: Sequence[Sequence[str]]) -> tuple[tuple[int, int], ...]:
    """Returns (shared, united) counts of distinct words with each other option, sorted."""
    own = set(texts[number])
    others = (set(other) for index, other in enumerate(texts) if index != number)
    return tuple(sorted((len(own & other), len(own | other)) for other in others))
