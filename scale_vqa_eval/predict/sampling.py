"""How answers are drawn, and the vote among several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.scale_vqa_acc.parsing import parse_response


@dataclass(frozen=True, slots=True)
class Sampling:
    """Greedy by default; with a temperature, ``n`` answers a question and a vote among them.

    Attributes:
        max_tokens: bound of one answer's length.
        temperature: 0 is greedy.
        top_p: share of the probability that is drawn from.
        n: answers a question.
        seed: answer k is drawn with ``seed + k``.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    seed: int = 42

    def __post_init__(self) -> None:
        checks = {
            "max-tokens": (self.max_tokens >= 1, "1 or more", self.max_tokens),
            "temperature": (self.temperature >= 0, "0 or more", self.temperature),
            "top-p": (0 < self.top_p <= 1, "above 0, at most 1", self.top_p),
            "n": (self.n >= 1, "1 or more", self.n),
        }
        problems = [
            Problem(f"--{name}", expected, str(value), "correct it")
            for name, (holds, expected, value) in checks.items()
            if not holds
        ]
        if self.n > 1 and self.temperature == 0:
            problems.append(Problem("--n", "a --temperature above 0", "0: all answers the same", "give a temperature"))
        if problems:
            raise InputError(problems)


def voted(responses: Sequence[str], options: int) -> str:
    """Returns the first response that names the letter most responses name (strict rule; ties: the one drawn first).

    Where none can be read it is the first response, which then counts as unparsed. An assumption of ours: the paper
    reports single answers.

    >>> voted(["<answer>B</answer>", "no idea", "<answer>A</answer>", "So <answer>A</answer>"], 4)
    '<answer>A</answer>'
    """
    letters = [parse_response(response, "strict", options).letter for response in responses]
    counts = Counter(letter for letter in letters if letter is not None)
    if not counts:
        return responses[0]
    most = max(counts.values())
    return next(text for text, letter in zip(responses, letters, strict=True) if letter and counts[letter] == most)
