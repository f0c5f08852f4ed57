"""Probes that are fitted to the gold answers of other units' questions: cross-fitted, over repeated partitions.

A "test-set stress test" (Brown et al. 2025, arXiv:2511.04655): every question is scored by models that have not seen
its unit (patient, slide or exchange set); over several partitions of the units the votes are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from tqdm import tqdm

from scale_vqa_eval.audit.layout import FloatArray, IntArray, OptionLayout
from scale_vqa_eval.audit.listwise import fit_listwise
from scale_vqa_eval.audit.options_geometry import forest_columns
from scale_vqa_eval.audit.prepared import WORDING_FAMILIES, Prepared
from scale_vqa_eval.audit.probe import ProbeResult, padded
from scale_vqa_eval.audit.units import Units
from scale_vqa_eval.audit.wording import fit_columns

FAMILIES: Final = ("position", "geometry", *WORDING_FAMILIES)
TREES: Final = 100
Model = Callable[[Prepared], FloatArray]
"""A fitted model: the texts of some questions -> votes (N,), not negative, that sum to 1 in each question."""
Fitter = Callable[[IntArray, int], Model]
"""Fits a model to chosen questions (row numbers) of a sample, with a seed."""


@dataclass(frozen=True)
class Part:
    """Some questions of a file to be scored: their row numbers, and their texts."""

    questions: IntArray
    texts: Prepared


@dataclass(frozen=True)
class Votes:
    """The votes of one family for all options of a file.

    Attributes:
        crossed: (N,) from models fitted to all other folds, averaged over partitions: what the accuracy is taken from.
        sequential: (N,) from models fitted to the folds *before* the question's own in the first partition; nan in
            the first fold. What the p-value is taken from: in cross-fitting each question's gold also trains the
            models that score the others, so that right picks are not independent even where there is nothing to learn
            (a letter that is frequent by luck is learned in every fold), and binomial tails are too small (Noirhomme
            et al. 2014, NeuroImage: Clinical 4:687). In sequence each pick is made before its gold is used.
    """

    crossed: FloatArray
    sequential: FloatArray


def trained_result(name: str, family: str, votes: Votes, layout: OptionLayout) -> ProbeResult:
    """Lays the votes of a fitted probe out as its result."""
    scores = padded(votes.crossed, layout.counts)
    probability = np.where(np.isfinite(scores), scores, 0.0)
    sequential = padded(np.where(np.isnan(votes.sequential), -np.inf, votes.sequential), layout.counts)
    return ProbeResult(name, family, True, scores, probability, sequential)


def folds_of(units: Units, seed: int, partitions: int, folds: int = 5) -> IntArray:
    """Returns ``make_folds``; a file that is one exchange set stays whole (nothing is fitted), as a cut biases it."""
    if units.balanced.all() and not units.ids.any():
        return np.zeros((partitions, len(units.ids)), dtype=np.int64)
    return make_folds(units.ids, seed, partitions, folds)


def make_folds(units: IntArray, seed: int, partitions: int, folds: int = 5) -> IntArray:
    """Deals units to folds: in shuffled order, each to the fold that has the fewest questions so far.

    With a single unit the questions are dealt one by one, as there is nothing else to hold out.

    Args:
        units: (n,) unit of each question, numbered from 0.
        seed: the same seed gives the same folds.
        partitions: how many times the units are dealt anew.
        folds: at most that many; there are never more than units.

    Returns:
        (partitions, n) fold of each question.
    """
    if int(units.max(initial=-1)) < 1:
        units = np.arange(len(units))
    sizes = np.bincount(units)
    rng = np.random.default_rng([seed, 1])
    dealt = np.empty((partitions, len(sizes)), dtype=np.int64)
    for partition in range(partitions):
        load = np.zeros(min(folds, len(sizes)), dtype=np.int64)
        for unit in rng.permutation(len(sizes)):
            dealt[partition, unit] = np.argmin(load)
            load[np.argmin(load)] += sizes[unit]
    return dealt[:, units]


def cross_fitted(
    families: Sequence[str],
    fitters: dict[str, Fitter],
    sampled: IntArray,
    folds: IntArray,
    parts: Iterable[Part],
    seed: int,
    keep_models: bool,
    sequential: bool = True,
    progress: bool = False,
) -> dict[str, Votes]:
    """Returns family -> votes of all options of the file.

    Args:
        families: some of ``FAMILIES``.
        fitters: family -> what fits it to questions of the sample.
        sampled: (m,) which questions of the file the sample holds, in order.
        folds: (partitions, n) of ``make_folds``.
        parts: the questions to score, in order, chunk by chunk; read once.
        seed: of the models that draw.
        keep_models: fit all models first, for many parts; else each is dropped after use, for one part.
        sequential: make the sequential votes too.
        progress: show a bar over the fits on standard error.
    """
    jobs = _jobs(folds, sequential)

    def fitted() -> Iterator[tuple[str, _Job, Model]]:
        fits = [(family, job) for family in families for job in jobs]
        hidden = None if progress else True
        for family, job in tqdm(fits, "fitting probes", unit=" fits", disable=hidden, leave=False):
            own = folds[job.partition, sampled]
            chosen = np.flatnonzero(own != job.fold if job.crossed else own < job.fold)
            yield family, job, fitters[family](chosen, seed * 1009 + job.partition * 101 + job.fold)

    kept = list(fitted()) if keep_models else None
    found: dict[str, list[Votes]] = {family: [] for family in families}
    hidden = None if progress and keep_models else True
    for part in tqdm(parts, "scoring", unit=" parts", disable=hidden, leave=False):
        n = len(part.texts.layout.owner)
        votes = {family: Votes(np.zeros(n), np.full(n, np.nan)) for family in families}
        for family, job, model in fitted() if kept is None else kept:
            scored = np.flatnonzero(folds[job.partition, part.questions] == job.fold)
            if len(scored):
                rows, vote = part.texts.layout.rows_of(scored), model(part.texts.take(scored))
                if job.crossed:
                    votes[family].crossed[rows] += vote / len(folds)
                if job.sequential:
                    votes[family].sequential[rows] = vote
        for family in families:
            found[family].append(votes[family])
    return {
        family: Votes(
            np.concatenate([part.crossed for part in made]), np.concatenate([part.sequential for part in made])
        )
        for family, made in found.items()
    }


@dataclass(frozen=True)
class _Job:
    """One fit: which fold it scores, and for which of the two kinds of votes."""

    partition: int
    fold: int
    crossed: bool
    sequential: bool


def _jobs(folds: IntArray, sequential: bool) -> list[_Job]:
    """All fits. The last fold's model has seen exactly the folds before it, so it serves both kinds of votes."""
    last = int(folds[0].max(initial=-1))
    jobs = [
        _Job(partition, fold, True, sequential and partition == 0 and fold == last > 0)
        for partition in range(len(folds))
        for fold in range(int(folds[partition].max(initial=-1)) + 1)
    ]
    return jobs + [_Job(0, fold, False, True) for fold in range(1, last)] * sequential


