"""Clusters of related questions (exchange sets, patients, slides), and their partition into folds.

A fitted probe must not score near-copies of its training questions, and an interval must not treat questions of one
slide as independent. Both use the same clusters:

- An *exchange set* has questions with the same stem and the same options in the same order, in which every option is
  gold equally often. It is found by its text; a ``group`` column is not needed. Its members stay in one fold, where a
  fitted probe is a fixed function of the text and is right on exactly 1/k of the set. If a fold split the set, each
  member would be scored by a model that was fitted to the same text with the other gold answers, and accuracy would
  fall *below* chance.
- Otherwise the cluster is the patient, else the slide, else the question itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.controls.exchange_group import find_exchange_groups
from scale_vqa_eval.questions import Question

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Clusters:
    """The cluster of each question.

    Attributes:
        ids: (n,) cluster number of each question, in order of appearance.
        balanced: (n,) whether the question belongs to an exchange set.
    """

    ids: IntArray
    balanced: npt.NDArray[np.bool_]

    def take(self, rows: IntArray) -> Clusters:
        """Returns the clusters of some questions."""
        return Clusters(self.ids[rows], self.balanced[rows])


@dataclass(frozen=True)
class ClusterSummary:
    """Summary of the clusters of a file.

    Attributes:
        kind: most frequent kind of cluster: ``patient``, ``slide``, ``question`` or ``exchange set``.
        clusters: number of clusters.
        exchange_sets: number of exchange sets among them.
        unnamed: number of questions without patient, slide and exchange set; each is its own cluster.
        note: consequence for folds and intervals, or empty.
    """

    kind: str
    clusters: int
    exchange_sets: int
    unnamed: int
    note: str


def clusters_of(questions: Sequence[Question]) -> Clusters:
    """Returns the cluster of each question: exchange set, else patient, else slide, else the question."""
    exchange = exchange_sets(questions)
    seen: dict[tuple[str, object], int] = {}
    ids = np.empty(len(questions), dtype=np.int64)
    for row, question in enumerate(questions):
        if exchange[row] >= 0:
            key: tuple[str, object] = ("exchange", int(exchange[row]))
        elif question.patient or question.slide:
            key = ("cluster", question.cluster)
        else:
            key = ("question", row)
        ids[row] = seen.setdefault(key, len(seen))
    return Clusters(ids, exchange >= 0)


def exchange_sets(questions: Sequence[Question]) -> IntArray:
    """Returns (n,): number of the exchange set of each question, or -1."""
    out = np.full(len(questions), -1, dtype=np.int64)
    for number, rows in enumerate(find_exchange_groups(questions)):
        out[rows] = number
    return out


def assignment_groups(questions: Sequence[Question]) -> list[IntArray]:
    """Returns the rows of each exchange group (same stem and options, as many rows as options); gold is not used."""
    same: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for row, question in enumerate(questions):
        same.setdefault((question.question, question.options), []).append(row)
    return [np.array(rows) for (_, options), rows in same.items() if len(rows) == len(options)]


def joint_clusters(questions: Sequence[Question]) -> Clusters:
    """Returns the clusters for readers of the whole file: sets of patients that are connected by exchange groups.

    In a block exchange these are the blocks, because a reader that confuses two slides of a block is wrong in all of
    its groups. If exchange groups connect all patients, the patient (slide, question) is the cluster.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(question.cluster for question in questions))}
    patients = np.array([names[question.cluster] for question in questions], dtype=np.int64)
    parts = _connected(patients, assignment_groups(questions))
    ids = parts if parts.any() else patients
    return Clusters(ids, np.zeros(len(ids), dtype=np.bool_))


