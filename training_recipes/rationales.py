"""Makes texts to learn from rationales, of those alone whose letter is right or can be put right.

Released options were swapped to balance the letters, and the rationales still name the old ones: learnt as they are
they teach reasoning that ends in another letter than the answer. Rationales that cite a "feature list" are left out as
well: they speak of text that the reader never sees.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Literal

from scale_vqa_eval.audit.defects import find_defects, named_right, named_wrong
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.parsing import ANSWER, END_ANSWER, END_THINK, THINK
from scale_vqa_eval.schema import LETTERS
from training_recipes.preflight import Unfit
from training_recipes.rows import TARGET, labels, question_of, texts

Policy = Literal["checked", "repaired", "none"]
_TAGS: Final = (THINK, END_THINK, ANSWER, END_ANSWER)


def with_targets(rows: Any, policy: Policy) -> tuple[Any, list[Unfit]]:
    """Adds the column ``target`` to rows, and returns those that have none, by id.

    Args:
        rows: what ``load_rows`` gave, filtered.
        policy: ``checked`` takes rationales whose letters are right or that name none; ``repaired`` also those whose
            letter ``repaired`` can put right; ``none`` takes no rationale: the think block stays empty.
    """
    names = labels(rows, "dimension") if "dimension" in rows.column_names else None
    questions = [question_of(row, names) for row in texts(rows)]
    made = [target_of(question, policy) for question in questions]
    pairs = zip(questions, made, strict=True)
    left_out = [Unfit(question.id, reason) for question, (text, reason) in pairs if text is None]
    kept = [place for place, (text, _) in enumerate(made) if text is not None]
    kept_texts = [text for text, _ in made if text is not None]
    return rows.select(kept).add_column(TARGET, kept_texts), left_out


def target_of(question: Question, policy: Policy) -> tuple[str | None, str]:
    """Returns the text to learn of one question, or None and the reason why there is none."""
    if policy == "none":
        return _target("", question.letter), ""
    rationale = question.rationale
    if rationale is None or not rationale.strip():
        return None, "no rationale"
    if any(tag in rationale for tag in _TAGS):
        return None, "the rationale holds think or answer tags"
    kinds = {defect.kind for defect in find_defects([question])}
    if "feature-list-rationale" in kinds:
        return None, "the rationale cites a feature list, not the image"
    if "rationale-letter" in kinds:
        put_right = repaired(question) if policy == "repaired" else None
        if put_right is None:
            how = "and it is not clear which letters it means" if policy == "repaired" else "(rationales: repaired)"
            return None, f"the rationale names another letter than the answer {question.letter} {how}"
        rationale = put_right
    return _target(rationale.strip(), question.letter), ""


def repaired(question: Question) -> str | None:
    """Returns the rationale with its letters put right, None where it is not clear which options they mean.

    Two options changed places, so the letter that the rationale names as right and the gold letter are exchanged.
    That is safe in two cases only: no other letter stands in the text; or the other three stand in it once each,
    joined ("options B, C and D"), so that which is which does not matter.

    >>> repaired(Question("q", "?", ("w", "x", "y", "z"), 2, rationale="Only B fits. A, C and D add atypia."))
    'Only C fits. A, B and D add atypia.'
    >>> repaired(Question("q", "?", ("w", "x", "y", "z"), 2, rationale="Only B fits. A is too strong, D too weak."))
    """
    rationale, count = question.rationale or "", len(question.options)
    right = named_right(rationale, count)
    if len(right) != 1 or right[0] == question.letter:
        return None
    letters = LETTERS[:count]
    found = re.findall(rf"\b[{letters}]\b", rationale)
    others = [letter for letter in found if letter != right[0]]
    if right[0] == "A" and found.count("A") > 1:
        return None  # the second may be the article
    if others and (sorted(others) != sorted(set(letters) - set(right)) or not _joined(rationale, others)):
        return None
    exchange = {right[0]: question.letter, question.letter: right[0]}
    text = re.sub(rf"\b[{letters}]\b", lambda match: exchange.get(match[0], match[0]), rationale)
    if others:
        text = re.sub(_group(letters, len(others)), _ordered, text, count=1)
    agrees = named_right(text, count) == [question.letter] and question.letter not in named_wrong(text, count)
    return text if agrees else None


def _group(letters: str, size: int) -> str:
    return rf"\b[{letters}]\b(?:(?:,|\s|/|&|and\b|or\b)+\b[{letters}]\b){{{size - 1}}}"


def _joined(text: str, others: Sequence[str]) -> bool:
    match = re.search(_group("".join(others), len(others)), text)
    return match is not None


def _ordered(match: re.Match[str]) -> str:
    """Puts the letters of a joined group in order, as they are in the release."""
    letters = iter(sorted(re.findall(r"\b[A-Z]\b", match[0])))
    return re.sub(r"\b[A-Z]\b", lambda _: next(letters), match[0])


def _target(thought: str, letter: str) -> str:
    return f"{THINK}{thought}{END_THINK} {ANSWER}{letter}{END_ANSWER}"
