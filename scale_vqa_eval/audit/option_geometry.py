"""Geometry of the options of a question: similarity, length, negation, overlap with the stem.

If wrong options were written by changing one feature of the right option, it is the most central of the set. The
features here measure this and related properties of every option. They need no word list except a few English words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
