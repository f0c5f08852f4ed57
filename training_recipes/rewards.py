"""Reward functions for ``GRPOTrainer``: picklable callables around the rules of ``scale_vqa_eval.rewards``.

The prior that ``visual_gain`` needs is estimated from answers without images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.rewards import (
    accuracy_reward,
    compute_score,
    format_reward,
    pathscale_reward,
    structure_reward,
    visual_gain_reward,
)
from scale_vqa_eval.scale_vqa_acc.parsing import Mode, parse_response
from scale_vqa_eval.schema import LETTERS
from scale_vqa_eval.scoring.predictions import read_predictions
from scale_vqa_eval.text import restore_thoughts

TERMS: Final = ("reference", "strict", "pathscale", "structure", "visual_gain")
Log = Callable[..., None]


def text_of(completion: Any) -> str:
    """Returns the text of a completion, which is a string or a list of messages."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content or [])


def _ignore(*_: Any) -> None:
    """Logs nothing, for calls without a trainer."""


@dataclass(frozen=True)
class RewardTerm:
    """One term of the reward.

    Attributes:
        name: one of ``TERMS``.
        opened: whether the chat template opens the think block. If so, the opening tag is added to completions;
            otherwise a completion without it gets no format reward, as in the published rule.
    """

    name: str
    opened: bool = False

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(
        self,
        completions: Sequence[Any],
        answer: Sequence[str],
        option_count: Sequence[int] | None = None,
        log_metric: Log = _ignore,
        log_extra: Log = _ignore,
        **columns: Any,
    ) -> list[float] | list[float | None]:
        """Returns one reward per completion, or None (which TRL skips) for ``visual_gain`` without a prior."""
        texts = [text_of(completion) for completion in completions]
        texts = [restore_thoughts(text) for text in texts] if self.opened else texts
        if self.name == "pathscale":
            return [pathscale_reward(*row) for row in zip(texts, answer, columns["image_count"], strict=True)]
        if self.name == "structure":
            return [structure_reward(*row) for row in zip(texts, columns["views"], strict=True)]
        if self.name == "visual_gain":
            rows = zip(texts, answer, columns["blind_prior"], strict=True)
            return [None if row[2] is None else visual_gain_reward(*row) for row in rows]
        mode: Mode = "strict" if self.name == "strict" else "reference"
        return self._answer(mode, texts, answer, option_count or [4] * len(texts), log_metric, log_extra, columns)

    def _answer(
        self,
        mode: Mode,
        texts: list[str],
        answer: Sequence[str],
        options: Sequence[int],
        log_metric: Log,
        log_extra: Log,
        columns: dict[str, Any],
    ) -> list[float]:
        """Returns 0.8 * accuracy + 0.2 * format; logs both parts and the letters."""
        rows = list(zip(texts, answer, options, strict=True))
        letters = [parse_response(text, mode, count).letter for text, _, count in rows]
        parts = {
            "accuracy": [accuracy_reward(text, gold, mode, count) for text, gold, count in rows],
            "format": [format_reward(text, mode, count) for text, _, count in rows],
            "unparsed": [float(letter is None) for letter in letters],
        }
        for name, values in parts.items():
            log_metric(f"{mode}/{name}", sum(values) / max(1, len(values)))
        log_extra(f"{mode}_letter", [letter or "" for letter in letters])
        log_extra("gold", list(answer))
        if "id" in columns:
            log_extra("id", list(columns["id"]))
        return [compute_score(text, gold, mode, count) for text, gold, count in rows]


def reward_functions(
    terms: Sequence[str], weights: Sequence[float] | None, has_prior: bool, opened: bool = False
) -> list[RewardTerm]:
    """Returns the reward terms.

    Raises:
        InputError: for an unknown term, a wrong number of weights, or ``visual_gain`` without a blind prior.
    """
    problems = [
        Problem("reward_terms", f"some of {', '.join(TERMS)}", preview(term), "correct the name")
        for term in terms
        if term not in TERMS
    ]
    if not terms:
        problems.append(Problem("reward_terms", "at least one term", "none", "add reference"))
    if weights is not None and len(weights) != len(terms):
        expected = f"{len(terms)} weights, one per term"
        problems.append(Problem("reward_weights", expected, str(len(weights)), "match them"))
    if "visual_gain" in terms and not has_prior:
        hint = "run `scale-vqa predict --ablate blind` on the training split and name its file as blind_prior"
        problems.append(Problem("reward_terms", "blind_prior for visual_gain", "none", hint))
    if problems:
        raise InputError(problems)
    return [RewardTerm(term, opened) for term in terms]


def read_rollouts(path: str | Path) -> tuple[dict[str, list[str]], str | None]:
    """Reads a predictions file: row id -> all sampled answers, and the ablation of the run.

    Raises:
        InputError: if it is not a predictions file, or its options were rotated.
    """
    predictions = read_predictions(path)
    rotated = [row.id for row in predictions.rows if row.rotation is not None]
    if rotated:
        found, hint = f"rotated options, such as those of {rotated[0]!r}", "name a run without --ablate circular"
        raise InputError(Problem(str(path), "options as released", found, hint))
    responses: dict[str, list[str]] = {}
    # not splitlines: JSON texts may contain other line separators such as U+2028
    for line in Path(path).read_text(encoding="utf-8-sig").split("\n"):
        row: dict[str, Any] = json.loads(line) if line.strip() else {}
        if "id" in row:
            drawn = row.get("responses") or [row.get("response")]
            responses[row["id"]] = [text for text in drawn if isinstance(text, str)]
    return responses, predictions.settings.get("ablation")


def blind_priors(path: str | Path, ids: Iterable[str], options: int = 4) -> list[list[float] | None]:
    """Returns the shares of the letters among each question's text-only answers, or None if it has no answer.

    Add-one smoothing: a single answer to a question with four options gives 2/5, not certainty.

    Raises:
        InputError: if the answers were generated with images, or no question has one.
    """
    responses, ablation = read_rollouts(path)
    if ablation != "blind":
        expected, found = "answers without images (predict --ablate blind)", f"ablation {preview(ablation)}"
        raise InputError(Problem(str(path), expected, found, "name the file of a blind run"))
    priors: list[list[float] | None] = []
    for name in ids:
        letters = [parse_response(text, "strict", options).letter for text in responses.get(name, ())]
        read = [letter for letter in letters if letter is not None]
        shares = [(read.count(letter) + 1) / (len(read) + options) for letter in LETTERS[:options]]
        priors.append(shares if name in responses else None)
    if not any(priors):
        expected, hint = "answers to questions of the training split", "run it on the training split"
        raise InputError(Problem(str(path), expected, "none", hint))
    return priors
