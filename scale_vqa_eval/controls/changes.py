"""From exchange groups to what changes in each row: one text for all four, and no rationale that misleads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from scale_vqa_eval.audit.defects import named_right, named_wrong
from scale_vqa_eval.controls.exchange import Exchange
from scale_vqa_eval.controls.rows import Change
from scale_vqa_eval.questions import Question

# "A" at the head of a sentence is nearly always the article; there the parser of named letters decides
_LETTER: Final = re.compile(r"(?<![\w'-])(?:[B-Z]|(?<!^)(?<![.!?;:]\s)A)(?![\w'-])|\([A-Z]\)")
_OPTIONS: Final = re.compile(r"\b(?:options?|choices?|answers?|alternatives?|distractors?|others?)\b", re.IGNORECASE)


def row_changes(questions: Sequence[Question], found: Exchange, keep_rationales: bool = False) -> dict[int, Change]:
    """Returns row number -> what changes in it, for every row that is in a group.

    Args:
        questions: the questions that were grouped.
        found: their groups.
        keep_rationales: keep a rationale that names no letter and does not speak of the options; by default all are
            dropped, because they were written beside other options.
    """
    changes = {}
    for group in found.groups:
        donors = [questions[row] for row in group.options]
        options = tuple(donor.options[donor.answer] for donor in donors)
        for place, row in enumerate(group.options):
            rationale = questions[row].rationale if keep_rationales else None
            kept = rationale if rationale is not None and speaks_of_no_option(rationale) else None
            changes[row] = Change(group.stem, options, place, kept, group.name, tuple(donor.id for donor in donors))
    return changes


def speaks_of_no_option(rationale: str) -> bool:
    """Tells whether a rationale holds whatever the other options and the letters are.

    >>> speaks_of_no_option("Necrosis is seen in both views."), speaks_of_no_option("Only B matches both views.")
    (True, False)
    """
    if _OPTIONS.search(rationale) or _LETTER.search(rationale):
        return False
    return not named_right(rationale, 26) and not named_wrong(rationale, 26)
