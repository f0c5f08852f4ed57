"""Rewards of a response: the published one, bit for bit, a strict one, and two optional terms.

Reference reward of ScaleReasoner-R1 (arXiv:2606.17412): 0.8 * accuracy + 0.2 * format. The parsing rules are those of
the metric, so what training rewards is what scoring counts.
"""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Iterable, Sequence
from typing import Final

from scale_vqa_eval.scale_vqa_acc.parsing import (
    END_THINK,
    FORMAT_WEIGHT,
    THINK,
    Mode,
    keeps_format,
    parse_response,
)
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION, VIEWS

_WORDS: Final = {"low_mag": "low(?:est)?", "mid_mag": "mid(?:dle)?|medium|intermediate", "high_mag": "high(?:est)?"}
_SPOKEN_OF: Final = {
    view: re.compile(
        rf"(?<![\d.]){MAGNIFICATION[view][:-1]}\s?[x\u00d7](?!\w)"
        rf"|\b(?:{_WORDS[view]})[\s-]*(?:mag(?:nification)?|power|view|scale)\b",
        re.IGNORECASE,
    )
    for view in VIEWS
}


def compute_score(response: object, answer: str | int, mode: Mode = "reference", options: int = 4) -> float:
    """Returns 0.8 * accuracy + 0.2 * format, 0 to 1.

    Args:
        response: the model's text; what is no text earns 0.
        answer: gold letter, or its 0-based index.
        mode: ``reference``, the published rule, or ``strict``.
        options: number of options of the question; only ``strict`` looks at it.

    Raises:
        ValueError: where the gold answer is missing, or neither letter nor index.

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


def structure_reward(response: object, views: Iterable[str]) -> float:
    """Returns how far the reasoning speaks of the scales that are shown, and of no other, 0 to 1.

    The size of the intersection of scales shown and scales named in the think blocks, over that of their union
    (Jaccard). A scale is named by its magnification (``40x``) or in words (``mid power``, ``intermediate
    magnification``); comparatives ("at higher power") name none. PathScale-R1 (arXiv:2607.23794) has the idea; the
    rule is ours. It reads words: a model can learn to say them without looking, so give it a small weight and watch
    accuracy without images.

    Args:
        response: the model's text; what is no text earns 0.
        views: columns that were shown, ``low_mag`` and so on; others are passed over.

    >>> structure_reward("<think>Nests at 10x, atypia at high power.</think>", ["low_mag", "high_mag"])
    1.0
    >>> structure_reward("<think>At 10x nests.</think>", ["low_mag", "high_mag"])
    0.5
    """
    thought = " ".join(_think_blocks(response)) if isinstance(response, str) else ""
    if not thought.strip():
        return 0.0
    named = {view for view, spoken_of in _SPOKEN_OF.items() if spoken_of.search(thought)}
    there = set(views) & set(VIEWS)
    return len(named & there) / len(named | there) if named | there else 1.0


def _think_blocks(response: str) -> list[str]:
    """Returns what stands inside the closed think blocks; linear in the length of the response."""
    blocks, start = [], response.find(THINK)
    while start >= 0 and (end := response.find(END_THINK, start)) >= 0:
        blocks.append(response[start + len(THINK) : end])
        start = response.find(THINK, end)
    return blocks


def visual_gain_reward(
    response: object, answer: str | int, blind: Sequence[float], mode: Mode = "reference", options: int = 4
) -> float:
    """Returns accuracy less the probability that a reader without images gives the same letter, -1 to 1.

    A right answer that a blind reader gives too earns little, one that only the image can tell earns 1; the shortcut
    that is wrong is punished, another error is not. Ours. Where advantages are normalised within the rollouts of one
    question, what is the same for all of them cancels: there the term tells wrong letters apart, and to weigh
    questions against each other advantages must be scaled over the batch.

    Args:
        response: the model's text; without a letter it earns 0.
        answer: gold letter, or its 0-based index.
        blind: probability of each option for the blind reader, such as the shares among blind rollouts.
        mode: rule by which the letter is read.
        options: number of options; only ``strict`` looks at it.

    >>> visual_gain_reward("<answer>B</answer>", "B", [0.1, 0.7, 0.1, 0.1])
    0.30000000000000004
    >>> visual_gain_reward("<answer>B</answer>", "A", [0.1, 0.7, 0.1, 0.1])
    -0.7
    """
    letter = parse_response(response, mode, options).letter
    if letter is None:
        return 0.0
    place = LETTERS.index(letter)
    accuracy = 1.0 if letter == _gold(answer) else 0.0
    return accuracy - (blind[place] if place < len(blind) else 0.0)


def _gold(answer: object) -> str:
    """Returns the gold letter, upper case; a gold that no response could give is an error, not a reward of 0.2."""
    if isinstance(answer, str) and len(letter := answer.strip().upper()) == 1 and letter in LETTERS:
        return letter
    if not isinstance(answer, str | bool):
        with contextlib.suppress(TypeError):  # no index
            place = operator.index(answer)  # type: ignore[arg-type]
            if 0 <= place < len(LETTERS):
                return LETTERS[place]
    raise ValueError(f"the gold answer must be a letter or an index from 0 to {len(LETTERS) - 1}, got {answer!r}")
