"""Finds defects of a question set and reports them by row id; rows are not changed.

The kinds are those of the released files: rationales that name another letter than the answer, duplicate options,
missing views, unbalanced letters by split and dimension, slides and patients in two splits, repeated questions, and
rationales that cite a feature list instead of the image.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import holm
from scale_vqa_eval.schema import LETTERS, VIEWS

KINDS: Final[dict[str, str]] = {
    "rationale-letter": "the rationale names another letter than the answer",
    "feature-list-rationale": "the rationale cites a feature list, not the image",
    "duplicate-options": "two or more options have the same text",
    "null-view": "a view has no image",
    "repeated-question": "another row has the same question with the same options",
    "unbalanced-letters": "the letters of the right answers are not equally likely",
    "slide-in-two-splits": "a slide is in more than one split",
    "patient-in-two-splits": "a patient is in more than one split",
}
LETTER_LEVEL: Final = 0.05


@dataclass(frozen=True, order=True, slots=True)
class Defect:
    """A defect.

    Attributes:
        id: row id, or name of the split, slide or patient.
        kind: key of ``KINDS``.
        detail: description on one line.
    """

    id: str
    kind: str
    detail: str


def find_defects(questions: Sequence[Question]) -> list[Defect]:
    """Returns all defects of a question set in the order of ``KINDS``, then of the rows."""
    found = [defect for question in questions for defect in _row_defects(question)]
    found += _repeated(questions)
    for row in letter_balance(questions):
        if row["p_holm"] <= LETTER_LEVEL:
            counts = ", ".join(f"{letter} {count}" for letter, count in row["counts"].items())
            part = "/".join(name for name in (row["split"], row["dimension"]) if name)
            detail = f"{counts}; chi-square p = {row['p']:.3g}, {row['p_holm']:.3g} after Holm's correction"
            found.append(Defect(part, "unbalanced-letters", detail))
    for level in ("slide", "patient"):
        splits: dict[str, set[str]] = defaultdict(set)
        for question in questions:
            name = getattr(question, level)
            if name is not None and question.split is not None:
                splits[name].add(question.split)
        found += [
            Defect(name, f"{level}-in-two-splits", f"in {', '.join(sorted(splits[name]))}")
            for name in sorted(splits)
            if len(splits[name]) > 1
        ]
    rank = {kind: index for index, kind in enumerate(KINDS)}
    return sorted(found, key=lambda defect: rank[defect.kind])


def normalised(text: str) -> str:
    """Normalises a text for comparison: NFKC, case-folded, runs of non-word characters replaced by a space."""
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def text_key(question: Question) -> tuple[str, ...]:
    """Returns a key that is equal for repeated questions: normalised stem, and sorted normalised options."""
    return (normalised(question.question), *sorted(normalised(text) or text for text in question.options))


def letter_balance(questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Returns Pearson's chi-square of the gold letters by split, and by split and dimension, Holm-corrected.

    A question with k options adds 1/k to the expected count of each of its letters; the degrees of freedom are the
    number of letters minus one. ``small`` marks tests with an expected count below 5, whose p-value is rough.
    """
    from scipy.stats import chisquare

    cells: dict[tuple[str, str | None], list[Question]] = defaultdict(list)
    for question in questions:
        for dimension in dict.fromkeys((None, question.dimension)):
            cells[question.split or "all", dimension].append(question)
    rows: list[dict[str, Any]] = []
    for (split, dimension), members in sorted(cells.items(), key=lambda cell: (cell[0][0], cell[0][1] or "")):
        letters = LETTERS[: max(len(question.options) for question in members)]
        observed = Counter(question.letter for question in members)
        counts = Counter(len(question.options) for question in members)
        expected = [sum(m / k for k, m in counts.items() if index < k) for index in range(len(letters))]
        test = chisquare([observed[letter] for letter in letters], expected)
        rows.append(
            {
                "split": split,
                "dimension": dimension,
                "n": len(members),
                "counts": {letter: observed[letter] for letter in letters},
                "chi2": float(test.statistic),
                "p": float(test.pvalue),
                "small": min(expected) < 5,
            }
        )
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    return rows


