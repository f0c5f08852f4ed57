"""Plans a set of phantom slides: which facts hold on which path, which paths share a question, which split has which.

Why the text tells nothing. Paths are planned in groups of four. The four paths of a group share, for each of the five
question types, one question text and four options in one order; the options are the product of two features, and each
path bears another of the four combinations. So each option of a text is right exactly once in its group, and whatever
is a function of the text alone is right on exactly one item in four: overall, in each split and in each dimension.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dataset_script.phantom.facts import ASKED, FEATURES, Facts
from dataset_script.phantom.lattice import seeded
from dataset_script.splits import patient_splits

PATHS: Final = 4
"""Paths of a slide, one in each of its fragments; also the size of a group."""
NAMES_PER_SPLIT: Final = 3


@dataclass(frozen=True)
class GroupPlan:
    """A question that four paths share.

    Attributes:
        id: the group's name.
        question_type: ``type_A`` to ``type_E``.
        values: the two values of each of the two features.
        order: letter order of the four combinations.
        wording: which of the question's wordings.
    """

    id: str
    question_type: str
    values: tuple[tuple[str, str], tuple[str, str]]
    order: tuple[int, ...]
    wording: int


@dataclass(frozen=True)
class PathPlan:
    """A path: its facts, its questions, and whether it has a 200x view."""

    path_id: str
    facts: Facts
    groups: tuple[GroupPlan, ...]
    has_high: bool


@dataclass(frozen=True)
class SlidePlan:
    """A slide: name, seed of its scene, split, and one path for each of its fragments."""

    name: str
    seed: int
    split: str
    paths: tuple[PathPlan, ...]


def plan_slides(slides: int, seed: int = 42, missing_high: float = 0.0) -> list[SlidePlan]:
    """Plans slides; the same arguments give the same plan.

    Slides are dealt into pools, pools go to splits whole, and a group's paths lie in one pool, on four slides where
    the pool has four. From twelve slides on every pool has; fewer slides are dealt into three pools, so that each
    split has one, and a group then has paths that share a slide.

    Args:
        slides: number of slides, at least 1; fewer than 3 leave splits without any.
        seed: of everything.
        missing_high: share of groups of paths without a 200x view; they are asked only what 10x and 40x show.
    """
    if slides < 1:
        raise ValueError("at least one slide is needed")
    plans: list[SlidePlan] = []
    pools = deal_pools(slides)
    names = {f"pool {number:06d}": PATHS * len(pool) for number, pool in enumerate(pools)}
    splits = patient_splits(names, seed)
    for (name, _), pool in zip(names.items(), pools, strict=True):
        plans.extend(_plan_pool(pool, splits[name], seed, missing_high))
    return plans


def deal_pools(slides: int) -> list[range]:
    """Deals slide numbers into pools of near-equal size, of at least four slides where there are twelve or more.

    >>> [len(pool) for pool in deal_pools(26)], [len(pool) for pool in deal_pools(7)]
    ([5, 4, 4, 5, 4, 4], [3, 2, 2])
    """
    count = max(min(slides, NAMES_PER_SPLIT), slides // PATHS)
    ends = [(slides * number + count - 1) // count for number in range(count + 1)]
    return [range(start, end) for start, end in itertools.pairwise(ends)]


def _plan_pool(pool: range, split: str, seed: int, missing_high: float) -> Iterator[SlidePlan]:
    """Plans the slides of a pool: quartet q takes fragment i of the i-th slide after q, round the pool."""
    planned: dict[tuple[int, int], PathPlan] = {}
    for first in range(len(pool)):
        quartet = [(pool[(first + fragment) % len(pool)], fragment) for fragment in range(PATHS)]
        for place, path in zip(quartet, _plan_quartet(pool[first], seed, missing_high), strict=True):
            planned[place] = path
    for slide in pool:
        paths = tuple(planned[slide, fragment] for fragment in range(PATHS))
        named = tuple(
            PathPlan(f"path-{number}", path.facts, path.groups, path.has_high) for number, path in enumerate(paths, 1)
        )
        yield SlidePlan(f"phantom-{slide + 1:04d}", seeded(seed, "slide", slide), split, named)


def _plan_quartet(number: int, seed: int, missing_high: float) -> list[PathPlan]:
    """Plans four paths that share their questions, each with another combination of every question's features."""
    rng = random.Random(seeded(seed, "quartet", number))
    has_high = rng.random() >= missing_high
    facts: list[dict[str, str]] = [{} for _ in range(PATHS)]
    groups = []
    for question_type, (first, second) in ASKED.items():
        values = tuple(
            (chosen[0], chosen[1])
            for chosen in (rng.sample(sorted(FEATURES[name].phrases), 2) for name in (first, second))
        )
        combination = rng.sample(range(PATHS), PATHS)
        order = tuple(rng.sample(range(PATHS), PATHS))
        wording = rng.randrange(1 << 30)
        for path, index in zip(facts, combination, strict=True):
            path[first], path[second] = values[0][index // 2], values[1][index % 2]
        if has_high or not _needs_high(question_type):
            name = f"phantom-{question_type}-{number + 1:04d}"
            groups.append(GroupPlan(name, question_type, values, order, wording))
    return [PathPlan("", Facts(**path), tuple(groups), has_high) for path in facts]


def _two_values(feature: str, rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(sorted(FEATURES[feature].phrases), 2)
    return first, second


def _needs_high(question_type: str) -> bool:
    return any(FEATURES[name].view == "high_mag" for name in ASKED[question_type])
