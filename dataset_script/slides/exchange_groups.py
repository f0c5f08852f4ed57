"""Exchange groups of grounding questions, and their rows: constant texts, images from the build cache.

The fields of four members are the options of four questions, and each is the answer of one. Whatever looks at the
options alone gives the same answer to all four questions and is right on exactly one of them.

Letters follow from the option fields alone, the order of the rows and the path names from the query fields alone. So
neither the seed, nor the order of the rows, nor the rows of another kind tell which option belongs to which query.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from dataset_script.slides.build_cache import SlideWork, box_name, marked_name
from dataset_script.slides.plan import FAR, NEAR, slide_generator
from dataset_script.slides.sampling import Field, FieldGroup, standardised
from scale_vqa_eval.controls.exchange_group import GROUP_SIZE, ExchangeGroup
from scale_vqa_eval.files import sha256_json
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION, MPP, row_id

CROSSABLE: Final = frozenset({"zoom-in", "zoom-out", "bridge"})
"""Kinds whose options may come from other slides; the boxes of an origin question lie in one view."""
SOURCE: Final = "slide geometry"


def _scale(view: str) -> str:
    return f"{MAGNIFICATION[view]} ({MPP[view]:g} um per pixel)"


QUESTIONS: Final[dict[str, str]] = {
    "zoom-in": (
        f"The image shows a field of a slide at {_scale('mid_mag')}. Four fields at {_scale('high_mag')} are given as "
        "options. Which one lies inside the field shown?"
    ),
    "zoom-out": (
        f"The image shows a field of a slide at {_scale('high_mag')}. Four fields at {_scale('low_mag')} are given as "
        "options. Which one contains the field shown?"
    ),
    "origin": (
        f"The first image shows a field of a slide at {_scale('low_mag')} with four marked boxes. The second image "
        f"shows one of the boxes at {_scale('high_mag')}. Which box is it?"
    ),
    "bridge": (
        f"The first image shows a field of a slide at {_scale('low_mag')}, the second a part of it at "
        f"{_scale('high_mag')}. Four fields at {_scale('mid_mag')} are given as options. Which one lies inside the "
        "first field and contains the second?"
    ),
}
"""Kind -> the question, the same for every row of the kind: its text does not tell the answer."""
PATH_LETTERS: Final = {"zoom-in": "i", "zoom-out": "w", "origin": "o", "bridge": "b"}
"""First letter of a path's name: the fields of one pair have another path in each kind."""


@dataclass(frozen=True)
class GroupMember:
    """One pair of a field group: a possible answer.

    Attributes:
        work: the cached work on its slide.
        layout: layout of the field group.
        number: number of the field group in its layout.
        fields: the field group.
        index: which of its pairs.
    """

    work: SlideWork
    layout: str
    number: int
    fields: FieldGroup
    index: int

    @property
    def slide(self) -> str:
        """Slide name."""
        return self.work.slide.stem

    @property
    def parent(self) -> Field:
        """The pair's 40x or 10x field."""
        return self.fields.parents[self.index]

    @property
    def target(self) -> Field:
        """The pair's 200x field."""
        return self.fields.targets[self.index]

    def path_id(self, kind: str) -> str:
        """Name of the path of a kind, numbered by the query fields: it tells neither letter nor other kinds."""
        every = sorted(_drawn(kind, replace(self, index=index).query(kind)) for index in range(GROUP_SIZE))
        rank = every.index(_drawn(kind, self.query(kind)))
        return f"{PATH_LETTERS[kind]}{self.number * GROUP_SIZE + rank:04d}"

    def option(self, kind: str) -> Field:
        """The field that a kind of question shows as option."""
        return self.target if kind in ("zoom-in", "origin") else self.parent

    def query(self, kind: str) -> Field:
        """The field that a kind of question asks about."""
        return self.parent if kind == "zoom-in" else self.target

    def option_name(self, kind: str) -> str:
        """Name of the measures of the pair's option."""
        return (
            box_name(self.slide, self.fields, self.index) if kind == "origin" else self.option(kind).name(self.slide)
        )

    def option_measures(self, kind: str) -> list[float]:
        """Returns the measures of the pair's option."""
        return self.work.measures(self.layout, self.number)[self.option_name(kind)]


@dataclass(frozen=True)
class GroundingGroup(ExchangeGroup[GroupMember]):
    """Four members in letter order that share a kind of question."""

    kind: str

    def measures(self) -> list[list[float]]:
        """Returns the measures of the four options."""
        return [member.option_measures(self.kind) for member in self.members]

    def query_measures(self) -> list[list[float]]:
        """Returns the measures of each member's query image."""
        return [
            member.work.measures(member.layout, member.number)[member.query(self.kind).name(member.slide)]
            for member in self.members
        ]


def layout_of(kind: str) -> str:
    """Returns the layout that a kind of question is made of."""
    return FAR if kind == "zoom-out" else NEAR


def same_slide_groups(work: SlideWork, kind: str, seed: int) -> Iterator[GroundingGroup]:
    """Yields the groups of a kind whose options all come from one slide."""
    layout = layout_of(kind)
    for number, fields in enumerate(work.plan().groups.get(layout, ())):
        if not _serves(fields, kind):
            continue
        name = f"{work.slide.stem}::{kind}::g{number:04d}"
        members = [GroupMember(work, layout, number, fields, index) for index in range(GROUP_SIZE)]
        if kind != "origin":  # its letters are drawn on the view
            members.sort(key=lambda member: _drawn(seed, kind, member.slide, member.option(kind)))
        yield GroundingGroup(name, tuple(members), kind)


