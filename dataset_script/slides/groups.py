"""Exchange groups: four members whose fields are the options of four questions, each the answer of one.

Whatever looks at the options alone gives the same answer to all four questions and is right on exactly one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from dataset_script.slides.fields import Field
from dataset_script.slides.fours import FOUR, Four, standardised
from dataset_script.slides.plan import FAR, NEAR, slide_generator
from dataset_script.slides.region_files import box_name
from dataset_script.slides.work_folder import SlideWork

CROSSABLE: Final = frozenset({"zoom-in", "zoom-out", "bridge"})
"""Kinds whose options may come from other slides; the boxes of an origin question lie in one view."""


@dataclass(frozen=True)
class Member:
    """One pair of a four: a possible answer.

    Attributes:
        work: the slide's work folder.
        layout: layout of the four.
        number: the four's number in its layout.
        four: the four.
        index: which of its pairs.
    """

    work: SlideWork
    layout: str
    number: int
    four: Four
    index: int

    @property
    def slide(self) -> str:
        """Slide name."""
        return self.work.slide.stem

    @property
    def outer(self) -> Field:
        """The pair's 40x or 10x field."""
        return self.four.outer[self.index]

    @property
    def inner(self) -> Field:
        """The pair's 200x field."""
        return self.four.inner[self.index]

    @property
    def path_id(self) -> str:
        """Name of the path: its number by place on the slide, so that it says nothing of the answer's letter."""
        rank = sorted(self.four.inner).index(self.inner)
        return f"{'w' if self.layout == FAR else 'p'}{self.number * FOUR + rank:04d}"

    def option(self, kind: str) -> Field:
        """The field that a kind of question shows as option."""
        return self.inner if kind in ("zoom-in", "origin") else self.outer

    def query(self, kind: str) -> Field:
        """The field that a kind of question asks about."""
        return self.outer if kind == "zoom-in" else self.inner

    def option_name(self, kind: str) -> str:
        """Name under which the measures of the pair's option stand."""
        return box_name(self.slide, self.four, self.index) if kind == "origin" else self.option(kind).name(self.slide)

    def option_measures(self, kind: str) -> list[float]:
        """Returns the measures of the pair's option."""
        return self.work.measures(self.layout, self.number)[self.option_name(kind)]


@dataclass(frozen=True)
class Group:
    """Four members in letter order.

    Attributes:
        kind: kind of question.
        name: the group's id.
        members: A to D.
    """

    kind: str
    name: str
    members: tuple[Member, ...]

    def measures(self) -> list[list[float]]:
        """Returns the measures of the four options."""
        return [
            member.work.measures(member.layout, member.number)[member.option_name(self.kind)]
            for member in self.members
        ]

    def query_measures(self) -> list[list[float]]:
        """Returns the measures of the image that each member is asked about by."""
        return [
            member.work.measures(member.layout, member.number)[member.query(self.kind).name(member.slide)]
            for member in self.members
        ]


def layout_of(kind: str) -> str:
    """Returns the layout that a kind of question is made of."""
    return FAR if kind == "zoom-out" else NEAR


def same_slide_groups(work: SlideWork, kind: str, seed: int) -> Iterator[Group]:
    """Yields the groups of a kind whose options all come from one slide; none where it lacks a view that they need."""
    layout = layout_of(kind)
    for number, four in enumerate(work.plan().fours.get(layout, ())):
        if not _serves(four, kind):
            continue
        name = f"{work.slide.stem}::{kind}::g{number:04d}"
        members = [Member(work, layout, number, four, index) for index in range(FOUR)]
        if kind != "origin":  # the letters of its boxes are drawn; elsewhere a path has another letter in every kind
            members = _shuffled(members, slide_generator(seed, name, "letters"))
        yield Group(kind, name, tuple(members))


def cross_slide_groups(
    works: Sequence[SlideWork], patient_of: Mapping[str, str], kind: str, split: str, seed: int
) -> Iterator[Group]:
    """Yields groups of a kind whose options come from four patients of one split, matched on how they look.

    The first member is drawn from the patient with most members left; its partners are the nearest of other patients.
    Options of one question have the same size. What is left when fewer than four patients remain is not used.

    Args:
        works: slides of one split.
        patient_of: slide -> patient.
        kind: one of ``CROSSABLE``.
        split: name of the split.
        seed: seed of the build.
    """
    rng = slide_generator(seed, split, f"cross {kind}")
    pools: dict[tuple[int, int], list[Member]] = {}
    for work in works:
        for group in same_slide_groups(work, kind, seed):
            for member in group.members:
                pools.setdefault((member.outer.size_px, member.inner.size_px), []).append(member)
    count = 0
    for size in sorted(pools):
        for members in _matched(pools[size], patient_of, kind, rng):
            yield Group(kind, f"{split}::{kind}::x{count:04d}", tuple(_shuffled(members, rng)))
            count += 1


def _matched(
    members: Sequence[Member], patient_of: Mapping[str, str], kind: str, rng: np.random.Generator
) -> Iterator[list[Member]]:
    """Yields fours of members of different patients that look alike."""
    looks = standardised(np.array([member.option_measures(kind) for member in members]))
    patients = np.unique([patient_of[member.slide] for member in members], return_inverse=True)[1]
    free = np.ones(len(members), dtype=bool)
    while np.count_nonzero(left := np.bincount(patients[free], minlength=FOUR)) >= FOUR:
        fullest = rng.choice(np.flatnonzero(left == left.max()))
        chosen = [int(rng.choice(np.flatnonzero(free & (patients == fullest))))]
        distance = np.linalg.norm(looks - looks[chosen[0]], axis=1)
        while len(chosen) < FOUR:
            allowed = free & ~np.isin(patients, patients[chosen])
            chosen.append(int(np.argmin(np.where(allowed, distance, np.inf))))
        free[chosen] = False
        yield [members[index] for index in chosen]


def _serves(four: Four, kind: str) -> bool:
    """Says whether a four has the fields that a kind shows."""
    nested = four.outer[0].view != four.inner[0].view
    framed = four.frame is not None
    return {"zoom-in": nested, "zoom-out": nested, "origin": framed, "bridge": nested and framed}[kind]


def _shuffled(members: Sequence[Member], rng: np.random.Generator) -> list[Member]:
    return [members[index] for index in rng.permutation(len(members))]
