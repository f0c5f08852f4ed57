"""Plans synthetic slides: the facts of each path, the questions that paths share, and the splits.

The possible facts and their wording are in ``facts.yaml``. Paths are planned in groups of four. For each of the five
question types, the four paths of a group share one question text and four options in one order. The options are the
product of two features, and each path has a different one of the four combinations. So each option is right exactly
once in its group, and any function of the text of one question is right on exactly one item in four, in each split and
in each dimension.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, Final

import yaml

from dataset_script.phantom.geometry import seeded
from dataset_script.splits import patient_splits
from scale_vqa_eval.controls.exchange_group import crossed_options
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import MAGNIFICATION, QUESTION_TYPES, VIEWS, row_id

_CONTENT: Final[dict[str, Any]] = yaml.safe_load(files(__package__).joinpath("facts.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class PhantomFeature:
    """A feature: its name, the view that shows it, and value -> phrase in options."""

    name: str
    view: str
    phrases: Mapping[str, str]


FEATURES: Final[Mapping[str, PhantomFeature]] = {
    name: PhantomFeature(name, entry["view"], {value: words["phrase"] for value, words in entry["values"].items()})
    for name, entry in _CONTENT["features"].items()
}
SIGNS: Final[Mapping[str, Mapping[str, str]]] = {
    name: {value: words["sign"] for value, words in entry["values"].items()}
    for name, entry in _CONTENT["features"].items()
}
"""Feature -> value -> clause that describes its appearance."""
ASKED: Final[Mapping[str, tuple[str, str]]] = {
    kind: (asked["features"][0], asked["features"][1]) for kind, asked in _CONTENT["questions"].items()
}
"""Question type -> the two features that its options cross."""
OPTION_TEMPLATES: Final[Mapping[str, str]] = {kind: asked["option"] for kind, asked in _CONTENT["questions"].items()}
WORDINGS: Final[Mapping[str, tuple[str, ...]]] = {
    kind: tuple(asked["wordings"]) for kind, asked in _CONTENT["questions"].items()
}
"""Question type -> wordings of the question."""


@dataclass(frozen=True)
class Facts:
    """The value of every feature of a path; raises ValueError if a value is unknown."""

    growth: str
    focus: str
    infiltrate: str
    site: str
    depth: str
    stroma: str
    vessels: str
    cells: str
    nuclei: str
    mitoses: str

    def __post_init__(self) -> None:
        for name, feature in FEATURES.items():
            if (value := getattr(self, name)) not in feature.phrases:
                raise ValueError(f"{name} must be one of {', '.join(feature.phrases)}, not {value!r}")

    def value(self, feature: str) -> str:
        """Returns the value of a feature by its name."""
        return str(getattr(self, feature))


PATHS: Final = 4
"""Number of paths per slide, one per tissue fragment; also the size of a group."""
NAMES_PER_SPLIT: Final = 3


@dataclass(frozen=True)
class GroupPlan:
    """A question that four paths share.

    Attributes:
        id: name of the group.
        question_type: ``type_A`` to ``type_E``.
        values: two values of each of the two features.
        order: option order of the four combinations.
        wording: number that selects the wording of the question.
    """

    id: str
    question_type: str
    values: tuple[tuple[str, str], tuple[str, str]]
    order: tuple[int, ...]
    wording: int


@dataclass(frozen=True)
class PhantomPath:
    """A path: its facts, its questions, and whether it has a 200x view."""

    path_id: str
    facts: Facts
    groups: tuple[GroupPlan, ...]
    has_high: bool


@dataclass(frozen=True)
class PhantomPlan:
    """A slide: its name, the seed of its scene, its split, and one path per fragment."""

    name: str
    seed: int
    split: str
    paths: tuple[PhantomPath, ...]


def plan_slides(slides: int, seed: int = 42, missing_high: float = 0.0) -> list[PhantomPlan]:
    """Plans slides; the same arguments give the same plan.

    Slides are divided into pools, each of which is assigned to one split. The paths of a group are in one pool, on
    four slides if the pool has four. With at least twelve slides every pool has four; fewer slides are divided into
    three pools, one per split, and then some groups have paths on the same slide.

    Args:
        slides: number of slides, at least 1; with fewer than 3, some splits are empty.
        seed: random seed.
        missing_high: share of groups without a 200x view, which get only the questions about 10x and 40x.
    """
    if slides < 1:
        raise ValueError("at least one slide is needed")
    plans: list[PhantomPlan] = []
    pools = deal_pools(slides)
    names = {f"pool {number:06d}": PATHS * len(pool) for number, pool in enumerate(pools)}
    splits = patient_splits(names, seed)
    for (name, _), pool in zip(names.items(), pools, strict=True):
        plans.extend(_plan_pool(pool, splits[name], seed, missing_high))
    return plans


def deal_pools(slides: int) -> list[range]:
    """Divides slide numbers into pools of nearly equal size, of at least four slides if there are twelve or more.

    >>> [len(pool) for pool in deal_pools(26)], [len(pool) for pool in deal_pools(7)]
    ([5, 4, 4, 5, 4, 4], [3, 2, 2])
    """
    count = max(min(slides, NAMES_PER_SPLIT), slides // PATHS)
    ends = [(slides * number + count - 1) // count for number in range(count + 1)]
    return [range(start, end) for start, end in itertools.pairwise(ends)]


def _plan_pool(pool: range, split: str, seed: int, missing_high: float) -> Iterator[PhantomPlan]:
    """Plans the slides of a pool: quartet q takes fragment i of slide q + i, modulo the size of the pool."""
    planned: dict[tuple[int, int], PhantomPath] = {}
    for first in range(len(pool)):
        quartet = [(pool[(first + fragment) % len(pool)], fragment) for fragment in range(PATHS)]
        planned |= zip(quartet, _plan_quartet(pool[first], seed, missing_high), strict=True)
    for slide in pool:
        paths = tuple(replace(planned[slide, index], path_id=f"path-{index + 1}") for index in range(PATHS))
        yield PhantomPlan(f"phantom-{slide + 1:04d}", seeded(seed, "slide", slide), split, paths)


def _plan_quartet(number: int, seed: int, missing_high: float) -> list[PhantomPath]:
    """Plans four paths that share their questions, each with a different combination of the features."""
    rng = random.Random(seeded(seed, "quartet", number))
    has_high = rng.random() >= missing_high
    facts: list[dict[str, str]] = [{} for _ in range(PATHS)]
    groups = []
    for question_type, (first, second) in ASKED.items():
        values: Any = tuple(tuple(rng.sample(sorted(FEATURES[name].phrases), 2)) for name in (first, second))
        combination = rng.sample(range(PATHS), PATHS)
        order = tuple(rng.sample(range(PATHS), PATHS))
        wording = rng.randrange(1 << 30)
        for path, index in zip(facts, combination, strict=True):
            path[first], path[second] = values[0][index // 2], values[1][index % 2]
        if has_high or "high_mag" not in (FEATURES[first].view, FEATURES[second].view):
            name = f"phantom-{question_type}-{number + 1:04d}"
            groups.append(GroupPlan(name, question_type, values, order, wording))
    return [PhantomPath("", Facts(**path), tuple(groups), has_high) for path in facts]


def path_questions(slide: PhantomPlan, path: PhantomPath) -> list[Question]:
    """Returns the questions of a path, one per question type."""
    return [_question(slide, path, group) for group in path.groups]


def _question(slide: PhantomPlan, path: PhantomPath, group: GroupPlan) -> Question:
    first, second = (FEATURES[name] for name in ASKED[group.question_type])
    wordings = WORDINGS[group.question_type]
    question = wordings[group.wording % len(wordings)]
    (a, b), (c, d) = group.values
    built = crossed_options(
        first=(first.phrases[a], first.phrases[b]),
        second=(second.phrases[c], second.phrases[d]),
        truth=((a, b).index(path.facts.value(first.name)), (c, d).index(path.facts.value(second.name))),
        order=group.order,
        template=OPTION_TEMPLATES[group.question_type],
        question=question,
    )
    return Question(
        id=row_id(slide.name, path.path_id, group.question_type),
        question=question,
        options=built.options,
        answer=built.answer,
        rationale=" ".join(
            f"At {MAGNIFICATION[one.view]} {SIGNS[one.name][path.facts.value(one.name)]}." for one in (first, second)
        ),
        dimension=QUESTION_TYPES[group.question_type],
        slide=slide.name,
        patient=slide.name,
        path_id=path.path_id,
        group=group.id,
    )


def captions(path: PhantomPath) -> dict[str, str]:
    """Returns view -> description of what it shows, without ``high_mag`` if the path has no such view."""
    texts = {}
    for view in VIEWS:
        if view == "high_mag" and not path.has_high:
            continue
        clauses = [SIGNS[name][path.facts.value(name)] for name, feature in FEATURES.items() if feature.view == view]
        texts[view] = ". ".join(clause[0].upper() + clause[1:] for clause in clauses) + "."
    return texts
