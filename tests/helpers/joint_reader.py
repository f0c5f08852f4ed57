"""A text-only reader of a whole exchange file: it picks options that cohere with the other rows of a slide."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from scale_vqa_eval.questions import Question

ITERATIONS = 7
SHARPNESS = 2.0


def joint_votes(questions: Sequence[Question], unit: Callable[[Question], object]) -> np.ndarray:
    """Returns (n, 4): votes for each option by its coherence with the rows of its unit, minus the other units.

    A row speaks with the mean of its options, weighted by its votes: evenly at first, then by a soft assignment of one
    letter each within its group, iterated. Rows of the same group have the same options and are left out.

    Args:
        questions: rows with four options each.
        unit: what rows are said to share: a slide, a path, an image file.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [option for question in questions for option in question.options]
    vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(texts).toarray().reshape(len(questions), 4, -1)
    code = np.unique([str(unit(question)) for question in questions], return_inverse=True)[1]
    group = np.unique([str(question.group) for question in questions], return_inverse=True)[1]
    other_group = group[:, None] != group[None, :]
    near, far = (other_group & (same == (code[:, None] == code[None, :])) for same in (True, False))
    votes = np.full((len(questions), 4), 0.25)
    for _ in range(ITERATIONS):
        rows = np.einsum("nk,nkd->nd", votes, vectors)
        around = sum(
            sign * (mask @ rows) / np.maximum(mask.sum(axis=1, keepdims=True), 1)
            for sign, mask in ((1, near), (-1, far))
        )
        score = np.einsum("nkd,nd->nk", vectors, around)
        score = SHARPNESS * score / max(float(score.std()), 1e-9)
        votes = np.exp(score - score.max(axis=1, keepdims=True))
        for _ in range(20):  # each row one letter, each letter one row of its group
            votes /= votes.sum(axis=1, keepdims=True)
            totals = np.zeros((group.max() + 1, 4))
            np.add.at(totals, group, votes)
            votes /= totals[group]
    return votes


def assigned(questions: Sequence[Question], votes: np.ndarray) -> list[int]:
    """Returns one letter per row, each letter once per group, with the greatest summed votes."""
    from scipy.optimize import linear_sum_assignment

    letters = [0] * len(questions)
    groups: dict[str | None, list[int]] = {}
    for row, question in enumerate(questions):
        groups.setdefault(question.group, []).append(row)
    for rows in groups.values():
        for row, letter in zip(*linear_sum_assignment(-votes[rows]), strict=True):
            letters[rows[row]] = int(letter)
    return letters


def accuracy(questions: Sequence[Question], letters: Sequence[int]) -> float:
    """Returns the share of right letters."""
    return float(np.mean([letter == question.answer for letter, question in zip(letters, questions, strict=True)]))
