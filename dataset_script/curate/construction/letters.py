"""Letters: the right one balanced in each split and dimension, and rationales that follow their options."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Final

from dataset_script.curate.questions.items import Item, named_combination, with_order
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
    """Returns a text in which every letter that names an option is another, the article "A" left alone.

    >>> remap_letters("A pairs both; options B and C miss one (D none). A small gland.", dict(zip("ABCD", "DCBA")))
    'D pairs both; options C and B miss one (D none). A small gland.'
    >>> remap_letters("Option A holds; B and C have one, as in hepatitis B and C.", dict(zip("ABCD", "CDAB")))
    'Option C holds; D and A have one, as in hepatitis B and C.'
    """
    spans: list[tuple[int, int]] = []
    for pattern in (_LISTED, _PAIRED, _BRACKETED, _HEAD):
        spans += [match.span() for match in pattern.finditer(text)]
    places = {
        match.start() for start, end in spans for match in _LETTER.finditer(text, start, end) if start <= match.start()
    }
    return "".join(letters.get(char, char) if place in places else char for place, char in enumerate(text))


def rationale_of(item: Item) -> str:
    """Returns an item's rationale with the letters that its options have now."""
    now = {LETTERS[old]: LETTERS[item.order.index(named_combination(item, old))] for old in range(4)}
    return remap_letters(item.draft.rationale, now)


def balanced(items: Sequence[Item], seed: int) -> list[Item]:
    """Returns the items with their right letters as even as their number allows, in each split and dimension.

    Exchange sets keep their order: each letter is right once there.
    """
    cells: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda one: one.id):
        cells[item.place.split, item.draft.question_type].append(item)
    placed: list[Item] = []
    set_texts = {(item.draft.question, item.options) for item in items if item.group is not None}
    for key, members in sorted(cells.items()):
        rng = random.Random(f"{seed}:letters:{key}")
        used = Counter(item.answer for item in members if item.group is not None)
        for item in members:
            if item.group is not None:
                placed.append(item)
                continue
            fewest = min(used[letter] for letter in range(4))
            letter = rng.choice([letter for letter in range(4) if used[letter] == fewest])
            used[letter] += 1
            right = 2 * item.truth[0] + item.truth[1]
            orders = [
                with_order(item, [*others[:letter], right, *others[letter:]])
                for others in permutations([number for number in range(4) if number != right])
            ]
            rng.shuffle(orders)
            # a question that had the very text of an exchange set would make it one of five, and no set
            free = [one for one in orders if (one.draft.question, one.options) not in set_texts]
            placed.append((free or orders)[0])
    return sorted(placed, key=lambda one: one.id)
