"""The joint reader: a text-only reader of the whole file, which uses that rows share a slide, a path or an image.

The right options of the rows of a slide describe the same tissue. The reader scores the coherence (TF-IDF cosine) of
each option with the options of the linked rows, minus that with all other rows. It starts with uniform beliefs about
the options of each row, and updates them in ``ROUNDS`` rounds. In an exchange group (as many rows with the same text
as options), each letter may be right once: then the beliefs are balanced over the group, and the picks are an
assignment. The fitted reader learns weights for these scores on other clusters.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Any, Final

import numpy as np

from scale_vqa_eval.audit.clusters import IntArray, assignment_groups, folds_of, joint_clusters
from scale_vqa_eval.audit.fitted_probes import cross_fit, make_fitter
from scale_vqa_eval.audit.probe import FloatArray, OptionLayout, ProbeScores, gold_of
from scale_vqa_eval.audit.text_features import TextFeatures, ngrams
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import VIEWS

FAMILY: Final = "joint"
ROUNDS: Final = 7
SHARPNESS: Final = 2.0
"""Softmax slope of the beliefs, for scores of unit standard deviation."""
BALANCING_STEPS: Final = 20


@dataclass(frozen=True)
class JointFeatures:
    """The coherence scores of the options of a file; gold answers are not used.

    Attributes:
        layout: the options.
        groups: rows of each exchange group.
        by_link: kind of link -> (N,) scores of the last round, without and with one letter each (None without exchange
            groups).
        columns: (N, f) scores of the first and the last round, for the fitted probe.
    """

    layout: OptionLayout
    groups: list[IntArray]
    by_link: dict[str, tuple[FloatArray, FloatArray | None]]
    columns: FloatArray


def joint_features(questions: Sequence[Question]) -> JointFeatures | None:
    """Returns the features for the joint probes, or None if no rows share a slide, a path or an image."""
    layout, groups, links = OptionLayout.of_questions(questions), assignment_groups(questions), links_of(questions)
    if not links:
        return None
    vectors = _tf_idf(questions)
    columns: list[FloatArray] = []
    by_link: dict[str, tuple[FloatArray, FloatArray | None]] = {}
    for kind, link in links.items():
        first, last = coherence(vectors, layout, link, [])
        balanced = coherence(vectors, layout, link, groups)[1] if groups else None
        columns += [first, last] + ([] if balanced is None else [balanced])
        by_link[kind] = (last, balanced)
    return JointFeatures(layout, groups, by_link, np.column_stack(columns))


def joint_probes(
    questions: Sequence[Question], seed: int = 0, partitions: int = 3, features: JointFeatures | None = None
) -> list[ProbeScores]:
    """Returns a joint probe per kind of link and a fitted one; with exchange groups, each also with one letter each.

    The list is empty if no rows are linked.

    Args:
        questions: the questions of one file.
        seed: seed of the folds of the fitted probe.
        partitions: number of partitions of the clusters into folds, whose votes are averaged.
        features: ``joint_features`` of these questions, to avoid computing them again.
    """
    features = features or joint_features(questions)
    if features is None:
        return []
    layout, groups = features.layout, features.groups
    results: list[ProbeScores] = []
    for kind, (last, balanced) in features.by_link.items():
        results.append(ProbeScores(f"joint by {kind}", FAMILY, False, layout.padded(last), joint=True))
        if balanced is not None:
            assigned = _one_letter_each(layout.padded(balanced), groups)
            results.append(ProbeScores(f"joint by {kind}, one letter each", FAMILY, False, assigned, joint=True))
    n, size = len(questions), len(layout.owner)
    dense = {FAMILY: features.columns}
    texts = TextFeatures(layout, np.full(n, -1), np.empty((size, 0), np.float32), {}, dense)
    fitter = make_fitter(FAMILY, texts, gold_of(questions))
    folds = folds_of(joint_clusters(questions), seed, partitions)
    votes = cross_fit({FAMILY: fitter}, folds, [(np.arange(n), texts)], seed)[FAMILY]
    fitted = replace(votes.scores("joint classifier", FAMILY, layout), joint=True)
    results.append(fitted)
    if groups and fitted.sequential is not None:
        name, scores = f"{fitted.name}, one letter each", _one_letter_each(fitted.scores, groups)
        sequential = _one_letter_each(fitted.sequential, groups)
        results.append(ProbeScores(name, FAMILY, True, scores, sequential, joint=True))
    return results


def links_of(questions: Sequence[Question]) -> dict[str, IntArray]:
    """Returns kind of link -> (n,) number of the slide, path or coarsest image of each row, or -1.

    A kind is left out if no two rows share one, or if it links the same rows as an earlier kind.
    """
    names: dict[str, list[Hashable]] = {
        "slide": [question.slide or question.patient for question in questions],
        "path": [(question.slide, question.path_id) if question.path_id else None for question in questions],
        "image": [
            next((path for _, path in sorted(question.images, key=_coarseness)), None) for question in questions
        ],
    }
    links: dict[str, IntArray] = {}
    for kind, values in names.items():
        times = Counter(value for value in values if value is not None)
        numbers = {value: number for number, value in enumerate(value for value in times if times[value] > 1)}
        link = np.array([numbers.get(value, -1) for value in values], dtype=np.int64)
        if numbers and not any(np.array_equal(link, other) for other in links.values()):
            links[kind] = link
    return links


def _coarseness(image: tuple[str, str]) -> tuple[int, str]:
    return (VIEWS.index(image[0]) if image[0] in VIEWS else len(VIEWS), image[0])


def _tf_idf(questions: Sequence[Question]) -> Any:
    """Returns (N, f) sparse TF-IDF rows of all options, with equal total weight of words and characters."""
    from scipy import sparse

    texts = tuple(text for question in questions for text in question.options)
    blocks = []
    for kind in ("words", "characters"):
        matrix = ngrams(texts, kind)
        frequency = np.bincount(matrix.indices, minlength=matrix.shape[1])
        kept = np.flatnonzero(frequency)
        weight = np.log((len(texts) + 1.0) / (frequency[kept] + 1.0)) + 1.0
        weighted = sparse.csr_array(matrix[:, kept].astype(np.float64) @ sparse.diags_array(weight))
        length = np.sqrt(np.maximum(_row_dots(weighted, weighted), 1e-12) * 2.0)
        blocks.append(sparse.diags_array(1.0 / length) @ weighted)
    return sparse.csr_array(sparse.hstack(blocks))


def coherence(
    vectors: Any, layout: OptionLayout, link: IntArray, groups: Sequence[IntArray]
) -> tuple[FloatArray, FloatArray]:
    """Returns (N,) coherence of each option with the linked rows, in the first and in the last round.

    Scores have mean 0 within each question and unit variance; they are 0 in rows without a link.

    Args:
        vectors: (N, f) sparse TF-IDF rows of unit length.
        layout: the options.
        link: (n,) links of one kind, from ``links_of``.
        groups: exchange groups in which each letter is used once; may be empty.
    """
    n, own = len(link), link[layout.owner]
    linked = (np.flatnonzero(own == kind) for kind in range(link.max() + 1))
    blocks = [(rows, block, block.T) for rows, block in ((rows, vectors[rows]) for rows in linked)]
    every = vectors.T
    members = np.bincount(link[link >= 0])[np.maximum(own, 0)].astype(np.float64)
    belief = 1.0 / layout.counts[layout.owner]
    grams = _grams(vectors, layout)
    found: list[FloatArray] = []
    for _ in range(ROUNDS):
        inside = np.zeros(len(own))
        for rows, block, transposed in blocks:
            inside[rows] = block @ (transposed @ belief[rows])
        outside = vectors @ (every @ belief) - inside
        for rows, gram in grams:  # subtract the options of the same question
            inside[rows] -= np.einsum("nij,nj->ni", gram, belief[rows])
        near = inside / np.maximum(1.0, members - 1.0)
        far = outside / np.maximum(1.0, n - members)
        scores = np.where(own >= 0, near - far, 0.0)
        for _, rows in _group_rows(layout, groups):  # cancel words that fit all rows of a group
            scores[rows] -= scores[rows].mean(axis=1, keepdims=True)
        centred = layout.centred(scores[:, None])[:, 0]
        found.append(centred / max(float(centred.std()), 1e-12))
        belief = _balanced(layout.softmax(SHARPNESS * found[-1]), layout, groups)
    return found[0], found[-1]


def _grams(vectors: Any, layout: OptionLayout) -> list[tuple[IntArray, FloatArray]]:
    """Returns ((m, k) option rows, (m, k, k) dot products) of the options of the m questions with k options."""
    found = []
    for k, rows in layout.same_count():
        gram = np.empty((len(rows), k, k))
        for left, right in combinations_with_replacement(range(k), 2):
            dots = _row_dots(vectors[rows[:, left]], vectors[rows[:, right]])
            gram[:, left, right] = gram[:, right, left] = dots
        found.append((rows, gram))
    return found


def _row_dots(left: Any, right: Any) -> FloatArray:
    return np.asarray(left.multiply(right).sum(axis=1), dtype=np.float64).ravel()


def _group_rows(layout: OptionLayout, groups: Sequence[IntArray]) -> list[tuple[int, IntArray]]:
    """Returns (k, (g, k, k) option rows) of the groups with k rows; axis 1 is the row, axis 2 the option."""
    by_size: dict[int, list[IntArray]] = defaultdict(list)
    for group in groups:
        by_size[len(group)].append(layout.starts[group][:, None] + np.arange(len(group)))
    return [(k, np.stack(rows)) for k, rows in by_size.items()]


def _balanced(belief: FloatArray, layout: OptionLayout, groups: Sequence[IntArray]) -> FloatArray:
    """Scales the beliefs of each group so that every row and every letter sums to 1 (Sinkhorn)."""
    out = belief.copy()
    for _, rows in _group_rows(layout, groups):
        square = belief[rows]
        for _ in range(BALANCING_STEPS):
            square = square / square.sum(axis=1, keepdims=True)
            square = square / square.sum(axis=2, keepdims=True)
        out[rows] = square
    return out


def _one_letter_each(scores: FloatArray, groups: Sequence[IntArray]) -> FloatArray:
    """Returns (n, width) scores that pick the assignment of letters with the highest total score in each group."""
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(0)  # for ties, which the order of rows must not break: it may be that of the letters
    out = scores.copy()
    for group in groups:
        square = scores[group][:, : len(group)]
        if np.isfinite(square).all():
            rows, letters = linear_sum_assignment(-square + 1e-6 * rng.random(square.shape))
            out[group] = np.where(np.isfinite(out[group]), 0.0, -np.inf)
            out[group[rows], letters] = 1.0
    return out
