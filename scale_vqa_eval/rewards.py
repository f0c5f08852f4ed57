"""Rewards of a response: the published one, bit for bit, and a strict one.

Reference reward of ScaleReasoner-R1 (arXiv:2606.17412): 0.8 * accuracy + 0.2 * format. The parsing rules are those of
the metric, so what training rewards is what scoring counts.
"""

from __future__ import annotations

from scale_vqa_eval.scale_vqa_acc.parsing import Mode, keeps_format, parse_response
from scale_vqa_eval.scale_vqa_acc.summary import FORMAT_WEIGHT
from scale_vqa_eval.schema import LETTERS


def compute_score(response: object, answer: str | int, mode: Mode = "reference", options: int = 4) -> float:
    """Returns 0.8 * accuracy + 0.2 * format, 0 to 1.

    Args:
        response: the model's text; what is no text earns 0.
        answer: gold letter, or its 0-based index.
        mode: ``reference``, the published rule, or ``strict``.
        options: number of options of the question; only ``strict`` looks at it.

    Raises:
        ValueError: where the gold answer is missing.

    >>> compute_score("<think>Glands.</think> <answer>B</answer>", "B")
    1.0
    >>> compute_score("<answer>B</answer> as seen at 40x", "B")
    0.8
    >>> compute_score("<think></think><answer>Z</answer>", "B")
    0.2
    """
    accuracy = accuracy_reward(response, answer, mode, options)
    # the published sum, term by term: another order of operations rounds differently
    return (1.0 - FORMAT_WEIGHT) * accuracy + FORMAT_WEIGHT * format_reward(response, mode, options)


def accuracy_reward(response: object, answer: str | int, mode: Mode = "reference", options: int = 4) -> float:
    """Returns 1.0 where the letter that the response gives is the gold one, else 0.0."""
    letter = parse_response(response, mode, options).letter
    return 1.0 if letter is not None and letter == _gold(answer) else 0.0


def format_reward(response: object, mode: Mode = "reference", options: int = 4) -> float:
    """Returns 1.0 where the response keeps the format, else 0.0.

    ``reference``: a think block, one answer block that ends in a single letter (any of A-Z), nothing after it.
    ``strict``: in addition the letter has to be found by the strict rule.
    """
    kept = keeps_format(response)
    if mode == "strict":
        kept = kept and parse_response(response, mode, options).letter is not None
    return 1.0 if kept else 0.0


def _gold(answer: str | int | None) -> str:
    if answer is None or isinstance(answer, bool):
        raise ValueError(f"the gold answer must be a letter or an index, got {answer!r}")
    return LETTERS[answer] if isinstance(answer, int) else answer.strip().upper()
