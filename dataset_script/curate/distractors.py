"""Step 2: builds options, with distractors that are right on other paths, so that words do not give away the answer.

A wrong finding that a model invents is never right anywhere, and a fitted reader learns that. Here every wrong finding
is right on another path. If it were drawn freely, the commoner of two findings would still be more likely to be right,
so pairs are drawn in *detailed balance*: in expectation, a is right in as many of the questions with {a, a'} as a'.
With n_i questions whose right finding is i, a symmetric matrix M with row sums n_i is computed (M = d W d, Sinkhorn
scaling of a symmetric similarity W with zero diagonal; Knight 2008, SIAM J. Matrix Anal. Appl. 30:261), and i gets the
distractor j with probability M_ij / n_i. No such matrix exists for a finding that is right in more than half of the
questions: some of its questions get no distractor and are rewritten.

Differences of counts that chance explains are kept. W prefers findings with the same number of words and letters, and
with or without negation alike.

A question joins findings of two aspects. If the first finding is hardly ever stated without the second, two of the
four options describe what no region shows, and one finding gives the other away. Such a finding is not used in
questions of the two aspects outside of exchange groups, neither as the right nor as the wrong value: if it were only
never right, a reader would learn that.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dataset_script.curate.candidates import Candidate
from dataset_script.curate.captions import CaptionFeature, content, may_hold, stems
from dataset_script.curate.exchange_planning import PlannedGroup, group_candidates
from scale_vqa_eval.text import NEGATION

AspectValue = tuple[str, tuple[str, ...]]
Implication = tuple[AspectValue, str]
"""A finding (aspect, stems), and an aspect of which it implies a finding."""
MIN_PATIENTS: Final = 3
SHARE: Final = 0.9
"""A finding implies another one if at least this share of its patients have both."""
ALPHA: Final = 0.01
"""Level for one pair of aspects, over all its pairs of findings (Bonferroni)."""


def find_implications(rows: Iterable[Mapping[str, Any]], patient_of: Mapping[str, str]) -> frozenset[Implication]:
    """Returns the findings that imply a finding of another aspect.

    A pair of findings is tested by the binomial tail of the second among the patients with the first, against its
    share among those of the same two aspects without the first. A patient counts once per pair.

    Args:
        rows: rows of the decompose step: ``path`` and its ``features``.
        patient_of: path key -> patient.

    >>> grade = {"aspect": "grade", "value": "three"}
    >>> many, few = ({"aspect": "mitoses", "value": value} for value in ("many", "few"))
    >>> low = {"aspect": "grade", "value": "one"}
    >>> rows = [{"path": str(n), "features": [grade, many] if n % 2 else [low, few]} for n in range(20)]
    >>> sorted(find_implications(rows, {str(n): f"P{n}" for n in range(20)}))[0]
    (('grade', ('one',)), 'mitoses')
    """
    numbers: dict[AspectValue, int] = {}
    patients: dict[str, int] = {}
    seen: list[np.ndarray] = [np.empty((0, 3), np.int32)]
    for row in rows:
        named = {(one["aspect"], stems(one["value"])) for one in row["features"]}
        found = sorted(numbers.setdefault(one, len(numbers)) for one in named)
        patient = patients.setdefault(patient_of[row["path"]], len(patients))
        both = [(first, second, patient) for first, second in permutations(found, 2)]
        seen.append(np.array(both, dtype=np.int32).reshape(-1, 3))
    aspects = sorted({aspect for aspect, _ in numbers})
    aspect_of = np.array([aspects.index(aspect) for aspect, _ in numbers], dtype=np.int64)
    table = np.unique(np.concatenate(seen), axis=0)
    table = table[aspect_of[table[:, 0]] != aspect_of[table[:, 1]]]
    if not len(table):
        return frozenset()
    pairs, together = np.unique(table[:, :2], axis=0, return_counts=True)
    findings = list(numbers)
    implied = _implied(pairs, together, aspect_of).tolist()
    return frozenset((findings[finding], aspects[aspect]) for finding, aspect in implied)


def _implied(pairs: Any, together: Any, aspect_of: Any) -> Any:
    """Returns (n, 2) finding and implied aspect.

    Args:
        pairs: (m, 2) indices of findings that are stated of the same region.
        together: (m,) number of patients with each pair.
        aspect_of: (findings,) aspect of each finding.
    """
    from scipy.stats import binom

    first_aspect, second_aspect = aspect_of[pairs[:, 0]], aspect_of[pairs[:, 1]]
    of_first = _group_sums(together, pairs[:, 0], second_aspect)  # patients with the first and any of that aspect
    of_second = _group_sums(together, pairs[:, 1], first_aspect)
    of_both = _group_sums(together, first_aspect, second_aspect)
    tested = _group_sums(np.ones_like(together), first_aspect, second_aspect)
    without = of_both - of_first
    rate = np.divide(of_second - together, without, out=np.ones(len(pairs)), where=without > 0)
    tail = binom.sf(together - 1, of_first, np.clip(rate, 1 / np.maximum(without + 1, 2), 1.0))
    implied = (together >= MIN_PATIENTS) & (together >= SHARE * of_first) & (tail < ALPHA / tested)
    return np.stack([pairs[implied, 0], second_aspect[implied]], axis=1)


def _group_sums(counts: Any, left: Any, right: Any) -> Any:
    """Returns for each row the sum of the counts over all rows with the same two keys."""
    _, group = np.unique(np.stack([left, right], axis=1), axis=0, return_inverse=True)
    return np.bincount(group.ravel(), weights=counts)[group.ravel()]


FloatArray = npt.NDArray[np.float64]
GroupTexts = Set[tuple[str, tuple[str, ...]]]
PathFinding = tuple[str, str, tuple[str, ...]]
"""Path key, aspect, and stems of the finding."""
MAX_VALUES: Final = 1500
"""An aspect with more distinct values is split into runs of this length, ordered by number of words and letters."""
LETTERS_APART: Final = 4.0
WORDS_APART: Final = 0.7
STEPS: Final = 400
REDRAWS: Final = 12
DEVIATIONS: Final = 2.0
"""A count within this many standard deviations (of a Poisson count) of the mean is attributed to chance."""


@dataclass(frozen=True)
class DistractorPool:
    """The right findings of one question type and aspect, and the probabilities of their distractors.

    Attributes:
        values: distinct findings as phrases.
        index: stems of a finding -> its index in ``values``.
        chance: index -> (indices, probabilities) of distractors; the rest to 1 is the probability of no distractor.
    """

    values: tuple[str, ...]
    index: dict[tuple[str, ...], int]
    chance: tuple[tuple[npt.NDArray[np.int64], FloatArray], ...]

    def draw(self, value: str, rng: random.Random, refused: Sequence[str] = ()) -> str | None:
        """Draws the distractor of a finding; None if the finding is too common or has no other to compare with.

        Args:
            value: the right finding.
            rng: random generator.
            refused: phrases that must not be drawn, because they may be true of the region as well.
        """
        at = self.index.get(stems(value))
        if at is None:
            return None
        others, chances = self.chance[at]
        if rng.random() >= chances.sum():
            return None
        banned = {stems(phrase) for phrase in refused}
        allowed = [
            (other, chance)
            for other, chance in zip(others.tolist(), chances.tolist(), strict=True)
            if chance > 0 and stems(self.values[other]) not in banned
        ]
        if not allowed:
            return None
        drawn = rng.choices([other for other, _ in allowed], [chance for _, chance in allowed])[0]
        return self.values[drawn]

    def others(self, value: str) -> list[str]:
        """Returns all possible distractors of a finding."""
        at = self.index.get(stems(value))
        return [] if at is None else [self.values[other] for other in self.chance[at][0].tolist()]


def distractor_pool(findings: Sequence[str], seed: str) -> DistractorPool:
    """Builds the pool of one question type and aspect.

    Args:
        findings: the right finding of each question, repeats included.
        seed: decides how many questions of a finding that is too common get no distractor.
    """
    spellings: dict[tuple[str, ...], list[str]] = {}
    for phrase in findings:
        spellings.setdefault(stems(phrase), []).append(phrase)
    keys = sorted(spellings, key=lambda key: (len(key), len(" ".join(key)), key))
    values = tuple(min(spellings[key], key=lambda phrase: (-spellings[key].count(phrase), phrase)) for key in keys)
    chance: list[tuple[npt.NDArray[np.int64], FloatArray]] = []
    for start in range(0, len(keys), MAX_VALUES):
        run = keys[start : start + MAX_VALUES]
        counts = evened(np.array([len(spellings[key]) for key in run], dtype=np.float64))
        balanced = balanced_matrix(similarity(values[start : start + MAX_VALUES]), counts)
        kept = _kept_share(balanced.sum(axis=1), counts, seed)
        for row in range(len(run)):
            others = np.flatnonzero(balanced[row] > 0)
            chance.append((others + start, balanced[row, others] / max(balanced[row].sum(), 1e-300) * kept[row]))
    return DistractorPool(values, {key: number for number, key in enumerate(keys)}, tuple(chance))


def evened(counts: FloatArray) -> FloatArray:
    """Returns the counts, with those that chance explains replaced by their mean.

    Differences by chance must remain in the result. With exactly equal counts, the answers that a reader knows would
    give away the others, and a fitted probe would be wrong more often than a guess.
    """
    mean = counts.mean() if len(counts) else 0.0
    by_chance = np.abs(counts - mean) < DEVIATIONS * np.sqrt(max(mean, 1e-9))
    return np.asarray(np.where(by_chance, mean, counts))


def similarity(values: Sequence[str]) -> FloatArray:
    """Returns (n, n) symmetric weights: how well two findings match as alternatives; 0 if they cannot be."""
    words_of = [content(value) for value in values]
    negated = [NEGATION.search(value) is not None for value in values]
    sizes = np.array([[len(stems(one)), len(one), no] for one, no in zip(values, negated, strict=True)], np.float64)
    gaps = np.abs(sizes[:, None, :] - sizes[None, :, :])
    weights = np.exp(-gaps[:, :, 0] / WORDS_APART - gaps[:, :, 1] / LETTERS_APART - 3.0 * gaps[:, :, 2]) + 1e-4
    for row, own in enumerate(words_of):
        for column in range(row + 1):
            other = words_of[column]
            opposites = own == other and sizes[row, 2] != sizes[column, 2]  # a finding and its denial
            if (own <= other or other <= own) and not opposites:
                weights[row, column] = weights[column, row] = 0.0
    return np.asarray(weights)


def balanced_matrix(weights: FloatArray, counts: FloatArray) -> FloatArray:
    """Returns the symmetric (n, n) matrix d W d with row sums ``counts``, or less if that is impossible."""
    if len(counts) < 2:
        return np.zeros_like(weights)
    scale = np.sqrt(counts)
    for _ in range(STEPS):
        sums = weights @ scale
        scale = np.where(sums > 0, np.sqrt(scale * counts / np.maximum(sums, 1e-300)), 0.0)
    matrix = weights * scale[:, None] * scale[None, :]
    for _ in range(50):
        fit = np.minimum(1.0, counts / np.maximum(matrix.sum(axis=1), 1e-300))
        matrix = matrix * np.minimum(fit[:, None], fit[None, :])
    return np.asarray(matrix)


def _kept_share(sums: FloatArray, counts: FloatArray, seed: str) -> FloatArray:
    """Returns the share of each finding's questions that get a distractor.

    For a finding that is too common, the share varies as with a fair coin: with exact balance, a reader who knows some
    answers could work out the others.
    """
    rng = np.random.default_rng(list(seed.encode()))
    jitter = rng.normal(size=len(counts)) * np.sqrt(np.maximum(sums, 0.0) / 2) / np.maximum(counts, 1.0)
    kept = sums / np.maximum(counts, 1e-300)
    return np.asarray(np.where(kept > 0.98, 1.0, np.clip(kept + jitter, 0.0, 1.0)) * (sums > 0))


@dataclass(frozen=True)
class BuiltOptions:
    """Candidates with options, and row id -> why one got none: ``too-common``, ``no-contrast`` or ``go-together``."""

    candidates: list[Candidate]
    refused: dict[str, str]


def build_options(
    written: Sequence[Candidate],
    seed: int,
    known: Sequence[Candidate] = (),
    exchange_groups: bool = True,
    planned: Sequence[PlannedGroup] = (),
    linked: Mapping[str, str] | None = None,
    implied: Set[Implication] = frozenset(),
) -> BuiltOptions:
    """Builds the options of candidates.

    The findings of exchange groups are in no pool: there, each is right as often as wrong, and the findings of the
    other questions must be balanced among themselves.

    Args:
        written: candidates without options.
        seed: random seed.
        known: candidates that keep their options; their findings count in the pools.
        exchange_groups: form exchange groups of the template questions among ``written``.
        planned: groups that the questions were written for.
        linked: patient -> patient that counts as the same in a group, because they share an image.
        implied: findings that are not crossed with an aspect outside of groups, because they imply a finding of it.
    """
    built = group_candidates(written, seed, planned, linked or {}) if exchange_groups else []
    grouped = {one.id for one in built}
    refused = {one.id: "go-together" for one in written if one.id not in grouped and _occur_together(one, implied)}
    single = [one for one in written if one.id not in grouped and one.id not in refused]
    findings: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in sorted([*(one for one in known if one.group is None), *single], key=lambda one: one.id):
        for feature in (one.first, one.second):
            findings[one.question_type, feature.aspect].append(feature.value)
    pools = {key: distractor_pool(values, f"{seed}:{key}") for key, values in findings.items()}
    group_texts = {(one.question, one.options) for one in (*known, *built) if one.group is not None}
    chosen = dict(pair for one in (*known, *built) for pair in _chosen(one))
    for one in sorted(single, key=lambda one: one.id):
        found = _with_options(one, pools, seed, group_texts, implied, chosen)
        if isinstance(found, str):
            refused[one.id] = found
        else:
            built.append(found)
            chosen |= dict(_chosen(found))
    return BuiltOptions(sorted(built, key=lambda one: one.id), refused)


def _with_options(
    candidate: Candidate,
    pools: Mapping[tuple[str, str], DistractorPool],
    seed: int,
    group_texts: GroupTexts,
    implied: Set[Implication],
    chosen: Mapping[PathFinding, tuple[str, str]],
) -> Candidate | str:
    """Returns a candidate with its options, or the reason why it gets none."""
    rng = random.Random(f"{seed}:{candidate.id}:{candidate.version}")
    first, second = candidate.first, candidate.second
    wrong = []
    for feature, other, named in ((first, second, candidate.contrasts[0]), (second, first, candidate.contrasts[1])):
        pool = pools[candidate.question_type, feature.aspect]
        before = chosen.get(_path_finding(candidate, feature))
        found = _wrong_value(candidate, feature, other, named, pool, implied, rng, before)
        if found is None:
            return "too-common" if pool.others(feature.value) else "no-contrast"
        wrong.append(found)
    values = ((first.value, wrong[0][0]), (second.value, wrong[1][0]))
    orders = list(permutations(range(4)))
    rng.shuffle(orders)
    sources = (wrong[0][1], wrong[1][1])
    return in_first_order(replace(candidate, values=values, sources=sources), orders, group_texts)


def _path_finding(candidate: Candidate, feature: CaptionFeature) -> PathFinding:
    return candidate.path.key, feature.aspect, stems(feature.value)


def _chosen(candidate: Candidate) -> Iterator[tuple[PathFinding, tuple[str, str]]]:
    """Yields each finding of a candidate with options, with its wrong value and the source of that."""
    assert candidate.values is not None
    features = (candidate.first, candidate.second)
    parts = zip(features, candidate.values, candidate.truth, candidate.sources, strict=True)
    for feature, pair, right, source in parts:
        yield _path_finding(candidate, feature), (pair[1 - right], source)


def in_first_order(candidate: Candidate, orders: Sequence[tuple[int, ...]], group_texts: GroupTexts) -> Candidate:
    """Returns a candidate in the first option order in which its text differs from that of every exchange group.

    A question with the same text would turn a group into five questions, in which options are not equally often right.
    """
    ordered = (replace(candidate, order=order) for order in orders)
    found = next((one for one in ordered if (one.question, one.options) not in group_texts), None)
    return found or replace(candidate, order=orders[0])


def _wrong_value(
    candidate: Candidate,
    feature: CaptionFeature,
    other: CaptionFeature,
    named: str,
    pool: DistractorPool,
    implied: Set[Implication],
    rng: random.Random,
    before: tuple[str, str] | None,
) -> tuple[str, str] | None:
    """Returns the wrong value of a feature and its source, or None; the path's captions must not state the value.

    ``before`` is the wrong value that another question of the path has for the finding; it is reused if it fits.
    """
    own = {stems(feature.value), stems(other.value)}

    def fits(value: str) -> bool:
        wrong = stems(value) not in own and not may_hold(value, candidate.path.captions)
        return wrong and not _implies(feature.aspect, value, other, implied)

    if before is not None and fits(before[0]):
        return before
    refused: list[str] = []
    for _ in range(REDRAWS):
        drawn = pool.draw(feature.value, rng, refused)
        if drawn is None:
            break
        if fits(drawn):
            return drawn, "corpus"
        refused.append(drawn)
    if any(value not in refused for value in pool.others(feature.value)):
        return None  # too common: the model's value would break the balance
    return (named, "model") if named and content(named) and fits(named) else None


def _implies(aspect: str, value: str, other: CaptionFeature, implied: Set[Implication]) -> bool:
    return ((aspect, stems(value)), other.aspect) in implied


def _occur_together(candidate: Candidate, implied: Set[Implication]) -> bool:
    pairs = ((candidate.first, candidate.second), (candidate.second, candidate.first))
    return any(_implies(one.aspect, one.value, other, implied) for one, other in pairs)