def is_block_exchange(questions: Sequence[Question]) -> bool:
    """Tests whether the texts are invariant to relabelling slides and paths, so that every joint reader is at chance.

    This is so if every row is in an exchange group of k rows (with one text, and one name if groups have names), the
    groups connect slides (and paths, and images of a view) in blocks of exactly k, and each group has one row of every
    member of its block. Then a reader of all texts who knows which rows share a slide, a path or an image is right on
    1/k of the items on average over the relabellings.
    """
    rows: dict[tuple[str, tuple[str, ...], str | None], list[int]] = {}
    for row, question in enumerate(questions):
        rows.setdefault((question.question, question.options, question.group), []).append(row)
    if any(sorted(questions[row].answer for row in some) != list(range(len(key[1]))) for key, some in rows.items()):
        return False
    groups = [np.array(some) for some in rows.values()]
    views = dict.fromkeys(view for question in questions for view, _ in question.images)
    linked: list[Sequence[object]] = [
        [question.slide or question.cluster for question in questions],
        [(question.slide, question.path_id or question.cluster) for question in questions],
        *(
            [dict(question.images).get(view) or (question.slide, question.path_id) for question in questions]
            for view in views
        ),
    ]
    for names in linked:
        codes: dict[object, int] = {}
        values = np.array([codes.setdefault(name, len(codes)) for name in names], dtype=np.int64)
        block = _connected(values, groups)
        for group in groups:
            members = np.unique(values[block == block[group[0]]])
            if len(members) != len(group) or not np.array_equal(np.sort(values[group]), members):
                return False
    return True


def _connected(values: IntArray, groups: Sequence[IntArray]) -> IntArray:
    """Returns (n,): connected component of each row; the rows of a group connect their values."""
    from scipy import sparse

    size = int(values.max(initial=-1)) + 1
    pairs = np.array([(values[group[0]], values[row]) for group in groups for row in group]).reshape(-1, 2)
    edges = sparse.coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    component: IntArray = sparse.csgraph.connected_components(edges, directed=False)[1]
    return np.asarray(component[values], dtype=np.int64)


def describe_clusters(questions: Sequence[Question], clusters: Clusters) -> ClusterSummary:
    """Summarises the clusters of a file and the consequences of missing patients and slides."""
    loose = [question for question, balanced in zip(questions, clusters.balanced, strict=True) if not balanced]
    unnamed = sum(question.patient is None and question.slide is None for question in loose)
    count = int(clusters.ids.max(initial=-1)) + 1
    kind = "exchange set"
    if 2 * len(loose) >= len(questions):
        patients = any(question.patient for question in loose)
        kind = "question" if 2 * unnamed > len(loose) else "patient" if patients else "slide"
    note = ""
    if unnamed:
        subject = "No question names" if unnamed == len(loose) else f"{unnamed} of {len(loose)} questions do not name"
        note = (
            f"{subject} its patient or slide: each is its own cluster. Near-copies may then lie on both sides of a "
            "fold, which flatters the fitted probes, and intervals are too narrow where slides are shared."
        )
    elif count == 1:
        note = (
            "All questions come from one cluster: folds and intervals are by question, too narrow for other slides, "
            "and near-copies may lie on both sides of a fold."
        )
    elif count < 10:
        note = f"Only {count} clusters: intervals are wide, and only a large leak can be shown."
    return ClusterSummary(kind, count, len(np.unique(clusters.ids[clusters.balanced])), unnamed, note)


def folds_of(clusters: Clusters, seed: int, partitions: int, folds: int = 5) -> IntArray:
    """Returns ``make_folds``, or a single fold if the file is one exchange set."""
    if clusters.balanced.all() and not clusters.ids.any():
        return np.zeros((partitions, len(clusters.ids)), dtype=np.int64)
    return make_folds(clusters.ids, seed, partitions, folds)


def make_folds(clusters: IntArray, seed: int, partitions: int, folds: int = 5) -> IntArray:
    """Assigns clusters in random order to the fold with the fewest questions so far.

    If there is a single cluster, its questions are assigned one by one.

    Args:
        clusters: (n,) cluster of each question, numbered from 0.
        seed: seed of the random order.
        partitions: number of partitions.
        folds: maximum number of folds; there are at most as many as clusters.

    Returns:
        (partitions, n) fold of each question.
    """
    if int(clusters.max(initial=-1)) < 1:
        clusters = np.arange(len(clusters))
    sizes = np.bincount(clusters)
    rng = np.random.default_rng([seed, 1])
    dealt = np.empty((partitions, len(sizes)), dtype=np.int64)
    for partition in range(partitions):
        load = np.zeros(min(folds, len(sizes)), dtype=np.int64)
        for cluster in rng.permutation(len(sizes)):
            dealt[partition, cluster] = np.argmin(load)
            load[np.argmin(load)] += sizes[cluster]
    return dealt[:, clusters]
