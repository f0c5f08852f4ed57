"""How the ensemble's accuracy grows with the questions it is fitted to: whether more data would leak more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from scale_vqa_eval.audit import trained
from scale_vqa_eval.audit.battery import MEMBERS, prepare
from scale_vqa_eval.audit.layout import IntArray
from scale_vqa_eval.audit.prepared import Prepared
from scale_vqa_eval.audit.probe import ProbeResult, evaluate_probe, padded
from scale_vqa_eval.audit.units import units_of
from scale_vqa_eval.questions import Question

FRACTIONS: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
QUESTIONS_CAP: Final = 4_000


def learning_curve(
    questions: Sequence[Question], seed: int = 0, prepared: Prepared | None = None
) -> list[dict[str, Any]]:
    """Returns a point for each of ``FRACTIONS`` of the training units: ensemble, cross-fitted over one partition.

    Args:
        questions: those of the audit; of more than ``QUESTIONS_CAP`` a seeded sample is taken.
        seed: of folds and of the order in which units are added.
        prepared: texts of these very questions, as for ``run_battery``.

    Returns:
        ``questions`` (mean number fitted to), ``accuracy``, ``ci_low``, ``ci_high`` of each point; points that would
        be fitted to fewer than four questions are left out.
    """
    if len(questions) > QUESTIONS_CAP:
        kept = np.sort(np.random.default_rng([seed, 6]).choice(len(questions), QUESTIONS_CAP, replace=False))
        questions = [questions[row] for row in kept]
        prepared = None if prepared is None else prepared.take(kept)
    prepared = prepared or prepare(questions, MEMBERS)
    units = units_of(questions)
    order = _unit_order(units.ids, seed)
    folds = trained.folds_of(units, seed, 1)
    gold = np.array([question.answer for question in questions], dtype=np.int64)
    everything = np.arange(len(questions))
    whole = {family: trained.make_fitter(family, prepared, gold) for family in MEMBERS}
    points = []
    for fraction in FRACTIONS:
        sizes: list[int] = []
        fitters = {family: _starved(fitter, order, fraction, sizes) for family, fitter in whole.items()}
        part = trained.Part(everything, prepared)
        votes = trained.cross_fitted(MEMBERS, fitters, everything, folds, [part], seed, False, sequential=False)
        scores = padded(np.mean([votes[family].crossed for family in MEMBERS], axis=0), prepared.layout.counts)
        if np.mean(sizes) >= 4:
            reached = evaluate_probe(ProbeResult("ensemble", "ensemble", True, scores), questions, units)
            points.append(
                {
                    "questions": round(float(np.mean(sizes)), 1),
                    "accuracy": reached.accuracy,
                    "ci_low": reached.ci_low,
                    "ci_high": reached.ci_high,
                }
            )
    return points


def _unit_order(ids: IntArray, seed: int) -> IntArray:
    """Returns (n,): place of each question's unit in a shuffled order; one unit alone is shuffled by question."""
    if int(ids.max(initial=0)) < 1:
        ids = np.arange(len(ids))
    return np.random.default_rng([seed, 7]).permutation(int(ids.max()) + 1)[ids]


def _starved(fitter: trained.Fitter, order: IntArray, fraction: float, sizes: list[int]) -> trained.Fitter:
    """Fits to the first units, in a fixed order, that hold a fraction of the questions on offer; notes how many."""

    def fit(chosen: IntArray, seed: int) -> trained.Model:
        places = np.sort(order[chosen])
        last = places[max(0, round(fraction * len(places)) - 1)] if len(places) else 0
        kept = chosen[order[chosen] <= last]
        sizes.append(len(kept))
        return fitter(kept, seed)

    return fit