# A letter at the head of a rationale counts as named only before a verb in the third person ("A pairs ..."), so that
# the article in "A matching feature" does not: no noun after the article "A" ends in s, but for -ss, -us and -is.
_ADVERB = r"(?:(?:only|also|just|best|simply|correctly|accurately|alone)\s+)?"
_VERB = r"(?:is|has|was|does|(?!\w*(?:ss|us|is)\b)[a-z]{2,}s)\b"
_HEAD = re.compile(
    rf"^\W*(?:[Oo]nly\s+|[Tt]herefore,?\s+|[Tt]hus,?\s+|[Ss]o\s+)?(?:"
    rf"(?:[Oo]ptions?|[Cc]hoices?|[Aa]nswers?)\s+\(?([A-Z])\b\)?(?!\s*(?:,|and\b|or\b|&|/|[-\u2013\u2014]\s*[A-Z]\b))"
    rf"|\(([A-Z])\)"
    rf"|([A-Z])(?=[).:]\s)"
    rf"|([A-Z])(?=\s+{_ADVERB}{_VERB})"
    rf")(?!\s+(?:is|are)\s+(?:wrong|incorrect|not\b|false|unsupported))"
)
_CLAIM = re.compile(
    rf"\b(?:[Cc]orrect|[Rr]ight|[Bb]est)\s+(?:answer|option|choice)\s+(?:is|:)\s*(?:option\s+)?\(?([A-Z])\b\)?"
    rf"|\b[Oo]nly\s+(?:(?:option|choice)\s+([A-Z])\b|([A-Z])(?=\s+{_ADVERB}{_VERB}))"
    rf"|\b(?:[Oo]ption|[Cc]hoice)\s+([A-Z])\s+(?:is|remains)\s+(?:the\s+)?(?:\w+ly\s+)?(?:correct|right|best)\b"
)
_BLAME = re.compile(
    r"\b(?:[Oo]ptions?|[Cc]hoices?)\s+((?:[A-Z]\b[\s,&/]*(?:(?:and|or)\b\s*)?)+)(?:(?:each|all|both)\s+)?"
    r"(?:(?:is|are)\s+(?:wrong|incorrect|not\s+(?:supported|correct)|unsupported|contradicted)"
    r"|(?:incorrectly|wrongly|falsely)\s+\w+|contradicts?\b|introduces?\b|adds?\b|alters?\b|changes?\b|swaps?\b)"
)


def named_right(rationale: str, options: int = 4) -> list[str]:
    """Returns the sorted letters that a rationale names as right.

    >>> named_right("A pairs findings."), named_right("A matching feature is seen."), named_right("So only B fits.")
    (['A'], [], ['B'])
    """
    head = _HEAD.match(rationale)
    found = [group for group in head.groups() if group] if head else []
    found += [group for match in _CLAIM.finditer(rationale) for group in match.groups() if group]
    return sorted(set(found) & set(LETTERS[:options]))


def named_wrong(rationale: str, options: int = 4) -> list[str]:
    """Returns the sorted letters that a rationale names as wrong ("options B and C change ...")."""
    found = {letter for match in _BLAME.finditer(rationale) for letter in re.findall(r"\b[A-Z]\b", match.group(1))}
    return sorted(found & set(LETTERS[:options]))


def _row_defects(question: Question) -> Iterator[Defect]:
    texts = Counter(normalised(text) or text for text in question.options)
    same = [LETTERS[i] for i, text in enumerate(question.options) if texts[normalised(text) or text] > 1]
    if same:
        yield Defect(question.id, "duplicate-options", f"options {', '.join(same)} have the same text")
    missing = [view for view in VIEWS if view not in dict(question.images)] if question.images else []
    if missing:
        yield Defect(question.id, "null-view", f"no image for {', '.join(missing)}")
    rationale = question.rationale or ""
    right, wrong = (letters(rationale, len(question.options)) for letters in (named_right, named_wrong))
    if right and question.letter not in right:
        yield Defect(question.id, "rationale-letter", f"names {', '.join(right)}; the answer is {question.letter}")
    elif question.letter in wrong:
        yield Defect(question.id, "rationale-letter", f"calls {question.letter} wrong, which is the answer")
    if re.search(r"\b(?:feature|observation|finding)s?[\s-]+(?:sets?\s+)?lists?\b", rationale, re.IGNORECASE):
        yield Defect(question.id, "feature-list-rationale", "the rationale cites a feature list")


def _repeated(questions: Iterable[Question]) -> Iterator[Defect]:
    first: dict[tuple[str, ...], Question] = {}
    for question in questions:
        if question.group is not None:
            continue  # the rows of an exchange group have one text by design
        before = first.setdefault(text_key(question), question)
        if before is not question:
            yield Defect(question.id, "repeated-question", f"same question and options as {before.id}")
