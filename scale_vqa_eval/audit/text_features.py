"""Features of the texts of a file: options geometry, and words, phrases and characters as hashed columns.

There is no vocabulary, so memory does not grow with the file. Only n-grams that *vary* within a question are kept,
because those that all options share cannot distinguish them; for a listwise model this is equivalent to centring every
column within each question, and remains sparse. Gold answers are not used, so the same features serve for other gold
answers or fewer questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.audit.clusters import IntArray
from scale_vqa_eval.audit.option_geometry import HASH_COLUMNS, Sparse, geometry_of, ngrams, token_rarity
from scale_vqa_eval.audit.probe import FloatArray, OptionLayout
from scale_vqa_eval.questions import Question

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
NGRAM_FAMILIES: Final = tuple(BLOCKS)


@dataclass(frozen=True)
class NGramPresence:
    """The columns of each option, as the two index arrays of a sparse 0/1 matrix.

    Attributes:
        pointer: (N+1,) start of each option's columns.
        columns: (nnz,) column numbers, ascending within an option.
    """

    pointer: IntArray
    columns: IntArray

    def take(self, rows: IntArray) -> NGramPresence:
        """Returns the presence of chosen options."""
        sizes = np.diff(self.pointer)[rows]
        pointer = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        index = np.repeat(self.pointer[rows] - pointer[:-1], sizes) + np.arange(pointer[-1])
        return NGramPresence(pointer, self.columns[index])

    @staticmethod
    def stack(parts: Sequence[NGramPresence]) -> NGramPresence:
        """Concatenates the options of several chunks."""
        ends = np.cumsum([0, *(part.pointer[-1] for part in parts)])
        pointer = np.concatenate([[0], *(part.pointer[1:] + end for part, end in zip(parts, ends, strict=False))])
        return NGramPresence(pointer.astype(np.int64), np.concatenate([part.columns for part in parts]))


@dataclass(frozen=True)
class NGramColumns:
    """The columns that a model uses, and their weights.

    Columns that the same options of the sample hold are one: columns of weights a in a ridge model are one column of
    weight |a|, of which each carries a^2 / |a|.

    Attributes:
        kept: ascending numbers of the columns that vary in at least two questions.
        joined: the model's column that each is part of.
        weight: of each: 1 + ln(n / number of questions in which the column varies), scaled so that centred rows have a
            mean squared length of 1 and the same strength of regularisation can be used for any file; then its part of
            the joined weight.
    """

    kept: IntArray
    joined: IntArray
    weight: FloatArray

    @classmethod
    def fit(cls, presence: NGramPresence, layout: OptionLayout) -> NGramColumns:
        """Selects and weights the columns of a family by the questions' texts."""
        n, owner = len(layout.counts), np.repeat(layout.owner, np.diff(presence.pointer))
        kept, index, holders = np.unique(presence.columns, return_inverse=True, return_counts=True)
        pairs, holding = np.unique(index * n + owner, return_counts=True)
        varies_in = np.bincount(pairs // n, minlength=len(kept)) if len(kept) else holders
        weight = 1.0 + np.log(n / np.maximum(1, varies_in))
        # squared length after centring: a column that h of k options have adds w^2 * h * (1 - h/k)
        spread = holding * (1.0 - holding / layout.counts[pairs % n]) if len(kept) else np.zeros(0)
        use = varies_in >= 2
        length = float((spread * weight[pairs // n] ** 2 * use[pairs // n]).sum()) / max(1, len(layout.owner))
        weight = weight[use] * (1.0 / np.sqrt(length) if length > 0 else 1.0)
        # options as random numbers: columns with the same sum are held by the same options
        numbers = np.random.default_rng(0).integers(0, 2**63, len(layout.owner), dtype=np.uint64)
        held_by = np.zeros(len(kept), dtype=np.uint64)
        np.add.at(held_by, index, np.repeat(numbers, np.diff(presence.pointer)))
        joined = np.unique(held_by[use], return_inverse=True)[1]
        return cls(kept[use], joined, weight**2 / np.sqrt(np.bincount(joined, weight**2))[joined])

    def entries(self, presence: NGramPresence) -> tuple[IntArray, IntArray]:
        """Returns (N+1,) where each option's known columns start, and their positions in ``kept``."""
        index = np.searchsorted(self.kept, presence.columns)
        index[index == len(self.kept)] = 0
        known = self.kept[index] == presence.columns if len(self.kept) else np.zeros(len(index), dtype=bool)
        return np.concatenate([[0], np.cumsum(known)])[presence.pointer], index[known]

    def matrix(self, presence: NGramPresence) -> Sparse:
        """Returns the (N, f) weighted sparse matrix of a presence, f being the number of joined columns."""
        from scipy import sparse

        pointer, index = self.entries(presence)
        column, shape = self.joined[index], (len(pointer) - 1, int(self.joined.max(initial=0)) + 1)
        if pointer[-1] < 2**31:  # halves the memory traffic of each product
            column, pointer = column.astype(np.int32), pointer.astype(np.int32)
        matrix = sparse.csr_array((self.weight[index], column, pointer), shape=shape)
        matrix.sum_duplicates()
        return matrix


@dataclass(frozen=True)
class TextFeatures:
    """Features of the texts of some questions.

    Attributes:
        layout: options of the questions.
        types: (n,) number of each question's dimension; -1 for all questions if there are fewer than two dimensions.
        geometry: (N, f) options geometry, in single precision.
        presence: n-gram family -> columns of each option.
        dense: further family -> (N, f) columns, such as sentence embeddings.
    """

    layout: OptionLayout
    types: IntArray
    geometry: npt.NDArray[np.float32]
    presence: Mapping[str, NGramPresence]
    dense: Mapping[str, FloatArray] = field(default_factory=dict)
    _fitted: dict[str, tuple[NGramColumns, Sparse]] = field(default_factory=dict, repr=False)

    def columns(self, family: str) -> tuple[NGramColumns, Sparse]:
        """Returns the columns of an n-gram family that models use, and their matrix; cached."""
        if family not in self._fitted:
            columns = NGramColumns.fit(self.presence[family], self.layout)
            self._fitted[family] = columns, columns.matrix(self.presence[family])
        return self._fitted[family]

    def take(self, chosen: IntArray) -> TextFeatures:
        """Returns the features of chosen questions."""
        rows = self.layout.rows_of(chosen)
        presence = {family: part.take(rows) for family, part in self.presence.items()}
        dense = {family: columns[rows] for family, columns in self.dense.items()}
        return TextFeatures(self.layout.take(chosen), self.types[chosen], self.geometry[rows], presence, dense)


@dataclass(frozen=True)
class TextReader:
    """Computes ``TextFeatures`` of questions, consistently for a sample and for streamed questions.

    Attributes:
        rarity: (2**20,) weight of each hashed token.
        types: dimension -> number; empty if there are fewer than two dimensions.
        families: n-gram families to compute.
    """

    rarity: FloatArray
    types: dict[str, int]
    families: tuple[str, ...]

    @classmethod
    def fit(cls, questions: Sequence[Question], families: Sequence[str] = NGRAM_FAMILIES) -> TextReader:
        """Counts tokens and dimensions of a sample of questions."""
        names = sorted({question.dimension for question in questions if question.dimension is not None})
        types = {name: number for number, name in enumerate(names)} if len(names) > 1 else {}
        return cls(token_rarity(questions, list(chunks(questions))), types, tuple(families))

    def read(self, questions: Sequence[Question]) -> TextFeatures:
        """Returns the features of questions, computed in chunks."""
        parts = [self._chunk([questions[row] for row in part]) for part in chunks(questions)]
        if len(parts) == 1:
            return parts[0]
        return TextFeatures(
            OptionLayout.of(np.concatenate([part.layout.counts for part in parts])),
            np.concatenate([part.types for part in parts]),
            np.concatenate([part.geometry for part in parts]),
            {family: NGramPresence.stack([part.presence[family] for part in parts]) for family in self.families},
        )

    def _chunk(self, questions: Sequence[Question]) -> TextFeatures:
        layout = OptionLayout.of_questions(questions)
        texts = tuple(text for question in questions for text in question.options)
        matrices = {kind: ngrams(texts, kind) for kind in ("words", "phrases", "characters")}
        types = np.array([self.types.get(question.dimension or "", -1) for question in questions], dtype=np.int64)
        geometry = geometry_of(questions, layout, matrices, self.rarity).astype(np.float32)
        presence = {family: _presence(family, matrices, layout, types) for family in self.families}
        return TextFeatures(layout, types, geometry, presence)


def chunks(questions: Sequence[Question], pairs: int = 60_000) -> Iterator[range]:
    """Yields ranges of questions with a bounded number of pairs of options."""
    start = cost = 0
    for row, question in enumerate(questions):
        cost += len(question.options) ** 2
        if cost >= pairs:
            yield range(start, row + 1)
            start, cost = row + 1, 0
    if start < len(questions):
        yield range(start, len(questions))


def _presence(family: str, matrices: dict[str, Sparse], layout: OptionLayout, types: IntArray) -> NGramPresence:
    """Returns the columns of a family in ``BLOCKS``: block number * 2**20 + hash; crossed blocks have one per type."""
    rows, columns = [], []
    entries = {kind: _Entries.of(matrices[kind], layout) for kind in {kind for kind, _, _ in BLOCKS[family]}}
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
    return NGramPresence(pointer.astype(np.int64), column[order])


@dataclass(frozen=True)
class _Entries:
    """The non-zero entries of an n-gram matrix, and the number of the question's options that have each n-gram."""

    row: IntArray
    column: IntArray
    holders: IntArray
    options: IntArray

    @classmethod
    def of(cls, matrix: Sparse, layout: OptionLayout) -> _Entries:
        row = np.repeat(np.arange(len(layout.owner)), np.diff(matrix.indptr))
        column = matrix.indices.astype(np.int64)
        _, index, times = np.unique(layout.owner[row] * HASH_COLUMNS + column, return_inverse=True, return_counts=True)
        return cls(row, column, times[index], layout.counts[layout.owner[row]])

    def pick(self, which: str, layout: OptionLayout) -> tuple[IntArray, IntArray]:
        """Returns (row, column) of entries that vary, that one, few or most options have, or that some lack."""
        twice = 2 * self.holders
        most = (twice > self.options) & (self.holders < self.options)
        if which == "missing":
            return self._missing(most, layout)
        mask = {
            "varying": self.holders < self.options,
            "alone": self.holders == 1,
            "few": (self.holders > 1) & (twice <= self.options),
            "most": most & (self.holders > 1),
        }[which]
        return self.row[mask], self.column[mask]

    def _missing(self, most: npt.NDArray[np.bool_], layout: OptionLayout) -> tuple[IntArray, IntArray]:
        """Returns (row, column) of n-grams that most options of a question have but this one lacks."""
        wanted = np.unique(layout.owner[self.row[most]] * HASH_COLUMNS + self.column[most])
        question, column = wanted // HASH_COLUMNS, wanted % HASH_COLUMNS
        row = layout.rows_of(question) if len(question) else np.zeros(0, dtype=np.int64)
        column = np.repeat(column, layout.counts[question])
        held = np.isin(row * HASH_COLUMNS + column, self.row[most] * HASH_COLUMNS + self.column[most])
        return row[~held], column[~held]
