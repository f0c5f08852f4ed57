"""Image-free baselines: what a reader who never looks gets. They answer in the contract that models answer in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import LETTERS

_TOKEN = re.compile(r"\w+")


def as_response(index: int) -> str:
    """Writes an answer as the models are asked to write it.

    >>> as_response(1)
    '<think></think> <answer>B</answer>'
    """
    return f"<think></think> <answer>{LETTERS[index]}</answer>"


def tokens(text: str) -> frozenset[str]:
    """Returns the set of lower-case words of an option.

    >>> sorted(tokens("Non-necrotic stroma, stroma"))
    ['necrotic', 'non', 'stroma']
    """
    return frozenset(_TOKEN.findall(text.lower()))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Returns |intersection| / |union|; two empty sets are alike (1.0)."""
    union = len(left | right)
    return len(left & right) / union if union else 1.0


def always_a(question: Question) -> int:
    """Answers with the first option."""
    return 0


def longest(question: Question) -> int:
    """Answers with the option of most characters; of equals the first."""
    return max(range(len(question.options)), key=lambda index: len(question.options[index]))


def medoid(question: Question) -> int:
    """Answers with the option whose mean token Jaccard to the other options is highest; of equals the first.

    The mean of k options differs from their sum by a constant factor, so the sum is compared, rounded to 1e-9: equal
    sums then tie whatever the order of addition.
    """
    sets = [tokens(option) for option in question.options]
    closeness = [
        round(sum(jaccard(own, other) for place, other in enumerate(sets) if place != index), 9)
        for index, own in enumerate(sets)
    ]
    return closeness.index(max(closeness))


BASELINES: Final[Mapping[str, Callable[[Question], int]]] = MappingProxyType(
    {"always-A": always_a, "longest": longest, "medoid": medoid}
)
"""Name -> function from a question to the index of the option it picks."""


def respond(name: str, questions: Sequence[Question]) -> list[str]:
    """Returns the responses of one baseline, in the order of the questions.

    Raises:
        KeyError: where there is no such baseline.
    """
    pick = BASELINES[name]
    return [as_response(pick(question)) for question in questions]
