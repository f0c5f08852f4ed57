"""The options of all questions as one flat list, and the arithmetic within each question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.questions import Question

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class OptionLayout:
    """Where each question's options stand in the flat list of all options, in question and letter order.

    Attributes:
        counts: (n,) options of each question, each at least 2.
        starts: (n,) row of each question's first option.
        owner: (N,) question of each option.
    """

    counts: IntArray
    starts: IntArray
    owner: IntArray

    @classmethod
    def of(cls, counts: IntArray) -> OptionLayout:
        """Lays out questions with these numbers of options."""
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        return cls(counts, starts, np.repeat(np.arange(len(counts)), counts))

    @classmethod
    def of_questions(cls, questions: Sequence[Question]) -> OptionLayout:
        """Lays out the options of questions."""
        return cls.of(np.array([len(question.options) for question in questions], dtype=np.int64))

    def rows_of(self, chosen: IntArray) -> IntArray:
        """Returns the option rows of chosen questions, in the order chosen."""
        counts = self.counts[chosen]
        ends = np.cumsum(counts)
        return np.repeat(self.starts[chosen] - (ends - counts), counts) + np.arange(int(ends[-1]) if len(ends) else 0)

    def take(self, chosen: IntArray) -> OptionLayout:
        """Returns the layout of chosen questions alone."""
        return OptionLayout.of(self.counts[chosen])

    def same_count(self) -> list[tuple[int, IntArray]]:
        """Returns (k, (m, k) option rows) for the questions with k options, for each k that occurs."""
        groups = []
        for k in np.unique(self.counts):
            groups.append((int(k), self.starts[self.counts == k][:, None] + np.arange(k)))
        return groups

    def sums(self, values: FloatArray) -> FloatArray:
        """Returns (n, ...): sums of ``values`` (N, ...) over each question's options."""
        return np.asarray(np.add.reduceat(values, self.starts, axis=0), dtype=np.float64)

    def softmax(self, values: FloatArray) -> FloatArray:
        """Returns (N,): softmax of ``values`` over each question's options."""
        raised = np.exp(values - np.maximum.reduceat(values, self.starts)[self.owner])
        return np.asarray(raised / self.sums(raised)[self.owner], dtype=np.float64)

    def normalised(self, votes: FloatArray) -> FloatArray:
        """Returns (N,): non-negative votes scaled to sum 1 in each question; even where all are 0."""
        total = self.sums(votes)[self.owner]
        return np.where(total > 0, votes / np.where(total > 0, total, 1.0), 1.0 / self.counts[self.owner])

    def centred(self, values: FloatArray) -> FloatArray:
        """Returns (N, f): ``values`` (N, f) minus their mean over each question's options."""
        return np.asarray(values - (self.sums(values) / self.counts[:, None])[self.owner], dtype=np.float64)

    def ranks(self, values: FloatArray) -> FloatArray:
        """Returns (N, f): rank of each value in its question, 0 lowest to 1 highest, ties in the middle."""
        out = np.empty_like(values)
        for k, rows in self.same_count():
            at = values[rows]
            below = np.zeros_like(at)
            for other in range(k):
                gap = at - at[:, other : other + 1]
                below += np.where(np.abs(gap) <= 1e-9, 0.5, gap > 0)
            out[rows] = (below - 0.5) / (k - 1)
        return out
