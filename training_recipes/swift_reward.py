"""The published reward for ms-swift: ``--external_plugins .../swift_reward.py --reward_funcs scale_vqa``."""

from __future__ import annotations

from typing import Any

from swift.rewards import ORM, orms

from scale_vqa_eval.rewards import compute_score
from scale_vqa_eval.text import restore_thoughts


class ScaleVQAReward(ORM):
    """0.8 * accuracy + 0.2 * format of each completion; ``solution`` is the gold letter."""

    def __call__(self, completions: list[str], solution: list[str], **_: Any) -> list[float]:
        pairs = zip(completions, solution, strict=True)
        return [compute_score(restore_thoughts(text), letter) for text, letter in pairs]


orms["scale_vqa"] = ScaleVQAReward
