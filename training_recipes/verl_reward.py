"""The reference reward for verl: ``custom_reward_function.path=training_recipes/verl_reward.py``."""

from __future__ import annotations

from typing import Any

from scale_vqa_eval.rewards import compute_score as reference_score
from scale_vqa_eval.schema import DATASET_NAME as SOURCE
from scale_vqa_eval.text import restore_thoughts


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any) -> float:
    """Returns 0.8 * accuracy + 0.2 * format of a response; ``extra_info`` is not used.

    Raises:
        ValueError: for rows of another source.

    >>> compute_score("scale-vqa", "<think>x</think> <answer>A</answer>", "A")
    1.0
    """
    if data_source != SOURCE:
        raise ValueError(f"data_source must be {SOURCE!r}, got {data_source!r}, which needs another reward")
    return reference_score(restore_thoughts(solution_str), ground_truth)
