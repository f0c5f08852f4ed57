"""The settings of a build of grounding questions, the view sizes that a slide can hold, and the plan of a slide.

The scale of a view never changes and nothing is padded: a smaller view shows less of the slide. The plan says which
fields the questions of a slide show; it is made on the tissue before any region is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from pydantic import TypeAdapter

from dataset_script.slides.sampling import OVERLAP_LIMIT, FieldGroup, SamplingSpec, sample_groups
from dataset_script.slides.thumbnail import TissueMap, map_slide
from scale_vqa_eval.controls.exchange_group import GROUP_SIZE
from scale_vqa_eval.schema import GROUNDING_KINDS, MAGNIFICATION, MPP, VIEWS
from scale_vqa_eval.wsi import MAGNIFY_LIMIT, SlideSource

VIEWS_OF: Final[dict[str, tuple[str, ...]]] = {
    "zoom-in": ("mid_mag", "high_mag"),
    "zoom-out": ("low_mag", "high_mag"),
    "origin": ("low_mag", "high_mag"),
    "bridge": VIEWS,
}
"""Views that a kind of question shows."""
DEFAULT_PX: Final = 512
STEP_PX: Final = 16
MIN_PX: Final = 128
MIN_LIGHT: Final = 64.0
"""Mean of 255 below which a slide without tissue is called dark; brightfield slides are mostly glass."""
MIN_RATIO: Final = 2.0
"""A field is at least this many times as wide as the next one in it, so that there is something to find."""
MIN_ZOOM_OUT_RATIO: Final = 4.0
"""For zoom-out a 10x field is at least this many times as wide as the 200x field."""

NEAR: Final = "near"
"""Groups of 40x and 200x fields in one 10x field: zoom-in, origin and bridge."""
FAR: Final = "far"
"""Groups of 10x fields that lie apart, each with a 200x field: zoom-out."""


@dataclass(frozen=True)
class GroundingSettings:
    """Everything that the questions depend on, except the slides.

    Attributes:
        paths_per_slide: paths per slide (and so questions of each kind), a multiple of four.
        seed: seed of every choice.
        kinds: kinds of question, in the order of ``schema.GROUNDING_KINDS``.
        views: views that may be shown, in scale order.
        sizes: (view, pixels) that were asked for by number.
        least_tissue: minimum share of tissue in 40x and 200x fields; a quarter of it in 10x fields.
        distractors: ``same-slide`` or ``cross-slide``.
        mpp: um per pixel of level 0, in place of what the slides state.
    """

    paths_per_slide: int = 40
    seed: int = 42
    kinds: tuple[str, ...] = GROUNDING_KINDS
    views: tuple[str, ...] = VIEWS
    sizes: tuple[tuple[str, int], ...] = ()
    least_tissue: float = 0.5
    distractors: str = "same-slide"
    mpp: float | None = None

    @property
    def groups_per_slide(self) -> int:
        """Groups of each layout and slide."""
        return self.paths_per_slide // GROUP_SIZE

    def kinds_of(self, layout: str) -> list[str]:
        """Returns the kinds that a layout of fields serves."""
        return [kind for kind in self.kinds if (kind == "zoom-out") == (layout == FAR)]


@dataclass(frozen=True)
class ViewSizes:
    """Pixels along a side that may serve on one slide, largest first; empty where the slide has no such view.

    Attributes:
        context: of the 10x view that holds the fields of origin and bridge questions (one size).
        zoom_out: of the four 10x options of a zoom-out question.
        mid: of the 40x view; smaller ones serve where the tissue holds too few fields of the first.
        high: of the 200x view, one for each size of ``mid``, or one where there is no 40x view.
        notes: why a view is missing.
    """

    context: tuple[int, ...]
    zoom_out: tuple[int, ...]
    mid: tuple[int, ...]
    high: tuple[int, ...]
    notes: tuple[str, ...] = ()


def fit_sizes(extent: tuple[float, float], views: tuple[str, ...], fixed: Mapping[str, int]) -> ViewSizes | str:
    """Returns the sizes of a slide's views, or the reason why the slide cannot be used.

    Args:
        extent: (width, height) of the slide in um.
        views: the views asked for, ``schema.VIEWS`` or fewer.
        fixed: view -> pixels that the user asked for by number; those sizes are used exactly or not at all.
    """
    high = asked("high_mag", fixed)
    if "low_mag" not in views:
        return _without_low(extent, fixed)
    inner_side = side_of("mid_mag", fixed) if "mid_mag" in views else side_of("high_mag", fixed)
    context = _fitting("low_mag", fixed, min(extent), MIN_RATIO * inner_side)
    if context:
        zoom_out = _fitting("low_mag", fixed, largest_of_four(extent), MIN_ZOOM_OUT_RATIO * side_of("high_mag", fixed))
        limit = min(side_of("mid_mag", fixed), min(extent))
        mid = _fitting("mid_mag", fixed, limit, MIN_RATIO * side_of("high_mag", fixed)) if "mid_mag" in views else ()
        notes = () if zoom_out else ("zoom-out is left out: four 10x views do not fit beside each other",)
        return ViewSizes(context[:1], zoom_out, mid, (high,) * max(1, len(mid)), notes)
    reason = too_small("low_mag", fixed, extent)
    if "mid_mag" not in views:
        return reason
    fallback = _without_low(extent, fixed)
    if isinstance(fallback, str):
        return f"{reason}; at --views mid,high, {fallback}"
    return replace(fallback, notes=(f"refused at the 10x view ({reason}); used at --views mid,high",))


def largest_of_four(extent: tuple[float, float]) -> float:
    """Returns the side in um of the largest squares of which four fit, sharing no more than the overlap limit."""
    short, long = min(extent), max(extent)
    step = 1 - OVERLAP_LIMIT
    return max(short / (1 + step), min(short, long / (1 + 3 * step)))


def asked(view: str, fixed: Mapping[str, int]) -> int:
    """Returns the pixels asked for a view, by number or by default."""
    return fixed.get(view, DEFAULT_PX)


def side_of(view: str, fixed: Mapping[str, int]) -> float:
    """Returns the side in um of a view of the size asked for."""
    return asked(view, fixed) * MPP[view]


def too_small(view: str, fixed: Mapping[str, int], extent: tuple[float, float]) -> str:
    """Returns the message that a view does not fit a slide."""
    return (
        f"a {asked(view, fixed)} px view at {MAGNIFICATION[view]} spans {side_of(view, fixed) / 1000:.2f} mm, "
        f"too much for a slide of {extent[0] / 1000:.2f} x {extent[1] / 1000:.2f} mm"
    )


def _without_low(extent: tuple[float, float], fixed: Mapping[str, int]) -> ViewSizes | str:
    """Returns the sizes of a slide used at 40x and 200x; both shrink together, so that they still nest 5:1."""
    mid = _fitting("mid_mag", fixed, largest_of_four(extent), MIN_PX * MPP["mid_mag"])
    high = tuple(fixed.get("high_mag", min(asked("high_mag", fixed), px)) for px in mid)
    kept = [
        pair
        for pair in zip(mid, high, strict=True)
        if pair[0] * MPP["mid_mag"] >= MIN_RATIO * pair[1] * MPP["high_mag"]
    ]
    if not kept:
        return too_small("mid_mag", fixed, extent)
    return ViewSizes((), (), tuple(pair[0] for pair in kept), tuple(pair[1] for pair in kept))


def _fitting(view: str, fixed: Mapping[str, int], limit: float, least: float) -> tuple[int, ...]:
    """Returns the sizes of a view, largest first, whose side is at most ``limit`` and at least ``least`` um."""
    largest = asked(view, fixed)
    sizes = [largest] if view in fixed else range(largest, MIN_PX - 1, -STEP_PX)
    return tuple(px for px in sizes if least <= px * MPP[view] <= limit)


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
            light = float(tissue.sums[-1, -1, 2:5].mean()) / tissue.tissue.size
            reason = "no tissue was found"
            if light < MIN_LIGHT:
                reason += f": the slide is dark (mean {light:.0f} of 255), as fluorescence or 12 bits stored in 16 are"
        elif tissue.ink.any():
            reason += f" (tissue on {tissue.tissue.mean():.0%} of the slide, pen on {tissue.ink.mean():.0%})"
        notes.append(
            f"{len(groups) * GROUP_SIZE} of {settings.groups_per_slide * GROUP_SIZE} paths for {kinds}: {reason}"
        )
    return notes
