"""Right letters balanced in each split and dimension, and rationales whose letters follow the options."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Final

from dataset_script.curate.candidates import COMBINATIONS, Candidate
from dataset_script.curate.distractors import in_first_order
from scale_vqa_eval.schema import LETTERS

_ONE: Final = r"\(?[A-D]\)?(?![\w'\u2019-])"
_LISTED: Final = re.compile(
    rf"\b(?:[Oo]ptions?|[Cc]hoices?|[Aa]nswers?|[Ll]etters?)\s+(?:is\s+|are\s+|:\s*)?{_ONE}"
    rf"(?:(?:\s*[,/&]\s*|\s*,?\s+(?:and|or)\s+){_ONE})*"
)
# bare letters count as options at the head of a clause, before a verb: "; B and C have one", not "hepatitis B and C"
_PAIRED: Final = re.compile(
    rf"(?:^|(?<=[.!?;:]\s)){_ONE}(?:(?:\s*[,/&]\s*|\s*,?\s+(?:and|or)\s+){_ONE})+"
    r"(?=\s+(?:both|each|all|only|have|has|are|is|were|was|do|does|hold|miss|lack|name|show|fail|differ|contradict"
    r"|describe|pair|claim|state|mix|swap|mention|get|put)\b)"
)
_BRACKETED: Final = re.compile(r"\([A-D]\)")
_HEAD: Final = re.compile(
    r"(?:^|(?<=[.!?]\s))(?:[Oo]nly\s+|[Ss]o\s+|[Tt]hus,?\s+|[Tt]herefore,?\s+)?[A-D]"
    r"(?=[).:]\s|\s+(?:(?:alone|also|only|correctly|best)\s+)?(?:is|was|has|does|(?!\w*(?:ss|us|is)\b)[a-z]{2,}s)\b)"
)
_LETTER: Final = re.compile(r"(?<![A-Za-z])[A-D](?![A-Za-z])")


def remap_letters(text: str, letters: Mapping[str, str]) -> str:
    """Replaces every letter that names an option; the article "A" is left alone.

    >>> remap_letters("A pairs both; options B and C miss one (D none). A small gland.", dict(zip("ABCD", "DCBA")))
    'D pairs both; options C and B miss one (D none). A small gland.'
    >>> remap_letters("Option A holds; B and C have one, as in hepatitis B and C.", dict(zip("ABCD", "CDAB")))
    'Option C holds; D and A have one, as in hepatitis B and C.'
    """
    spans = [match.span() for pattern in (_LISTED, _PAIRED, _BRACKETED, _HEAD) for match in pattern.finditer(text)]
    named = {match.start() for start, end in spans for match in _LETTER.finditer(text, start, end)}
    return "".join(letters.get(char, char) if index in named else char for index, char in enumerate(text))


def rationale_of(candidate: Candidate) -> str:
    """Returns a candidate's rationale with the letters that its options have now."""
    letters = {
        old: LETTERS[candidate.order.index(named_combination(candidate, number))]
        for number, old in enumerate(LETTERS[:4])
    }
    return remap_letters(candidate.rationale, letters)


def named_combination(candidate: Candidate, letter: int) -> int:
    """Returns the combination that a rationale means by a letter: A both right, B the first, C the second, D none."""
    first, second = (right ^ wrong for right, wrong in zip(candidate.truth, COMBINATIONS[letter], strict=True))
    return 2 * first + second


def balanced(candidates: Sequence[Candidate], seed: int) -> list[Candidate]:
    """Returns the candidates with right letters as even as their number allows, in each split and dimension.

    Exchange groups keep their order: each letter is right once there.
    """
    cells: dict[tuple[str, str], list[Candidate]] = defaultdict(list)
    for one in sorted(candidates, key=lambda one: one.id):
        cells[one.path.split, one.question_type].append(one)
    group_texts = {(one.question, one.options) for one in candidates if one.group is not None}
    ordered: list[Candidate] = []
    for key, members in sorted(cells.items()):
        rng = random.Random(f"{seed}:letters:{key}")
        used = Counter(one.answer for one in members if one.group is not None)
        for one in members:
            if one.group is not None:
                ordered.append(one)
                continue
            fewest = min(used[letter] for letter in range(4))
            letter = rng.choice([letter for letter in range(4) if used[letter] == fewest])
            used[letter] += 1
            right = 2 * one.truth[0] + one.truth[1]
            orders = [
                (*others[:letter], right, *others[letter:])
                for others in permutations([number for number in range(4) if number != right])
            ]
            rng.shuffle(orders)
            ordered.append(in_first_order(one, orders, group_texts))
    return sorted(ordered, key=lambda one: one.id)
