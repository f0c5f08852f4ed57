"""The exchange control: groups of four items with the same text, in which each option is right for exactly one item.

The four items have the same question text, come from four patients, and have their four right answers as options in
the same order. A deterministic text-only reader that is asked one item at a time gives the same letter four times: its
accuracy is 1/4, its group accuracy 0. This does not hold for a reader of the whole file, which can compare rows that
share a slide.

Another item's right answer is used as a wrong option only if its words do not suggest that it is also right: it is not
nearly the same text, does not contain the other or negate it, and is not close to any right answer for the same
images. Words cannot prove that an option is wrong; this needs a reader of the image.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, permutations
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.controls.exchange_group import GROUP_SIZE, ExchangeGroup
from scale_vqa_eval.controls.findings import AmbiguityModel, Vocabulary, read_vocabulary
from scale_vqa_eval.controls.group_packing import Items, Weights, capacity_bound, pack
from scale_vqa_eval.questions import Question
from scale_vqa_eval.text import NEGATION, negations, same_text, tokens

ROWS_AT_ONCE: Final = 400
"""Maximum number of items with the same text that are packed together; more are split into portions."""
DOUBT: Final = 10.0
"""Cost of a doubtful pair, in units of estimated ambiguity; any other pair is preferred to it."""
UNLIKE_VIEWS: Final = 3.0
"""Cost of a pair with different views, because the number of images could tell the items apart."""
OTHER_ORGANS: Final = 0.4
"""Cost of a pair of diagnoses of different organs, because one view is enough to tell them apart."""
TOO_FEW_ROWS: Final = "the question text stands in fewer than four usable rows"
TOO_FEW_PATIENTS: Final = "the rows with the question text come from fewer than four patients"
LEFT_OVER: Final = "no valid group could be made of what was left over"
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


@dataclass(frozen=True)
class QuestionGroup(ExchangeGroup[int]):
    """An exchange group of questions; ``members`` are row numbers in option order.

    Attributes:
        stem: question text of all four, the most frequent spelling among the rows.
        same_views: whether all four have images of the same views.
        ambiguity: mean estimated probability that a wrong option is also true; see ``findings``.
        reasons: strongest reason to be wrong -> number of wrong options (of twelve) with it; see ``findings``.
        four_organs: whether the four right answers are diagnoses of four different organs.
        doubtful: pairs (row, other row) whose right answers may be true for the other, because they are close to a
            right answer of the same dimension for another region of the other's patient.
        block: name of the block of four slides in a block exchange, else empty.
        quadruple: name of the quadruple of paths in a block exchange, else empty.
    """

    stem: str
    same_views: bool
    ambiguity: float
    reasons: dict[str, int]
    four_organs: bool
    doubtful: tuple[tuple[int, int], ...]
    block: str = ""
    quadruple: str = ""

    @property
    def contradicted(self) -> int:
        """Number of wrong options (of twelve) that the item's own sources deny or exclude."""
        return self.reasons.get("contradicted", 0) + self.reasons.get("excluded", 0)


@dataclass(frozen=True, slots=True)
class PartCounts:
    """Counts of one split and dimension.

    Attributes:
        questions: number of questions.
        groups: number of groups made of them.
        bound: upper bound on the number of groups under the same limits.
        lost: reason -> number of questions that are in no group for this reason.
    """

    questions: int
    groups: int
    bound: int
    lost: dict[str, int]


@dataclass(frozen=True)
class ExchangeResult:
    """All groups of a question set.

    Attributes:
        groups: groups in the order of their first rows.
        parts: (split, dimension) -> counts; unknown names are None.
        bound: upper bound on the number of groups under the same limits.
    """

    groups: tuple[QuestionGroup, ...]
    parts: dict[tuple[str | None, str | None], PartCounts]
    bound: int


def exchange(
    pairs: PairRules, seed: int = 42, progress: Callable[[int], object] = lambda items: None
) -> ExchangeResult:
    """Groups questions for exchange: first as many groups as possible, then the least ambiguous ones.

    The items of a group have the same split, dimension and question text.

    Args:
        pairs: the questions, and which of them may share a group.
        seed: seed of the search and of the order of options.
        progress: called with the number of questions that were processed.
    """
    questions = pairs.questions
    tally: dict[tuple[str | None, str | None], Counter[str]] = defaultdict(Counter)
    found: list[QuestionGroup] = []
    for (split, dimension, _), rows in _same_text(questions).items():
        part = tally[split, dimension]
        usable = pairs.usable(rows, part)
        groups, bound = _packed(pairs, usable, seed, spelling(questions, rows))
        part.update({"questions": len(rows), "groups": len(groups), "bound": bound})
        part[LEFT_OVER] += len(usable) - GROUP_SIZE * len(groups)
        found += groups
        progress(len(rows))
    parts = {key: part_counts(counts) for key, counts in sorted(tally.items(), key=str)}
    return ExchangeResult(named("exchange", questions, found, seed), parts, sum(part.bound for part in parts.values()))


