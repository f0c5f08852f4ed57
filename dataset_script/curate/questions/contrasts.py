"""What is set against a finding: one of the same aspect that another region shows, drawn so that words tell nothing.

Were the wrong finding the model's invention, it would never be right anywhere, and a reader would learn it. Here every
finding that stands as wrong is right elsewhere. Drawn freely, the commoner of two findings would still be the likelier
one. So pairs are drawn in *detailed balance*: of the questions with {a, a'}, as many have a right as have a' right, in
expectation. With n_i questions whose right finding is i, a symmetric matrix M with row sums n_i is sought (M = d W d,
Sinkhorn's scaling of a symmetric likeness W with an empty diagonal; Knight 2008, SIAM J. Matrix Anal. Appl. 30:261),
and i gets j with probability M_ij / n_i. A finding that is right in more than half of the questions has no such
matrix: part of its questions are given back, to be asked about something else.

Counts that differ by luck alone are left alone. W prefers findings of as many words and letters, which deny or affirm
alike.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from dataset_script.curate.features.containment import content, denies, words

FloatArray = npt.NDArray[np.float64]
MAX_VALUES: Final = 1500
"""More distinct values of an aspect are cut into runs of this length, ordered by their number of words and letters."""
LETTERS_APART: Final = 4.0
WORDS_APART: Final = 0.7
STEPS: Final = 400
LUCK: Final = 2.0
"""A count that lies fewer standard deviations (of a Poisson count) from the mean is taken for luck."""


@dataclass(frozen=True)
class ContrastPool:
    """The right findings of one question type and aspect, and with what probability each is set against each.

    Attributes:
        values: distinct findings as phrases.
        place: compared words -> place in ``values``.
        chance: place -> (places, probabilities); what is missing to 1 is given back.
    """

    values: tuple[str, ...]
    place: dict[tuple[str, ...], int]
    chance: tuple[tuple[npt.NDArray[np.int64], FloatArray], ...]

    def draw(self, value: str, rng: random.Random, refused: Sequence[str] = ()) -> str | None:
        """Draws the finding to set against one; None gives the question back (too common, or nothing to set).

        Args:
            value: the right finding; it counts in the pool or is looked up by its words.
            rng: local generator.
            refused: phrases that must not be drawn, because they may be true of the region as well.
        """
        at = self.place.get(tuple(words(value)))
        if at is None:
            return None
        places, chances = self.chance[at]
        left = rng.random()
        if left >= chances.sum():
            return None
        banned = {tuple(words(phrase)) for phrase in refused}
        open_ones = [
            (place, chance)
            for place, chance in zip(places.tolist(), chances.tolist(), strict=True)
            if chance > 0 and tuple(words(self.values[place])) not in banned
        ]
        if not open_ones:
            return None
        drawn = rng.choices([place for place, _ in open_ones], [chance for _, chance in open_ones])[0]
        return self.values[drawn]

    def others(self, value: str) -> list[str]:
        """Returns every finding that may be set against one."""
        at = self.place.get(tuple(words(value)))
        return [] if at is None else [self.values[place] for place in self.chance[at][0].tolist()]


def contrast_pool(findings: Sequence[str], seed: str) -> ContrastPool:
    """Builds the pool of the right findings of one question type and aspect, repeats counting.

    Args:
        findings: the right finding of each question.
        seed: of how many questions of a too common finding are given back.
    """
    spellings: dict[tuple[str, ...], list[str]] = {}
    for phrase in findings:
        spellings.setdefault(tuple(words(phrase)), []).append(phrase)
    keys = sorted(spellings, key=lambda key: (len(key), len(" ".join(key)), key))
    values = tuple(min(spellings[key], key=lambda phrase: (-spellings[key].count(phrase), phrase)) for key in keys)
    chance: list[tuple[npt.NDArray[np.int64], FloatArray]] = []
    for start in range(0, len(keys), MAX_VALUES):
        run = range(start, min(start + MAX_VALUES, len(keys)))
        counts = evened(np.array([len(spellings[keys[at]]) for at in run], dtype=np.float64))
        balanced = balanced_matrix(likeness([values[at] for at in run]), counts)
        kept = _given_back(balanced.sum(axis=1), counts, seed)
        for row in range(len(run)):
            places = np.flatnonzero(balanced[row] > 0)
            chance.append((places + start, balanced[row, places] / max(balanced[row].sum(), 1e-300) * kept[row]))
    return ContrastPool(values, {key: at for at, key in enumerate(keys)}, tuple(chance))


def evened(counts: FloatArray) -> FloatArray:
    """Returns the counts with those that chance explains set to their mean.

    What is uneven by luck alone must stay so: evened out to the last question, the answers that a reader knows would
    tell the ones that it does not know, and a fitted probe would be wrong more often than a guess.
    """
    mean = counts.mean() if len(counts) else 0.0
    by_luck = np.abs(counts - mean) < LUCK * np.sqrt(max(mean, 1e-9))
    return np.asarray(np.where(by_luck, mean, counts))


def likeness(values: Sequence[str]) -> FloatArray:
    """Returns (n, n) symmetric weights: how well two findings stand against each other; 0 where they cannot."""
    said = [content(value) for value in values]
    sizes = np.array([[len(words(value)), len(value), denies(value)] for value in values], dtype=np.float64)
    gaps = np.abs(sizes[:, None, :] - sizes[None, :, :])
    weights = np.exp(-gaps[:, :, 0] / WORDS_APART - gaps[:, :, 1] / LETTERS_APART - 3.0 * gaps[:, :, 2]) + 1e-4
    for row, own in enumerate(said):
        for column in range(row + 1):
            if own <= said[column] or said[column] <= own:
                if own == said[column] and sizes[row, 2] != sizes[column, 2]:
                    continue  # a finding and its denial
                weights[row, column] = weights[column, row] = 0.0
    return np.asarray(weights)


def balanced_matrix(weights: FloatArray, counts: FloatArray) -> FloatArray:
    """Returns the symmetric (n, n) matrix d W d whose row sums are ``counts``, or less where that cannot be."""
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


def _given_back(sums: FloatArray, counts: FloatArray, seed: str) -> FloatArray:
    """Returns the share of each finding's questions that are kept.

    Where a finding is too common, the number kept is drawn as a fair coin would have drawn it: exact balance would
    let a reader who knows some answers reckon the others.
    """
    rng = np.random.default_rng(list(seed.encode()))
    jitter = rng.normal(size=len(counts)) * np.sqrt(np.maximum(sums, 0.0) / 2) / np.maximum(counts, 1.0)
    kept = sums / np.maximum(counts, 1e-300)
    return np.asarray(np.where(kept > 0.98, 1.0, np.clip(kept + jitter, 0.0, 1.0)) * (sums > 0))
