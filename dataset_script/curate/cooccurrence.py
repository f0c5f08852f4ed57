"""Findings that occur together in the captions: crossed, one would give the other away to a reader of the text.

A question joins a finding of one aspect with one of another. If the first is hardly ever stated without the second,
two of the four options name what no region shows. Such a finding stays out of all questions of the two aspects except
exchange groups, as the right and as the wrong one alike: if it was only never right, a reader would learn that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import permutations
from typing import Any, Final

import numpy as np

from dataset_script.curate.grounding import stems

AspectValue = tuple[str, tuple[str, ...]]
Implication = tuple[AspectValue, str]
"""A finding (aspect, stems) and an aspect of which it implies a finding."""
MIN_PATIENTS: Final = 3
SHARE: Final = 0.9
"""A finding implies another one if at least this share of its patients show both."""
ALPHA: Final = 0.01
"""Level for one pair of aspects, over all its pairs of findings (Bonferroni)."""


def find_implications(rows: Iterable[Mapping[str, Any]], patient_of: Mapping[str, str]) -> frozenset[Implication]:
    """Returns each finding with every aspect of which it implies a finding.

    The test of a pair of findings is the binomial tail of the second among the patients with the first, against its
    share among those of the same two aspects without the first; a patient counts once for each pair.

    Args:
        rows: lines of the features: ``path`` and its ``features``.
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
    """Returns (n, 2) finding and aspect, of the pairs whose first finding implies the second.

    Args:
        pairs: (m, 2) numbers of findings that are stated of one region.
        together: (m,) patients of each.
        aspect_of: (findings,) aspect of each finding.
    """
    from scipy.stats import binom

    first_aspect, second_aspect = aspect_of[pairs[:, 0]], aspect_of[pairs[:, 1]]
    of_first = _group_sums(together, pairs[:, 0], second_aspect)  # patients with the first and any of the aspect
    of_second = _group_sums(together, pairs[:, 1], first_aspect)
    of_both = _group_sums(together, first_aspect, second_aspect)
    tested = _group_sums(np.ones_like(together), first_aspect, second_aspect)
    without = of_both - of_first
    rate = np.divide(of_second - together, without, out=np.ones(len(pairs)), where=without > 0)
    tail = binom.sf(together - 1, of_first, np.clip(rate, 1 / np.maximum(without + 1, 2), 1.0))
    implied = (together >= MIN_PATIENTS) & (together >= SHARE * of_first) & (tail < ALPHA / tested)
    return np.stack([pairs[implied, 0], second_aspect[implied]], axis=1)


def _group_sums(counts: Any, left: Any, right: Any) -> Any:
    """Returns for each row the sum of the counts of all rows with the same two keys."""
    _, group = np.unique(np.stack([left, right], axis=1), axis=0, return_inverse=True)
    return np.bincount(group.ravel(), weights=counts)[group.ravel()]
