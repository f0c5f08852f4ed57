"""The plan of a slide: which fields its questions show, chosen on the tissue before any region is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from pydantic import TypeAdapter

from dataset_script.slides.sampling import FieldGroup, SamplingSpec, sample_groups
from dataset_script.slides.settings import GroundingSettings, ViewSizes, asked, fit_sizes
from dataset_script.slides.thumbnail import TissueMap, map_slide
from scale_vqa_eval.controls.exchange_group import GROUP_SIZE
from scale_vqa_eval.schema import MAGNIFICATION, MPP, VIEWS
from scale_vqa_eval.wsi import MAGNIFY_LIMIT, SlideSource

NEAR: Final = "near"
"""Groups of 40x and 200x fields in one 10x field: zoom-in, origin and bridge."""
FAR: Final = "far"
"""Groups of 10x fields that lie apart, each with a 200x field: zoom-out."""


@dataclass(frozen=True)
class FieldPlan:
    """The fields to read from one slide.

    Attributes:
        slide: its name.
        extent: (width, height) in um.
        groups: layout (``near``, ``far``) -> field groups.
        notes: how the slide is used where that differs from what was asked, one line each.
    """

    slide: str
    extent: tuple[float, float]
    groups: dict[str, tuple[FieldGroup, ...]]
    notes: tuple[str, ...]

    def to_json(self) -> bytes:
        """Returns the plan as JSON; ``from_json`` reads it back."""
        return _PLAN.dump_json(self)

    @staticmethod
    def from_json(text: bytes) -> FieldPlan:
        """Returns the plan that ``to_json`` wrote."""
        return _PLAN.validate_json(text)


_PLAN: Final[TypeAdapter[FieldPlan]] = TypeAdapter(FieldPlan)


def plan_slide(source: SlideSource, settings: GroundingSettings) -> FieldPlan:
    """Maps the tissue of a slide and chooses its groups.

    A slide that cannot be used has a plan without groups, and a note that says why.

    Raises:
        InputError: where the slide cannot be read.
    """
    extent = (source.size[0] * source.mpp, source.size[1] * source.mpp)
    if source.mpp > MPP["high_mag"] * MAGNIFY_LIMIT:
        finest = MPP["high_mag"] * MAGNIFY_LIMIT
        reason = (
            f"refused: {source.mpp:.3g} um/px is too coarse for the 200x view at {MPP['high_mag']:g} um/px; scan at "
            f"{finest:.2g} um/px or finer, or give --mpp if the scale is wrong"
        )
        return FieldPlan(source.name, extent, {}, (reason,))
    sizes = fit_sizes(extent, settings.views, dict(settings.sizes))
    if isinstance(sizes, str):
        return FieldPlan(source.name, extent, {}, (f"refused: {sizes}; {_remedy(extent, settings)}",))
    tissue = map_slide(source)
    groups: dict[str, tuple[FieldGroup, ...]] = {}
    notes = list(sizes.notes)
    for layout, specs in _specs(sizes, settings):
        rng = slide_generator(settings.seed, source.name, layout)
        groups[layout] = _best(tissue, specs, settings.groups_per_slide, rng)
        notes += _notes(layout, groups[layout], settings, tissue)
    return FieldPlan(source.name, extent, groups, tuple(notes))


def slide_generator(seed: int, slide: str, purpose: str) -> np.random.Generator:
    """Returns a generator that depends on the seed, the slide's name and the purpose, and on nothing else."""
    digest = hashlib.sha256(f"{seed}\0{slide}\0{purpose}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _specs(sizes: ViewSizes, settings: GroundingSettings) -> Iterator[tuple[str, list[SamplingSpec]]]:
    """Yields each layout that the kinds need, with the specs that may serve, best first."""
    least = settings.least_tissue
    if settings.kinds_of(NEAR):
        context = sizes.context[0] if sizes.context else None
        if sizes.mid:
            pairs = list(zip(sizes.mid, sizes.high, strict=True))
            yield NEAR, [SamplingSpec(context, "mid_mag", mid, high, least) for mid, high in pairs]
        elif context is not None:
            yield NEAR, [SamplingSpec(context, "high_mag", sizes.high[0], sizes.high[0], least)]
    if settings.kinds_of(FAR) and sizes.zoom_out:
        yield FAR, [SamplingSpec(None, "low_mag", px, sizes.high[0], least) for px in sizes.zoom_out]


def _best(
    tissue: TissueMap, specs: list[SamplingSpec], count: int, rng: np.random.Generator
) -> tuple[FieldGroup, ...]:
    """Returns the groups of the first spec that gives all that are wanted, else of the one that gives most."""
    best: list[FieldGroup] = []
    for spec in specs:
        found = sample_groups(tissue, spec, count, rng)
        if len(found) > len(best):
            best = found
        if len(best) == count:
            break
    return tuple(best)


def _remedy(extent: tuple[float, float], settings: GroundingSettings) -> str:
    """Returns what would make a slide large enough for the views."""
    if not isinstance(fit_sizes(extent, settings.views, {}), str):
        return "leave out --size, or give smaller ones"
    if not isinstance(fit_sizes(extent, VIEWS, {}), str):
        return "give all --views, without --size"
    return "no size of view fits it: leave it out"


def _notes(layout: str, groups: tuple[FieldGroup, ...], settings: GroundingSettings, tissue: TissueMap) -> list[str]:
    """Returns notes on how a layout differs from what was asked."""
    notes = []
    if groups:
        views = (groups[0].context, groups[0].parents[0], groups[0].targets[0])
        for field in sorted({field for field in views if field is not None}):
            if field.size_px != (wanted := asked(field.view, dict(settings.sizes))):
                purpose = " for zoom-out" if layout == FAR else ""
                notes.append(
                    f"{MAGNIFICATION[field.view]} view of {field.size_px} px{purpose} instead of "
                    f"{wanted}, still at {field.mpp:g} um/px"
                )
    if len(groups) < settings.groups_per_slide:
        kinds = ", ".join(settings.kinds_of(layout))
        reason = "no more fields that lie apart have enough tissue and structure, and no pen"
        if not tissue.tissue.any():
            reason = "no tissue was found"
        elif tissue.ink.any():
            reason += f" (tissue on {tissue.tissue.mean():.0%} of the slide, pen on {tissue.ink.mean():.0%})"
        notes.append(
            f"{len(groups) * GROUP_SIZE} of {settings.groups_per_slide * GROUP_SIZE} paths for {kinds}: {reason}"
        )
    return notes
