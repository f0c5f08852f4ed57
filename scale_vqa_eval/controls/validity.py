"""Which right answers may stand beside each other as options of one exchange group.

Another item's right answer serves as a wrong option only if nothing in the words says that it could be right here as
well: not nearly the same text, not one that contains the other, not its negation, and not close to anything that the
release itself calls right for the same images. Words cannot prove that an option is wrong; only a reader of the image
can confirm it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.questions import Question
from scale_vqa_eval.scoring.baselines import tokens

Matrix = npt.NDArray[np.bool_]

_UNSPACED: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")  # scripts that put no space between words
NEGATIONS: Final = tokens(
    "no not without absent absence lack lacks lacking never none neither nor cannot negative devoid free"
)
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
    """What the gold texts of one group have to keep to.

    Attributes:
        max_jaccard: the token Jaccard of any two must be below this.
        max_containment: the share of the shorter text's content words found in the other must be below this.
        negation_overlap: the same share from which on one negated and one plain text count as each other's negation.
    """

    max_jaccard: float = 0.35
    max_containment: float = 0.8
    negation_overlap: float = 0.5


def stem_key(text: str) -> str:
    """Returns what makes two question texts the same: NFKC, case and runs of white space aside.

    >>> stem_key("Which  option fits?") == stem_key("which option fits? ")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@lru_cache(maxsize=200_000)
def words(text: str) -> frozenset[str]:
    """Returns the set of words of a text; scripts that are written without spaces count character by character."""
    return tokens(_UNSPACED.sub(r" \g<0> ", unicodedata.normalize("NFKC", text).casefold()))


def gold_problem(question: Question) -> str | None:
    """Returns why the right answer of a question cannot be an option of another one; None where it can.

    >>> gold_problem(Question("1", "q", ("Both A and C", "x"), 0))
    'the right answer refers to other options'
    """
    gold = question.options[question.answer]
    if _REFERS.search(gold):
        return "the right answer refers to other options"
    return None if words(gold) else "the right answer has no word"


def compatible(
    golds: Sequence[str], truths: Sequence[Sequence[str]], patients: Sequence[str], limits: ValidityLimits
) -> Matrix:
    """Tells which pairs of items may share a group.

    Args:
        golds: the right answers of n items with the same question text.
        truths: for each item the texts that the release calls right for its images, its own gold or not.
        patients: patient of each item; two items of one patient never share a group.
        limits: see ``ValidityLimits``.

    Returns:
        Symmetric (n, n) array, False on the diagonal.
    """
    clash = claims(golds, [(gold, *texts) for gold, texts in zip(golds, truths, strict=True)], limits)
    clash |= _negated(golds, limits)
    names = np.asarray(patients, dtype=object)
    result: Matrix = ~(clash | clash.T | (names[:, None] == names[None, :]))
    np.fill_diagonal(result, False)
    return result


def claims(golds: Sequence[str], truths: Sequence[Sequence[str]], limits: ValidityLimits) -> Matrix:
    """Tells which gold texts may well be true where the texts of a set of truths are.

    Returns:
        (golds, truths) array: the gold is, by the limits on Jaccard and containment, close to one text of the set.
    """
    known = sorted({text for texts in truths for text in texts})
    column = {text: index for index, text in enumerate(known)}
    gold_words, known_words = [words(text) for text in golds], [words(text) for text in known]
    vocabulary = _vocabulary([*gold_words, *known_words])
    close = _jaccard(_incidence(gold_words, vocabulary), _incidence(known_words, vocabulary)) >= limits.max_jaccard
    shared, smaller = _overlap(
        _incidence([_content(text) for text in gold_words], vocabulary),
        _incidence([_content(text) for text in known_words], vocabulary),
    )
    close |= shared >= limits.max_containment * smaller
    result = np.zeros((len(golds), len(truths)), dtype=bool)
    for number, texts in enumerate(truths):
        result[:, number] = close[:, [column[text] for text in texts]].any(axis=1)
    return result


def _content(text: frozenset[str]) -> frozenset[str]:
    return text - _EMPTY_WORDS - NEGATIONS or text


def _negated(golds: Sequence[str], limits: ValidityLimits) -> Matrix:
    texts = [words(gold) for gold in golds]
    plain = np.array([not text & NEGATIONS for text in texts], dtype=bool)
    incidence = _incidence([_content(text) for text in texts], _vocabulary(texts))
    shared, smaller = _overlap(incidence, incidence)
    result: Matrix = (plain[:, None] != plain[None, :]) & (shared >= limits.negation_overlap * smaller)
    return result


def _vocabulary(texts: Sequence[frozenset[str]]) -> dict[str, int]:
    return {word: index for index, word in enumerate(sorted(frozenset().union(*texts)))}


def _incidence(texts: Sequence[frozenset[str]], vocabulary: dict[str, int]) -> Any:
    """Returns the sparse (texts, vocabulary) matrix of which word stands in which text."""
    from scipy.sparse import csr_array

    pointers = np.cumsum([0, *(len(text) for text in texts)])
    columns = np.fromiter((vocabulary[word] for text in texts for word in sorted(text)), dtype=np.int64)
    ones = np.ones(len(columns), dtype=np.float64)
    return csr_array((ones, columns, pointers), shape=(len(texts), len(vocabulary)))


def _overlap(first: Any, second: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns the number of shared words of every pair, and the number of words of the shorter text."""
    shared = (first @ second.T).toarray()
    return shared, np.minimum(first.sum(axis=1)[:, None], second.sum(axis=1)[None, :])


def _jaccard(first: Any, second: Any) -> npt.NDArray[np.float64]:
    shared = (first @ second.T).toarray()
    union = first.sum(axis=1)[:, None] + second.sum(axis=1)[None, :] - shared
    return np.asarray(shared / np.maximum(union, 1))
