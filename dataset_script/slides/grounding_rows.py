"""Rows of the ``grounding`` config from exchange groups: constant texts, images from the work folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from dataset_script.slides.fields import Field
from dataset_script.slides.groups import Group, Member
from dataset_script.slides.plan import slide_generator
from dataset_script.slides.region_files import marked_name
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION, MPP, row_id

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
"""Kind -> the question, the same for every row of the kind: its text says nothing of the answer."""


def option_texts(kind: str) -> list[str]:
    """Returns the option texts of a kind, the same for every row."""
    return [f"{'Box' if kind == 'origin' else 'Image'} {letter}" for letter in LETTERS[:4]]


def group_rows(group: Group, patient_of: Mapping[str, str], seed: int) -> Iterator[dict[str, Any]]:
    """Yields the four rows of a group in random order, with the columns of ``features.row_features``."""
    rng = slide_generator(seed, group.name, "order of rows")
    options = [] if group.kind == "origin" else [_image(member, member.option(group.kind)) for member in group.members]
    for index in rng.permutation(len(group.members)):
        member = group.members[index]
        yield {
            "id": row_id(member.slide, member.path_id, group.kind),
            "question": QUESTIONS[group.kind],
            "options": option_texts(group.kind),
            "answer": LETTERS[index],
            "rationale": _rationale(group.kind, member, option_texts(group.kind)[index]),
            **_views(group.kind, member),
            "option_images": options,
            "dimension": group.kind,
            "wsi_name": member.slide,
            "patient_id": patient_of[member.slide],
            "path_id": member.path_id,
            "source": SOURCE,
            "group": group.name,
        }


def _views(kind: str, member: Member) -> dict[str, Any]:
    """Returns the views that a question shows beside its options."""
    query = member.query(kind)
    views = {query.view: _image(member, query)}
    frame = member.four.frame
    if kind == "bridge" and frame is not None:
        views["low_mag"] = _image(member, frame)
    if kind == "origin":
        views["low_mag"] = _file(member, marked_name(member.slide, member.four))
    return views


def _image(member: Member, field: Field) -> dict[str, Any]:
    return _file(member, field.name(member.slide))


def _file(member: Member, name: str) -> dict[str, Any]:
    return {"bytes": member.work.read(member.layout, member.number, name), "path": name}


def _rationale(kind: str, member: Member, option: str) -> str:
    """Says where the 200x field lies in the field around it: the truth of the question, from geometry."""
    around = member.four.frame if kind == "origin" else member.outer
    assert around is not None
    across, down = (member.inner.x - around.x) / 1000, (member.inner.y - around.y) / 1000
    place = f"{abs(across):.2f} mm {'right' if across >= 0 else 'left'} of and {abs(down):.2f} mm "
    place += f"{'below' if down >= 0 else 'above'} its centre"
    outer = MAGNIFICATION[around.view]
    if kind in ("zoom-in", "origin"):
        return f"{option}: by the geometry of the slide it lies in the {outer} field, {place}."
    return f"{option}: by the geometry of the slide it holds the 200x field, {place}."
