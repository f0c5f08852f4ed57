"""The verdict of an audit (leaks, clean or inconclusive, by dimension and over all questions) and its evidence.

*Leaks*: a probe is above chance after Holm's correction. Half of the level of 5% is for the probes on all questions,
half for the probes on the dimensions (with fewer than two dimensions, all of it is for the former). So a file without
a leak is reported as leaking in at most 5% of cases.

*Clean* requires power: every probe would have detected a leak of ``MARGIN`` or more with a probability of 80%. A probe
at chance by construction has no variance and detects any leak. Otherwise the part is *inconclusive*: it has too few
questions to exclude a leak of that size.

An accuracy below chance is not a leak (balanced designs cause it in cross-fitted probes); the report mentions it.

*Evidence* is the words and the geometry by which models prefer the gold option, and the learning curve.
"""

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
from scale_vqa_eval.audit.probe import Accuracy, FloatArray, ProbeAccuracy, ProbeScores, evaluate_probe, gold_of
from scale_vqa_eval.audit.text_features import (
    BLOCKS,
    COLUMN,
    FEATURES,
    HASH_COLUMNS,
    NGramColumns,
    TextFeatures,
    hash_of,
    terms_of,
)
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import holm
from scale_vqa_eval.schema import LETTERS

ALPHA: Final = 0.05
MARGIN: Final = 0.05
POWER: Final = 0.8

FRACTIONS: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
CURVE_CAP: Final = 4_000
WORD_FAMILIES: Final = ("words", "contrast")


@dataclass(frozen=True)
class SliceVerdict:
    """The verdict on one dimension, or on all questions.

    Attributes:
        verdict: ``leaks``, ``clean`` or ``inconclusive``.
        strongest: name of the probe with the highest accuracy.
        accuracy: accuracy of that probe.
        ci_low: lower end of its 95% interval.
        ci_high: upper end of its 95% interval, which a text-only reader may reach; only a model above it uses images.
        p_value: smallest Holm-adjusted p-value of all probes.
        level: significance level for ``p_value``.
        ceiling: highest upper end of all probes' 95% intervals.
        chance: accuracy of guessing.
        n: number of questions.
        leaking: names of the probes above chance, strongest first.
        minimum_detectable_leak: maximum over the probes of the smallest excess over chance that would have been
            detected with probability ``POWER`` (Bloom 1995); 0 if all are at chance by construction.
    """

    verdict: str
    strongest: str
    accuracy: float
    ci_low: float
    ci_high: float
    p_value: float
    level: float
    ceiling: float
    chance: float
    n: int
    leaking: tuple[str, ...]
    minimum_detectable_leak: float


@dataclass(frozen=True)
class AuditVerdict:
    """The verdict: ``leaks`` if any part leaks, else that over all questions.

    ``unresolved`` lists the parts (``all``, or a dimension) with the verdict ``inconclusive``.
    """

    verdict: str
    whole: SliceVerdict
    by_dimension: dict[str, SliceVerdict]
    unresolved: tuple[str, ...]


def reach_verdict(probes: Sequence[ProbeAccuracy], margin: float = MARGIN, alpha: float = ALPHA) -> AuditVerdict:
    """Returns the verdict of an audit.

    Args:
        probes: all probes that were run; the correction depends on their number.
        margin: maximum of the minimum detectable leak of a clean part, as a share (0.05 for five points).
        alpha: maximum probability that a file without a leak is reported as leaking.

    Raises:
        ValueError: if there is no probe.
    """
    if not probes:
        raise ValueError("a verdict needs at least one probe")
    dimensions = sorted(probes[0].by_dimension)
    level = alpha / 2 if len(dimensions) > 1 else alpha
    whole = _slice_verdict([(probe.name, probe) for probe in probes], holm([p.p_value for p in probes]), level, margin)
    parts = {name: whole for name in dimensions}
    if len(dimensions) > 1:
        cells = [(name, probe.name, probe.by_dimension[name]) for name in dimensions for probe in probes]
        adjusted = holm([cell.p_value for _, _, cell in cells])
        for name in dimensions:
            rows = [number for number, cell in enumerate(cells) if cell[0] == name]
            parts[name] = _slice_verdict([cells[i][1:] for i in rows], [adjusted[i] for i in rows], level, margin)
    leaks = any(part.verdict == "leaks" for part in (whole, *parts.values()))
    unresolved = [name for name, part in {"all": whole, **parts}.items() if part.verdict == "inconclusive"]
    return AuditVerdict("leaks" if leaks else whole.verdict, whole, parts, tuple(unresolved))


def minimum_detectable_leak(part: Accuracy, level: float) -> float:
    """Returns the smallest excess over chance that a one-sided test at ``level`` detects with probability ``POWER``.

    (t_(1-level) + t_POWER) * standard error, at clusters - 1 degrees of freedom; at most 1 - chance.
    """
    from scipy import special

    ends = [1.0 - level, POWER]
    tails = special.ndtri(ends) if part.clusters < 2 else special.stdtrit(part.clusters - 1, ends)
    return min(1.0 - part.chance, float(tails.sum()) * part.standard_error)


def _slice_verdict(
    probes: Sequence[tuple[str, Accuracy]], adjusted: Sequence[float], level: float, margin: float
) -> SliceVerdict:
    name, best = max(probes, key=lambda pair: pair[1].accuracy)
    ceiling = max(part.ci_high for _, part in probes)
    leaking = [(part.accuracy, probe) for (probe, part), p in zip(probes, adjusted, strict=True) if p <= level]
    detectable = max(minimum_detectable_leak(part, level / len(adjusted)) for _, part in probes)
    verdict = "leaks" if leaking else "clean" if detectable <= margin + 1e-9 else "inconclusive"
    return SliceVerdict(
        verdict=verdict,
        strongest=name,
        accuracy=best.accuracy,
        ci_low=best.ci_low,
        ci_high=best.ci_high,
        p_value=min(adjusted),
        level=level,
        ceiling=ceiling,
        chance=best.chance,
        n=best.n,
        leaking=tuple(probe for _, probe in sorted(leaking, key=lambda pair: (-pair[0], pair[1]))),
        minimum_detectable_leak=detectable,
    )


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
