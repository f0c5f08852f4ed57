"""Probes that are fitted to the gold answers of other clusters' questions: cross-fitted, over repeated partitions.

A "test-set stress test" (Brown et al. 2025, arXiv:2511.04655): every question is scored by models that have not seen
its cluster (patient, slide or exchange set); over several partitions of the clusters the votes are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from scale_vqa_eval.audit.clusters import IntArray
from scale_vqa_eval.audit.option_geometry import forest_columns
from scale_vqa_eval.audit.probe import FloatArray, OptionLayout, ProbeScores
from scale_vqa_eval.audit.text_features import NGRAM_FAMILIES, TextFeatures

FAMILIES: Final = ("position", "geometry", *NGRAM_FAMILIES)
TREES: Final = 20
"""Trees of a forest; the votes of three partitions are averaged."""
Model = Callable[[TextFeatures], FloatArray]
"""A fitted model: the features of some questions -> votes (N,), not negative, that sum to 1 in each question."""
Fitter = Callable[[Sequence[IntArray], Sequence[int]], Iterable[Model]]
"""Fits a model to each of several choices of questions (row numbers) of a sample, each with its seed."""
FITTED_WEIGHTS: Final = 400_000
"""Weights of the linear models that are fitted side by side; bounds memory (about 16 arrays of this size)."""


@dataclass(frozen=True)
class Votes:
    """The votes of one family for all options of a file.

    Attributes:
        crossed: (N,) from models fitted to all other folds, averaged over partitions: the accuracy comes from these.
        sequential: (N,) from models fitted to the folds *before* the question's own in the first partition; nan in
            the first fold. The p-value comes from these: in cross-fitting each question's gold also trains the models
            that score the others, so right picks are not independent even where there is nothing to learn (a letter
            that is frequent by luck is learned in every fold), and binomial tails are too small (Noirhomme et al.
            2014, NeuroImage: Clinical 4:687). In sequence each pick is made before its gold is used.
    """

    crossed: FloatArray
    sequential: FloatArray

    def scores(self, name: str, family: str, layout: OptionLayout) -> ProbeScores:
        """Returns the votes as the scores of a fitted probe."""
        sequential = layout.padded(np.where(np.isnan(self.sequential), -np.inf, self.sequential))
        return ProbeScores(name, family, True, layout.padded(self.crossed), sequential, votes=True)


@dataclass(frozen=True)
class _Fit:
    """One fit: the fold it scores, and for which of the two kinds of votes."""

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
        fitters: family -> its fitter, to questions of the sample.
        folds: (partitions, n) of ``clusters.make_folds``.
        parts: (row numbers, features) of the questions to score, in order; read once.
        seed: of the models that draw.
        sampled: (m,) ascending rows of the questions that the sample holds; then all models are fitted first and kept,
            for many parts. None: the sample is the one part, and each model is dropped after use.
        sequential: make the sequential votes.
        crossed: make the cross-fitted votes.
        progress: title of a bar over the fits on standard error; None shows none.
    """
    in_sample = folds if sampled is None else folds[:, sampled]
    fits = _fits(folds, crossed, sequential)
    chosen = [
        np.flatnonzero(in_sample[fit.partition] != fit.fold if fit.crossed else in_sample[fit.partition] < fit.fold)
        for fit in fits
    ]
    seeds = [seed * 1009 + fit.partition * 101 + fit.fold for fit in fits]

    def fitted() -> Iterator[tuple[str, _Fit, Model]]:
        total = len(fits) * len(fitters)
        with tqdm(total=total, desc=progress, unit=" fits", disable=progress is None, leave=False) as bar:
            for family, fitter in fitters.items():
                for fit, model in zip(fits, fitter(chosen, seeds), strict=True):
                    bar.update()
                    yield family, fit, model

    kept = None if sampled is None else list(fitted())
    scored_parts: dict[str, list[Votes]] = {family: [] for family in fitters}
    for rows, features in tqdm(parts, "scoring", unit=" parts", disable=progress is None or kept is None, leave=False):
        size = len(features.layout.owner)
        votes = {family: Votes(np.zeros(size), np.full(size, np.nan)) for family in fitters}
        for family, fit, model in fitted() if kept is None else kept:
            scored = np.flatnonzero(folds[fit.partition, rows] == fit.fold)
            if len(scored):
                options, vote = features.layout.rows_of(scored), model(features.take(scored))
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
    """Lists all fits. The last fold's model has seen exactly the folds before it, so it serves both kinds of votes."""
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
    """Returns the fitter of a family of ``FAMILIES``, or of ``sample.dense``.

    Args:
        family: the family.
        sample: features of m questions.
        gold: (m,) 0-based gold option of each.
    """
    if family == "position":
        return _letter_prior(sample, gold)
    if family == "geometry":
        return _forest(sample, gold)
    if family in sample.dense:
        return _linear(sample, gold, sample.dense[family], lambda features: features.dense[family])
    columns, matrix = sample.columns(family)
    return _linear(sample, gold, matrix, lambda features: columns.matrix(features.presence[family]))


