"""Features of the texts of a file: geometry of the options, and words, phrases and characters as hashed columns.

*Geometry* is similarity, length, negation and overlap with the stem. If wrong options were written by changing one
feature of the right option, it is the most central of the set; the features measure this and related properties. They
need no word list except a few English words.

*N-grams* have no vocabulary, so memory does not grow with the file. Only those that *vary* within a question are kept,
because those that all options share cannot distinguish them; for a listwise model this is equivalent to centring every
column within each question, and remains sparse. Gold answers are not used, so the same features serve for other gold
answers or fewer questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.audit.clusters import IntArray
from scale_vqa_eval.audit.probe import FloatArray, OptionLayout
from scale_vqa_eval.questions import Question
from scale_vqa_eval.text import negations, words

HASH_COLUMNS: Final = 1 << 20
Sparse = Any  # scipy.sparse has no types

_SIMILARITIES: Final = ("tokens", "rare tokens", "phrases", "characters")
_HEDGE = re.compile(
    r"\b(?:may|might|could|can|likely|possibl\w*|probabl\w*|suggest\w*|appear\w*|seem\w*|consistent|compatible|some|"
    r"mild\w*|subtle|partial\w*|focal\w*|occasional\w*)\b",
    re.IGNORECASE,
)
_ABSOLUTE = re.compile(
    r"\b(?:all|always|only|every|any|entire\w*|complete\w*|exclusive\w*|must|purely|solely|confined|restricted|limited|"
    r"extensive\w*|diffuse\w*|marked\w*|prominent\w*|uniform\w*|throughout|clearly|definite\w*)\b",
    re.IGNORECASE,
)
FEATURES: Final[tuple[str, ...]] = (
    *(
        f"{agg} {kind} by {what}"
        for what in _SIMILARITIES
        for kind in ("similarity to the others", "share found in the others")
        for agg in ("mean", "lowest", "highest")
    ),
    "characters",
    "words",
    "negations",
    "hedges",
    "absolute words",
    "commas",
    "digits",
    "other punctuation",
    "tokens of its own",
    "tokens held by most",
    "tokens of most that it lacks",
    "tokens shared with the stem",
    "share of tokens in the stem",
    "rarity of tokens",
)
COLUMN: Final = {name: number for number, name in enumerate(FEATURES)}

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


@lru_cache(maxsize=4)
def ngrams(texts: tuple[str, ...], kind: str) -> Sparse:
    """Returns the (N, 2**20) 0/1 matrix of the n-grams of texts."""
    from scipy import sparse
    from sklearn.feature_extraction import FeatureHasher

    hasher = FeatureHasher(HASH_COLUMNS, input_type="string", alternate_sign=False, dtype=np.float32)
    first = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    if kind == "characters":
        matrix = _characters(list(first))
    else:
        matrix = sparse.csr_array(hasher.transform([terms_of(text, kind) for text in first]))
    matrix.sort_indices()
    return matrix if len(first) == len(texts) else matrix[[first[text] for text in texts]]


def terms_of(text: str, kind: str) -> list[str]:
    """Returns the distinct n-grams of a text before hashing: ``words``, or ``phrases`` of 2 to 3 words.

    >>> terms_of("No mucin, no mucin", "phrases")
    ['no mucin', 'mucin no', 'no mucin no', 'mucin no mucin']
    """
    found = words(text.lower())
    if kind == "phrases":
        found = [" ".join(found[at : at + size]) for size in (2, 3) for at in range(len(found) - size + 1)]
    return list(dict.fromkeys(found))


def _characters(texts: Sequence[str]) -> Sparse:
    """Returns the (N, 2**20) 0/1 matrix of 3- and 4-grams of characters (a rolling FNV-1a hash), and first case."""
    from scipy import sparse

    lines = [re.sub(r"\s+", " ", f" {text.lower()} ") for text in texts]
    codes = np.frombuffer("".join(lines).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    lengths = np.array([len(line) for line in lines], dtype=np.int64)
    row = np.repeat(np.arange(len(lines)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(codes))  # characters to the end of the line
    keys = []
    hashed = np.full(len(codes), 14695981039346656037, dtype=np.uint64)
    for size in range(1, 5):
        hashed = (hashed[: len(codes) - size + 1] ^ codes[size - 1 :]) * np.uint64(1099511628211)
        if size >= 3:
            inside = left[: len(hashed)] >= size
            column = (hashed[inside] ^ hashed[inside] >> np.uint64(32)) % np.uint64(HASH_COLUMNS)
            keys.append(row[: len(hashed)][inside] * HASH_COLUMNS + column.astype(np.int64))
    cases = [[at for at, text in enumerate(texts) if case(text[:1])] for case in (str.islower, str.isupper)]
    if all(cases):  # some texts begin with a capital and some do not: two more columns say which
        keys += [np.array(some) * HASH_COLUMNS + hash_of(f"first letter {case}") for case, some in enumerate(cases)]
    found = np.sort(np.concatenate(keys))
    found = found[np.diff(found, prepend=-1) > 0]  # np.unique would hash, which takes five times as long
    pointer = np.searchsorted(found, np.arange(len(lines) + 1) * HASH_COLUMNS)
    ones = np.ones(len(found), dtype=np.float32)
    return sparse.csr_array((ones, found % HASH_COLUMNS, pointer), shape=(len(lines), HASH_COLUMNS))


def hash_of(term: str) -> int:
    """Returns the column that an n-gram is hashed to."""
    from sklearn.utils import murmurhash3_32

    return abs(int(murmurhash3_32(term, 0))) % HASH_COLUMNS


def token_rarity(questions: Sequence[Question], parts: Sequence[range]) -> FloatArray:
    """Returns (2**20,): inverse document frequency ln((N+1)/(df+1)) + 1 of each hashed token over all N options."""
    frequency = np.zeros(HASH_COLUMNS)
    for part in parts:
        matrix = ngrams(tuple(text for row in part for text in questions[row].options), "words")
        frequency += np.bincount(matrix.indices, minlength=HASH_COLUMNS)
    options = sum(len(question.options) for question in questions)
    return np.asarray(np.log((options + 1.0) / (frequency + 1.0)) + 1.0, dtype=np.float64)


def geometry_of(
    questions: Sequence[Question], layout: OptionLayout, matrices: dict[str, Sparse], rarity: FloatArray
) -> FloatArray:
    """Returns the (N, len(FEATURES)) features of the options of some questions.

    Args:
        questions: the questions.
        layout: their options.
        matrices: n-gram matrices of ``words``, ``phrases`` and ``characters`` of the options.
        rarity: (2**20,) weight of each hashed token, rare ones higher.
    """
    from scipy import sparse

    tokens = matrices["words"]
    weighted = sparse.csr_array((rarity[tokens.indices], tokens.indices, tokens.indptr), shape=tokens.shape)
    pairs = ((tokens, tokens), (tokens, weighted), *((matrices[kind],) * 2 for kind in _SIMILARITIES[2:]))
    similar = [column for matrix, values in pairs for column in _similarities(matrix, values, layout)]
    counted = np.array([_counts(text) for question in questions for text in question.options], dtype=np.float64)
    size = np.maximum(1, np.diff(tokens.indptr))
    stems = ngrams(tuple(question.question for question in questions), "words")
    shared = _row_sums(tokens * stems[layout.owner])
    rare = _row_sums(weighted) / size
    return np.column_stack([*similar, *counted.T, *_holding(tokens, layout), shared, shared / size, rare])


def _counts(text: str) -> list[int]:
    """Returns the counted features of one option, in the order of ``FEATURES``."""
    return [
        len(text),
        len(text.split()),
        len(negations(text)),
        len(_HEDGE.findall(text)),
        len(_ABSOLUTE.findall(text)),
        text.count(","),
        sum(map(str.isdigit, text)),
        sum(text.count(mark) for mark in "();:/-\u2013"),
    ]


def _similarities(matrix: Sparse, weighted: Sparse, layout: OptionLayout) -> list[FloatArray]:
    """Returns mean, lowest and highest Jaccard similarity to the other options, then of the contained share."""
    mass = _row_sums(weighted)
    out = [np.empty(len(layout.owner)) for _ in range(6)]
    for k, rows in layout.same_count():
        left, right = np.triu_indices(k, 1)
        first, second = rows[:, left].ravel(), rows[:, right].ravel()
        common = _row_sums(weighted[first] * matrix[second])
        union = mass[first] + mass[second] - common
        both = np.where(union > 0, common / np.where(union > 0, union, 1.0), 1.0)
        ahead, back = (
            np.where(mass[own] > 0, common / np.where(mass[own] > 0, mass[own], 1.0), 1.0) for own in (first, second)
        )
        for start, (upper, lower) in ((0, (both, both)), (3, (ahead, back))):
            square = np.full((len(rows), k, k), np.nan)
            square[:, left, right] = upper.reshape(len(rows), -1)
            square[:, right, left] = lower.reshape(len(rows), -1)
            others = square[:, ~np.eye(k, dtype=bool)].reshape(len(rows), k, k - 1)
            # sorted before the sum, so that two options with the same similarities tie whatever their letters
            others.sort(axis=2)
            out[start][rows] = others.mean(axis=2)
            out[start + 1][rows] = others[:, :, 0]
            out[start + 2][rows] = others[:, :, -1]
    return out


def _holding(tokens: Sparse, layout: OptionLayout) -> list[FloatArray]:
    """Counts an option's tokens that no other has, its tokens that most have, and the tokens of most that it lacks."""
    total = len(layout.owner)
    row = np.repeat(np.arange(total), np.diff(tokens.indptr))
    keys = layout.owner[row] * HASH_COLUMNS + tokens.indices
    unique, index, times = np.unique(keys, return_inverse=True, return_counts=True)
    question = unique // HASH_COLUMNS
    usual = (2 * times > layout.counts[question]).astype(np.float64)
    own = np.bincount(row, weights=(times[index] == 1).astype(np.float64), minlength=total)
    most = np.bincount(row, weights=usual[index], minlength=total)
    in_question = np.bincount(question, weights=usual, minlength=len(layout.counts))
    return [np.asarray(count, dtype=np.float64) for count in (own, most, in_question[layout.owner] - most)]


def _row_sums(matrix: Sparse) -> FloatArray:
    return np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()


def forest_columns(
    features: npt.NDArray[np.float32], layout: OptionLayout, types: IntArray
) -> npt.NDArray[np.float32]:
    """Returns the columns for the forest: raw, centred within the question, ranked, and the question's type.

    Args:
        features: (N, f) features from ``geometry_of``.
        layout: the options.
        types: (n,) number of each question's type, or -1; the first 32 types have a column each.
    """
    known = min(32, int(types.max(initial=-1)) + 1)
    kind = (types[layout.owner][:, None] == np.arange(known)).astype(np.float64)
    values = features.astype(np.float64)
    return np.hstack([values, layout.centred(values), layout.ranks(values), kind]).astype(np.float32)


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
