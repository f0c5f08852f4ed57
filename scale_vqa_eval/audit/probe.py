"""What a probe is: a score per option, what it is worth against the gold, and its interval.

A probe reads questions without their images and scores every option. Ties are counted fractionally (the expected
accuracy under random tie-breaks), so a probe whose scores tie gains nothing from the order of the letters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.audit.units import Units, units_of
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import clustered_interval, p_value_against

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
TIE = 1e-9
"""Scores closer than this (relative to the largest magnitude in the question) are a tie."""


@dataclass(frozen=True)
class ProbeResult:
    """The scores of one probe on every question.

    Attributes:
        name: name of the probe, unique in a battery.
        family: what the probe looks at: ``position``, ``length``, ``similarity``, ``overlap``, ``negation``,
            ``geometry``, ``words``, ``characters``, ``ensemble``, ``embedding``, ``language model``, ``chat``.
        trained: whether it was fitted to gold answers (of other questions than the one it scores).
        scores: (n, width) score per option, higher is preferred, ``-inf`` where a question has no such option.
            A row without any finite score is a question that the probe did not answer: wrong, and counted.
        probability: (n, width) probability per option, rows sum to 1; None means an even share among the best.
        sequential: (n, width) scores by models fitted to earlier folds only, ``-inf`` in rows that none scored; what
            the p-value of a trained probe is taken from (see ``trained.Votes``). None takes it from ``scores``.
        note: what a reader should know of this run (a fall-back, a cap); empty where there is nothing to say.
    """

    name: str
    family: str
    trained: bool
    scores: FloatArray
    probability: FloatArray | None = None
    sequential: FloatArray | None = None
    note: str = ""

    def shares(self) -> FloatArray:
        """Returns (n, width): the share of the pick that each option has, ties sharing evenly."""
        return _shares(self.scores, self.name)

    def probabilities(self) -> FloatArray:
        """Returns (n, width): the probability that the probe gives each option; 1/k each where it did not answer."""
        given = self.shares() if self.probability is None else self.probability
        there = self.scores > -np.inf
        even = there / np.maximum(1, there.sum(axis=1, keepdims=True))
        return np.where(given.sum(axis=1, keepdims=True) > 0, given, even)


@dataclass(frozen=True)
class Accuracy:
    """An accuracy with its clustered 95% interval and the one-sided p-value against chance.

    Attributes:
        n: questions.
        clusters: patients, slides, exchange groups or questions that are the sample.
        accuracy: expected accuracy under random tie-breaks.
        chance: mean of 1/k over the questions' option counts.
        ci_low: lower end of the interval, clipped to 0.
        ci_high: upper end of the interval, clipped to 1.
        p_value: of accuracy > chance; see ``p_above_chance``.
    """

    n: int
    clusters: int
    accuracy: float
    chance: float
    ci_low: float
    ci_high: float
    p_value: float


@dataclass(frozen=True)
class ProbeAccuracy:
    """What one probe reached over all questions, per dimension and per split (where there are several).

    Fields as in ``ProbeResult`` and ``Accuracy``.
    """

    name: str
    family: str
    trained: bool
    accuracy: float
    ci_low: float
    ci_high: float
    p_value: float
    n: int
    clusters: int
    chance: float
    by_dimension: dict[str, Accuracy] = field(default_factory=dict)
    by_split: dict[str, Accuracy] = field(default_factory=dict)
    note: str = ""


def _shares(scores: FloatArray, name: str) -> FloatArray:
    if np.isnan(scores).any():
        raise ValueError(f"probe {name!r} has scores that are not a number")
    best = scores.max(axis=1, keepdims=True)
    answered = np.isfinite(best)
    finite = np.where(np.isfinite(scores), scores, 0.0)
    margin = TIE * np.maximum(1.0, np.abs(finite).max(axis=1, keepdims=True))
    tied = (scores >= np.where(answered, best, 0.0) - margin) & answered
    return np.asarray(tied / np.maximum(1, tied.sum(axis=1, keepdims=True)), dtype=np.float64)


def option_counts(questions: Sequence[Question]) -> IntArray:
    """Returns (n,): the number of options of each question."""
    return np.array([len(question.options) for question in questions], dtype=np.int64)


def padded(per_option: npt.ArrayLike, counts: IntArray) -> FloatArray:
    """Lays scores in option order (all options of question 1, of question 2, ...) out as (n, width) with ``-inf``."""
    width = int(counts.max(initial=0))
    there = np.arange(width) < counts[:, None]
    out = np.full((len(counts), width), -np.inf)
    out[there] = np.asarray(per_option, dtype=np.float64)
    return out


def credit(result: ProbeResult, questions: Sequence[Question]) -> FloatArray:
    """Returns (n,): 1 where the probe picks the gold option, 1/t where gold is one of t tied, else 0."""
    shares = result.shares()
    if len(shares) != len(questions):
        raise ValueError(f"probe {result.name!r} scored {len(shares)} questions of {len(questions)}")
    return _at_gold(shares, questions)


def sequential_credit(result: ProbeResult, questions: Sequence[Question]) -> FloatArray:
    """Returns (n,): credits that a p-value may be taken from; nan where no model was fitted to earlier folds."""
    if result.sequential is None:
        return credit(result, questions)
    scored = np.isfinite(result.sequential).any(axis=1)
    return np.where(scored, _at_gold(_shares(result.sequential, result.name), questions), np.nan)


def gold_probability(result: ProbeResult, questions: Sequence[Question]) -> FloatArray:
    """Returns (n,): the blind score s(x), the probability that the probe gives the gold option."""
    return _at_gold(result.probabilities(), questions)


def _at_gold(values: FloatArray, questions: Sequence[Question]) -> FloatArray:
    gold = np.array([question.answer for question in questions], dtype=np.int64)
    return np.asarray(values[np.arange(len(gold)), gold], dtype=np.float64)


def picked(result: ProbeResult) -> IntArray:
    """Returns (n,): 0-based index of the picked option (the first of a tie, for display only), -1 if unanswered."""
    shares = result.shares()
    return np.where(shares.sum(axis=1) > 0, shares.argmax(axis=1), -1).astype(np.int64)


def evaluate_probe(result: ProbeResult, questions: Sequence[Question], units: Units | None = None) -> ProbeAccuracy:
    """Evaluates a probe over all questions and per dimension, clustered by unit.

    Args:
        result: the scores.
        questions: the questions in the order of the scores.
        units: ``units_of(questions)``, to save finding them again for every probe of a battery.
    """
    units = units or units_of(questions)
    values, chance = credit(result, questions), 1.0 / option_counts(questions)
    tested = sequential_credit(result, questions)

    def parts(names: Sequence[str | None]) -> dict[str, Accuracy]:
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            if name is not None:
                rows.setdefault(name, []).append(row)
        at = {name: np.array(rows[name]) for name in sorted(rows)}
        return {name: accuracy_of(values[r], chance[r], units.take(r), tested[r]) for name, r in at.items()}

    whole = accuracy_of(values, chance, units, tested)
    splits = parts([question.split for question in questions])
    return ProbeAccuracy(
        name=result.name,
        family=result.family,
        trained=result.trained,
        accuracy=whole.accuracy,
        ci_low=whole.ci_low,
        ci_high=whole.ci_high,
        p_value=whole.p_value,
        n=whole.n,
        clusters=whole.clusters,
        chance=whole.chance,
        by_dimension=parts([question.dimension for question in questions]),
        by_split=splits if len(splits) > 1 else {},
        note=result.note,
    )


def accuracy_of(values: FloatArray, chance: FloatArray, units: Units, tested: FloatArray | None = None) -> Accuracy:
    """Returns the mean of credits ``values`` (n,), its interval, and its p-value against ``chance`` (n,).

    The p-value is taken from ``tested`` (n,) where it is not nan; None means the values themselves. With one unit the
    questions themselves are the sample. In exchange sets that are all at chance the accuracy is an identity, not an
    estimate: the interval has no width then.
    """
    ids = units.ids if len(np.unique(units.ids)) > 1 else np.arange(len(values))
    tested = values if tested is None else tested
    known = ~np.isnan(tested)
    interval = clustered_interval(values, ids)
    low, high = interval.ci_low, interval.ci_high
    if units.balanced.all() and not np.any(np.abs(np.bincount(units.ids, weights=values - chance)) > TIE):
        low = high = float(values.mean())
    return Accuracy(
        n=len(values),
        clusters=interval.clusters,
        accuracy=float(values.mean()),
        chance=float(chance.mean()),
        ci_low=low,
        ci_high=high,
        p_value=p_above_chance(tested[known], chance[known], ids[known]),
    )


def p_above_chance(values: FloatArray, chance: FloatArray, clusters: IntArray) -> float:
    """Returns the one-sided p-value of "the mean credit is above chance": the larger of two tests.

    The clustered t test knows that questions of one unit go together, but with few clusters its variance can be small
    by luck. The binomial tail at the mean chance trusts no variance; it bounds the tail of unequal chances from above
    (Hoeffding 1956), and the fraction of a credit is rounded down. With fewer than two clusters it stands alone.
    """
    from scipy import stats

    total, n = float(values.sum()), len(values)
    if not n or total - float(chance.sum()) <= TIE * n:
        return 1.0
    exact = float(stats.binom.sf(math.floor(total + TIE) - 1, n, chance.mean()))
    return exact if len(np.unique(clusters)) < 2 else max(exact, p_value_against(values, clusters, chance))
