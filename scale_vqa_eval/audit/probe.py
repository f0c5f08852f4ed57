"""Probes: a score for each option of each question, their accuracy against the gold answers, and its interval.

A probe reads questions without their images. Tied scores share the credit (the expected accuracy with random
tie-breaking), so the order of the letters has no effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.audit.clusters import Clusters, IntArray, clusters_of, joint_clusters
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import (
    cluster_codes,
    clustered_interval,
    clustered_standard_error,
    p_value_against,
)

FloatArray = npt.NDArray[np.float64]
TIE = 1e-9
"""Scores closer than this (relative to the largest magnitude in the question) are a tie."""


@dataclass(frozen=True)
class OptionLayout:
    """The options of all questions as a flat list, in question and letter order.

    Attributes:
        counts: (n,) number of options of each question, each at least 2.
        starts: (n,) row of each question's first option.
        owner: (N,) question of each option.
    """

    counts: IntArray
    starts: IntArray
    owner: IntArray

    @classmethod
    def of(cls, counts: IntArray) -> OptionLayout:
        """Returns the layout for questions with these numbers of options."""
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        return cls(counts, starts, np.repeat(np.arange(len(counts)), counts))

    @classmethod
    def of_questions(cls, questions: Sequence[Question]) -> OptionLayout:
        """Returns the layout of the options of questions."""
        return cls.of(option_counts(questions))

    def rows_of(self, chosen: IntArray) -> IntArray:
        """Returns the option rows of chosen questions, in that order."""
        counts = self.counts[chosen]
        ends = np.cumsum(counts)
        return np.repeat(self.starts[chosen] - (ends - counts), counts) + np.arange(int(ends[-1]) if len(ends) else 0)

    def take(self, chosen: IntArray) -> OptionLayout:
        """Returns the layout of chosen questions."""
        return OptionLayout.of(self.counts[chosen])

    def same_count(self) -> list[tuple[int, IntArray]]:
        """Returns (k, (m, k) option rows) of the questions with k options, for each k."""
        return [
            (int(k), self.starts[self.counts == k][:, None] + np.arange(k)) for k in np.unique(self.counts).tolist()
        ]

    def padded(self, per_option: npt.ArrayLike) -> FloatArray:
        """Returns (n, width): values (N,) of the options with one row per question, padded with ``-inf``."""
        present = np.arange(int(self.counts.max(initial=0))) < self.counts[:, None]
        out = np.full(present.shape, -np.inf)
        out[present] = np.asarray(per_option, dtype=np.float64)
        return out

    def sums(self, values: FloatArray) -> FloatArray:
        """Returns (n, ...): sums of ``values`` (N, ...) over each question's options."""
        return np.asarray(np.add.reduceat(values, self.starts, axis=0), dtype=np.float64)

    def softmax(self, values: FloatArray) -> FloatArray:
        """Returns (N,): softmax of ``values`` over each question's options."""
        raised = np.exp(values - np.maximum.reduceat(values, self.starts)[self.owner])
        return np.asarray(raised / self.sums(raised)[self.owner], dtype=np.float64)

    def normalised(self, votes: FloatArray) -> FloatArray:
        """Returns (N,): non-negative votes scaled to sum 1 in each question; uniform if all are 0."""
        total = self.sums(votes)[self.owner]
        return np.where(total > 0, votes / np.where(total > 0, total, 1.0), 1.0 / self.counts[self.owner])

    def centred(self, values: FloatArray) -> FloatArray:
        """Returns (N, f): ``values`` (N, f) minus their mean over each question's options."""
        return np.asarray(values - (self.sums(values) / self.counts[:, None])[self.owner], dtype=np.float64)

    def ranks(self, values: FloatArray) -> FloatArray:
        """Returns (N, f): rank of each value in its question, from 0 (lowest) to 1; ties have their mean rank."""
        out = np.empty_like(values)
        for k, rows in self.same_count():
            own = values[rows]
            below = np.zeros_like(own)
            for other in range(k):
                gap = own - own[:, other : other + 1]
                below += np.where(np.abs(gap) <= TIE, 0.5, gap > 0)
            out[rows] = (below - 0.5) / (k - 1)
        return out


