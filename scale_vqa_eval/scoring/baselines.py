"""Text-only baselines: rules that answer from the options alone, in the format that models are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import LETTERS
from scale_vqa_eval.text import jaccard, tokens


def as_response(index: int) -> str:
    """Writes an answer as the models are asked to write it.

    >>> as_response(1)
    '<think></think> <answer>B</answer>'
    """
    return f"<think></think> <answer>{LETTERS[index]}</answer>"


def always_a(question: Question) -> int:
    """Answers with the first option."""
    return 0


def longest(question: Question) -> int:
    """Answers with the longest option; the first one in a tie."""
    return max(range(len(question.options)), key=lambda index: len(question.options[index]))


def medoid(question: Question) -> int:
    """Answers with the option of highest mean token Jaccard to the other options; the first one in a tie.

    Sums are rounded to 1e-9, so that equal sums tie whatever the order of addition.
    """
    sets = [tokens(option) for option in question.options]
    similarity = [
        round(sum(jaccard(own, other) for other_index, other in enumerate(sets) if other_index != index), 9)
        for index, own in enumerate(sets)
    ]
    return similarity.index(max(similarity))


BASELINES: Final[Mapping[str, Callable[[Question], int]]] = MappingProxyType(
    {"always-A": always_a, "longest": longest, "medoid": medoid}
)
"""Name -> function from a question to the index of the chosen option."""


def respond(name: str, questions: Sequence[Question]) -> list[str]:
    """Returns the responses of one baseline, in the order of the questions.

    Raises:
        KeyError: if there is no such baseline.
    """
    pick = BASELINES[name]
    return [as_response(pick(question)) for question in questions]