def make_fitter(family: str, sample: Prepared, gold: IntArray) -> Fitter:
    """Returns what fits a family to chosen questions of a sample with these gold options (m,)."""
    fitter = {"position": _letters, "geometry": _forest}.get(family)
    return fitter(sample, gold) if fitter is not None else _linear(family, sample, gold)


def _even(texts: Prepared) -> FloatArray:
    """The model of nothing: where there is no question to learn from."""
    return np.asarray(1.0 / texts.layout.counts[texts.layout.owner], dtype=np.float64)


def _letters(sample: Prepared, gold: IntArray) -> Fitter:
    """How often each letter is gold, by dimension, shrunk to all dimensions by the weight of ten questions."""
    width, kinds = int(sample.layout.counts.max(initial=2)), int(sample.types.max(initial=-1)) + 1

    def rates(chosen: IntArray, before: FloatArray, weight: float) -> FloatArray:
        right = np.bincount(gold[chosen], minlength=width)
        there = (sample.layout.counts[chosen][:, None] > np.arange(width)).sum(axis=0)
        return np.asarray((right + weight * before) / (there + weight), dtype=np.float64)

    def fit(chosen: IntArray, seed: int) -> Model:
        if not len(chosen):
            return _even
        even = np.full(width, 1.0 / float(np.mean(sample.layout.counts[chosen])))
        every = rates(chosen, even, 10.0)
        of_type = [rates(chosen[sample.types[chosen] == kind], every, 10.0) for kind in range(kinds)]
        table = np.array([*of_type, every])  # type -1 reads the last row

        def vote(texts: Prepared) -> FloatArray:
            letter = np.arange(len(texts.layout.owner)) - texts.layout.starts[texts.layout.owner]
            return texts.layout.normalised(table[texts.types[texts.layout.owner], np.minimum(letter, width - 1)])

        return vote

    return fit


def _forest(sample: Prepared, gold: IntArray) -> Fitter:
    """Extremely randomised trees on the geometry of the options; the gold option is the positive class."""
    from sklearn.ensemble import ExtraTreesClassifier

    columns = forest_columns(sample.geometry, sample.layout, sample.types)
    right = np.zeros(len(columns), dtype=np.int64)
    right[sample.layout.starts + gold] = 1
    seen = columns.shape[1]

    def fit(chosen: IntArray, seed: int) -> Model:
        if not len(chosen):
            return _even
        rows = sample.layout.rows_of(chosen)
        leaf = max(3, len(rows) // 2000)  # bounds the size of a tree, whatever the number of questions
        threads = 2 if len(rows) > 4000 else 1  # below, starting them costs more than they save
        forest = ExtraTreesClassifier(TREES, min_samples_leaf=leaf, random_state=seed % 2**31, n_jobs=threads)
        forest.fit(columns[rows], right[rows])
        forest.n_jobs = 1  # threads add votes in the order they end in: the last bit would differ between runs

        def vote(texts: Prepared) -> FloatArray:
            given = forest_columns(texts.geometry, texts.layout, texts.types)
            given = np.pad(given, ((0, 0), (0, seen - given.shape[1])))  # a chunk may lack the last types
            return texts.layout.normalised(forest.predict_proba(given)[:, 1])

        return vote

    return fit


def _linear(family: str, sample: Prepared, gold: IntArray) -> Fitter:
    """Listwise ridge regression on the hashed n-grams of a wording family."""
    columns = fit_columns(sample.wording[family], sample.layout)
    matrix = columns.matrix(sample.wording[family])

    def fit(chosen: IntArray, seed: int) -> Model:
        if not len(chosen):
            return _even
        rows = sample.layout.rows_of(chosen)
        weights = fit_listwise(matrix[rows], sample.layout.take(chosen), gold[chosen])

        def vote(texts: Prepared) -> FloatArray:
            return texts.layout.softmax(columns.matrix(texts.wording[family]) @ weights)

        return vote

    return fit