def part_counts(counts: Counter[str]) -> PartCounts:
    """Returns a tally as counts; other keys than the fields of ``PartCounts`` are reasons."""
    lost = {reason: count for reason, count in sorted(counts.items()) if reason not in PartCounts.__slots__ and count}
    return PartCounts(counts["questions"], counts["groups"], counts["bound"], lost)


def named(
    prefix: str, questions: Sequence[Question], groups: Sequence[QuestionGroup], seed: int
) -> tuple[QuestionGroup, ...]:
    """Numbers groups in the order of their first rows, and draws the order of their options.

    The order depends only on the seed and the option texts. If it depended on the rows, a reader who knows the seed
    could derive the answers from it.
    """
    numbers: Counter[str | None] = Counter()
    result = []
    for group in sorted(groups, key=lambda group: sorted(group.members)):
        split = questions[group.members[0]].split
        numbers[split] += 1
        golds = {row: questions[row].options[questions[row].answer] for row in group.members}
        order = sorted(group.members, key=lambda row: golds[row])
        random.Random("\0".join([str(seed), *(golds[row] for row in order)])).shuffle(order)
        name = "-".join([prefix, *([split] if split else []), f"{numbers[split]:05d}"])
        result.append(replace(group, name=name, members=tuple(order)))
    return tuple(result)


class PairRules:
    """Rules for pairs of questions: which may share a group, and which pairs are preferred.

    Args:
        questions: n questions.
        limits: limits on the similarity of right answers.
        vocabulary: vocabulary of findings; by default the package's.
        embed: texts -> unit vectors, for the similarity of diagnoses; None for TF-IDF.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        limits: ValidityLimits | None = None,
        vocabulary: Vocabulary | None = None,
        embed: Callable[[Sequence[str]], Any] | None = None,
    ) -> None:
        self.questions, self.limits = questions, limits or ValidityLimits()
        self.views = [frozenset(view for view, _ in question.images) for question in questions]
        self.ambiguity_model = AmbiguityModel(
            questions, [_path(question) for question in questions], vocabulary or read_vocabulary(), embed
        )
        self.golds = [question.options[question.answer] for question in questions]
        self._by_path: dict[tuple[str, ...], set[str]] = defaultdict(set)
        self._by_patient: dict[tuple[str, str | None], set[str]] = defaultdict(set)
        for question, gold in zip(questions, self.golds, strict=True):
            self._by_path[_path(question)].add(gold)
            self._by_patient[question.cluster, question.dimension].add(gold)

    def problem(self, row: int) -> str | None:
        """Returns the reason why a row cannot be in a group, or None."""
        return gold_problem(self.questions[row])

    def usable(self, rows: Sequence[int], lost: Counter[str]) -> Items:
        """Returns the rows of one text that can be in a group; counts the others in ``lost``."""
        problems = {row: self.problem(row) for row in rows}
        lost.update(problem for problem in problems.values() if problem is not None)
        kept = [row for row, problem in problems.items() if problem is None]
        patients = {self.questions[row].cluster for row in kept}
        if len(kept) < GROUP_SIZE or len(patients) < GROUP_SIZE:
            lost[TOO_FEW_ROWS if len(kept) < GROUP_SIZE else TOO_FEW_PATIENTS] += len(kept)
            kept = []
        return np.array(kept, dtype=np.int64)

    def allowed(self, rows: Items) -> Matrix:
        """Returns (n, n): whether two rows may share a group."""
        golds = [self.golds[row] for row in rows.tolist()]
        on_images = [sorted(self._by_path[_path(self.questions[row])]) for row in rows.tolist()]
        result = compatible(golds, on_images, self.patients(rows), self.limits)
        if self.limits.require_contradiction:
            result &= self.ambiguity_model.contradicted(rows)
        directed = self.ambiguity_model.directed(rows)
        return np.asarray(result & (np.maximum(directed, directed.T) <= self.limits.max_ambiguity))

    def patients(self, rows: Items) -> list[str]:
        """Returns the patient of each row."""
        return [self.questions[row].cluster for row in rows.tolist()]

    def ambiguity(self, rows: Items) -> Weights:
        """Returns (n, n): estimated probability that the right answer of one row is also true for the other."""
        return self.ambiguity_model.between(rows)

    def unlike_views(self, rows: Items) -> Matrix:
        """Returns (n, n): whether two questions have images of different views."""
        kinds = {views: number for number, views in enumerate(dict.fromkeys(self.views))}
        of = np.array([kinds[self.views[row]] for row in rows.tolist()], dtype=np.int64)
        return np.asarray(of[:, None] != of[None, :])

    def other_organs(self, rows: Items) -> Matrix:
        """Returns (n, n): whether two diagnoses name organs but have none in common."""
        diagnoses = [self.questions[row].dimension == "Diagnosis" for row in rows.tolist()]
        organs = [
            self.ambiguity_model.organs(row) if known else frozenset()
            for row, known in zip(rows.tolist(), diagnoses, strict=True)
        ]
        return np.array([[bool(a and b and not a & b) for b in organs] for a in organs], dtype=bool)

    def doubtful(self, rows: Items) -> Matrix:
        """Returns (n, n): whether one right answer is close to another right answer of the other's patient."""
        golds = [self.golds[row] for row in rows.tolist()]
        keys = [(self.questions[row].cluster, self.questions[row].dimension) for row in rows.tolist()]
        column = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        close = claims(golds, [sorted(self._by_patient[key]) for key in column], self.limits)
        pairs = close[:, [column[key] for key in keys]]
        np.fill_diagonal(pairs, False)
        result: Matrix = pairs | pairs.T
        return result


