"""How the options of a question lie to each other: similarity, length, negation, overlap with the stem.

Distractors that are written by changing one feature of the right option make it the centre of the set; the features
here measure that and its relatives for every option, without any word list but a few English function words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.audit.layout import FloatArray, IntArray, OptionLayout
from scale_vqa_eval.audit.wording import HASH_COLUMNS, grams
from scale_vqa_eval.questions import Question

_SIMILARITIES: Final = ("tokens", "rare tokens", "phrases", "characters")
_NEGATION = re.compile(
    r"\b(?:no|not|non|none|never|neither|nor|without|absent|absence|lack\w*|fail\w*|cannot|\w+n't|rather than|"
    r"instead|except\w*|exclu\w*)\b",
    re.IGNORECASE,
)
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


def document_frequency(questions: Sequence[Question], parts: Sequence[range]) -> FloatArray:
    """Returns (2**20,): in how many options each hashed token stands."""
    total = np.zeros(HASH_COLUMNS)
    for part in parts:
        matrix = grams([text for row in part for text in questions[row].options], "words")
        total += np.bincount(matrix.indices, minlength=HASH_COLUMNS)
    return total


def geometry_of(
    questions: Sequence[Question], layout: OptionLayout, made: dict[str, Any], rarity: FloatArray
) -> FloatArray:
    """Returns the (N, len(FEATURES)) features of a chunk's options.

    Args:
        questions: the chunk.
        layout: its options.
        made: the matrices of ``words``, ``phrases`` and ``characters`` of its options.
        rarity: (2**20,) weight of each hashed token, rare ones higher.
    """
    from scipy import sparse

    texts = [text for question in questions for text in question.options]
    words = made["words"]
    weighted = sparse.csr_array((rarity[words.indices], words.indices, words.indptr), shape=words.shape)
    similar = [
        block
        for matrix, values in ((words, words), (words, weighted), *((made[kind],) * 2 for kind in _SIMILARITIES[2:]))
        for block in _similarities(matrix, values, layout)
    ]
    counted = np.array([_counts(text) for text in texts], dtype=np.float64)
    size = np.maximum(1, np.diff(words.indptr))
    stems = grams([question.question for question in questions], "words")
    shared = _row_sums(words * stems[layout.owner])
    rare = _row_sums(weighted) / size
    columns = [*similar, *counted.T, *_holding(words, layout), shared, shared / size, rare]
    return np.column_stack(columns)


def _counts(text: str) -> list[int]:
    """The counted features of one option, in the order of ``FEATURES``."""
    return [
        len(text),
        len(text.split()),
        len(_NEGATION.findall(text)),
        len(_HEDGE.findall(text)),
        len(_ABSOLUTE.findall(text)),
        text.count(","),
        sum(map(str.isdigit, text)),
        sum(text.count(mark) for mark in "();:/-\u2013"),
    ]


def _similarities(matrix: Any, weighted: Any, layout: OptionLayout) -> list[FloatArray]:
    """Mean, lowest and highest Jaccard similarity to the other options, then of the share of it they hold."""
    mass = _row_sums(weighted)
    out = [np.empty(len(layout.owner)) for _ in range(6)]
    for k, rows in layout.same_count():
        left, right = np.triu_indices(k, 1)
        one, two = rows[:, left].ravel(), rows[:, right].ravel()
        common = _row_sums(weighted[one] * matrix[two])
        union = mass[one] + mass[two] - common
        both = np.where(union > 0, common / np.where(union > 0, union, 1.0), 1.0)
        ahead, back = (
            np.where(mass[at] > 0, common / np.where(mass[at] > 0, mass[at], 1.0), 1.0) for at in (one, two)
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


def _holding(words: Any, layout: OptionLayout) -> list[FloatArray]:
    """Tokens that no other option holds; that more than half hold; and that more than half hold but it lacks."""
    total = len(layout.owner)
    row = np.repeat(np.arange(total), np.diff(words.indptr))
    keys = layout.owner[row] * HASH_COLUMNS + words.indices
    unique, at, times = np.unique(keys, return_inverse=True, return_counts=True)
    asked = unique // HASH_COLUMNS
    usual = (2 * times > layout.counts[asked]).astype(np.float64)
    own = np.bincount(row, weights=(times[at] == 1).astype(np.float64), minlength=total)
    most = np.bincount(row, weights=usual[at], minlength=total)
    in_question = np.bincount(asked, weights=usual, minlength=len(layout.counts))
    return [np.asarray(count, dtype=np.float64) for count in (own, most, in_question[layout.owner] - most)]


def _row_sums(matrix: Any) -> FloatArray:
    return np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()


def rarity_from(frequency: FloatArray, options: int) -> FloatArray:
    """Returns (2**20,): inverse document frequency, ln((N+1)/(df+1)) + 1."""
    return np.asarray(np.log((options + 1.0) / (frequency + 1.0)) + 1.0, dtype=np.float64)


def forest_columns(
    features: npt.NDArray[np.float32], layout: OptionLayout, types: IntArray
) -> npt.NDArray[np.float32]:
    """Returns the columns that the forest sees: raw, centred within the question, ranked, and the question's type.

    Args:
        features: (N, f) of ``geometry_of``.
        layout: the options.
        types: (n,) number of each question's type, -1 where it has none; the first 32 get a column each.
    """
    known = min(32, int(types.max(initial=-1)) + 1)
    kind = (types[layout.owner][:, None] == np.arange(known)).astype(np.float64)
    values = features.astype(np.float64)
    return np.hstack([values, layout.centred(values), layout.ranks(values), kind]).astype(np.float32)
