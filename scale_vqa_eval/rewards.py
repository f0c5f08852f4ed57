"""Rewards for training: the published reward (bit-exact), a strict variant, and optional terms.

The published reward is that of ScaleReasoner-R1 (arXiv:2606.17412): 0.8 * accuracy + 0.2 * format. Responses are
parsed by the rules of the metric.
"""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Iterable, Sequence
from typing import Final

from scale_vqa_eval.scale_vqa_acc.parsing import END_THINK, FORMAT_WEIGHT, THINK, Mode, keeps_format, parse_response
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION, VIEWS

_WORDS: Final = {"low_mag": "low(?:est)?", "mid_mag": "mid(?:dle)?|medium|intermediate", "high_mag": "high(?:est)?"}
_SCALE_NAMES: Final = {
    view: re.compile(
        rf"(?<![\d.]){MAGNIFICATION[view][:-1]}\s?[x\u00d7](?!\w)"
        rf"|\b(?:{_WORDS[view]})[\s-]*(?:mag(?:nification)?|power|view|scale)\b",
        re.IGNORECASE,
    )
    for view in VIEWS
}

_ANSWER_LAST: Final = re.compile(r"</think>\s*<answer>\s*[A-Za-z]\s*</answer>\Z")
_THINK: Final = re.compile(THINK, re.IGNORECASE)
_END_THINK: Final = re.compile(END_THINK, re.IGNORECASE)
_IMAGE_ANALYSIS: Final = re.compile(r"\*\*Image analysis:\*\*", re.IGNORECASE)
_OPTION_EVALUATION: Final = re.compile(r"\*\*Option evaluation:\*\*", re.IGNORECASE)
_INDENT: Final = re.compile(r"\n\s*")
_IMAGE_LABEL: Final = re.compile(r"(?:^|\n)-?\s*\*\*Image\s+(\d+)\s*:\*\*", re.IGNORECASE)


def compute_score(response: object, answer: str | int, mode: Mode = "reference", options: int = 4) -> float:
    """Returns 0.8 * accuracy + 0.2 * format, 0 to 1.

    Args:
        response: the model's text; other values score 0.
        answer: gold letter, or its 0-based index.
        mode: parsing rule, ``reference`` (the published rule) or ``strict``.
        options: number of options of the question; used by ``strict`` only.

    Raises:
        ValueError: if the gold answer is neither a letter nor an index.

    >>> compute_score("<think>Glands.</think> <answer>B</answer>", "B")
    1.0
    >>> compute_score("<answer>B</answer> as seen at 40x", "B")
    0.8
    >>> compute_score("<think></think><answer>Z</answer>", "B")
    0.2
    """
    accuracy = accuracy_reward(response, answer, mode, options)
    # the order of operations is that of the published reward: another order rounds differently
    return (1.0 - FORMAT_WEIGHT) * accuracy + FORMAT_WEIGHT * format_reward(response, mode, options)


def accuracy_reward(response: object, answer: str | int, mode: Mode = "reference", options: int = 4) -> float:
    """Returns 1.0 if the letter of the response is the gold letter, else 0.0."""
    letter = parse_response(response, mode, options).letter
    return 1.0 if letter is not None and letter == _gold_letter(answer) else 0.0


def format_reward(response: object, mode: Mode = "reference", options: int = 4) -> float:
    """Returns 1.0 if the response keeps the format, else 0.0.

    ``reference``: a think block, one answer block that ends in a single letter (any of A-Z), nothing after it.
    ``strict``: in addition the letter must be found by the strict rule.
    """
    kept = keeps_format(response)
    if mode == "strict":
        kept = kept and parse_response(response, mode, options).letter is not None
    return 1.0 if kept else 0.0


def structure_reward(response: object, views: Iterable[str]) -> float:
    """Returns the Jaccard index of the scales named in the reasoning and the scales shown, 0 to 1.

    A scale is named in a think block by its magnification (``40x``) or in words (``mid power``, ``intermediate
    magnification``); comparatives ("at higher power") do not count. The idea is from PathScale-R1 (arXiv:2607.23794);
    the rule is ours. A model can learn the words without using the images, so give this reward a small weight and
    monitor the accuracy without images.

    Args:
        response: the model's text; other values score 0.
        views: image columns that were shown (``low_mag``, ...); other names are ignored.

    >>> structure_reward("<think>Nests at 10x, atypia at high power.</think>", ["low_mag", "high_mag"])
    1.0
    >>> structure_reward("<think>At 10x nests.</think>", ["low_mag", "high_mag"])
    0.5
    """
    thought = " ".join(_think_blocks(response)) if isinstance(response, str) else ""
    if not thought.strip():
        return 0.0
    named = {view for view, pattern in _SCALE_NAMES.items() if pattern.search(thought)}
    shown = set(views) & set(VIEWS)
    return len(named & shown) / len(named | shown) if named | shown else 1.0