@dataclass(frozen=True)
class ProbeScores:
    """The scores of one probe on every question.

    Attributes:
        name: name of the probe, unique in an audit.
        family: kind of evidence, such as ``position``, ``similarity``, ``words`` or ``chat``.
        trained: whether it was fitted to gold answers (of other questions than the scored one).
        scores: (n, width) score per option, higher is preferred; ``-inf`` for options that do not exist.
        sequential: (n, width) scores by models fitted only to earlier folds, ``-inf`` in rows without one; used for
        the
            p-value of a fitted probe (see ``fitted_probes.Votes``). None: ``scores`` is used.
        votes: whether the scores are non-negative votes, whose shares are probabilities.
        answered: (n,) whether the probe answered; no answer counts as wrong. None: it answered all questions.
        joint: whether the probe compares questions, so that exchange sets are not at chance by construction.
        note: warning about this run (a cap, a lost answer), or empty.
    """

    name: str
    family: str
    trained: bool
    scores: FloatArray
    sequential: FloatArray | None = None
    votes: bool = False
    answered: npt.NDArray[np.bool_] | None = None
    joint: bool = False
    note: str = ""

    def shares(self) -> FloatArray:
        """Returns (n, width): 1 for the picked option, or equal shares for ties."""
        shares = _shares(self.scores, self.name)
        return shares if self.answered is None else np.where(self.answered[:, None], shares, 0.0)

    def probabilities(self) -> FloatArray:
        """Returns (n, width): the probe's probability of each option; uniform if it did not answer."""
        present = self.scores > -np.inf
        given = np.where(present, self.scores, 0.0) if self.votes else self.shares()
        total = given.sum(axis=1, keepdims=True)
        even = present / np.maximum(1, present.sum(axis=1, keepdims=True))
        return np.where(total > 0, given / np.where(total > 0, total, 1.0), even)


@dataclass(frozen=True)
class Accuracy:
    """An accuracy with its clustered 95% interval and the one-sided p-value against chance.

    Attributes:
        n: number of questions.
        clusters: number of clusters (patients, slides, exchange sets or questions).
        accuracy: expected accuracy with random tie-breaking.
        chance: mean of 1/k over questions with k options.
        ci_low: lower end of the interval, at least 0.
        ci_high: upper end of the interval, at most 1.
        p_value: p-value of accuracy > chance; see ``p_above_chance``.
        standard_error: standard error of the tested mean: the larger of the clustered one and the binomial one at
            chance; 0 if accuracy is at chance by construction, which excludes a leak.
    """

    n: int
    clusters: int
    accuracy: float
    chance: float
    ci_low: float
    ci_high: float
    p_value: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class ProbeAccuracy(Accuracy):
    """The accuracy of a probe: overall, by dimension and, if there are several, by split.

    ``name``, ``family``, ``trained`` and ``note`` are those of ``ProbeScores``.
    """

    name: str
    family: str
    trained: bool
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


def gold_of(questions: Sequence[Question]) -> IntArray:
    """Returns (n,): the 0-based index of each question's gold option."""
    return np.array([question.answer for question in questions], dtype=np.int64)


def credit(result: ProbeScores, questions: Sequence[Question]) -> FloatArray:
    """Returns (n,): 1 if the probe picks the gold option, 1/t if gold is one of t tied options, else 0."""
    shares = result.shares()
    if len(shares) != len(questions):
        raise ValueError(f"probe {result.name!r} scored {len(shares)} questions of {len(questions)}")
    return _at_gold(shares, questions)


def sequential_credit(result: ProbeScores, questions: Sequence[Question]) -> FloatArray:
    """Returns (n,): credits for the p-value; nan if no model was fitted to earlier folds."""
    if result.sequential is None:
        return credit(result, questions)
    scored = np.isfinite(result.sequential).any(axis=1)
    return np.where(scored, _at_gold(_shares(result.sequential, result.name), questions), np.nan)


def gold_probability(result: ProbeScores, questions: Sequence[Question]) -> FloatArray:
    """Returns (n,): the blind score s(x), the probe's probability of the gold option."""
    return _at_gold(result.probabilities(), questions)


def _at_gold(values: FloatArray, questions: Sequence[Question]) -> FloatArray:
    return np.asarray(values[np.arange(len(questions)), gold_of(questions)], dtype=np.float64)


def picked(result: ProbeScores) -> IntArray:
    """Returns (n,): 0-based index of the picked option (the first of a tie, for display only), -1 if unanswered."""
    shares = result.shares()
    return np.where(shares.sum(axis=1) > 0, shares.argmax(axis=1), -1).astype(np.int64)


