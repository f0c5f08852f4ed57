"""Probes that are cross-fitted to the gold answers of other clusters' questions, with repeated partitions.

This is a "test-set stress test" (Brown et al. 2025, arXiv:2511.04655): every question is scored by models that were
not fitted to its cluster (patient, slide or exchange set); votes are averaged over several partitions of the clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from scale_vqa_eval.audit.clusters import IntArray
from scale_vqa_eval.audit.probe import FloatArray, OptionLayout, ProbeScores
from scale_vqa_eval.audit.text_features import NGRAM_FAMILIES, TextFeatures, forest_columns

FAMILIES: Final = ("position", "geometry", *NGRAM_FAMILIES)
TREES: Final = 20
"""Trees per forest; the votes of three partitions are averaged."""
Model = Callable[[TextFeatures, IntArray], FloatArray]
"""A fitted model: features, chosen questions -> votes (options of these,), non-negative, sum 1 in each question."""
Fitter = Callable[[IntArray, int], Model]
"""Function that fits a model to chosen questions (row numbers) of a sample, with a seed."""


@dataclass(frozen=True)
class Votes:
    """The votes of one family for all options of a file.

    Attributes:
        crossed: (N,) votes of models fitted to all other folds, averaged over partitions; used for the accuracy.
        sequential: (N,) votes of models fitted to the folds *before* the question's own in the first partition; nan in
            the first fold; used for the p-value. In cross-fitting, each gold answer also trains the models that score
            the other questions, so correct picks are not independent even if there is nothing to learn (a letter that
            is frequent by chance is learned in every fold), and binomial tails are too small (Noirhomme et al. 2014,
            NeuroImage: Clinical 4:687). In sequence, each pick is made before its gold answer is used.
    """

    crossed: FloatArray
    sequential: FloatArray

    def scores(self, name: str, family: str, layout: OptionLayout) -> ProbeScores:
        """Returns the votes as the scores of a fitted probe."""
        sequential = layout.padded(np.where(np.isnan(self.sequential), -np.inf, self.sequential))
        return ProbeScores(name, family, True, layout.padded(self.crossed), sequential, votes=True)


@dataclass(frozen=True)
class _Fit:
    """A fit: the fold that it scores, and the kinds of votes that it gives."""

    partition: int
    fold: int
    crossed: bool
    sequential: bool


def cross_fit(
    fitters: Mapping[str, Fitter],
    folds: IntArray,
    parts: Iterable[tuple[IntArray, TextFeatures]],
    seed: int,
    sampled: IntArray | None = None,
    sequential: bool = True,
    crossed: bool = True,
    progress: str | None = None,
) -> dict[str, Votes]:
    """Returns family -> votes of all options of the file.

    Args:
        fitters: family -> fitter for questions of the sample.
        folds: (partitions, n) folds from ``clusters.make_folds``.
        parts: (row numbers, features) of the questions to score, in order; iterated once.
        seed: seed of the models.
        sampled: (m,) ascending rows of the questions in the sample; all models are then fitted first and kept for all
            parts. If None, the sample is the only part, and each model is dropped after use.
        sequential: whether to compute sequential votes.
        crossed: whether to compute cross-fitted votes.
        progress: title of a progress bar, or None.
    """
    in_sample = folds if sampled is None else folds[:, sampled]
    fits = [(family, fit) for family in fitters for fit in _fits(folds, crossed, sequential)]

    def fitted() -> Iterator[tuple[str, _Fit, Model]]:
        for family, fit in tqdm(fits, progress, unit=" fits", disable=progress is None, leave=False):
            own = in_sample[fit.partition]
            chosen = np.flatnonzero(own != fit.fold if fit.crossed else own < fit.fold)
            yield family, fit, fitters[family](chosen, seed * 1009 + fit.partition * 101 + fit.fold)

    kept = None if sampled is None else list(fitted())
    scored_parts: dict[str, list[Votes]] = {family: [] for family in fitters}
    for rows, features in tqdm(parts, "scoring", unit=" parts", disable=progress is None or kept is None, leave=False):
        size = len(features.layout.owner)
        votes = {family: Votes(np.zeros(size), np.full(size, np.nan)) for family in fitters}
        for family, fit, model in fitted() if kept is None else kept:
            scored = np.flatnonzero(folds[fit.partition, rows] == fit.fold)
            if len(scored):
                options, vote = features.layout.rows_of(scored), model(features, scored)
                if fit.crossed:
                    votes[family].crossed[options] += vote / len(folds)
                if fit.sequential:
                    votes[family].sequential[options] = vote
        for family in fitters:
            scored_parts[family].append(votes[family])
    return {
        family: Votes(np.concatenate([v.crossed for v in found]), np.concatenate([v.sequential for v in found]))
        for family, found in scored_parts.items()
    }


def _fits(folds: IntArray, crossed: bool, sequential: bool) -> list[_Fit]:
    """Lists all fits. The model of the last fold gives both kinds of votes, as it is fitted to all folds before."""
    last = int(folds[0].max(initial=-1))
    if not crossed:
        return [_Fit(0, fold, False, True) for fold in range(1, last + 1)]
    fits = [
        _Fit(partition, fold, True, sequential and partition == 0 and fold == last > 0)
        for partition in range(len(folds))
        for fold in range(int(folds[partition].max(initial=-1)) + 1)
    ]
    return fits + [_Fit(0, fold, False, True) for fold in range(1, last)] * sequential


def make_fitter(family: str, sample: TextFeatures, gold: IntArray) -> Fitter:
    """Returns the fitter of a family in ``FAMILIES`` or ``sample.dense``.

    Args:
        family: name of the family.
        sample: features of m questions.
        gold: (m,) 0-based gold options.
    """
    if family == "position":
        return _letter_prior(sample, gold)
    if family == "geometry":
        return _forest(sample, gold)
    if family in sample.dense:
        return _linear(sample, gold, sample.dense[family], lambda features, rows: features.dense[family][rows])
    columns, matrix = sample.columns(family)
    return _linear(sample, gold, matrix, lambda features, rows: columns.matrix(features.presence[family].take(rows)))


def _even(features: TextFeatures, scored: IntArray) -> FloatArray:
    """Model without training questions: uniform votes."""
    counts = features.layout.counts[scored]
    return np.asarray(1.0 / np.repeat(counts, counts), dtype=np.float64)


def _letter_prior(sample: TextFeatures, gold: IntArray) -> Fitter:
    """Fitter of the share of each gold letter by dimension, shrunk to the overall share with a weight of ten."""
    width, kinds = int(sample.layout.counts.max(initial=2)), int(sample.types.max(initial=-1)) + 1

    def rates(chosen: IntArray, before: FloatArray) -> FloatArray:
        right = np.bincount(gold[chosen], minlength=width)
        present = (sample.layout.counts[chosen][:, None] > np.arange(width)).sum(axis=0)
        return np.asarray((right + 10.0 * before) / (present + 10.0), dtype=np.float64)

    def fit(chosen: IntArray, seed: int) -> Model:
        if not len(chosen):
            return _even
        overall = rates(chosen, np.full(width, 1.0 / float(np.mean(sample.layout.counts[chosen]))))
        of_type = [rates(chosen[sample.types[chosen] == kind], overall) for kind in range(kinds)]
        table = np.array([*of_type, overall])  # type -1 reads the last row

        def vote(features: TextFeatures, scored: IntArray) -> FloatArray:
            layout = features.layout.take(scored)
            letter = np.arange(len(layout.owner)) - layout.starts[layout.owner]
            return layout.normalised(table[features.types[scored][layout.owner], np.minimum(letter, width - 1)])

        return vote

    return fit


def _forest(sample: TextFeatures, gold: IntArray) -> Fitter:
    """Fitter of extremely randomised trees (Geurts et al. 2006) on the geometry of the options."""
    # Regression on whether an option is gold: for two classes the squared error splits like Gini's index, and the mean
    # of a leaf is its share of gold options. scikit-learn's forest spends two thirds of its time on checks of trees.
    from sklearn import config_context
    from sklearn.tree import ExtraTreeRegressor

    columns = forest_columns(sample.geometry, sample.layout, sample.types)
    right = np.zeros((len(columns), 1))
    right[sample.layout.starts + gold] = 1.0

    def fit(chosen: IntArray, seed: int) -> Model:
        if not len(chosen):
            return _even
        rows = sample.layout.rows_of(chosen)
        leaf = max(3, len(rows) // 2000)  # limits the size of a tree
        given, target = columns[rows], right[rows]

        def grow(state: int | np.random.RandomState) -> Any:
            tree = ExtraTreeRegressor(min_samples_leaf=leaf, max_features="sqrt", random_state=state)
            return tree.fit(given, target, check_input=False)

        random = np.random.RandomState(seed % 2**31)
        seeds = random.randint(2**31 - 1, size=TREES).tolist()
        with config_context(skip_parameter_validation=True), ThreadPoolExecutor(2) as pool:
            # threads are faster only for large samples, and cannot share a generator
            forest = list(pool.map(grow, seeds) if len(rows) > 4000 else map(grow, _reseeded(random, seeds)))

        def vote(features: TextFeatures, scored: IntArray) -> FloatArray:
            layout, rows = features.layout.take(scored), features.layout.rows_of(scored)
            if features is sample:
                given = columns[rows]
            else:
                given = forest_columns(features.geometry[rows], layout, features.types[scored])
                # a chunk may lack the last types
                given = np.pad(given, ((0, 0), (0, columns.shape[1] - given.shape[1])))
            votes = np.sum([tree.predict(given, check_input=False) for tree in forest], axis=0)
            return layout.normalised(np.asarray(votes, dtype=np.float64))

        return vote

    return fit


def _reseeded(random: np.random.RandomState, seeds: Sequence[int]) -> Iterator[np.random.RandomState]:
    """Yields the generator seeded anew: a new one for each seed gives the same numbers and costs 0.5 ms."""
    for seed in seeds:
        random.seed(seed)
        yield random


def _linear(
    sample: TextFeatures, gold: IntArray, matrix: Any, columns: Callable[[TextFeatures, IntArray], Any]
) -> Fitter:
    """Fitter of ``fit_listwise`` on the sample's (N, f) matrix; ``columns`` returns that of some other options."""

    def fit(chosen: IntArray, seed: int) -> Model:
        if not len(chosen):
            return _even
        weights = fit_listwise(matrix[sample.layout.rows_of(chosen)], sample.layout.take(chosen), gold[chosen])

        def vote(features: TextFeatures, scored: IntArray) -> FloatArray:
            rows = features.layout.rows_of(scored)
            values = (matrix[rows] if features is sample else columns(features, rows)) @ weights
            return features.layout.take(scored).softmax(values)

        return vote

    return fit