def cross_slide_groups(
    works: Sequence[SlideWork], patient_of: Mapping[str, str], kind: str, split: str, seed: int
) -> Iterator[GroundingGroup]:
    """Yields groups of a kind whose options come from four patients of one split, matched on appearance.

    The first member is drawn from the patient with most members left; its partners are the nearest of other patients.
    Options of one question have the same size. What is left when fewer than four patients remain is not used.

    Args:
        works: slides of one split, or of a block of it.
        patient_of: slide -> patient.
        kind: one of ``CROSSABLE``.
        split: name of the split.
        seed: seed of the build.
    """
    rng = slide_generator(seed, split, f"cross {kind}")
    pools: dict[tuple[int, int], list[GroupMember]] = {}
    for work in works:
        for group in same_slide_groups(work, kind, seed):
            for member in group.members:
                pools.setdefault((member.parent.size_px, member.target.size_px), []).append(member)
    for size in sorted(pools):
        for members in _matched(pools[size], patient_of, kind, rng):
            # the name is that of its members, so that no group of another block or folder has it too
            name = sha256_json(sorted((member.slide, member.path_id(kind)) for member in members))[:16]
            members.sort(key=lambda member: _drawn(seed, kind, member.slide, member.option(kind)))
            yield GroundingGroup(f"{split}::{kind}::x{name}", tuple(members), kind)


def _matched(
    members: Sequence[GroupMember], patient_of: Mapping[str, str], kind: str, rng: np.random.Generator
) -> Iterator[list[GroupMember]]:
    """Yields four members each, of different patients, that look alike."""
    appearance = standardised(np.array([member.option_measures(kind) for member in members]))
    patients = np.unique([patient_of[member.slide] for member in members], return_inverse=True)[1]
    free = np.ones(len(members), dtype=bool)
    while np.count_nonzero(left := np.bincount(patients[free], minlength=GROUP_SIZE)) >= GROUP_SIZE:
        fullest = rng.choice(np.flatnonzero(left == left.max()))
        chosen = [int(rng.choice(np.flatnonzero(free & (patients == fullest))))]
        distance = np.linalg.norm(appearance - appearance[chosen[0]], axis=1)
        while len(chosen) < GROUP_SIZE:
            allowed = free & ~np.isin(patients, patients[chosen])
            chosen.append(int(np.argmin(np.where(allowed, distance, np.inf))))
        free[chosen] = False
        yield [members[index] for index in chosen]


def _serves(fields: FieldGroup, kind: str) -> bool:
    """Returns whether a field group has the fields that a kind shows."""
    nested = fields.parents[0].view != fields.targets[0].view
    in_context = fields.context is not None
    return {"zoom-in": nested, "zoom-out": nested, "origin": in_context, "bridge": nested and in_context}[kind]


def _drawn(*parts: object) -> str:
    """Returns a sort key that looks random and follows from its parts alone."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def option_texts(kind: str) -> list[str]:
    """Returns the option texts of a kind, the same for every row."""
    return [f"{'Box' if kind == 'origin' else 'Image'} {letter}" for letter in LETTERS[:4]]


def group_rows(group: GroundingGroup, patient_of: Mapping[str, str], seed: int) -> Iterator[dict[str, Any]]:
    """Yields the four rows of a group in an order of their query fields, with the columns of ``row_features``."""
    options = [] if group.kind == "origin" else [_image(member, member.option(group.kind)) for member in group.members]
    kind = group.kind
    for member in sorted(group.members, key=lambda one: _drawn(seed, "row", kind, one.slide, one.query(kind))):
        index, path_id = group.answer_of(member), member.path_id(kind)
        yield {
            "id": row_id(member.slide, path_id, kind),
            "question": QUESTIONS[group.kind],
            "options": option_texts(group.kind),
            "answer": LETTERS[index],
            "rationale": _rationale(group.kind, member, option_texts(group.kind)[index]),
            **_views(group.kind, member),
            "option_images": options,
            "dimension": group.kind,
            "wsi_name": member.slide,
            "patient_id": patient_of[member.slide],
            "path_id": path_id,
            "source": SOURCE,
            "group": group.name,
        }


def _views(kind: str, member: GroupMember) -> dict[str, Any]:
    """Returns the views that a question shows beside its options."""
    query = member.query(kind)
    views = {query.view: _image(member, query)}
    context = member.fields.context
    if kind == "bridge" and context is not None:
        views["low_mag"] = _image(member, context)
    if kind == "origin":
        views["low_mag"] = _file(member, marked_name(member.slide, member.fields))
    return views


def _image(member: GroupMember, field: Field) -> dict[str, Any]:
    return _file(member, field.name(member.slide))


def _file(member: GroupMember, name: str) -> dict[str, Any]:
    return {"bytes": member.work.read(member.layout, member.number, name), "path": name}


def _rationale(kind: str, member: GroupMember, option: str) -> str:
    """Returns where the 200x field lies in the field around it: the truth of the question, from geometry."""
    around = member.fields.context if kind == "origin" else member.parent
    assert around is not None
    across, down = (member.target.x - around.x) / 1000, (member.target.y - around.y) / 1000
    place = f"{abs(across):.2f} mm {'right' if across >= 0 else 'left'} of and {abs(down):.2f} mm "
    place += f"{'below' if down >= 0 else 'above'} its centre"
    outer = MAGNIFICATION[around.view]
    if kind in ("zoom-in", "origin"):
        return f"{option}: by the geometry of the slide it lies in the {outer} field, {place}."
    return f"{option}: by the geometry of the slide it holds the 200x field, {place}."
