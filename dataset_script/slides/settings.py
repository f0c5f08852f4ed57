"""What a build of grounding questions is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dataset_script.slides.view_sizes import asked
from scale_vqa_eval.schema import GROUNDING_KINDS, VIEWS

VIEWS_OF: Final[dict[str, tuple[str, ...]]] = {
    "zoom-in": ("mid_mag", "high_mag"),
    "zoom-out": ("low_mag", "high_mag"),
    "origin": ("low_mag", "high_mag"),
    "bridge": VIEWS,
}
"""Views that a kind of question shows."""

FOUR: Final = 4


@dataclass(frozen=True)
class Settings:
    """Everything but the slides that a question depends on.

    Attributes:
        paths_per_slide: paths (and so questions of each kind) a slide, a multiple of four.
        seed: seed of every choice.
        kinds: kinds of question, in the order of ``schema.GROUNDING_KINDS``.
        views: views that may be shown, in scale order.
        sizes: (view, pixels) that were asked for by number.
        least_tissue: least share of tissue in 40x and 200x fields; a quarter of it in 10x fields.
        distractors: ``same-slide`` or ``cross-slide``.
        mpp: um per pixel of slides that do not state it.
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
    def fixed_sizes(self) -> Mapping[str, int]:
        """View -> pixels asked for by number."""
        return dict(self.sizes)

    @property
    def fours_per_slide(self) -> int:
        """Fours of each layout a slide."""
        return self.paths_per_slide // FOUR

    @property
    def needs_near(self) -> bool:
        """Whether any kind shows fields that lie in one 10x field."""
        return bool(set(self.kinds) - {"zoom-out"})

    @property
    def needs_far(self) -> bool:
        """Whether any kind shows 10x fields that lie apart."""
        return "zoom-out" in self.kinds

    def asked_px(self, view: str) -> int:
        """Returns the pixels asked for a view."""
        return asked(view, self.fixed_sizes)

    def kinds_of(self, layout: str) -> list[str]:
        """Returns the kinds that a layout of fields serves."""
        return [kind for kind in self.kinds if (kind == "zoom-out") == (layout == "far")]