def fit_listwise(matrix: Any, layout: OptionLayout, gold: IntArray, strength: float = 10.0) -> FloatArray:
    """Fits a listwise linear model, which predicts the gold option by a softmax over the question's options.

    McFadden's conditional logit (1974) with a ridge penalty: the weights (f,) minimise
    1/2 |w|^2 + strength * sum over questions of -log p(gold). Columns need not be centred, because what the options of
    a question share cancels.

    Args:
        matrix: (N, f) sparse or dense columns of all options.
        layout: options of the questions.
        gold: (n,) 0-based gold options.
        strength: inverse of the ridge penalty.
    """
    from scipy.optimize import minimize

    transposed = matrix.T.tocsr() if hasattr(matrix, "tocsr") else np.ascontiguousarray(matrix.T)
    gold_rows = layout.starts + gold

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        values = matrix @ weights
        top = np.maximum.reduceat(values, layout.starts)
        raised = np.exp(values - top[layout.owner])
        total = np.add.reduceat(raised, layout.starts)
        slope = raised / total[layout.owner]
        slope[gold_rows] -= 1.0
        missed = float((np.log(total) + top - values[gold_rows]).sum())
        return strength * missed + 0.5 * float(weights @ weights), strength * (transposed @ slope) + weights

    start = np.zeros(matrix.shape[1])
    options = {"maxiter": 200, "ftol": 1e-6, "maxcor": 6}
    # threads of the linear algebra do not pay for short vectors
    with _linear_algebra().limit(limits=1):
        return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x)


@cache
def _linear_algebra() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