def _even(features: TextFeatures) -> FloatArray:
    """The model where there is no question to learn from."""
    return np.asarray(1.0 / features.layout.counts[features.layout.owner], dtype=np.float64)


def one_by_one(fit: Callable[[IntArray, int], Model]) -> Fitter:
    """Returns the fitter that fits each model by itself; where there is no question to learn from, all are even."""
    return lambda chosen, seeds: (
        fit(rows, seed) if len(rows) else _even for rows, seed in zip(chosen, seeds, strict=True)
    )


def _letter_prior(sample: TextFeatures, gold: IntArray) -> Fitter:
    """How often each letter is gold, by dimension, shrunk to all dimensions by the weight of ten questions."""
    width, kinds = int(sample.layout.counts.max(initial=2)), int(sample.types.max(initial=-1)) + 1

    def rates(chosen: IntArray, before: FloatArray) -> FloatArray:
        right = np.bincount(gold[chosen], minlength=width)
        present = (sample.layout.counts[chosen][:, None] > np.arange(width)).sum(axis=0)
        return np.asarray((right + 10.0 * before) / (present + 10.0), dtype=np.float64)

    def fit(chosen: IntArray, seed: int) -> Model:
        overall = rates(chosen, np.full(width, 1.0 / float(np.mean(sample.layout.counts[chosen]))))
        of_type = [rates(chosen[sample.types[chosen] == kind], overall) for kind in range(kinds)]
        table = np.array([*of_type, overall])  # type -1 reads the last row

        def vote(features: TextFeatures) -> FloatArray:
            layout = features.layout
            letter = np.arange(len(layout.owner)) - layout.starts[layout.owner]
            return layout.normalised(table[features.types[layout.owner], np.minimum(letter, width - 1)])

        return vote

    return one_by_one(fit)


