"""Decides from their words which right answers may be options of one exchange group.

Another item's right answer is used as a wrong option only if its words do not suggest that it is also right: it is not
nearly the same text, does not contain the other or negate it, and is not close to any right answer for the same
images. Words cannot prove that an option is wrong; this needs a reader of the image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.questions import Question
from scale_vqa_eval.text import NEGATION, negations, tokens

Matrix = npt.NDArray[np.bool_]

_EMPTY_WORDS: Final = tokens(
    "a an the of in on at to and or with by for from as is are be been was were that this these those it its "
    "both between across while but which also than into only there any "
    "present seen noted described shown observed identified evident visible found"
)
_REFERS: Final = re.compile(
    r"(?i:\b(?:all|none|both|neither|either|any|some)\s+of\s+(?:the\s+)?"
    r"(?:above|below|following|others|(?:these|those)\W*$|(?:other\s+|these\s+|those\s+)?(?:option|choice|answer)s))"
    r"|\b(?i:options?|choices?|answers?)\s+\(?[A-Z]\b"
    r"|\b(?i:both|neither|either)\s+\(?[A-Z]\)?\s+(?:and|n?or)\b"
    r"|^\W*[A-Z](?:\s*(?:,|and|or|&|/|\+)\s*[A-Z])*\W*$"
)


@dataclass(frozen=True, slots=True)
class ValidityLimits:
    """Limits on the similarity of the right answers of a group.

    Attributes:
        max_jaccard: upper limit (exclusive) of the token Jaccard of two texts.
        max_containment: upper limit (exclusive) of the share of the shorter text's content words in the other.
        negation_overlap: this share makes a text with and a text without a negation opposites.
        require_contradiction: whether the sources of each item must contradict a finding of the other's right answer.
        max_ambiguity: maximum estimated probability that one right answer is true for the other item too.
    """

    max_jaccard: float = 0.35
    max_containment: float = 0.8
    negation_overlap: float = 0.5
    require_contradiction: bool = False
    max_ambiguity: float = 1.0


def gold_problem(question: Question) -> str | None:
    """Returns the reason why the right answer of a question cannot be an option of another one, or None.

    >>> gold_problem(Question("1", "q", ("Both A and C", "x"), 0))
    'the right answer refers to other options'
    """
    gold = question.options[question.answer]
    if _REFERS.search(gold):
        return "the right answer refers to other options"
    return None if tokens(gold) else "the right answer has no word"


def compatible(
    golds: Sequence[str], truths: Sequence[Sequence[str]], patients: Sequence[str], limits: ValidityLimits
) -> Matrix:
    """Returns a symmetric (n, n) array of which pairs of items may share a group; False on the diagonal.

    Args:
        golds: right answers of n items with the same question text.
        truths: for each item, all right answers for its images.
        patients: patient of each item; items of one patient never share a group.
        limits: limits on similarity.
    """
    clash = claims(golds, [(gold, *texts) for gold, texts in zip(golds, truths, strict=True)], limits)
    clash |= _negated(golds, limits)
    names = np.asarray(patients, dtype=object)
    result: Matrix = ~(clash | clash.T | (names[:, None] == names[None, :]))
    np.fill_diagonal(result, False)
    return result


def claims(golds: Sequence[str], truths: Sequence[Sequence[str]], limits: ValidityLimits) -> Matrix:
    """Returns a (golds, truths) array: whether a gold text is close to one text of a set of right answers."""
    known = sorted({text for texts in truths for text in texts})
    column = {text: index for index, text in enumerate(known)}
    shared, left, right = _overlap([tokens(text) for text in golds], [tokens(text) for text in known])
    close = shared / np.maximum(left + right - shared, 1) >= limits.max_jaccard
    shared, left, right = _overlap([content_words(text) for text in golds], [content_words(text) for text in known])
    close |= shared >= limits.max_containment * np.minimum(left, right)
    result = np.zeros((len(golds), len(truths)), dtype=bool)
    for number, texts in enumerate(truths):
        result[:, number] = close[:, [column[text] for text in texts]].any(axis=1)
    return result


@lru_cache(maxsize=200_000)
def content_words(text: str) -> frozenset[str]:
    """Returns the words of a text without function words and negations, or all words if none is left.

    >>> sorted(content_words("There is no necrosis"))
    ['necrosis']
    """
    every = tokens(text)
    return frozenset(word for word in every if not NEGATION.fullmatch(word)) - _EMPTY_WORDS or every


def _negated(golds: Sequence[str], limits: ValidityLimits) -> Matrix:
    """Returns (n, n): whether only one of two texts has a negation and they share enough content words."""
    plain = np.array([not negations(gold) for gold in golds], dtype=bool)
    content = [content_words(gold) for gold in golds]
    shared, left, right = _overlap(content, content)
    result: Matrix = (plain[:, None] != plain[None, :]) & (shared >= limits.negation_overlap * np.minimum(left, right))
    return result


def _overlap(left: Sequence[frozenset[str]], right: Sequence[frozenset[str]]) -> tuple[Any, Any, Any]:
    """Returns the numbers of shared words (n, m), and of words of each text, (n, 1) and (1, m)."""
    from sklearn.preprocessing import MultiLabelBinarizer

    vocabulary = sorted(frozenset().union(*left, *right))
    binarizer = MultiLabelBinarizer(classes=vocabulary, sparse_output=True).fit([])
    one, other = binarizer.transform(left).astype(float), binarizer.transform(right).astype(float)
    sizes = [np.array([len(text) for text in texts], dtype=float) for texts in (left, right)]
    return (one @ other.T).toarray(), sizes[0][:, None], sizes[1][None, :]
