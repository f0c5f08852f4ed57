"""The block exchange: exchange groups from which a text-only reader of the whole file learns nothing either.

A block has four slides of four patients. In a block, four paths, one of each slide, form a quadruple, and an item of a
path is exchanged only with items of its three partner paths. So the four paths of a quadruple have the same texts, and
so have the four slides of a block. Relabelling the slides of a block, or the paths of a quadruple, changes nothing
that a text-only reader sees, including which rows share a slide, a path or an image file. Each relabelling makes
another option right. Therefore any deterministic reader of the whole file, even one that compares rows or assigns each
letter once, is right on exactly 25% of the items on average over the relabellings.

This requires the same structure everywhere: one slide per patient; the same views in the paths of a quadruple; and if
two paths of a slide share an image file, their partners on the other slides share one too. The order of the options
depends only on their texts and the seed, so row ids do not reveal it.

Choosing blocks and quadruples is an optimisation problem. The best quadruples of a block are a 4-dimensional
assignment, the best blocks a set packing; both are solved by integer programming. As there are too many blocks to
solve them all, a greedy packing estimates all blocks of a neighbourhood of slides, and those that the set packing
selects are solved exactly (large neighbourhood search; Shaw 1998). The result has an upper bound.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.controls.exchange import (
    ExchangeResult,
    PairRules,
    QuestionGroup,
    described_group,
    named,
    part_counts,
    spelling,
)
from scale_vqa_eval.controls.exchange_group import GROUP_SIZE
from scale_vqa_eval.controls.group_packing import Matrix, Weights, capacity_bound
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import DIMENSIONS
from scale_vqa_eval.text import same_text

SLIDES_AT_ONCE: Final = 12
"""Slides of a neighbourhood; all of its 495 blocks are estimated."""
MAX_PATHS: Final = 10
"""Maximum number of paths per slide, those with the most items first; a block has up to MAX_PATHS**4 quadruples."""
NODE_LIMIT: Final = 200
"""Branch-and-bound nodes of one block. Unlike a time limit, it gives the same result in every run."""
GREEDY_TRIES: Final = 3
PATIENCE: Final = 4
"""Set packings without improvement after which the search of a neighbourhood ends."""
ROUNDS: Final = 12
"""Neighbourhoods in a row without improvement after which the search ends."""
BOUND_BLOCKS: Final = 5_000
"""Maximum number of blocks for which the bound is the linear relaxation of the set packing."""
BOUND_SOLVED: Final = 100
"""Number of blocks that are solved exactly to lower that bound."""
CERTAINTY: Final = 0.01
"""Weight of a group's certainty (1 - ambiguity); the group itself has weight 1, so that their number comes first."""
NOT_TEMPLATE: Final = "the question text is not one that rows of four patients share"
OTHER_SLIDE: Final = "another slide of the patient is used"
MORE_PATHS: Final = f"the slide has more than {MAX_PATHS} paths"
NOT_IN_BLOCK: Final = "no valid group could be made in a block of four slides"

Quadruple = tuple[int, ...]
Block = tuple[int, ...]


@dataclass(frozen=True)
class PathItems:
    """A path and its items that can be exchanged.

    Attributes:
        slide: name of its slide.
        path: key of the path, unique in the file.
        views: views with images.
        images: names of the image files.
        items: text key -> row number.
    """

    slide: str
    path: str
    views: frozenset[str]
    images: frozenset[str]
    items: Mapping[tuple[str, ...], int]


