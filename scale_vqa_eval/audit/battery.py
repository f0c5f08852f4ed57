"""The text-only battery: all probes that need no language model, and the label-permutation test.

results = run_battery(questions)
accuracies = [evaluate_probe(result, questions) for result in results]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from scale_vqa_eval.audit import fitted_probes
from scale_vqa_eval.audit.clusters import IntArray, clusters_of, folds_of
from scale_vqa_eval.audit.fitted_probes import Votes, cross_fit, make_fitter
from scale_vqa_eval.audit.probe import (
    FloatArray,
    OptionLayout,
    ProbeScores,
    gold_of,
    option_counts,
    p_above_chance,
    sequential_credit,
)
from scale_vqa_eval.audit.text_features import COLUMN, NGRAM_FAMILIES, TextFeatures, TextReader, chunks
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import holm
from scale_vqa_eval.schema import LETTERS

TRAIN_CAP: Final = 20_000
"""Maximum number of questions to fit models to; of larger files a sample is fitted and the rest is streamed."""
HEURISTIC_FAMILIES: Final = ("position", "length", "similarity", "overlap", "negation")
# heuristic probe -> (family, feature, sign): it picks the option with the highest (+1) or lowest (-1) feature
HEURISTICS: Final = {
    "longest": ("length", "characters", 1),
    "shortest": ("length", "characters", -1),
    "medoid": ("similarity", "mean similarity to the others by tokens", 1),
    "anti-medoid": ("similarity", "mean similarity to the others by tokens", -1),
    "question overlap": ("overlap", "tokens shared with the stem", 1),
    "most negated": ("negation", "negations", 1),
    "least negated": ("negation", "negations", -1),
}
MEMBERS: Final = ("geometry", "words", "contrast")
"""Families whose votes the ensemble averages, one per kind of evidence (characters repeat the words)."""
FAMILIES: Final = (*HEURISTIC_FAMILIES, "geometry", *NGRAM_FAMILIES, "ensemble")
NULL_LEVEL: Final = 0.01
"""Maximum share of runs in which the label-permutation test fails by chance."""
NULL_CAP: Final = 2_000
_NAMES: Final = {"position": "letter prior"}


def run_battery(
    questions: Sequence[Question],
    seed: int = 0,
    partitions: int | None = None,
    families: Sequence[str] | None = None,
    features: TextFeatures | None = None,
    folds: int = 5,
    progress: bool = False,
    sequence_only: bool = False,
) -> list[ProbeScores]:
    """Scores every question with every probe of some families; fitted probes are cross-fitted by cluster.

    Args:
        questions: questions with 2 to 26 options; dimension, slide and patient may be missing.
        seed: seed of folds and forests.
        partitions: number of partitions of the clusters into folds, whose votes are averaged; by default 3, or 1 for
            more than ``TRAIN_CAP`` questions.
        families: some of ``FAMILIES``, or None for all. ``ensemble`` averages the listed ``MEMBERS``, or all if none
            is listed.
        features: ``read_features`` of these questions, to avoid computing them again.
        folds: maximum number of folds of a partition.
        progress: whether to show a progress bar.
        sequence_only: compute only the sequential votes; the cross-fitted ones are then 0.

    Raises:
        ValueError: if a family is unknown, there is no question, or ``features`` are of other questions.
    """
    wanted = FAMILIES if families is None else tuple(families)
    unknown = [family for family in wanted if family not in FAMILIES]
    if unknown:
        raise ValueError(f"unknown family {', '.join(unknown)}; the battery has {', '.join(FAMILIES)}")
    n = len(questions)
    if not n:
        raise ValueError("the battery needs at least one question")
    streamed = n > TRAIN_CAP
    if features is not None and (streamed or len(features.layout.counts) != n):
        raise ValueError(f"the features are of {len(features.layout.counts)} questions, not of these {n}")
    rows = np.arange(n)
    if streamed:
        rows = np.sort(np.random.default_rng([seed, 2]).choice(n, TRAIN_CAP, replace=False))
    chosen = [questions[row] for row in rows.tolist()] if streamed else questions
    reader = TextReader.fit(chosen, _ngram_families(wanted)) if features is None else None
    sample = features if reader is None else reader.read(chosen)
    assert sample is not None
    geometry: list[np.typing.NDArray[np.float32]] = []

    def parts() -> Iterator[tuple[IntArray, TextFeatures]]:
        for chunk in chunks(questions) if streamed else [range(n)]:
            assert sample is not None and (reader is not None or not streamed)
            part = reader.read([questions[row] for row in chunk]) if streamed and reader is not None else sample
            geometry.append(part.geometry)
            yield np.arange(chunk.start, chunk.stop), part

    gold = gold_of(chosen)
    votes = cross_fit(
        {f: make_fitter(f, sample, gold) for f in fitted_probes.FAMILIES if f in _needed(wanted)},
        folds_of(clusters_of(questions), seed, partitions or (1 if streamed else 3), folds),
        parts(),
        seed,
        rows if streamed else None,
        crossed=not sequence_only,
        progress="fitting probes" if progress else None,
    )
    layout = OptionLayout.of_questions(questions)
    results = _heuristic_probes(layout, np.concatenate(geometry), wanted)
    results += [votes[f].scores(_NAMES.get(f, f), f, layout) for f in votes if f in wanted]
    if "ensemble" in wanted:
        members = [family for family in MEMBERS if family in wanted] or MEMBERS
        crossed = np.mean([votes[family].crossed for family in members], axis=0)
        sequential = np.mean([votes[family].sequential for family in members], axis=0)
        results.append(Votes(crossed, sequential).scores("ensemble", "ensemble", layout))
    return results


def read_features(questions: Sequence[Question], families: Sequence[str] | None = None) -> TextFeatures:
    """Computes the features of at most ``TRAIN_CAP`` questions, for several runs of the battery.

    Gold answers are not used, and ``read_features(questions).take(rows)`` can be used for a subset of the questions.
    """
    if len(questions) > TRAIN_CAP:
        raise ValueError(f"texts are read for at most {TRAIN_CAP} questions, got {len(questions)}")
    return TextReader.fit(questions, _ngram_families(FAMILIES if families is None else families)).read(questions)


def sample_rows(n: int, cap: int, seed: Sequence[int]) -> IntArray:
    """Returns the ascending rows of a seeded sample of at most ``cap`` of n questions."""
    return np.arange(n) if n <= cap else np.sort(np.random.default_rng(seed).choice(n, cap, replace=False))


def _needed(wanted: Sequence[str]) -> tuple[str, ...]:
    """Returns the families to fit, including all members of an ensemble that is listed without members."""
    alone = "ensemble" in wanted and not any(family in wanted for family in MEMBERS)
    return (*wanted, *MEMBERS) if alone else tuple(wanted)


def _ngram_families(wanted: Sequence[str]) -> list[str]:
    return [family for family in NGRAM_FAMILIES if family in _needed(wanted)]


def _heuristic_probes(layout: OptionLayout, geometry: FloatArray, wanted: Sequence[str]) -> list[ProbeScores]:
    """Returns the probes that are not fitted; there is a probe for each letter that half of the questions have."""
    letters = np.arange(len(layout.owner)) - layout.starts[layout.owner]
    results = [
        ProbeScores(f"always {LETTERS[number]}", "position", False, layout.padded(letters == number))
        for number in range(int(np.median(layout.counts)) if "position" in wanted else 0)
    ]
    for name, (family, feature, sign) in HEURISTICS.items():
        if family in wanted:
            results.append(ProbeScores(name, family, False, layout.padded(sign * geometry[:, COLUMN[feature]])))
    return results


def redraw_gold(questions: Sequence[Question], seed: int) -> list[Question]:
    """Returns the questions with random gold options, uniform over each question's options."""
    drawn = np.random.default_rng([seed, 4]).integers(0, option_counts(questions))
    return [replace(question, answer=int(gold)) for question, gold in zip(questions, drawn, strict=True)]


