"""The plan of a slide: which fields its questions show, chosen on the survey before any region is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from dataset_script.slides.fields import Field
from dataset_script.slides.fours import FOUR, Four, Shape, sample_fours
from dataset_script.slides.regions import MAGNIFY_LIMIT, SlideSource
from dataset_script.slides.settings import Settings
from dataset_script.slides.survey import Survey, survey_slide
from dataset_script.slides.view_sizes import ViewSizes, fit_sizes
from scale_vqa_eval.schema import MAGNIFICATION, MPP

NEAR: Final = "near"
"""Fours of 40x and 200x fields in one 10x field: zoom-in, origin and bridge."""
FAR: Final = "far"
"""Fours of 10x fields that lie apart, each with a 200x field: zoom-out."""


@dataclass(frozen=True)
class SlidePlan:
    """What is to be read of a slide.

    Attributes:
        slide: its name.
        extent: (width, height) in um.
        fours: layout (``near``, ``far``) -> fours.
        notes: how the slide is used where that differs from what was asked, one line each.
    """

    slide: str
    extent: tuple[float, float]
    fours: dict[str, tuple[Four, ...]]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Returns the plan as plain values; ``plan_from_json`` reads it back."""
        return {
            "slide": self.slide,
            "extent": list(self.extent),
            "notes": list(self.notes),
            "fours": {layout: [_four_json(four) for four in fours] for layout, fours in self.fours.items()},
        }


def plan_from_json(plan: dict[str, Any]) -> SlidePlan:
    """Returns the plan that ``SlidePlan.as_json`` wrote."""
    fours = {layout: tuple(_four(four) for four in found) for layout, found in plan["fours"].items()}
    return SlidePlan(plan["slide"], tuple(plan["extent"]), fours, tuple(plan["notes"]))


def plan_slide(source: SlideSource, settings: Settings) -> SlidePlan:
    """Surveys a slide and chooses its fours.

    A slide that cannot be used has a plan without fours, and a note that says why.

    Raises:
        InputError: where the slide cannot be read.
    """
    extent = (source.size[0] * source.mpp, source.size[1] * source.mpp)
    if source.mpp > MPP["high_mag"] * MAGNIFY_LIMIT:
        reason = f"refused: {source.mpp:.3g} um/px is too coarse for the 200x view at {MPP['high_mag']:g} um/px"
        return SlidePlan(source.name, extent, {}, (reason,))
    sizes = fit_sizes(extent, settings.views, settings.fixed_sizes)
    if isinstance(sizes, str):
        return SlidePlan(source.name, extent, {}, (f"refused: {sizes}",))
    survey = survey_slide(source)
    fours: dict[str, tuple[Four, ...]] = {}
    notes = list(sizes.notes)
    for layout, shapes in _shapes(sizes, settings):
        rng = slide_generator(settings.seed, source.name, layout)
        fours[layout] = _best(survey, shapes, settings.fours_per_slide, rng)
        notes += _told(layout, fours[layout], settings)
    return SlidePlan(source.name, extent, fours, tuple(notes))


def slide_generator(seed: int, slide: str, purpose: str) -> np.random.Generator:
    """Returns a generator that depends on the seed, the slide's name and the purpose, and on nothing else."""
    digest = hashlib.sha256(f"{seed}\0{slide}\0{purpose}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _shapes(sizes: ViewSizes, settings: Settings) -> Iterator[tuple[str, list[Shape]]]:
    """Yields each layout that the kinds need, with the shapes that may serve, best first."""
    least = settings.least_tissue
    if settings.needs_near:
        frame = sizes.frame[0] if sizes.frame else None
        if sizes.mid:
            pairs = list(zip(sizes.mid, sizes.high, strict=True))
            yield NEAR, [Shape(frame, "mid_mag", mid, high, least) for mid, high in pairs]
        elif frame is not None:
            yield NEAR, [Shape(frame, "high_mag", sizes.high[0], sizes.high[0], least)]
    if settings.needs_far and sizes.zoom_out:
        yield FAR, [Shape(None, "low_mag", px, sizes.high[0], least) for px in sizes.zoom_out]


def _best(survey: Survey, shapes: list[Shape], count: int, rng: np.random.Generator) -> tuple[Four, ...]:
    """Returns the fours of the first shape that gives all that are wanted, else of the one that gives most."""
    best: list[Four] = []
    for shape in shapes:
        found = sample_fours(survey, shape, count, rng)
        if len(found) > len(best):
            best = found
        if len(best) == count:
            break
    return tuple(best)


def _told(layout: str, fours: tuple[Four, ...], settings: Settings) -> list[str]:
    """Says what of a layout differs from what was asked."""
    notes = []
    if fours:
        preview = {four.frame for four in fours[:1]} | {fours[0].outer[0], fours[0].inner[0]}
        for field in sorted(field for field in preview if field is not None):
            if field.size_px != settings.asked_px(field.view):
                location = " for zoom-out" if layout == FAR else ""
                notes.append(
                    f"{MAGNIFICATION[field.view]} view of {field.size_px} px{location} instead of "
                    f"{settings.asked_px(field.view)}, still at {field.mpp:g} um/px"
                )
    if len(fours) < settings.fours_per_slide:
        kinds = ", ".join(settings.kinds_of(layout))
        notes.append(
            f"{len(fours) * FOUR} of {settings.fours_per_slide * FOUR} paths for {kinds}: no more fields with tissue "
            "lie apart"
        )
    return notes


def _four_json(four: Four) -> dict[str, Any]:
    return {
        "frame": None if four.frame is None else _field_json(four.frame),
        "outer": [_field_json(field) for field in four.outer],
        "inner": [_field_json(field) for field in four.inner],
    }


def _four(plain: dict[str, Any]) -> Four:
    frame = plain["frame"]
    return Four(
        None if frame is None else Field(*frame),
        tuple(Field(*field) for field in plain["outer"]),
        tuple(Field(*field) for field in plain["inner"]),
    )


def _field_json(field: Field) -> list[Any]:
    return [field.view, field.x, field.y, field.size_px]