def evaluate_probe(
    result: ProbeScores, questions: Sequence[Question], clusters: Clusters | None = None, constructed: bool = False
) -> ProbeAccuracy:
    """Evaluates a probe over all questions, by dimension and by split, with clustered intervals.

    Args:
        result: the scores.
        questions: the questions in the order of the scores.
        clusters: ``clusters_of(questions)``, or ``joint_clusters(questions)`` for a joint probe; computed if None.
        constructed: whether the accuracy is at chance by construction (a joint probe on a block exchange).
    """
    clusters = clusters or (joint_clusters if result.joint else clusters_of)(questions)
    values, chance = credit(result, questions), 1.0 / option_counts(questions)
    tested = sequential_credit(result, questions)

    def reached(rows: IntArray) -> Accuracy:
        part = accuracy_of(values[rows], chance[rows], clusters.take(rows), tested[rows])
        return replace(part, standard_error=0.0) if constructed else part

    def parts(names: Sequence[str | None]) -> dict[str, Accuracy]:
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            if name is not None:
                rows.setdefault(name, []).append(row)
        chosen = {name: np.array(rows[name]) for name in sorted(rows)}
        return {name: reached(r) for name, r in chosen.items()}

    splits = parts([question.split for question in questions])
    return ProbeAccuracy(
        **vars(reached(np.arange(len(values)))),
        name=result.name,
        family=result.family,
        trained=result.trained,
        by_dimension=parts([question.dimension for question in questions]),
        by_split=splits if len(splits) > 1 else {},
        note=result.note,
    )


def accuracy_of(
    values: FloatArray, chance: FloatArray, clusters: Clusters, tested: FloatArray | None = None
) -> Accuracy:
    """Returns the mean of credits, its interval, and its p-value against chance.

    If there is one cluster, questions are the sampling units. If all exchange sets are at chance, the accuracy is an
    identity and not an estimate, and the interval has zero width.

    Args:
        values: (n,) credits.
        chance: (n,) 1/k of each question.
        clusters: clusters of these questions.
        tested: (n,) credits for the p-value, possibly nan; by default ``values``.
    """
    ids = clusters.ids if len(np.unique(clusters.ids)) > 1 else np.arange(len(values))
    tested = values if tested is None else tested
    known = ~np.isnan(tested)
    interval = clustered_interval(values, ids)
    low, high = interval.ci_low, interval.ci_high
    error = _standard_error(tested[known], chance[known], ids[known])
    if clusters.balanced.all() and not np.any(np.abs(np.bincount(clusters.ids, weights=values - chance)) > TIE):
        low = high = float(values.mean())
        error = 0.0
    return Accuracy(
        n=len(values),
        clusters=interval.clusters,
        accuracy=float(values.mean()),
        chance=float(chance.mean()),
        ci_low=low,
        ci_high=high,
        p_value=p_above_chance(tested[known], chance[known], ids[known]),
        standard_error=error,
    )


def _standard_error(values: FloatArray, chance: FloatArray, ids: IntArray) -> float:
    """Returns the larger of the clustered and the binomial standard error, or 1 without values."""
    if not len(values):
        return 1.0
    codes, count = cluster_codes(ids)
    clustered = clustered_standard_error(values - chance, codes, count) if count > 1 else 0.0
    return max(clustered, math.sqrt(float((chance * (1.0 - chance)).mean()) / len(values)))


def p_above_chance(values: FloatArray, chance: FloatArray, clusters: IntArray) -> float:
    """Returns the one-sided p-value of "the mean credit is above chance", the larger one of two tests.

    The clustered t test accounts for related questions, but with few clusters its variance can be small by chance. The
    binomial tail at the mean chance needs no variance; it is an upper bound of the tail for unequal chances (Hoeffding
    1956). Fractional credits are rounded down. With fewer than two clusters only the binomial test is used.
    """
    from scipy import stats

    total, n = float(values.sum()), len(values)
    if not n or total - float(chance.sum()) <= TIE * n:
        return 1.0
    exact = float(stats.binom.sf(math.floor(total + TIE) - 1, n, chance.mean()))
    return exact if len(np.unique(clusters)) < 2 else max(exact, p_value_against(values, clusters, chance))