def block_exchange(
    pairs: PairRules,
    seed: int = 42,
    progress: Callable[[int], object] = lambda items: None,
    allow_shared_images: bool = False,
) -> ExchangeResult:
    """Groups questions by blocks of four slides and quadruples of paths, into as many groups as possible.

    Within a dimension of Scale-VQA, all wordings that rows of four patients share are replaced by one, because they
    ask the same. Texts of other dimensions, and texts of fewer patients, are not merged.

    Args:
        pairs: the questions, and which of them may share a group.
        seed: seed of the search and of the order of options.
        progress: called with the number of questions of each processed split.
        allow_shared_images: use paths of a slide that share an image file even if their partners do not. This gives
            more groups, but no guarantee against a reader that knows which rows share an image file.
    """
    questions = pairs.questions
    tally: dict[tuple[str | None, str | None], Counter[str]] = defaultdict(Counter)
    found: list[QuestionGroup] = []
    bound = 0
    for split in dict.fromkeys(question.split for question in questions):
        rows = [row for row, question in enumerate(questions) if question.split == split]
        for row in rows:
            tally[split, questions[row].dimension]["questions"] += 1
        slides = _slides(pairs, rows, tally)
        search = _BlockSearch(pairs, slides, seed, allow_shared_images)
        blocks = search.best_blocks()
        bound += search.bound
        numbers = [row for slide in slides for path in slide for row in path.items.values()]
        wordings = _wordings(questions, numbers)
        groups = list(_groups(pairs, slides, blocks, wordings, split))
        used = {row for group in groups for row in group.members}
        for dimension in {questions[row].dimension for row in numbers}:
            own = [row for row in numbers if questions[row].dimension == dimension]
            counts = tally[split, dimension]
            counts["groups"] = sum(questions[group.members[0]].dimension == dimension for group in groups)
            counts["bound"] = capacity_bound(list(Counter(pairs.patients(np.array(own))).values()))
            counts[NOT_IN_BLOCK] += sum(row not in used for row in own)
        found += groups
        progress(len(rows))
    parts = {key: part_counts(counts) for key, counts in sorted(tally.items(), key=str)}
    ordered = named("block-exchange", questions, found, seed)
    return ExchangeResult(ordered, parts, min(bound, sum(part.bound for part in parts.values())))


def _slides(
    pairs: PairRules, rows: Sequence[int], tally: Mapping[tuple[str | None, str | None], Counter[str]]
) -> list[list[PathItems]]:
    """Returns the paths of each slide that can be in a block; counts the other rows in ``tally``."""
    questions = pairs.questions
    patients: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        patients[_text(questions[row])].add(questions[row].cluster)

    def lose(lost: Sequence[int], reason: str) -> None:
        for row in lost:
            tally[questions[row].split, questions[row].dimension][reason] += 1

    by_slide: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        problem = pairs.problem(row)
        if problem is None and len(patients[_text(questions[row])]) < GROUP_SIZE:
            problem = NOT_TEMPLATE
        if problem is not None:
            lose([row], problem)
            continue
        question = questions[row]
        slide = question.slide or question.id
        by_slide[question.cluster, slide][question.path_id or slide].append(row)
    best: dict[str, tuple[str, str]] = {}
    for key in sorted(by_slide, key=lambda key: (-sum(map(len, by_slide[key].values())), key)):
        best.setdefault(key[0], key)
    slides = []
    for key, paths in by_slide.items():
        if best[key[0]] != key:
            lose([row for own in paths.values() for row in own], OTHER_SLIDE)
            continue
        order = sorted(paths, key=lambda path: (-len(paths[path]), path))
        lose([row for path in order[MAX_PATHS:] for row in paths[path]], MORE_PATHS)
        slides.append([_path(pairs, key[1], path, paths[path]) for path in sorted(order[:MAX_PATHS])])
    return slides


def _path(pairs: PairRules, slide: str, path: str, rows: Sequence[int]) -> PathItems:
    items: dict[tuple[str, ...], int] = {}
    times: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        question = pairs.questions[row]
        key = (question.dimension or "", *(() if question.dimension in DIMENSIONS else (_text(question)[1],)))
        times[key] += 1
        items[(*key, str(times[key]))] = row
    views = pairs.views[rows[0]]
    images = frozenset(name for row in rows for _, name in pairs.questions[row].images)
    return PathItems(slide, f"{slide}/{path}", views, images, items)


def _text(question: Question) -> tuple[str, str]:
    return question.dimension or "", same_text(question.question)


def _wordings(questions: Sequence[Question], rows: Sequence[int]) -> Callable[[int], str]:
    """Returns a function from a row to the common wording of the texts that are exchanged with it."""
    by_dimension: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        by_dimension[questions[row].dimension or ""].append(row)
    merged = {name: spelling(questions, own) for name, own in by_dimension.items() if name in DIMENSIONS}
    return lambda row: merged.get(questions[row].dimension or "", questions[row].question)


