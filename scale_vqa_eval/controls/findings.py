"""Reasons for a wrong option to be wrong: findings, by view and polarity, in an option and in the item's own sources.

The sources of an item are what the release says of its images: the right answers and rationales of its path. A finding
of a wrong option is *contradicted* where they deny it, or state another value of an exclusive attribute (organ,
lineage); *supported* where they state it; else *unknown*: "not described" is not "absent". Findings that are true of
nearly any tumour count for nothing. The vocabulary is ``findings.yaml``; a file can extend it.

The estimate of ambiguity is a rule, not a fitted model. Its levels follow a close reading of 40 exchange groups, in
which 22.9% of the wrong options could have been true (4.0% were supported by the item's own sources), and more where
the diagnoses of the two paths are similar (52% at a cosine of 0.7 or more, 13% below 0.3).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
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

CONTRADICTED: Final = 0.05
UNKNOWN: Final = 0.2
NO_FINDING: Final = 0.35
SUPPORTED: Final = 0.6
"""Estimated ambiguity of a wrong option whose findings are of this kind; ``NO_FINDING``: generic ones alone."""
SIMILAR_DIAGNOSES: Final = ((0.7, 2.0), (0.3, 1.0), (0.0, 0.6))
"""(least cosine of the two paths' diagnoses, factor on the estimate)."""
MAX_AMBIGUITY: Final = 0.9
_SENTENCE: Final = re.compile(r"(?<=[.!?;])\s+")
_CLAUSE: Final = re.compile(
    r"[,;:]\s|\b(?:but|while|whereas|although|however|rather than|instead of|which)\b", re.IGNORECASE
)
_ON_OPTIONS: Final = re.compile(
    r"\b(?:options?|choices?|alternatives?|distractors?|others? (?:each|change))\b|\b[B-D]/[B-D]", re.IGNORECASE
)
_VIEW: Final = {
    "low_mag": re.compile(r"\b(?:low(?:est|er)?|10x)\b", re.IGNORECASE),
    "mid_mag": re.compile(r"\b(?:mid(?:dle)?|intermediate|40x)\b", re.IGNORECASE),
    "high_mag": re.compile(r"\b(?:high(?:est|er)?(?!-grade| grade)|200x)\b", re.IGNORECASE),
}
_ONLY: Final = re.compile(r"\b(?:only|solely|restricted|confined|single view|one view)\b", re.IGNORECASE)


class Vocabulary(BaseModel):
    """The names of findings and the word beginnings that name them; see ``findings.yaml``."""

    model_config = ConfigDict(extra="forbid")

    generic: dict[str, list[str]] = {}
    findings: dict[str, list[str]] = {}
    exclusive: dict[str, dict[str, list[str]]] = {}

    def extended(self, other: Vocabulary) -> Vocabulary:
        """Returns the entries of both; those of ``other`` replace entries of the same name."""
        attributes = {**self.exclusive}
        for name, values in other.exclusive.items():
            attributes[name] = {**attributes.get(name, {}), **values}
        return Vocabulary(
            generic={**self.generic, **other.generic},
            findings={**self.findings, **other.findings},
            exclusive=attributes,
        )


@dataclass(frozen=True, slots=True)
class Statement:
    """A finding that a text states or denies.

    Attributes:
        finding: its name; ``attribute: value`` for a value of an exclusive attribute.
        present: whether it is stated, not denied.
        view: the view it is said of, or None where the text names none.
    """

    finding: str
    present: bool
    view: str | None


def read_vocabulary(extension: str | Path | None = None) -> Vocabulary:
    """Returns the package's vocabulary, extended by a file of the same form.

    Raises:
        InputError: where the file is not such a vocabulary.
    """
    own = validated(Vocabulary, _package_yaml(), "findings.yaml")
    if extension is None:
        return own
    text = Path(extension).read_text(encoding="utf-8")
    return own.extended(validated(Vocabulary, parse_yaml(text, str(extension)), str(extension)))


@cache
def _package_yaml() -> object:
    text = (files("scale_vqa_eval.controls") / "findings.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, "findings.yaml")


class FindingParser:
    """Finds statements in texts by a vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        named = {**vocabulary.findings, **vocabulary.generic}
        for attribute, values in vocabulary.exclusive.items():
            named |= {f"{attribute}: {value}": words for value, words in values.items()}
        self.generic = frozenset(vocabulary.generic)
        self._patterns = {
            name: re.compile(rf"\b(?:{'|'.join(re.escape(word) for word in words)})", re.IGNORECASE)
            for name, words in named.items()
            if words
        }
        self._parsed: dict[str, frozenset[Statement]] = {}

    def statements(self, text: str) -> frozenset[Statement]:
        """Returns what a text states; sentences that speak of answer options are left out.

        >>> parser = FindingParser(read_vocabulary())
        >>> sorted(s.finding for s in parser.statements("Necrosis at low magnification, no mucin") if s.present)
        ['necrosis']
        """
        if text not in self._parsed:
            found: set[Statement] = set()
            for sentence in _SENTENCE.split(text):
                if _ON_OPTIONS.search(sentence):
                    continue
                for clause in _CLAUSE.split(sentence):
                    found |= self._in_clause(clause)
            self._parsed[text] = frozenset(found)
        return self._parsed[text]

    def _in_clause(self, clause: str) -> set[Statement]:
        views: list[str | None] = [view for view in VIEWS if _VIEW[view].search(clause)]
        only = bool(views) and _ONLY.search(clause) is not None
        denials = [match.start() for match in NEGATION.finditer(clause)]
        found = set()
        for name, pattern in self._patterns.items():
            for match in pattern.finditer(clause):
                denied = any(start < match.start() for start in denials) or "absent" in clause[match.end() :][:40]
                found |= {Statement(name, not denied, view) for view in views or [None]}
                if only and not denied:
                    found |= {Statement(name, False, view) for view in VIEWS if view not in views}
        return found


@dataclass(frozen=True)
class OptionReasons:
    """What is known of a wrong option against the sources of an item.

    Attributes:
        contradicted: findings that the sources deny or exclude.
        supported: findings that the sources state.
        unknown: findings that the sources do not describe.
    """

    contradicted: frozenset[str]
    supported: frozenset[str]
    unknown: frozenset[str]

    @property
    def ambiguity(self) -> float:
        """Estimated probability that the option could be true as well."""
        if self.contradicted:
            return CONTRADICTED
        if not self.supported and not self.unknown:
            return NO_FINDING
        return SUPPORTED if not self.unknown else UNKNOWN


def option_reasons(
    option: frozenset[Statement], sources: frozenset[Statement], generic: frozenset[str]
) -> OptionReasons:
    """Compares the statements of a wrong option with those of the item's own sources."""
    by_name: dict[str, list[Statement]] = defaultdict(list)
    values: dict[str, set[str]] = defaultdict(set)
    for statement in sources:
        by_name[statement.finding].append(statement)
        attribute, _, value = statement.finding.partition(": ")
        if value and statement.present:
            values[attribute].add(value)
    contradicted: set[str] = set()
    supported: set[str] = set()
    unknown: set[str] = set()
    for statement in option:
        attribute, _, value = statement.finding.partition(": ")
        if value and statement.present and values[attribute]:
            (supported if value in values[attribute] else contradicted).add(statement.finding)
            continue
        same = [other for other in by_name[statement.finding] if _same_view(statement, other)]
        if any(other.present != statement.present for other in same) and not any(
            other.present == statement.present for other in same
        ):
            contradicted.add(statement.finding)
        elif statement.finding in generic:
            continue
        elif same:
            supported.add(statement.finding)
        else:
            unknown.add(statement.finding)
    return OptionReasons(frozenset(contradicted), frozenset(supported), frozenset(unknown - supported - contradicted))


def _stated(statements: frozenset[Statement]) -> frozenset[str]:
    return frozenset(one.finding for one in statements if one.present)


def _organs(statements: frozenset[Statement]) -> frozenset[str]:
    return frozenset(name for name in _stated(statements) if name.startswith("organ: "))


def _same_view(left: Statement, right: Statement) -> bool:
    return left.view == right.view or left.view is None or right.view is None


class AmbiguityModel:
    """Estimates how likely the right answer of one question could be true for another one as well."""

    def __init__(
        self,
        questions: Sequence[Question],
        keys: Sequence[object],
        vocabulary: Vocabulary,
        embed: Callable[[Sequence[str]], Any] | None = None,
    ) -> None:
        """Parses the sources of every question.

        Args:
            questions: n questions.
            keys: what each question's images are known by: questions of one key have the same sources.
            vocabulary: of findings.
            embed: texts -> vectors of unit length, for the similarity of diagnoses; None takes TF-IDF.
        """
        from scipy.sparse import csr_array
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.parser = FindingParser(vocabulary)
        self._golds = [self.parser.statements(question.options[question.answer]) for question in questions]
        sources: dict[object, set[Statement]] = defaultdict(set)
        diagnoses: dict[object, list[str]] = defaultdict(list)
        for question, key, gold in zip(questions, keys, self._golds, strict=True):
            sources[key] |= gold | self.parser.statements(question.rationale or "")
            if question.dimension == "Diagnosis":
                diagnoses[key].append(question.options[question.answer])
        self._sources: Mapping[object, frozenset[Statement]] = {key: frozenset(own) for key, own in sources.items()}
        self._keys = list(keys)
        self._compared: dict[tuple[int, int], OptionReasons] = {}
        index = {key: number for number, key in enumerate(sources)}
        self._at = np.array([index[key] for key in keys], dtype=np.int64)
        texts = [" ".join(diagnoses[key]) for key in sources]
        self._diagnosis = [question.dimension == "Diagnosis" for question in questions]
        self._known = np.array([bool(text) for text in texts], dtype=bool)
        vectors = embed or TfidfVectorizer(sublinear_tf=True).fit_transform
        self._vectors = csr_array(vectors(texts)) if any(texts) else None

    def reasons(self, row: int, other: int) -> OptionReasons:
        """Returns what speaks for and against the right answer of ``row`` as an option of ``other``."""
        if (row, other) not in self._compared:
            sources = self._sources[self._keys[other]]
            found = option_reasons(self._golds[row], sources, self.parser.generic)
            left, right = (_stated(self._golds[one]) - self.parser.generic for one in (row, other))
            nested = bool(left and right) and (left <= right or right <= left)
            if nested and self._diagnosis[row] and self._diagnosis[other]:
                found = OptionReasons(frozenset(), left | right, frozenset())
            self._compared[row, other] = found
        return self._compared[row, other]

    def _directed(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        names = rows.tolist()
        estimates = [[self.reasons(row, other).ambiguity for other in names] for row in names]
        return np.array(estimates, dtype=np.float64).reshape(len(names), len(names))

    def supported(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Returns (n, n), symmetric: whether the other's own sources support all findings of one right answer."""
        result = self._directed(rows) >= SUPPORTED
        return np.asarray((result | result.T) & ~np.eye(len(rows), dtype=bool))

    def contradicted(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Returns (n, n), symmetric: whether each right answer has a finding that the other's sources contradict."""
        result = self._directed(rows) <= CONTRADICTED
        return np.asarray(result & result.T)

    def between(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Returns (n, n), symmetric: the mean estimate of the two directions, from 0 to ``MAX_AMBIGUITY``."""
        directed = self._directed(rows)
        result = (directed + directed.T) / 2 * self._diagnosis_factor(rows)
        np.fill_diagonal(result, 0.0)
        return np.asarray(np.minimum(result, MAX_AMBIGUITY))

    def organs(self, row: int) -> frozenset[str]:
        """Returns the organs that the right answer of a question names; if none, those of its sources."""
        sources = self._sources[self._keys[row]]
        return next(filter(None, (_organs(some) for some in (self._golds[row], sources))), frozenset())

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
