"""Phantom questions in few words, crossed as they are built or leaky as the benchmark's own are.

A model that starts from nothing has no English to spend time on, so a question becomes its dimension and an option the
phrases in which it differs from the other three: *nodular infiltrate at 10x, lymphocytes at 200x* becomes *nodular,
lymphocytes*. Options stand in alphabetical order: which letter an option has then follows from a few words, and time
goes into pictures. Which picture goes with which option is as before, and so is what the text tells: a group's four
texts are the same, and each option is right once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import DIMENSIONS, LETTERS

JOINT: Final = ", "
"""What stands between the features of an option."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question in few words: what stands in place of a row's own columns.

    Attributes:
        question: the dimension, as a question.
        options: one phrase a feature each.
        answer: index of the right one.
        rationale: the features seen, each with the letters of the options that name it.
    """

    question: str
    options: tuple[str, ...]
    answer: int
    rationale: str


def features(options: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns, for each option, its phrases without the words that all options share.

    >>> features(["glandular type, grade one", "glandular type, grade two",
    ...           "sheetlike type, grade one", "sheetlike type, grade two"])
    [('glandular', 'one'), ('glandular', 'two'), ('sheetlike', 'one'), ('sheetlike', 'two')]
    """
    clauses = [[clause.split() for clause in option.split(JOINT)] for option in options]
    shared = set.intersection(*({word for clause in option for word in clause} for option in clauses))
    return [tuple(" ".join(word for word in clause if word not in shared) for clause in option) for option in clauses]


def crossed(question: Question, others: Sequence[str] = ()) -> Asked:
    """Returns a question with its own four options; the text tells as little as before.

    Args:
        question: of a phantom path.
        others: what else the path's views show, to be said after the question's own features.
    """
    named = features(question.options)
    return _asked(question, named, named[question.answer], others)


def leaky(question: Question, following: Question, others: Sequence[str] = ()) -> Asked:
    """Returns a question whose wrong options each change one feature of the right one, as the benchmark's do.

    A third feature comes from another question of the path. The right option is then the one that has most in common
    with the rest: who counts words need not look.

    Args:
        question: of a phantom path.
        following: another question of the same path.
        others: as for ``crossed``.
    """
    named, third = features(question.options), features(following.options)
    right = (*named[question.answer], third[following.answer][0])
    other = (*_other(named, question.answer), _other(third, following.answer)[0])
    made = [right] + [(*right[:place], other[place], *right[place + 1 :]) for place in range(len(right))]
    return _asked(question, made, right, others)


def _other(named: Sequence[tuple[str, ...]], answer: int) -> tuple[str, ...]:
    """Returns the features of the option that shares none with the right one."""
    right = named[answer]
    return next(option for option in named if all(a != b for a, b in zip(option, right, strict=True)))


def _asked(
    question: Question, named: Sequence[tuple[str, ...]], right: tuple[str, ...], others: Sequence[str]
) -> Asked:
    options, seen = sorted(named), []
    for place, phrase in enumerate(right):
        holders = [letter for letter, option in zip(LETTERS, options, strict=False) if option[place] == phrase]
        seen.append(" ".join([phrase, *holders]))
    rationale = "Seen: " + JOINT.join(seen) + "."
    if others:
        rationale += " Also: " + JOINT.join(others) + "."
    texts = tuple(JOINT.join(option) for option in options)
    return Asked(f"{question.dimension}?", texts, options.index(right), rationale)


def seen_elsewhere(path: Mapping[str, Question], dimension: str) -> list[str]:
    """Returns what the right options of a path's other questions say, in the order of the dimensions.

    Args:
        path: dimension -> question.
        dimension: of the question that is asked.
    """
    others = [path[name] for name in DIMENSIONS if name in path and name != dimension]
    return [phrase for question in others for phrase in features(question.options)[question.answer]]