def _groups(
    pairs: PairRules,
    slides: Sequence[Sequence[PathItems]],
    blocks: Mapping[Block, Sequence[Quadruple]],
    wordings: Callable[[int], str],
    split: str | None,
) -> Any:
    """Yields the groups of the chosen blocks and quadruples."""
    prefix = f"{split}-" if split else ""
    for number, (block, quadruples) in enumerate(sorted(blocks.items()), 1):
        block_name = f"block-{prefix}{number:03d}"
        for place, quadruple in enumerate(quadruples, 1):
            paths = [slides[slide][path] for slide, path in zip(block, quadruple, strict=True)]
            for key in sorted(set.intersection(*(set(path.items) for path in paths))):
                rows = np.array([path.items[key] for path in paths])
                if pairs.allowed(rows).sum() == GROUP_SIZE * (GROUP_SIZE - 1):
                    group = described_group(pairs, rows, wordings(int(rows.min())))
                    yield replace(group, block=block_name, quadruple=f"{block_name}-{place:02d}")


class _BlockSearch:
    """Search for blocks of slides and quadruples of paths; ``bound`` is an upper bound on the number of groups."""

    def __init__(
        self, pairs: PairRules, slides: Sequence[Sequence[PathItems]], seed: int, allow_shared_images: bool
    ) -> None:
        self.slides = slides
        self.allow_shared_images = allow_shared_images
        self.rng = random.Random(seed)
        self.bound = 0
        self._values, self._allowed, self._shared = self._tables(pairs)
        self._solved: dict[Block, tuple[list[Quadruple], float, int]] = {}
        self._upper: dict[Block, int] = {}
        self._greedy: dict[Block, int] = {}

    def _tables(self, pairs: PairRules) -> tuple[list[Weights], list[Matrix], list[Matrix]]:
        """Returns certainty and permission of path pairs per text, and shared images of path pairs per slide."""
        paths = [path for slide in self.slides for path in slide]
        keys = sorted({key for path in paths for key in path.items})
        same_views = np.array([[left.views == right.views for right in paths] for left in paths], dtype=bool)
        values, allowed = [], []
        for key in keys:
            at = [number for number, path in enumerate(paths) if key in path.items]
            rows = np.array([paths[number].items[key] for number in at])
            permission = np.zeros((len(paths), len(paths)), dtype=bool)
            permission[np.ix_(at, at)] = pairs.allowed(rows)
            certainty = np.zeros(permission.shape)
            certainty[np.ix_(at, at)] = 1 - pairs.ambiguity(rows)
            values.append(certainty)
            allowed.append(permission & same_views)
        shared = [
            np.array(
                [
                    [bool(left.images & right.images) and not self.allow_shared_images for right in slide]
                    for left in slide
                ],
                dtype=bool,
            )
            for slide in self.slides
        ]
        starts = np.cumsum([0, *map(len, self.slides)])
        self._at = [np.arange(start, start + len(slide)) for start, slide in zip(starts, self.slides, strict=False)]
        return values, allowed, shared

    def best_blocks(self) -> dict[Block, list[Quadruple]]:
        """Returns the chosen blocks and their quadruples; sets ``bound``."""
        every = list(range(len(self.slides)))
        if len(every) < GROUP_SIZE:
            return {}
        order = self.rng.sample(every, len(every))
        parts = -(-len(every) // SLIDES_AT_ONCE)
        blocks = [block for part in range(parts) for block in self._searched(sorted(order[part::parts]))]
        fruitless = 0
        while fruitless < ROUNDS * parts and len(every) > SLIDES_AT_ONCE:
            around, others = self._neighbourhood(blocks, every)
            found = self._searched(around)
            better = self._worth(others + found) > self._worth(blocks) + 1e-9
            blocks, fruitless = (others + found, 0) if better else (blocks, fruitless + 1)
        self.bound = self._bound(every)
        return {block: self._solved[block][0] for block in blocks if self._solved[block][0]}

    def _neighbourhood(self, blocks: Sequence[Block], every: Sequence[int]) -> tuple[list[int], list[Block]]:
        """Returns the slides of a few blocks and some slides without a block, and the remaining blocks."""
        order = self.rng.sample(list(blocks), len(blocks))
        free = [slide for slide in every if not any(slide in block for block in blocks)]
        free = self.rng.sample(free, min(len(free), GROUP_SIZE))
        taken = order[: (SLIDES_AT_ONCE - len(free)) // GROUP_SIZE]
        return sorted([*free, *(slide for block in taken for slide in block)]), order[len(taken) :]

    def _searched(self, slides: Sequence[int]) -> list[Block]:
        """Returns disjoint blocks of some slides with as many groups as the search finds."""
        candidates = list(combinations(slides, GROUP_SIZE))
        best: list[Block] = []
        fruitless = 0
        while candidates and fruitless < PATIENCE:
            chosen = _packed(candidates, [self._hoped(block) for block in candidates])
            new = [block for block in chosen if block not in self._solved]
            for block in new:
                self._solve(block)
            solved = [block for block in candidates if block in self._solved]
            chosen = _packed(solved, [self._worth([block]) for block in solved])
            better = self._worth(chosen) > self._worth(best) + 1e-9
            best, fruitless = (chosen, 0) if better else (best, fruitless + 1)
            if not new:
                break
        return best

    def _hoped(self, block: Block) -> float:
        """Returns the value of a solved block, or else that of a greedy packing plus one group."""
        if block in self._solved:
            return self._worth([block])
        if block not in self._greedy:
            count, _ = self._block_values(block, certain=False)
            best = max(self._greedy_value(block, count) for _ in range(GREEDY_TRIES))
            self._greedy[block] = min(best + 1, self._upper_bound(block))
        return self._greedy[block]

    def _greedy_value(self, block: Block, count: npt.NDArray[np.int64]) -> int:
        """Returns the number of groups of a greedy packing: the largest quadruple first, ties at random."""
        left = count + np.random.default_rng(self.rng.getrandbits(32)).random(count.shape) * (count > 0)
        total = 0
        while left.max() >= 1:
            quadruple = np.unravel_index(int(left.argmax()), left.shape)
            total += int(count[quadruple])
            left = np.where(self._beside(block, quadruple, left.shape), left, 0)
        return total

    def _beside(self, block: Block, quadruple: Sequence[Any], shape: tuple[int, ...]) -> Matrix:
        """Returns which quadruples can be combined with one: no common path, same sharing of images on all slides."""
        sharing = []
        free = np.ones(shape, dtype=bool)
        for axis, (slide, path) in enumerate(zip(block, quadruple, strict=True)):
            spread = [1] * GROUP_SIZE
            spread[axis] = -1
            sharing.append(self._shared[slide][path].reshape(spread))
            free &= (np.arange(shape[axis]) != path).reshape(spread)
        for other in sharing[1:]:
            free &= sharing[0] == other
        return free

    def _worth(self, blocks: Sequence[Block]) -> float:
        return sum(self._solved[block][1] for block in blocks)

    def _block_values(self, block: Block, certain: bool = True) -> tuple[npt.NDArray[np.int64], Weights]:
        """Returns (a, b, c, d): the number of groups of each quadruple, and their summed certainty if asked for."""
        at = [self._at[slide] for slide in block]
        shape = tuple(map(len, at))
        count, certainty = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        for allowed, value in zip(self._allowed, self._values, strict=True):
            valid, mean = np.ones(shape, dtype=bool), np.zeros(shape)
            for left, right in combinations(range(GROUP_SIZE), 2):
                spread: list[Any] = [np.newaxis] * GROUP_SIZE
                spread[left] = spread[right] = slice(None)
                part = np.s_[at[left][0] : at[left][-1] + 1, at[right][0] : at[right][-1] + 1]
                valid &= allowed[part][tuple(spread)]
                if certain:
                    mean += value[part][tuple(spread)] / 6
            count += valid
            if certain:
                certainty += np.where(valid, mean, 0.0)
        return count, certainty

    def _upper_bound(self, block: Block) -> int:
        """Returns an upper bound on the groups of a block, from each path's best quadruple."""
        if block not in self._upper:
            count, _ = self._block_values(block, certain=False)
            axes = range(GROUP_SIZE)
            self._upper[block] = min(
                int(count.max(axis=tuple(other for other in axes if other != axis)).sum()) for axis in axes
            )
        return self._upper[block]

    def _bound(self, every: Sequence[int]) -> int:
        """Returns an upper bound on the number of groups: the slides' capacity and, for few blocks, a relaxation.

        The linear relaxation of the set packing uses upper bounds of the blocks' values, and exact values for the
        blocks that it selects.
        """
        from scipy.optimize import linprog

        bound = 0
        for allowed in self._allowed:
            usable = np.flatnonzero(allowed.any(axis=1))
            bound += capacity_bound([int(np.isin(at, usable).sum()) for at in self._at])
        candidates = list(combinations(every, GROUP_SIZE))
        if len(candidates) > BOUND_BLOCKS:
            return bound
        cover, solved = _cover(candidates), 0
        while solved <= BOUND_SOLVED:
            limits = [
                self._solved[block][2] if block in self._solved else self._upper_bound(block) for block in candidates
            ]
            result = linprog(-np.array(limits), A_ub=cover, b_ub=np.ones(cover.shape[0]))
            bound = min(bound, int(np.floor(-result.fun + 1e-6)))
            new = [candidates[number] for number in np.flatnonzero(result.x > 1e-6).tolist()]
            new = [block for block in new if block not in self._solved]
            if not new:
                break
            for block in new:
                self._solve(block)
            solved += len(new)
        return bound

    def _solve(self, block: Block) -> None:
        """Finds the best disjoint quadruples of a block that share images in the same way on all slides."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        count, certainty = self._block_values(block)
        columns = np.argwhere(count > 0)
        worth = (count + CERTAINTY * certainty)[count > 0]
        rows = [
            np.flatnonzero(columns[:, axis] == path) for axis in range(GROUP_SIZE) for path in range(count.shape[axis])
        ]
        rows += [
            np.concatenate([here, there]) for here, there in self._sharing_conflicts(block, columns) if len(there)
        ]
        rows = [row for row in rows if len(row) > 1] or [np.arange(0)]
        pointers = np.cumsum([0, *map(len, rows)])
        matrix = csr_array((np.ones(pointers[-1]), np.concatenate(rows), pointers), shape=(len(rows), len(columns)))
        result = milp(
            -worth,
            constraints=LinearConstraint(matrix, ub=1),
            integrality=np.ones(len(columns)),
            bounds=Bounds(0, 1),
            options={"node_limit": NODE_LIMIT},
        )
        chosen = np.flatnonzero(np.zeros(0) if result.x is None else result.x > 0.5)
        limit = self._upper_bound(block)
        if result.mip_dual_bound is not None and np.isfinite(result.mip_dual_bound):
            limit = min(limit, int(np.floor(-result.mip_dual_bound + 1e-6)))
        quadruples = [tuple(int(path) for path in columns[number]) for number in chosen]
        self._solved[block] = (quadruples, float(worth[chosen].sum()), limit)

    def _sharing_conflicts(self, block: Block, columns: npt.NDArray[np.int64]) -> Any:
        """Yields pairs of column sets that exclude each other, because image sharing would differ between slides."""
        for axis, other in product(range(GROUP_SIZE), repeat=2):
            if axis == other:
                continue
            shares, mirrors = self._shared[block[axis]], self._shared[block[other]]
            for left, right in np.argwhere(shares & ~np.eye(len(shares), dtype=bool)):
                for partner in range(len(mirrors)):
                    here = np.flatnonzero((columns[:, axis] == left) & (columns[:, other] == partner))
                    apart = ~mirrors[partner, columns[:, other]] & (columns[:, other] != partner)
                    yield here, np.flatnonzero((columns[:, axis] == right) & apart)


def _packed(blocks: Sequence[Block], worth: Sequence[float]) -> list[Block]:
    """Returns disjoint blocks with the greatest total worth."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    if not blocks:
        return []
    result = milp(
        -np.asarray(worth),
        constraints=LinearConstraint(_cover(blocks), ub=1),
        integrality=np.ones(len(blocks)),
        bounds=Bounds(0, 1),
        options={"node_limit": NODE_LIMIT},
    )
    return [] if result.x is None else [blocks[number] for number in np.flatnonzero(result.x > 0.5).tolist()]


def _cover(blocks: Sequence[Block]) -> Any:
    """Returns a sparse (slides, blocks) incidence matrix."""
    from scipy.sparse import csc_array

    slides, rows = np.unique(np.array(blocks), return_inverse=True)
    columns = np.repeat(np.arange(len(blocks)), GROUP_SIZE)
    return csc_array((np.ones(len(columns)), (rows.ravel(), columns)), shape=(len(slides), len(blocks)))