def _forest(sample: TextFeatures, gold: IntArray) -> Fitter:
    """Extremely randomised trees (Geurts et al. 2006) on the geometry of the options.

    The trees regress on whether an option is gold: for two classes the squared error splits as Gini's index does, and
    a leaf's mean is its share of gold options. They are built one by one because scikit-learn's forest spends two
    thirds of its time on checks of each tree.
    """
    from sklearn import config_context
    from sklearn.tree import ExtraTreeRegressor

    columns = forest_columns(sample.geometry, sample.layout, sample.types)
    right = np.zeros((len(columns), 1))
    right[sample.layout.starts + gold] = 1.0

    def fit(chosen: IntArray, seed: int) -> Model:
        rows = sample.layout.rows_of(chosen)
        leaf = max(3, len(rows) // 2000)  # bounds the size of a tree, whatever the number of questions
        given, target = columns[rows], right[rows]

        def grow(tree_seed: int) -> Any:
            tree = ExtraTreeRegressor(min_samples_leaf=leaf, max_features="sqrt", random_state=tree_seed)
            return tree.fit(given, target, check_input=False)

        seeds = np.random.RandomState(seed % 2**31).randint(2**31 - 1, size=TREES).tolist()
        with config_context(skip_parameter_validation=True), ThreadPoolExecutor(2) as pool:
            # threads pay for large samples only: below, they would wait for each other
            forest = list(pool.map(grow, seeds) if len(rows) > 4000 else map(grow, seeds))

        def vote(features: TextFeatures) -> FloatArray:
            given = forest_columns(features.geometry, features.layout, features.types)
            given = np.pad(given, ((0, 0), (0, columns.shape[1] - given.shape[1])))  # a chunk may lack the last types
            votes = np.sum([tree.predict(given, check_input=False) for tree in forest], axis=0)
            return features.layout.normalised(np.asarray(votes, dtype=np.float64))

        return vote

    return one_by_one(fit)


def _linear(sample: TextFeatures, gold: IntArray, matrix: Any, columns: Callable[[TextFeatures], Any]) -> Fitter:
    """Listwise ridge regression on the sample's (N, f) matrix, sparse or dense; ``columns`` makes that of others."""

    def fit(chosen: Sequence[IntArray], seeds: Sequence[int]) -> Iterator[Model]:
        at_once = max(1, FITTED_WEIGHTS // matrix.shape[1])
        for start in range(0, len(chosen), at_once):
            batch = chosen[start : start + at_once]
            used = np.zeros((len(gold), len(batch)), dtype=np.bool_)
            for number, rows in enumerate(batch):
                used[rows, number] = True
            weights = fit_listwise(matrix, sample.layout, gold, used=used).T.copy()
            yield from (
                _scored(columns, own) if len(rows) else _even for rows, own in zip(batch, weights, strict=True)
            )

    return fit


def _scored(columns: Callable[[TextFeatures], Any], weights: FloatArray) -> Model:
    return lambda features: features.layout.softmax(columns(features) @ weights)


def fit_listwise(
    matrix: Any,
    layout: OptionLayout,
    gold: IntArray,
    strength: float = 10.0,
    used: npt.NDArray[np.bool_] | None = None,
) -> FloatArray:
    """Fits listwise linear models: the gold option of a question by a softmax over that question's own options.

    McFadden's conditional logit (1974) with a ridge penalty: the weights (f,) minimise
    1/2 |w|^2 + strength * sum over questions of -log p(gold). What the options of a question share cancels, so no
    column needs to be centred.

    Args:
        matrix: (N, f) sparse or dense columns of all options.
        layout: the options of the questions.
        gold: (n,) 0-based gold option of each question.
        strength: inverse of the ridge penalty.
        used: (n, K) the questions that each of K models is fitted to; the matrix is then read once for all models.

    Returns:
        (f, K) weights; (f,) of one model that is fitted to all questions where ``used`` is None.
    """
    if used is not None and not (seen := used.any(axis=1)).all():
        rows = np.flatnonzero(seen)
        if not len(rows):
            return np.zeros((matrix.shape[1], used.shape[1]))
        matrix, layout, gold, used = matrix[layout.rows_of(rows)], layout.take(rows), gold[rows], used[rows]
    transposed = matrix.T.tocsr() if hasattr(matrix, "tocsr") else np.ascontiguousarray(matrix.T)
    gold_rows = layout.starts + gold
    counted = np.ones((len(gold), 1)) if used is None else used.astype(np.float64)

    def loss(weights: FloatArray, models: IntArray) -> tuple[FloatArray, FloatArray]:
        values = matrix @ weights
        top = np.maximum.reduceat(values, layout.starts)
        right = values[gold_rows]
        raised = np.exp(np.subtract(values, top[layout.owner], out=values), out=values)
        total = np.add.reduceat(raised, layout.starts)
        own = counted[:, models] * strength
        missed = (own * (np.log(total) + top - right)).sum(axis=0)
        slope = np.multiply(raised, (own / total)[layout.owner], out=raised)
        slope[gold_rows] -= own
        return missed + 0.5 * _dots(weights, weights), transposed @ slope + weights

    # the vectors are short: threads of the linear algebra would only wait for each other
    with _linear_algebra().limit(limits=1):
        # cross-fitted votes do not change by more than a question in three hundred at the larger tolerance
        weights = _minimise(loss, matrix.shape[1], counted.shape[1], tolerance=1e-6 if used is None else 1e-5)
    return weights[:, 0] if used is None else weights


def _minimise(
    loss: Callable[[FloatArray, IntArray], tuple[FloatArray, FloatArray]],
    size: int,
    models: int,
    tolerance: float,
    steps: int = 200,
    memory: int = 4,
) -> FloatArray:
    """Minimises strictly convex functions side by side by L-BFGS (Liu and Nocedal 1989); returns (size, models).

    In each step every function gets one trial point. Where it does not fall enough (Armijo), the step is halved or
    cut further and its pair of changes is stored as zeros, which the recursion passes over. A function is done where
    it falls by less than ``tolerance`` of its value.

    Args:
        loss: weights (size, k) and the numbers (k,) of their functions -> values (k,) and gradients (size, k).
        size: weights of a function.
        models: number of functions.
        tolerance: see above.
        steps: maximum number of trial points.
        memory: pairs of changes kept.
    """
    open_models = np.arange(models)
    out = np.zeros((size, models))
    at = out.copy()
    value, slope = loss(at, open_models)
    direction = -slope / np.maximum(1.0, np.sqrt(_dots(slope, slope)))
    step, scale = np.ones(models), np.ones(models)
    pairs: list[tuple[FloatArray, ...]] = []
    for _ in range(steps):
        descent = _dots(slope, direction)
        trial = at + step * direction
        before, (reached, steeper) = value.copy(), loss(trial, open_models)
        fell = reached <= value + 1e-4 * step * descent
        small = tolerance * np.maximum(np.abs(value), 1.0)
        done = (fell & (value - reached <= small)) | (-step * descent <= 1e-3 * small)
        moved, turned = trial - at, steeper - slope
        if fell.all():
            at, value, slope = trial, reached, steeper
        else:
            moved[:, ~fell], turned[:, ~fell] = 0.0, 0.0
            at[:, fell], value[fell], slope[:, fell] = trial[:, fell], reached[fell], steeper[:, fell]
        curvature = _dots(moved, turned)
        inverse = np.where(curvature > 0, 1.0 / np.where(curvature > 0, curvature, 1.0), 0.0)
        scale = np.where(curvature > 0, curvature / np.maximum(_dots(turned, turned), 1e-300), scale)
        pairs = [*pairs[-memory + 1 :], (moved, turned, inverse)]
        # the minimum of the parabola through both values and the slope at the first, kept within reach
        parabola = -0.5 * step * descent / np.maximum(reached - before - step * descent, 1e-300)
        step = np.where(fell, 1.0, step * np.clip(parabola, 0.1, 0.5))
        if done.any():
            out[:, open_models[done]] = at[:, done]
            kept = ~done
            if not kept.any():
                return out
            at, slope, direction = at[:, kept], slope[:, kept], direction[:, kept]
            pairs = [(moved[:, kept], turned[:, kept], inverse[kept]) for moved, turned, inverse in pairs]
            value, step, scale, fell, open_models = value[kept], step[kept], scale[kept], fell[kept], open_models[kept]
        following = _descent(slope, pairs, scale)
        direction = following if fell.all() else np.where(fell, following, direction)
    out[:, open_models] = at
    return out


def _descent(slope: FloatArray, pairs: Sequence[tuple[FloatArray, ...]], scale: FloatArray) -> FloatArray:
    """Returns the directions of L-BFGS by its two loops over the stored changes of weights and gradients."""
    direction, product = -slope, np.empty_like(slope)
    shares = []
    for moved, turned, inverse in reversed(pairs):
        shares.append(inverse * _dots(moved, direction))
        direction -= np.multiply(turned, shares[-1], out=product)
    direction *= scale
    for (moved, turned, inverse), share in zip(pairs, reversed(shares), strict=True):
        direction += np.multiply(moved, share - inverse * _dots(turned, direction), out=product)
    return direction


def _dots(left: FloatArray, right: FloatArray) -> FloatArray:
    """Returns (k,): the dot products of the columns of two (size, k) arrays."""
    return np.asarray(np.einsum("fk,fk->k", left, right), dtype=np.float64)


@cache
def _linear_algebra() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
