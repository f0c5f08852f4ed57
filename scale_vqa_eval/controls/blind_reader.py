"""The best calibrated reader without images that a set of probes makes: P(option is right | text).

The probes' scores are stacked by a listwise logit that is cross-fitted by unit; its confidence is set by a temperature
and a share of guessing, fitted on other units too. Where the probes know nothing, every option has an even share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from scale_vqa_eval.audit.layout import FloatArray, IntArray, OptionLayout
from scale_vqa_eval.audit.listwise import fit_listwise
from scale_vqa_eval.audit.probe import ProbeResult
from scale_vqa_eval.audit.trained import make_folds
from scale_vqa_eval.audit.units import units_of
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import cluster_codes, clustered_standard_error
from scale_vqa_eval.scale_vqa_acc.distributions import t_tail

TEMPERATURES: Final = tuple(np.linspace(0.0, 1.5, 16).tolist())
DOUBTS: Final = (0.0, 0.01, 0.02, 0.04, 0.06, 0.09, 0.12, 0.16, 0.2, 0.3, 0.4)
"""Shares of an even guess that are mixed in: what a confident reader gets wrong is wrong more often than it thinks."""
FOLDS: Final = 5
RIDGE: Final = 1.0
"""Inverse of the ridge penalty on the weights of columns that are scaled to unit variance."""
MIN_VOTE: Final = 0.03
"""Votes below this are taken as this in the logarithm: a forest's zero is no proof."""
ROWS_PER_DIMENSION: Final = 40
"""From this mean number of questions a dimension on, dimensions get a weight of their own for the mean vote."""


@dataclass(frozen=True)
class Reading:
    """What the reader makes of n questions.

    Attributes:
        probability: (n, width) calibrated probability of each option; 0 where a question has no such option.
        gold: (n,) probability of the gold option.
        information: mean over questions of ln(probability of gold * number of options), in nats; 0 is no knowledge.
        p_value: one-sided clustered p-value of information > 0.
    """

    probability: FloatArray
    gold: FloatArray
    information: float
    p_value: float

    def acceptance(self) -> FloatArray:
        """Returns (n,): with which probability a question may stay so that the text says nothing of its answer.

        Kept with min_j p_j / p_gold, the gold option among the questions that stay is equally likely to be any option
        whatever the text, for a reader whose probabilities p are right (rejection sampling).
        """
        least = np.where(self.probability > 0, self.probability, np.inf).min(axis=1)
        return np.asarray(least / self.gold, dtype=np.float64)


def read_blind(questions: Sequence[Question], results: Sequence[ProbeResult], seed: int) -> Reading:
    """Stacks probes into one calibrated reader, cross-fitted by unit.

    Args:
        questions: n questions.
        results: scores of the probes on these very questions; of probes that mirror each other one is enough.
        seed: of the folds.
    """
    layout = OptionLayout.of_questions(questions)
    gold = np.array([question.answer for question in questions], dtype=np.int64)
    units = units_of(questions).ids
    folds = make_folds(units, seed, 1, FOLDS)[0]
    columns = _columns(questions, results, layout)
    linear = np.zeros(len(layout.owner))
    for fold in range(int(folds.max()) + 1):
        other, own = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if len(other):
            weights = fit_listwise(columns[layout.rows_of(other)], layout.take(other), gold[other], RIDGE)
            linear[layout.rows_of(own)] = columns[layout.rows_of(own)] @ weights
    settings = [(heat, doubt) for heat in TEMPERATURES for doubt in DOUBTS]
    softened = {heat: layout.softmax(heat * linear) for heat in TEMPERATURES}
    at = layout.starts + gold
    gains = np.array([np.log((1 - doubt) * softened[heat][at] * layout.counts + doubt) for heat, doubt in settings])
    probability = np.empty_like(linear)
    for fold in range(int(folds.max()) + 1):
        heat, doubt = settings[int(gains[:, folds != fold].sum(axis=1).argmax())]
        own = (folds == fold)[layout.owner]
        probability[own] = ((1 - doubt) * softened[heat] + doubt / layout.counts[layout.owner])[own]
    gain = np.log(probability[at] * layout.counts)
    padded = np.zeros((len(questions), int(layout.counts.max())))
    padded[np.arange(padded.shape[1]) < layout.counts[:, None]] = probability
    return Reading(padded, probability[at], float(gain.mean()), _p_above_zero(gain, units))


def _columns(questions: Sequence[Question], results: Sequence[ProbeResult], layout: OptionLayout) -> FloatArray:
    """Returns (N, f) columns of unit variance, centred within each question: two shapes of each probe's scores.

    Trained probes give logarithm and value of their votes, untrained ones score and rank; where dimensions are large
    enough, the mean log vote has a weight of its own in each.
    """
    there = np.arange(int(layout.counts.max())) < layout.counts[:, None]
    shaped, votes = [], []
    for result in results:
        scores = np.asarray(result.scores[there], dtype=np.float64)
        if result.trained:
            shaped += [np.log(np.maximum(scores, MIN_VOTE)), scores]
            votes.append(shaped[-2])
        else:
            shaped += [scores, layout.ranks(scores[:, None])[:, 0]]
    names = sorted({question.dimension or "" for question in questions})
    if votes and len(names) > 1 and len(questions) >= ROWS_PER_DIMENSION * len(names):
        mean = np.mean(votes, axis=0)
        kind = np.array([names.index(question.dimension or "") for question in questions])[layout.owner]
        shaped += [np.where(kind == number, mean, 0.0) for number in range(len(names))]
    columns = layout.centred(np.column_stack(shaped).astype(np.float64))
    spread = columns.std(axis=0)
    return np.asarray(columns / np.where(spread > 1e-12, spread, 1.0), dtype=np.float64)


def _p_above_zero(gain: FloatArray, units: IntArray) -> float:
    codes, clusters = cluster_codes(units if len(np.unique(units)) > 1 else np.arange(len(units)))
    error = clustered_standard_error(gain, codes, clusters)
    if not error > 1e-12:
        return 1.0 if gain.mean() <= 1e-12 or math.isnan(error) else 0.0
    return t_tail(float(gain.mean()) / error, clusters - 1)
