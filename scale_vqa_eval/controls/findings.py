"""Compares the findings of a wrong option, with view and polarity, to the item's sources, to see why it is wrong.

The sources of an item are the right answers and rationales of its path in the release. A finding of a wrong option is
*contradicted* if they deny it, *excluded* if they state another value of an attribute with one value per image (organ,
tissue, lineage, behaviour), *supported* if they state it, and else *unknown*, because a finding that is not described
may be present. The vocabulary is ``findings.yaml``; a file can extend it.

The estimate of ambiguity is a rule, not a fitted model: an option is also true if all of its findings are. The
constants were set by reading 20 groups of the released validation split, and checked on 20 others.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from scale_vqa_eval.errors import validated
from scale_vqa_eval.files import parse_yaml
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import VIEWS
from scale_vqa_eval.text import NEGATION

DENIED: Final = 0.05
STATED: Final = 0.9
ELSEWHERE: Final = 0.5
GENERIC: Final = 0.6
"""Probability that a finding is true if the sources deny it, state it, state it for another view or region of the
patient (``ELSEWHERE``), or do not mention a generic one. For others it is the share of paths whose sources state
them."""
BENIGN: Final = "behaviour: benign"
"""Value of a diagnosis with which generic findings are half as likely."""
POWER: Final = 0.6
"""Exponent of the product of these probabilities, because findings of one image are not independent."""
NO_FINDING: Final = 0.35
NESTED: Final = 0.6
"""Estimated ambiguity of an option without known words, and of a diagnosis that includes the findings of another."""
LISTED_WORDS: Final = 5
REASONS: Final = ("contradicted", "excluded", "not described", "none")
"""Reasons for an option to be wrong, strongest first: the item's sources deny one of its findings; they state another
organ, tissue, lineage or compartment; they do not describe one of its findings; or it has only generic or supported
findings."""
SIMILAR_DIAGNOSES: Final = ((0.7, 2.0), (0.3, 1.0), (0.0, 0.6))
"""(minimum cosine similarity of the two paths' diagnoses, factor on the estimate)."""
HIGHEST_ESTIMATE: Final = 0.9
_SENTENCE: Final = re.compile(r"(?<=[.!?;])\s+")
_CLAUSE: Final = re.compile(r"[;:]\s|\b(?:but|while|whereas|although|however|which|because|where)\b", re.IGNORECASE)
_CONTRAST: Final = re.compile(
    r"\b(?:rather than|instead of|as opposed to|other than|over|versus|arguing against|excluding)\b", re.IGNORECASE
)
_UNREPORTED: Final = re.compile(
    r"(?:\b(?:not|never|without|cannot|fails? to)|n't)\b\W+(?:[\w-]+\W+){0,4}?"
    r"(?:show|mention|describ|list|repeat|stat|includ|reiterat|report|not(?:e|ed|ing)\b|emphasi|raise|"
    r"corrobor|support|confirm|back|carr|echo)\w*",
    re.IGNORECASE,
)
_CONFIRMED: Final = re.compile(r"(?:corrobor|support|confirm|back|carr|echo)\w*$", re.IGNORECASE)
"""Verbs that imply that their object was seen: "necrosis is not corroborated" does, "is not described" does not."""
_REPORTED: Final = re.compile(r"\b(?:list|describ|mention|stat|not(?:e|ed)\b|report|explicit)", re.IGNORECASE)
_SUGGESTED: Final = re.compile(r"\b(?:impression|suggest|hint|impli|indicat)", re.IGNORECASE)
_NO_DENIAL: Final = re.compile(r"instead|rather|exclu|except|fail|free", re.IGNORECASE)
_ABSENT: Final = re.compile(
    r"\w*\W+(?:\w+\W+){0,3}?(?:absent|lost|(?:not|n't)\W+(?:\w+\W+)?(?:seen|observed|present|identified|evident))\b",
    re.IGNORECASE,
)
_OR: Final = re.compile(r"\s*n?or\b", re.IGNORECASE)
_ON_OPTIONS: Final = re.compile(
    r"\b(?:options?|choices?|alternatives?|distractors?|others? (?:each|change))\b|\b[B-D]/[B-D]", re.IGNORECASE
)
_VIEW: Final = {
    "low_mag": re.compile(r"\b(?:low(?:est|er)?(?!-grade| grade)|10x)\b", re.IGNORECASE),
    "mid_mag": re.compile(r"\b(?:mid(?:dle)?|intermediate|40x)\b", re.IGNORECASE),
    "high_mag": re.compile(r"\b(?:high(?:est|er)?(?!-grade| grade)|200x)\b", re.IGNORECASE),
}
_ONLY: Final = re.compile(r"\b(?:only|solely|restricted|confined|single view|one view)\b", re.IGNORECASE)


_Values = dict[str, dict[str, list[str]]]


class Vocabulary(BaseModel):
    """Names of findings, and the prefixes of words that name them; see ``findings.yaml``."""

    model_config = ConfigDict(extra="forbid")

    generic: dict[str, list[str]] = {}
    findings: dict[str, list[str]] = {}
    exclusive: dict[str, dict[str, list[str]]] = {}
    answers: dict[str, dict[str, list[str]]] = {}

    def extended(self, other: Vocabulary) -> Vocabulary:
        """Returns the entries of both; entries of ``other`` replace those with the same name."""

        def merged(own: _Values, added: _Values) -> _Values:
            return {name: {**own.get(name, {}), **added.get(name, {})} for name in {**own, **added}}

        return Vocabulary(
            generic={**self.generic, **other.generic},
            findings={**self.findings, **other.findings},
            exclusive=merged(self.exclusive, other.exclusive),
            answers=merged(self.answers, other.answers),
        )


@dataclass(frozen=True, slots=True)
class Statement:
    """A finding that a text states or denies.

    Attributes:
        finding: name of the finding; ``attribute: value`` for exclusive attributes.
        present: whether the finding is stated; False if it is denied.
        view: view of the statement, or None if the text names none.
    """

    finding: str
    present: bool
    view: str | None


def read_vocabulary(extension: str | Path | None = None) -> Vocabulary:
    """Returns the package's vocabulary, extended by a file in the same format.

    Raises:
        InputError: if the file is not a vocabulary.
    """
    if extension is None:
        return _package_vocabulary()
    text = Path(extension).read_text(encoding="utf-8")
    return _package_vocabulary().extended(validated(Vocabulary, parse_yaml(text, str(extension)), str(extension)))


@cache
def _package_vocabulary() -> Vocabulary:
    text = (files("scale_vqa_eval.controls") / "findings.yaml").read_text(encoding="utf-8")
    return validated(Vocabulary, parse_yaml(text, "findings.yaml"), "findings.yaml")


class FindingParser:
    """Finds statements in texts by a vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        named = {**vocabulary.findings, **vocabulary.generic}
        for attribute, values in {**vocabulary.exclusive, **vocabulary.answers}.items():
            named |= {f"{attribute}: {value}": words for value, words in values.items()}
        self.generic = frozenset(vocabulary.generic)
        self.answers = frozenset(vocabulary.answers)
        self._patterns = {
            name: re.compile(rf"\b(?:{'|'.join(re.escape(word) for word in words)})", re.IGNORECASE)
            for name, words in named.items()
            if words
        }
        self._parsed: dict[str, frozenset[Statement]] = {}

    def statements(self, text: str) -> frozenset[Statement]:
        """Returns the statements of a text without sentences about answer options.

        A finding that is "not described" or "not corroborated" is not denied; one after "rather than" is.

        >>> parser = FindingParser(read_vocabulary())
        >>> sorted(s.finding for s in parser.statements("Necrosis at low magnification, no mucin") if s.present)
        ['necrosis']
        """
        if text not in self._parsed:
            found: set[Statement] = set()
            for sentence in _SENTENCE.split(text):
                if _ON_OPTIONS.search(sentence):
                    continue
                for part in _CLAUSE.split(sentence):
                    kept, *contrasted = _CONTRAST.split(part, maxsplit=1)
                    listed = False
                    segments = kept.split(", ")
                    for number, segment in enumerate(segments):
                        ahead = segments[number : number + 3]
                        listed = listed and len(segment.split()) <= LISTED_WORDS and any(map(_OR.match, ahead))
                        found |= self._in_clause(segment, listed)
                        listed = listed or bool(_denials(segment))
                    for rest in contrasted:
                        found |= {Statement(name, False, None) for name, _ in self._mentions(rest)}
            self._parsed[text] = frozenset(found)
        return self._parsed[text]

    def _mentions(self, clause: str) -> Iterator[tuple[str, re.Match[str]]]:
        for name, pattern in self._patterns.items():
            for match in pattern.finditer(clause):
                yield name, match

    def _in_clause(self, clause: str, denied: bool) -> set[Statement]:
        unreported = _UNREPORTED.search(clause)
        end = unreported.start() if unreported else len(clause)
        presumed = unreported is None or _CONFIRMED.search(unreported.group()) or _SUGGESTED.search(clause[:end])
        about = clause[:end] if unreported else clause
        views: list[str | None] = [view for view in VIEWS if _VIEW[view].search(about)]
        only = bool(views) and _ONLY.search(about) is not None and _REPORTED.search(about) is None
        denials = _denials(clause)
        found = set()
        for name, match in self._mentions(clause):
            if match.start() >= end or not presumed:
                continue
            absent = denied or any(start <= match.start() for start in denials)
            absent = absent or _ABSENT.match(clause[match.end() :]) is not None
            absent = absent and name.partition(": ")[0] not in self.answers
            found |= {Statement(name, not absent, view) for view in views or [None]}
            if only and not absent:
                found |= {Statement(name, False, view) for view in VIEWS if view not in views}
        return found


def _denials(clause: str) -> list[int]:
    return [match.start() for match in NEGATION.finditer(clause) if not _NO_DENIAL.match(match.group())]


@dataclass(frozen=True)
class OptionReasons:
    """Comparison of a wrong option with the sources of an item.

    Attributes:
        contradicted: findings that the sources deny.
        excluded: values of exclusive attributes for which the sources state others.
        supported: findings that the sources state.
        unknown: findings that the sources do not describe, except generic ones.
        ambiguity: estimated probability that the option is also true.
    """

    contradicted: frozenset[str]
    excluded: frozenset[str]
    supported: frozenset[str]
    unknown: frozenset[str]
    ambiguity: float

    @property
    def reason(self) -> str:
        """The strongest reason for the option to be wrong: one of ``REASONS``."""
        if self.contradicted:
            return "contradicted"
        if self.excluded:
            return "excluded"
        return "not described" if self.unknown else "none"


def _stated(statements: Iterable[Statement]) -> frozenset[str]:
    return frozenset(one.finding for one in statements if one.present)


@dataclass(frozen=True)
class _Item:
    """Statements on the images of a question, from the most to the least specific."""

    dimension: str | None
    answer: frozenset[Statement]
    diagnosis: frozenset[Statement]
    path: frozenset[Statement]
    patient: frozenset[Statement]


class AmbiguityModel:
    """Estimates the probability that the right answer of one question is also true for another.

    This is so if all of its findings are true. The probability of a finding is ``STATED`` if the item's sources state
    it, ``DENIED`` if they deny it or state another value of the attribute, and else the share of the file's paths
    whose sources state it, at least ``GENERIC`` for generic findings. The estimate is based on the product.

    Args:
        questions: n questions.
        keys: n keys of the questions' images; questions with the same key have the same sources.
        vocabulary: vocabulary of findings.
        embed: texts -> unit vectors, for the similarity of diagnoses; None for TF-IDF.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        keys: Sequence[object],
        vocabulary: Vocabulary,
        embed: Callable[[Sequence[str]], Any] | None = None,
    ) -> None:
        from scipy.sparse import csr_array
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.parser = FindingParser(vocabulary)
        self._golds = [self.parser.statements(question.options[question.answer]) for question in questions]
        paths: dict[object, set[Statement]] = defaultdict(set)
        named: dict[object, set[Statement]] = defaultdict(set)
        patients: dict[object, set[Statement]] = defaultdict(set)
        diagnoses: dict[object, list[str]] = defaultdict(list)
        for question, key, gold in zip(questions, keys, self._golds, strict=True):
            paths[key] |= gold | self.parser.statements(question.rationale or "")
            patients[question.cluster] |= paths[key]
            if question.dimension == "Diagnosis":
                named[key] |= gold
                diagnoses[key].append(question.options[question.answer])
        self._items = [
            _Item(question.dimension, gold, *map(frozenset, (named[key], paths[key], patients[question.cluster])))
            for question, key, gold in zip(questions, keys, self._golds, strict=True)
        ]
        self._prevalence = {
            name: (count + 0.5) / (len(paths) + 1)
            for name, count in Counter(name for own in paths.values() for name in _stated(own)).items()
        }
        self._compared: dict[tuple[int, int], OptionReasons] = {}
        index = {key: number for number, key in enumerate(paths)}
        self._at = np.array([index[key] for key in keys], dtype=np.int64)
        texts = [" ".join(diagnoses[key]) for key in paths]
        self._diagnosis = [question.dimension == "Diagnosis" for question in questions]
        self._known = np.array([bool(text) for text in texts], dtype=bool)
        words = any(re.search(r"\w\w", text) for text in texts)  # else the vocabulary would be empty
        vectors = embed or TfidfVectorizer(analyzer="word" if words else "char", sublinear_tf=True).fit_transform
        self._vectors = csr_array(vectors(texts)) if any(texts) else None

    def reasons(self, row: int, other: int) -> OptionReasons:
        """Returns the comparison of the right answer of ``row``, as an option of ``other``, with its sources."""
        if (row, other) not in self._compared:
            self._compared[row, other] = self._compare(row, other)
        return self._compared[row, other]

    def _compare(self, row: int, other: int) -> OptionReasons:
        item, generic = self._items[other], self.parser.generic
        found: dict[str, set[str]] = defaultdict(set)
        chances: dict[str, float] = {}
        for statement in self._golds[row]:
            kind, chance = self._chance(statement, self._golds[row], item)
            name = statement.finding
            attribute, _, value = name.partition(": ")
            if kind and not (name in generic and kind in ("supported", "unknown")):
                found[kind].add(name)
            key = attribute if value else name
            chances[key] = min(chance, chances.get(key, 1.0))
        ambiguity = float(np.prod(list(chances.values()))) ** POWER if chances else NO_FINDING
        left, right = (_stated(self._golds[one]) - generic for one in (row, other))
        if self._diagnosis[row] and self._diagnosis[other] and left and right and (left <= right or right <= left):
            found, ambiguity = defaultdict(set, {"supported": set(left | right)}), NESTED
        parts = {name: frozenset(found[name]) for name in ("contradicted", "excluded", "supported")}
        unknown = frozenset(found["unknown"]) - frozenset().union(*parts.values())
        return OptionReasons(**parts, unknown=unknown, ambiguity=ambiguity)

    def _chance(self, statement: Statement, answer: frozenset[Statement], item: _Item) -> tuple[str, float]:
        """Returns the relation of an item's sources to a statement, and the probability that it is true."""
        attribute, _, value = statement.finding.partition(": ")
        prevalence = self._prevalence.get(statement.finding, 0.0)
        if attribute in self.parser.answers and attribute != item.dimension:
            return "", 1.0
        if value and statement.present:
            levels = [item.answer] if attribute in self.parser.answers else [item.diagnosis, item.path, item.patient]
            known: set[str] = set()
            for level in levels:
                known = {one.finding for one in level if one.present and one.finding.startswith(f"{attribute}: ")}
                if known:
                    break
            if attribute in self.parser.answers:
                excluded = bool(known) and not known & {one.finding for one in answer}
                return ("excluded", DENIED) if excluded else ("", 1.0)
            if not known:
                return "unknown", max(prevalence, 0.5)
            return ("supported", STATED) if statement.finding in known else ("excluded", DENIED)
        if value:
            return "", 1.0
        views = (None, statement.view)
        same = [
            one
            for one in item.path
            if one.finding == statement.finding and (statement.view is None or one.view in views)
        ]
        if any(one.present == statement.present for one in same):
            return "supported", STATED
        elsewhere = any(one.finding == statement.finding and one.present for one in item.path)
        if same and not (statement.present and elsewhere):
            return "contradicted", DENIED
        if not statement.present:
            return "unknown", max(1 - prevalence, 0.5)
        chance = max(prevalence, ELSEWHERE if elsewhere else 0.0)
        if any(one.finding == statement.finding and one.present for one in item.patient):
            chance = max(chance, ELSEWHERE)
        if statement.finding in self.parser.generic:
            benign = {name for name in _stated(item.diagnosis) if name.startswith("behaviour: ")} == {BENIGN}
            chance = max(chance, GENERIC / 2 if benign else GENERIC)
        return "unknown", chance

    def directed(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Returns (n, n): the estimate for the right answer of row i as an option of row j, 0 on the diagonal."""
        names = rows.tolist()
        estimates = [[0.0 if row == other else self.reasons(row, other).ambiguity for other in names] for row in names]
        result = np.array(estimates, dtype=np.float64).reshape(len(names), len(names))
        return np.asarray(np.minimum(result * self._diagnosis_factor(rows), HIGHEST_ESTIMATE))

    def supported(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Returns (n, n), symmetric: whether the sources of one row support all findings of the other's answer."""
        result = self._each(rows, lambda found: bool(found.supported) and found.reason == "none")
        return result | result.T

    def contradicted(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Returns (n, n), symmetric: whether the sources of each row contradict a finding of the other's answer."""
        result = self._each(rows, lambda found: found.reason in ("contradicted", "excluded"))
        return result & result.T

    def between(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Returns (n, n), symmetric: the mean of the two directed estimates, from 0 to ``HIGHEST_ESTIMATE``."""
        result = self.directed(rows)
        return np.asarray((result + result.T) / 2)

    def _each(self, rows: npt.NDArray[np.int64], test: Callable[[OptionReasons], bool]) -> npt.NDArray[np.bool_]:
        names = rows.tolist()
        found = [[row != other and test(self.reasons(row, other)) for other in names] for row in names]
        return np.array(found, dtype=bool).reshape(len(names), len(names))

    def organs(self, row: int) -> frozenset[str]:
        """Returns the organs in the right answer of a question, or else in its sources."""
        item = self._items[row]
        named = ({name for name in _stated(some) if name.startswith("organ: ")} for some in (item.answer, item.path))
        return frozenset(next(filter(None, named), set()))

    def _diagnosis_factor(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        factor = np.ones((len(rows), len(rows)))
        if self._vectors is None:
            return factor
        at = self._at[rows]
        cosine = (self._vectors[at] @ self._vectors[at].T).toarray()
        known = self._known[at][:, None] & self._known[at][None, :]
        for least, times in reversed(SIMILAR_DIAGNOSES):
            factor = np.where(known & (cosine >= least), times, factor)
        return factor