def label_permutation_test(
    questions: Sequence[Question],
    seed: int = 0,
    draws: int = 3,
    features: TextFeatures | None = None,
    families: Sequence[str] = (*fitted_probes.FAMILIES, "ensemble"),
    progress: bool = False,
    further: Callable[[Sequence[Question], int], list[ProbeScores]] = lambda questions, seed: [],
) -> dict[str, Any]:
    """Runs the fitted probes on random gold answers, on which all of them must be at chance.

    A probe above chance would use the answers of the questions that it is scored on, which is an error of the audit
    and not of the data. The correct sequential picks (``fitted_probes.Votes``) of all draws are tested against the
    binomial distribution at chance, Holm-corrected over the probes, at ``NULL_LEVEL``. Random gold answers are
    independent, so no clustering is needed. The reported accuracies are those of the sequential picks.

    Args:
        questions: questions of the audit; of more than ``NULL_CAP`` a seeded sample is used.
        seed: seed of the draws.
        draws: number of draws of all gold answers.
        features: ``read_features`` of these questions.
        families: fitted families to test.
        progress: whether to show a progress bar.
        further: function of questions with random gold answers and a seed that runs further fitted probes; it is used
            for at most ``NULL_CAP`` questions.

    Returns:
        ``passed``, ``method``, ``level``, ``draws``, ``n``, ``chance`` and, by probe, ``accuracy``, ``per_draw`` and
        the adjusted ``p_value``.
    """
    complete = len(questions) <= NULL_CAP
    if not complete:
        kept = sample_rows(len(questions), NULL_CAP, [seed, 5])
        questions = [questions[row] for row in kept]
        features = None if features is None else features.take(kept)
    features = features or read_features(questions, families)
    even = 1.0 / option_counts(questions)
    rates: dict[str, list[float]] = {}
    tested: dict[str, list[FloatArray]] = {}
    for draw in tqdm(range(draws), "label-permutation test", unit=" draws", disable=not progress, leave=False):
        drawn = redraw_gold(questions, seed * 1009 + draw)
        results = run_battery(drawn, seed * 1009 + draw, 1, families, features, sequence_only=True)
        for result in [*results, *(further(drawn, seed * 1009 + draw) if complete else [])]:
            if result.trained:
                picks = sequential_credit(result, drawn)
                rates.setdefault(result.name, []).append(float(np.where(np.isnan(picks), even, picks).mean()))
                tested.setdefault(result.name, []).append(picks)
    adjusted = holm([_binomial_tail(np.concatenate(credits), np.tile(even, draws)) for credits in tested.values()])
    return {
        "passed": min(adjusted) > NULL_LEVEL,
        "method": "gold redrawn evenly among each question's options; binomial tail in sequence, Holm over probes",
        "level": NULL_LEVEL,
        "draws": draws,
        "n": len(questions),
        "chance": float(even.mean()),
        "probes": {
            name: {"accuracy": float(np.mean(per_draw)), "per_draw": per_draw, "p_value": p}
            for (name, per_draw), p in zip(rates.items(), adjusted, strict=True)
        },
    }


def _binomial_tail(credits: FloatArray, even: FloatArray) -> float:
    known = ~np.isnan(credits)
    return p_above_chance(credits[known], even[known], np.zeros(int(known.sum()), dtype=np.int64))
