"""Words, phrases and characters of options as hashed columns: no vocabulary, so memory does not grow with the file.

What all options of a question share cannot tell them apart, so only n-grams that *vary* within a question are kept;
for a listwise model that is exactly the same as centring every column within each question, and stays sparse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.audit.layout import IntArray, OptionLayout
from scale_vqa_eval.questions import Question

HASH_COLUMNS: Final = 1 << 20
TOKEN: Final = r"(?u)\b\w+\b"
Sparse = Any  # scipy.sparse has no types

# kind of n-gram -> what HashingVectorizer is to make of a text
_GRAMS: Final[dict[str, dict[str, Any]]] = {
    "words": {"ngram_range": (1, 1), "token_pattern": TOKEN},
    "phrases": {"ngram_range": (2, 3), "token_pattern": TOKEN},
    "characters": {"ngram_range": (3, 4), "analyzer": "char", "preprocessor": lambda text: f" {text.lower()} "},
}
# family -> (kind of n-gram, which of its entries, crossed with the question's type)
BLOCKS: Final[dict[str, tuple[tuple[str, str, bool], ...]]] = {
    "words": (("words", "varying", False), ("phrases", "varying", False), ("words", "varying", True)),
    "contrast": (
        ("words", "alone", False),
        ("words", "few", False),
        ("words", "most", False),
        ("words", "missing", False),
        ("words", "varying", True),
    ),
    "characters": (("characters", "varying", False),),
}


@dataclass(frozen=True)
class Presence:
    """Which columns each option has: the two index arrays of a sparse 0/1 matrix with very many columns.

    Attributes:
        pointer: (N+1,) where each option's columns start.
        columns: (nnz,) column numbers, ascending within an option.
    """

    pointer: IntArray
    columns: IntArray

    def take(self, rows: IntArray) -> Presence:
        """Returns the presence of chosen options."""
        sizes = np.diff(self.pointer)[rows]
        pointer = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        at = np.repeat(self.pointer[rows] - pointer[:-1], sizes) + np.arange(pointer[-1])
        return Presence(pointer, self.columns[at])

    @staticmethod
    def stack(parts: Sequence[Presence]) -> Presence:
        """Puts the options of several chunks under each other."""
        ends = np.cumsum([0, *(part.pointer[-1] for part in parts)])
        pointer = np.concatenate([[0], *(part.pointer[1:] + end for part, end in zip(parts, ends, strict=False))])
        return Presence(pointer.astype(np.int64), np.concatenate([part.columns for part in parts]))


@dataclass(frozen=True)
class Columns:
    """The columns that a model uses, and their weights.

    Attributes:
        kept: ascending column numbers: those that vary in at least two questions.
        weight: weight of each: 1 + ln(n / questions it varies in), on a scale that gives centred rows a mean squared
            length of 1, so that one strength of regularisation serves any file.
    """

    kept: IntArray
    weight: npt.NDArray[np.float64]

    def matrix(self, presence: Presence) -> Sparse:
        """Returns the (N, kept) weighted sparse matrix of a presence."""
        from scipy import sparse

        at = np.searchsorted(self.kept, presence.columns)
        at[at == len(self.kept)] = 0
        known = self.kept[at] == presence.columns if len(self.kept) else np.zeros(len(at), dtype=bool)
        before = np.concatenate([[0], np.cumsum(known)])
        shape = (len(presence.pointer) - 1, max(1, len(self.kept)))
        return sparse.csr_array((self.weight[at[known]], at[known], before[presence.pointer]), shape=shape)


def chunks(questions: Sequence[Question], pairs: int = 60_000) -> Iterator[range]:
    """Yields ranges of questions that bound the work of a chunk: pairs of options, and about 2,000 questions."""
    start = cost = 0
    for row, question in enumerate(questions):
        cost += len(question.options) ** 2
        if cost >= pairs:
            yield range(start, row + 1)
            start, cost = row + 1, 0
    if start < len(questions):
        yield range(start, len(questions))


def grams(texts: Sequence[str], kind: str) -> Sparse:
    """Returns the (N, 2**20) 0/1 matrix of the n-grams of texts; a text that occurs twice is read once."""
    from scipy import sparse

    first = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    matrix = sparse.csr_array(_vectorizer(kind).transform(list(first)))
    matrix.sort_indices()
    return matrix if len(first) == len(texts) else matrix[[first[text] for text in texts]]


def presence_of(family: str, made: dict[str, Sparse], layout: OptionLayout, types: IntArray) -> Presence:
    """Returns the columns of a family for one chunk.

    Args:
        family: a key of ``BLOCKS``.
        made: kind of n-gram -> its matrix (N, 2**20).
        layout: the chunk's options.
        types: (n,) number of each question's type, -1 where it has none.
    """
    rows, columns = [], []
    entries = {kind: _Entries.of(made[kind], layout) for kind in {kind for kind, _, _ in BLOCKS[family]}}
    for number, (kind, which, crossed) in enumerate(BLOCKS[family]):
        row, column = entries[kind].pick(which, layout)
        block = np.full(len(row), number, dtype=np.int64)
        if crossed:
            block = len(BLOCKS[family]) + types[layout.owner[row]]
            known = types[layout.owner[row]] >= 0
            row, column, block = row[known], column[known], block[known]
        rows.append(row)
        columns.append(block * HASH_COLUMNS + column)
    row, column = np.concatenate(rows), np.concatenate(columns)
    order = np.lexsort((column, row))
    pointer = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(layout.owner)))])
    return Presence(pointer.astype(np.int64), column[order])


def fit_columns(presence: Presence, layout: OptionLayout) -> Columns:
    """Chooses and weighs the columns of a family by the questions' texts; gold answers play no part."""
    n, owner = len(layout.counts), np.repeat(layout.owner, np.diff(presence.pointer))
    kept, at, holders = np.unique(presence.columns, return_inverse=True, return_counts=True)
    pairs, holding = np.unique(at * n + owner, return_counts=True)
    varies_in = np.bincount(pairs // n, minlength=len(kept)) if len(kept) else holders
    weight = 1.0 + np.log(n / np.maximum(1, varies_in))
    # squared length after centring: a column that h of k options hold adds w^2 * h * (1 - h/k)
    spread = holding * (1.0 - holding / layout.counts[pairs % n]) if len(kept) else np.zeros(0)
    use = varies_in >= 2
    length = float((spread * weight[pairs // n] ** 2 * use[pairs // n]).sum()) / max(1, len(layout.owner))
    scale = 1.0 / np.sqrt(length) if length > 0 else 1.0
    return Columns(kept[use], weight[use] * scale)


@dataclass(frozen=True)
class _Entries:
    """The non-zero entries of an n-gram matrix, and how many options of their question hold each."""

    row: IntArray
    column: IntArray
    holders: IntArray
    options: IntArray

    @classmethod
    def of(cls, matrix: Sparse, layout: OptionLayout) -> _Entries:
        row = np.repeat(np.arange(len(layout.owner)), np.diff(matrix.indptr))
        column = matrix.indices.astype(np.int64)
        _, at, times = np.unique(layout.owner[row] * HASH_COLUMNS + column, return_inverse=True, return_counts=True)
        return cls(row, column, times[at], layout.counts[layout.owner[row]])

    def pick(self, which: str, layout: OptionLayout) -> tuple[IntArray, IntArray]:
        if which == "missing":
            return self._missing(layout)
        twice = 2 * self.holders
        mask = {
            "varying": self.holders < self.options,
            "alone": self.holders == 1,
            "few": (self.holders > 1) & (twice <= self.options),
            "most": (twice > self.options) & (self.holders > 1) & (self.holders < self.options),
        }[which]
        return self.row[mask], self.column[mask]

    def _missing(self, layout: OptionLayout) -> tuple[IntArray, IntArray]:
        """What more than half of a question's options hold, where it is missing: (row, column) of the others."""
        mask = (2 * self.holders > self.options) & (self.holders < self.options)
        wanted = np.unique(layout.owner[self.row[mask]] * HASH_COLUMNS + self.column[mask])
        question, column = wanted // HASH_COLUMNS, wanted % HASH_COLUMNS
        counts = layout.counts[question]
        row = layout.rows_of(question) if len(question) else np.zeros(0, dtype=np.int64)
        column = np.repeat(column, counts)
        held = np.isin(row * HASH_COLUMNS + column, self.row[mask] * HASH_COLUMNS + self.column[mask])
        return row[~held], column[~held]


@cache
def _vectorizer(kind: str) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        n_features=HASH_COLUMNS, binary=True, norm=None, alternate_sign=False, dtype=np.float32, **_GRAMS[kind]
    )


def terms_of(text: str, kind: str) -> list[str]:
    """Returns the n-grams of a text as they are hashed."""
    return list(_vectorizer(kind).build_analyzer()(text))


def hash_of(term: str) -> int:
    """Returns the column that an n-gram is hashed to."""
    from sklearn.feature_extraction import FeatureHasher

    hasher = FeatureHasher(HASH_COLUMNS, input_type="string", alternate_sign=False)
    return int(hasher.transform([[term]]).indices[0])
