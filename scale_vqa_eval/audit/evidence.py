"""Evidence of leaks: words and geometry by which models prefer the gold option, and the learning curve."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from scale_vqa_eval.audit.battery import MEMBERS, TRAIN_CAP, read_features, sample_rows
from scale_vqa_eval.audit.clusters import IntArray, clusters_of, folds_of
from scale_vqa_eval.audit.fitted_probes import Fitter, Model, cross_fit, fit_listwise, make_fitter
from scale_vqa_eval.audit.option_geometry import COLUMN, FEATURES, HASH_COLUMNS, hash_of, terms_of
from scale_vqa_eval.audit.probe import Accuracy, FloatArray, ProbeScores, evaluate_probe, gold_of
from scale_vqa_eval.audit.text_features import BLOCKS, NGramColumns, TextFeatures
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import LETTERS

FRACTIONS: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
CURVE_CAP: Final = 4_000
WORD_FAMILIES: Final = ("words", "contrast")


@dataclass(frozen=True)
class Evidence:
    """A feature that gives an item away.

    Attributes:
        kind: ``wording`` or ``geometry``.
        text: word or phrase in lower case, or a description of the extreme of the gold option.
        letters: options that contain the word; the gold letter for geometry.
        weight: for wording, log-odds that it adds to the gold option against the mean of the others, in models fitted
            to other clusters; for geometry, ln of the ratio of the rate of this extreme among gold options to chance.
    """

    kind: str
    text: str
    letters: str
    weight: float


def find_evidence(
    questions: Sequence[Question], features: TextFeatures, chosen: Sequence[int], seed: int = 0, limit: int = 6
) -> dict[int, list[Evidence]]:
    """Returns row -> evidence by weight, at most ``limit`` wordings and half as many extremes of geometry.

    Args:
        questions: the questions.
        features: ``read_features`` of these questions.
        chosen: rows to explain.
        seed: seed of the folds.
        limit: maximum number of wordings per row.
    """
    folds = folds_of(clusters_of(questions), seed, 1)[0]
    gold = gold_of(questions)
    columns = {family: features.columns(family)[0] for family in WORD_FAMILIES}
    ranks = features.layout.ranks(features.geometry.astype(np.float64))[features.layout.starts + gold]
    found: dict[int, list[Evidence]] = {}
    for fold in sorted({int(folds[row]) for row in chosen}):
        others = np.flatnonzero(folds != fold)
        if not len(others):
            continue
        weights = {}
        for family in WORD_FAMILIES:
            matrix = features.columns(family)[1][features.layout.rows_of(others)]
            weights[family] = fit_listwise(matrix, features.layout.take(others), gold[others])
        for row in (row for row in chosen if folds[row] == fold):
            wordings = _wordings(questions[row], features.take(np.array([row])), columns, weights)[:limit]
            found[row] = wordings + _extremes(questions[row], ranks[row], ranks[others])[: limit // 2]
    return found


def _wordings(
    question: Question,
    features: TextFeatures,
    columns: Mapping[str, NGramColumns],
    weights: Mapping[str, FloatArray],
) -> list[Evidence]:
    """Returns the words that favour the gold option, summed over the blocks of both families."""
    margin: dict[tuple[str, int], float] = defaultdict(float)
    k = len(question.options)
    for family in WORD_FAMILIES:
        used = columns[family]
        pointer, index = used.entries(features.presence[family])
        values = used.weight[index] * weights[family][used.joined[index]]
        numbers = used.kept[index].tolist()
        holding = np.repeat(np.arange(k), np.diff(pointer)).tolist()
        for option, number, value in zip(holding, numbers, values, strict=True):
            block = number // HASH_COLUMNS
            kind = BLOCKS[family][block][0] if block < len(BLOCKS[family]) else "words"
            share = 1.0 if option == question.answer else -1.0 / (k - 1)
            margin[kind, number % HASH_COLUMNS] += share * float(value) / len(WORD_FAMILIES)
    holders: dict[tuple[str, str], list[int]] = defaultdict(list)
    for kind in ("words", "phrases"):
        for option, text in enumerate(question.options):
            for term in sorted(set(terms_of(text, kind))):
                holders[kind, term].append(option)
    found = [
        Evidence("wording", term, "".join(LETTERS[option] for option in options), margin[kind, hash_of(term)])
        for (kind, term), options in holders.items()
        if len(options) < k
    ]
    kept: list[Evidence] = []
    for item in sorted(found, key=lambda evidence: (-evidence.weight, evidence.text)):
        # skip terms that overlap with a heavier one of the same options
        heavier = [other.text for other in kept if other.letters == item.letters]
        if item.weight > 1e-6 and not any(item.text in text or text in item.text for text in heavier):
            kept.append(item)
    return kept


def _extremes(question: Question, ranks: FloatArray, others: FloatArray) -> list[Evidence]:
    """Returns the features in which the gold option has an extreme that is frequent among other gold options."""
    found: dict[str, Evidence] = {}
    for number, name in enumerate(FEATURES):
        aspect = "similarity" if number < COLUMN["characters"] else name  # one statement on similarity is enough
        for extreme, rank in (("highest", 1.0), ("lowest", 0.0)):
            rate = float((others[:, number] == rank).mean())
            lift = float(np.log(max(rate, 1e-9) * len(question.options)))
            if ranks[number] == rank and lift > max(0.05, found[aspect].weight if aspect in found else 0.0):
                text = f"{extreme} of the options in {name} (so is the gold of {rate:.0%} of other questions)"
                found[aspect] = Evidence("geometry", text, question.letter, lift)
    return sorted(found.values(), key=lambda item: (-item.weight, item.text))


def learning_curve(
    questions: Sequence[Question],
    ensemble: ProbeScores,
    seed: int = 0,
    features: TextFeatures | None = None,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Returns the ensemble's accuracy with ``FRACTIONS`` of the training clusters (one partition), and with all.

    If the curve still rises at its end, more data would leak more.

    Args:
        questions: questions of the audit; of more than ``CURVE_CAP`` a seeded sample is used for the fractions.
        ensemble: scores of the ensemble on all questions, for the last point.
        seed: seed of folds and of the order of clusters.
        features: ``read_features`` of these questions.
        progress: whether to show a progress bar.

    Returns:
        ``questions`` (mean number of training questions), ``accuracy``, ``ci_low`` and ``ci_high`` of each point with
        at least four training questions.
    """
    folds = folds_of(clusters_of(questions), seed, 1)
    fitted = min(len(questions), TRAIN_CAP) * (1 - np.bincount(folds[0]).max() / len(questions))
    last = _point(fitted, evaluate_probe(ensemble, questions))
    if len(questions) > CURVE_CAP:
        kept = sample_rows(len(questions), CURVE_CAP, [seed, 6])
        questions = [questions[row] for row in kept]
        features = None if features is None else features.take(kept)
    features = features or read_features(questions, MEMBERS)
    clusters = clusters_of(questions)
    ids = clusters.ids if clusters.ids.any() else np.arange(len(questions))
    order = np.random.default_rng([seed, 7]).permutation(int(ids.max(initial=0)) + 1)[ids]
    folds = folds if len(folds[0]) == len(questions) else folds_of(clusters, seed, 1)
    gold, rows = gold_of(questions), np.arange(len(questions))
    fitters = {family: make_fitter(family, features, gold) for family in MEMBERS}
    points = []
    for fraction in tqdm(FRACTIONS, "learning curve", unit=" points", disable=not progress, leave=False):
        sizes: list[int] = []
        fewer = {family: _subsampled(fitter, order, fraction, sizes) for family, fitter in fitters.items()}
        votes = cross_fit(fewer, folds, [(rows, features)], seed, sequential=False)
        scores = features.layout.padded(np.mean([votes[family].crossed for family in MEMBERS], axis=0))
        if np.mean(sizes) >= 4:
            reached = evaluate_probe(ProbeScores("ensemble", "ensemble", True, scores), questions, clusters)
            points.append(_point(float(np.mean(sizes)), reached))
    return [*points, last] if last["questions"] >= 4 else points


def _point(fitted: float, reached: Accuracy) -> dict[str, Any]:
    point = {name: getattr(reached, name) for name in ("accuracy", "ci_low", "ci_high")}
    return {"questions": round(float(fitted), 1), **point}


def _subsampled(fitter: Fitter, order: IntArray, fraction: float, sizes: list[int]) -> Fitter:
    """Returns a fitter that uses a fraction of the questions, by clusters in a fixed order, and notes their number."""

    def fit(chosen: IntArray, seed: int) -> Model:
        ordered = np.sort(order[chosen])
        last = ordered[max(0, round(fraction * len(ordered)) - 1)] if len(ordered) else 0
        kept = chosen[order[chosen] <= last]
        sizes.append(len(kept))
        return fitter(kept, seed)

    return fit
