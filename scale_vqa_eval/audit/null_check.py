"""The null check: with gold answers that mean nothing, every trained probe must fall to chance.

The gold of each question is drawn anew, evenly among its options, and the trained probes are fitted and scored as in
the audit. A probe that stays above chance then sees the answers of the questions that it is scored on: a fault of the
audit, not of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from scale_vqa_eval.audit import trained
from scale_vqa_eval.audit.battery import prepare, run_battery
from scale_vqa_eval.audit.prepared import Prepared
from scale_vqa_eval.audit.probe import FloatArray, credit, option_counts, p_above_chance, sequential_credit
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import holm

LEVEL: Final = 0.01
"""The check fails by luck alone in at most this share of runs."""
QUESTIONS_CAP: Final = 2_000
FAMILIES: Final = (*trained.FAMILIES, "ensemble")


def redraw_gold(questions: Sequence[Question], seed: int) -> list[Question]:
    """Returns the questions with a gold option drawn evenly among each one's options."""
    drawn = np.random.default_rng([seed, 4]).integers(0, option_counts(questions))
    return [replace(question, answer=int(gold)) for question, gold in zip(questions, drawn, strict=True)]


def null_check(
    questions: Sequence[Question],
    seed: int = 0,
    draws: int = 3,
    prepared: Prepared | None = None,
    families: Sequence[str] = FAMILIES,
) -> dict[str, Any]:
    """Runs the trained probes on redrawn golds.

    The right picks in sequence (``trained.Votes``) of all draws together are held against the binomial distribution
    at chance (redrawn golds are independent of everything, so no clustering is needed), Holm-corrected over the
    probes, at ``LEVEL``. The accuracies shown are the cross-fitted ones.

    Args:
        questions: those of the audit; of more than ``QUESTIONS_CAP`` a seeded sample is taken.
        seed: of the draws.
        draws: how many times all golds are drawn.
        prepared: texts of these very questions, as for ``run_battery``.
        families: the trained families to check.

    Returns:
        Plain values: ``passed``, ``level``, ``draws``, ``n``, ``chance`` and by probe ``accuracy``, ``per_draw`` and
        the adjusted ``p_value``.
    """
    if len(questions) > QUESTIONS_CAP:
        kept = np.sort(np.random.default_rng([seed, 5]).choice(len(questions), QUESTIONS_CAP, replace=False))
        questions = [questions[row] for row in kept]
        prepared = None if prepared is None else prepared.take(kept)
    prepared = prepared or prepare(questions, families)
    found: dict[str, list[float]] = {}
    tested: dict[str, list[FloatArray]] = {}
    for draw in range(draws):
        drawn = redraw_gold(questions, seed * 1009 + draw)
        for result in run_battery(drawn, seed * 1009 + draw, 1, families, prepared):
            if result.trained:
                found.setdefault(result.name, []).append(float(credit(result, drawn).mean()))
                tested.setdefault(result.name, []).append(sequential_credit(result, drawn))
    chance = float((1.0 / option_counts(questions)).mean())
    even = np.tile(1.0 / option_counts(questions), draws)
    adjusted = holm([_tail(np.concatenate(credits), even) for credits in tested.values()])
    probes = {
        name: {"accuracy": float(np.mean(rates)), "per_draw": rates, "p_value": p}
        for (name, rates), p in zip(found.items(), adjusted, strict=True)
    }
    return {
        "passed": min(adjusted) > LEVEL,
        "method": "gold redrawn evenly among each question's options; binomial tail in sequence, Holm over probes",
        "level": LEVEL,
        "draws": draws,
        "n": len(questions),
        "chance": chance,
        "probes": probes,
    }


def _tail(credits: FloatArray, even: FloatArray) -> float:
    """Returns the binomial tail of the right picks of all draws, every question a cluster of its own."""
    known = ~np.isnan(credits)
    return p_above_chance(credits[known], even[known], np.zeros(int(known.sum()), dtype=np.int64))