def _think_blocks(response: str) -> list[str]:
    """Returns the texts inside closed think blocks, in linear time."""
    blocks, start = [], response.find(THINK)
    while start >= 0 and (end := response.find(END_THINK, start)) >= 0:
        blocks.append(response[start + len(THINK) : end])
        start = response.find(THINK, end)
    return blocks


def pathscale_reward(response: object, answer: str | int, images: int) -> float:
    """Returns the reward of PathScale-R1, 0 to 1: 0.75 * accuracy + 0.20 * structure + 0.05 * format.

    Accuracy uses the reference rule. Format: the response begins with a think block and ends with an answer block
    directly after a think block. Structure: inside the first think block, the part from ``**Image analysis:**`` to
    ``**Option evaluation:**`` is not empty and has line-initial labels ``- **Image k:**`` for k = 1 to ``images`` in
    order; the label is optional for a single image. The reward checks labels only. Linear time.

    Args:
        response: the model's text; other values score 0.
        answer: gold letter, or its 0-based index.
        images: number of images shown.

    >>> pathscale_reward("<think>**Image analysis:** Glands.</think><answer>B</answer>", "B", 1)
    1.0
    """
    accuracy = accuracy_reward(response, answer)
    if not isinstance(response, str):
        return 0.0
    text = response.strip()
    form = text.startswith(THINK) and _ANSWER_LAST.search(text) is not None
    thought, closed, _ = _partition(_END_THINK, _partition(_THINK, response)[2])
    _, heading, analysis = _partition(_IMAGE_ANALYSIS, thought)
    analysis = _partition(_OPTION_EVALUATION, analysis)[0].strip()
    labels = [int(digits[:4000]) for digits in _IMAGE_LABEL.findall(_INDENT.sub("\n", analysis))]
    exact = labels == list(range(1, images + 1)) or (images == 1 and not labels)
    structure = bool(closed and heading and analysis) and exact
    return 0.75 * accuracy + 0.20 * structure + 0.05 * form


def _partition(pattern: re.Pattern[str], text: str) -> tuple[str, str, str]:
    """``str.partition`` with a pattern in place of the separator."""
    found = pattern.search(text)
    return (text[: found.start()], found[0], text[found.end() :]) if found else (text, "", "")


def visual_gain_reward(
    response: object, answer: str | int, blind: Sequence[float], mode: Mode = "reference", options: int = 4
) -> float:
    """Returns accuracy minus the probability that a text-only model gives the same letter, -1 to 1.

    A right answer scores near 0 if the text suggests it, and near 1 if only the image does; a wrong answer that the
    text suggests is penalised. This reward is ours. Advantages that are normalised within the rollouts of a question
    remove differences between questions; to keep these, scale advantages over the batch.

    Args:
        response: the model's text; a response without a letter scores 0.
        answer: gold letter, or its 0-based index.
        blind: probability of each option under the text-only model, such as its frequency in blind rollouts.
        mode: parsing rule.
        options: number of options; used by ``strict`` only.

    >>> visual_gain_reward("<answer>B</answer>", "B", [0.1, 0.7, 0.1, 0.1])
    0.30000000000000004
    >>> visual_gain_reward("<answer>B</answer>", "A", [0.1, 0.7, 0.1, 0.1])
    -0.7
    """
    letter = parse_response(response, mode, options).letter
    if letter is None:
        return 0.0
    index = LETTERS.index(letter)
    accuracy = 1.0 if letter == _gold_letter(answer) else 0.0
    return accuracy - (blind[index] if index < len(blind) else 0.0)


def _gold_letter(answer: object) -> str:
    """Returns the gold letter in upper case; raises ValueError for an answer that no response could match."""
    if isinstance(answer, str) and len(letter := answer.strip().upper()) == 1 and letter in LETTERS:
        return letter
    if not isinstance(answer, str | bool):
        with contextlib.suppress(TypeError):  # not an index
            index = operator.index(answer)  # type: ignore[arg-type]
            if 0 <= index < len(LETTERS):
                return LETTERS[index]
    raise ValueError(f"the gold answer must be a letter or an index from 0 to {len(LETTERS) - 1}, got {answer!r}")