def _packed(pairs: PairRules, rows: Items, seed: int, stem: str) -> tuple[list[QuestionGroup], int]:
    """Packs the rows of one text in portions, then the remaining rows; returns the groups and an upper bound."""
    if len(rows) == 0:
        return [], 0
    portions = _dealt(pairs.questions, rows)
    done = [_packed_portion(pairs, portion, seed, stem) for portion in portions]
    groups = [group for part, _ in done for group in part]
    if len(portions) == 1:
        return groups, done[0][1]
    left = np.setdiff1d(rows, np.array([row for group in groups for row in group.members], dtype=np.int64))
    if len(left) >= GROUP_SIZE:
        groups += _packed_portion(pairs, _dealt(pairs.questions, left)[0], seed, stem)[0]
    return groups, capacity_bound(list(Counter(pairs.patients(rows)).values()))


def _dealt(questions: Sequence[Question], rows: Items) -> list[Items]:
    """Splits rows into portions in turn, so that every portion has rows of every patient."""
    number = -(-len(rows) // ROWS_AT_ONCE)
    by_patient = sorted(rows.tolist(), key=lambda row: (questions[row].cluster, row))
    return [np.array(sorted(by_patient[start::number]), dtype=np.int64) for start in range(number)]


def _packed_portion(pairs: PairRules, rows: Items, seed: int, stem: str) -> tuple[list[QuestionGroup], int]:
    doubtful = pairs.doubtful(rows) | pairs.ambiguity_model.supported(rows)
    weight = -pairs.ambiguity(rows) - DOUBT * doubtful
    weight -= UNLIKE_VIEWS * pairs.unlike_views(rows) + OTHER_ORGANS * pairs.other_organs(rows)
    packing = pack(pairs.allowed(rows), weight, pairs.patients(rows), seed)
    return [described_group(pairs, rows[list(group)], stem) for group in packing.groups], packing.bound


def described_group(pairs: PairRules, rows: Items, stem: str) -> QuestionGroup:
    """Returns a group of four rows, without a name."""
    unlike_views, doubtful, ambiguity = pairs.unlike_views(rows), pairs.doubtful(rows), pairs.ambiguity(rows)
    organs, names = pairs.other_organs(rows), rows.tolist()
    six = list(combinations(range(GROUP_SIZE), 2))
    return QuestionGroup(
        "",
        tuple(rows.tolist()),
        stem,
        not any(unlike_views[pair] for pair in six),
        float(np.mean([ambiguity[pair] for pair in six])),
        dict(Counter(pairs.ambiguity_model.reasons(row, other).reason for row, other in permutations(names, 2))),
        all(organs[pair] for pair in six),
        tuple((int(rows[left]), int(rows[right])) for left, right in six if doubtful[left, right]),
    )


def _same_text(questions: Sequence[Question]) -> dict[tuple[str | None, str | None, str], list[int]]:
    """Returns the rows of each split, dimension and question text, in order of appearance."""
    rows: dict[tuple[str | None, str | None, str], list[int]] = defaultdict(list)
    for row, question in enumerate(questions):
        rows[question.split, question.dimension, same_text(question.question)].append(row)
    return rows


def spelling(questions: Sequence[Question], rows: Sequence[int]) -> str:
    """Returns the most frequent spelling of the rows' question text; in a tie, the first alphabetically."""
    counts = Counter(questions[row].question for row in rows)
    return min(counts, key=lambda text: (-counts[text], text))


def _path(question: Question) -> tuple[str, ...]:
    if question.slide is None or question.path_id is None:
        return ("question", question.id, question.split or "")
    return ("path", question.slide, question.path_id)


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
