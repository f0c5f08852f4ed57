"""The exchange control: groups of four items with one text, of which each option is right for exactly one.

Four items share the question text, come from four patients, and have the four right answers as options in one order.
A reader without images sees the same text four times; whatever deterministic function of the text it is, it gives one
letter, which is right for exactly one of the four: its accuracy is 1/4, its group accuracy 0, and no adversary is
needed to show it.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.controls.cliques import SIZE, capacity_bound
from scale_vqa_eval.controls.packing import pack
from scale_vqa_eval.controls.tissue import Tissue, describe_tissue
from scale_vqa_eval.controls.validity import Matrix, ValidityLimits, claims, compatible, gold_problem, stem_key
from scale_vqa_eval.questions import Question

Items = npt.NDArray[np.int64]

BLOCK: Final = 400
"""Items with the same text that are packed at once; more are dealt into blocks, patient by patient."""
DOUBT: Final = 10.0
"""What a doubtful pair costs, in units of tissue likeness (0 to 2): a safe pair is always preferred."""
UNLIKE_VIEWS: Final = 3.0
"""What a pair costs that has not the same views: how many images there are must not tell the items apart."""
TOO_FEW_ROWS: Final = "the question text stands in fewer than four usable rows"
TOO_FEW_PATIENTS: Final = "the rows with the question text come from fewer than four patients"
LEFT_OVER: Final = "no valid group could be made of what was left over"


@dataclass(frozen=True)
class ExchangeGroup:
    """Four items with one text.

    Attributes:
        name: name of the group, unique in its set.
        members: row numbers of the items, ascending.
        options: row numbers of the same items in the order of the options: the first one's gold is option A.
        stem: the question text that all four get, the most frequent spelling among the rows that share it.
        likeness: mean tissue likeness of its six pairs.
        same_views: whether all four have images for the same views.
        doubtful: pairs (row, other row) whose gold may be true for the other: it is close to what the release calls
            right in the same dimension for another region of the other's patient.
    """

    name: str
    members: tuple[int, ...]
    options: tuple[int, ...]
    stem: str
    likeness: float
    same_views: bool
    doubtful: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """What became of the questions of one split and dimension.

    Attributes:
        questions: how many there are.
        groups: how many groups were made of them.
        bound: no more groups than this can be made under the same limits.
        lost: reason -> questions that are in no group for this reason.
    """

    questions: int
    groups: int
    bound: int
    lost: dict[str, int]


@dataclass(frozen=True)
class Exchange:
    """All groups of a question set, and the price.

    Attributes:
        groups: in the order of their first rows.
        parts: (split, dimension) -> what became of it; None where a file has no splits or no dimensions.
    """

    groups: tuple[ExchangeGroup, ...]
    parts: dict[tuple[str | None, str | None], Part]

    @property
    def bound(self) -> int:
        """Upper bound of the number of groups."""
        return sum(part.bound for part in self.parts.values())


def exchange(
    questions: Sequence[Question],
    seed: int = 42,
    limits: ValidityLimits | None = None,
    tissue: Tissue | None = None,
    progress: Callable[[int], object] = lambda items: None,
) -> Exchange:
    """Groups questions for exchange: as many groups as can be found, and of those safe and hard ones.

    Groups never straddle splits, dimensions or question texts.

    Args:
        questions: any questions; how many options they have does not matter, their right answers become the options.
        seed: of the search and of the order of the options.
        limits: on how alike the right answers of a group may be.
        tissue: what is known of the images; None takes ``describe_tissue(questions)``.
        progress: called with the number of questions that were dealt with.
    """
    grouping = _Grouping(questions, limits or ValidityLimits(), tissue or describe_tissue(questions), seed)
    tally: dict[tuple[str | None, str | None], Counter[str]] = defaultdict(Counter)
    found: list[tuple[_Packed, str]] = []
    for (split, dimension, _), rows in _same_text(questions).items():
        part = tally[split, dimension]
        usable = grouping.usable(rows, part)
        groups, bound = grouping.packed(usable)
        part.update({"questions": len(rows), "groups": len(groups), "bound": bound})
        part[LEFT_OVER] += len(usable) - SIZE * len(groups)
        found += [(group, _spelling(questions, rows)) for group in groups]
        progress(len(rows))
    numbers: Counter[str | None] = Counter()
    described = []
    for group, stem in sorted(found, key=lambda pair: pair[0].rows):
        split = questions[group.rows[0]].split
        numbers[split] += 1
        name = "-".join(["exchange", *([split] if split else []), f"{numbers[split]:05d}"])
        order = grouping.order(group.rows)
        described.append(
            ExchangeGroup(name, group.rows, order, stem, group.likeness, group.same_views, group.doubtful)
        )
    return Exchange(tuple(described), {key: _part(counts) for key, counts in sorted(tally.items(), key=str)})


def _part(counts: Counter[str]) -> Part:
    lost = {reason: count for reason, count in sorted(counts.items()) if reason not in Part.__slots__ and count}
    return Part(counts["questions"], counts["groups"], counts["bound"], lost)


@dataclass(frozen=True, slots=True)
class _Packed:
    """A group before it has a name; fields as in ``ExchangeGroup``."""

    rows: tuple[int, ...]
    likeness: float
    same_views: bool
    doubtful: tuple[tuple[int, int], ...]


class _Grouping:
    """The questions, what the release calls right for whom, and the limits: what packing a set of rows needs."""

    def __init__(self, questions: Sequence[Question], limits: ValidityLimits, tissue: Tissue, seed: int) -> None:
        self.questions, self.limits, self.tissue, self.seed = questions, limits, tissue, seed
        self.golds = [question.options[question.answer] for question in questions]
        self.by_path: dict[tuple[str, ...], set[str]] = defaultdict(set)
        self.by_patient: dict[tuple[str, str | None], set[str]] = defaultdict(set)
        for question, gold in zip(questions, self.golds, strict=True):
            self.by_path[_path(question)].add(gold)
            self.by_patient[question.cluster, question.dimension].add(gold)

    def usable(self, rows: Sequence[int], lost: Counter[str]) -> Items:
        """Returns the rows of one text that can be in a group at all; counts the others in ``lost``."""
        problems = {row: gold_problem(self.questions[row]) for row in rows}
        lost.update(problem for problem in problems.values() if problem is not None)
        kept = [row for row, problem in problems.items() if problem is None]
        patients = {self.questions[row].cluster for row in kept}
        if len(kept) < SIZE or len(patients) < SIZE:
            lost[TOO_FEW_ROWS if len(kept) < SIZE else TOO_FEW_PATIENTS] += len(kept)
            kept = []
        return np.array(kept, dtype=np.int64)

    def packed(self, rows: Items) -> tuple[list[_Packed], int]:
        """Packs rows of one text, block by block, then what the blocks left over; returns groups and their bound."""
        if len(rows) == 0:
            return [], 0
        blocks = self._dealt(rows)
        done = [self._packed_block(block) for block in blocks]
        groups = [group for part, _ in done for group in part]
        if len(blocks) == 1:
            return groups, done[0][1]
        left = np.setdiff1d(rows, np.array([row for group in groups for row in group.rows], dtype=np.int64))
        groups += self._packed_block(self._dealt(left)[0])[0] if len(left) >= SIZE else []
        sizes = Counter(self.questions[row].cluster for row in rows.tolist())
        return groups, capacity_bound(list(sizes.values()))

    def _dealt(self, rows: Items) -> list[Items]:
        """Deals rows into blocks as cards are dealt, so that every block has its share of every patient."""
        number = -(-len(rows) // BLOCK)
        by_patient = sorted(rows.tolist(), key=lambda row: (self.questions[row].cluster, row))
        return [np.array(sorted(by_patient[start::number]), dtype=np.int64) for start in range(number)]

    def _packed_block(self, rows: Items) -> tuple[list[_Packed], int]:
        patients = [self.questions[row].cluster for row in rows.tolist()]
        golds = [self.golds[row] for row in rows.tolist()]
        on_images = [sorted(self.by_path[_path(self.questions[row])]) for row in rows.tolist()]
        graph = compatible(golds, on_images, patients, self.limits)
        likeness, unlike_views = self.tissue.likeness(rows), self.tissue.unlike_views(rows)
        doubtful = self._doubtful(rows, golds)
        packing = pack(graph, likeness - DOUBT * doubtful - UNLIKE_VIEWS * unlike_views, patients, self.seed)
        groups = []
        for group in packing.groups:
            pairs = list(combinations(group, 2))
            groups.append(
                _Packed(
                    tuple(rows[list(group)].tolist()),
                    float(np.mean([likeness[pair] for pair in pairs])),
                    not any(unlike_views[pair] for pair in pairs),
                    tuple((int(rows[one]), int(rows[other])) for one, other in pairs if doubtful[one, other]),
                )
            )
        return groups, packing.bound

    def _doubtful(self, rows: Items, golds: Sequence[str]) -> Matrix:
        """Returns (n, n): one's gold is close to what is called right elsewhere in the other's patient."""
        keys = [(self.questions[row].cluster, self.questions[row].dimension) for row in rows.tolist()]
        column = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        close = claims(golds, [sorted(self.by_patient[key]) for key in column], self.limits)
        pairs = close[:, [column[key] for key in keys]]
        np.fill_diagonal(pairs, False)
        result: Matrix = pairs | pairs.T
        return result

    def order(self, rows: Sequence[int]) -> tuple[int, ...]:
        """Draws the order of a group's options: by the seed and the rows' ids, whatever else is in the file."""
        order = list(rows)
        random.Random("\0".join([str(self.seed), *(self.questions[row].id for row in rows)])).shuffle(order)
        return tuple(order)


def _same_text(questions: Sequence[Question]) -> dict[tuple[str | None, str | None, str], list[int]]:
    """Returns the rows of each split, dimension and question text, in order of appearance."""
    rows: dict[tuple[str | None, str | None, str], list[int]] = defaultdict(list)
    for row, question in enumerate(questions):
        rows[question.split, question.dimension, stem_key(question.question)].append(row)
    return rows


def _spelling(questions: Sequence[Question], rows: Sequence[int]) -> str:
    """Returns the most frequent spelling of a question text; of equals the first in alphabetical order."""
    counts = Counter(questions[row].question for row in rows)
    return min(counts, key=lambda text: (-counts[text], text))


def _path(question: Question) -> tuple[str, ...]:
    if question.slide is None or question.path_id is None:
        return ("question", question.id, question.split or "")
    return ("path", question.slide, question.path_id)
