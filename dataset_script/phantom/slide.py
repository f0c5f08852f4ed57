"""A phantom slide: the scene of four tissue fragments, read as fields of any scale like a slide file."""

from __future__ import annotations

from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataset_script.phantom.lattice import seeded
from dataset_script.phantom.plan import SlidePlan, plan_slides
from dataset_script.phantom.render import render
from dataset_script.phantom.scene import FRAME, Fragment, build_fragment
from dataset_script.phantom.sprites import SpriteSheet, sprite_sheet
from dataset_script.phantom.stain import Stain, slide_stain
from dataset_script.phantom.views import View, place_views
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.schema import MPP

PITCH: Final = 5300.0
"""Distance of the fragments' centres, um: their 10x fields do not overlap."""
EXTENT: Final = 11_264.0
"""Side of a slide, um: 22,528 pixels of 0.5 um."""
ATTEMPTS: Final = 20


class PhantomSlide:
    """A procedural slide; a ``slides.regions.SlideSource``. What it shows is drawn, not grown: no tissue.

    Nothing is drawn before it is looked at, and of nuclei nothing is kept: every region of every scale is computed
    from the seed.

    Args:
        plan: name, seed and facts of the slide.
    """

    def __init__(self, plan: SlidePlan) -> None:
        self.plan = plan
        self._fragments: dict[int, tuple[Fragment, dict[str, View]]] = {}

    @property
    def name(self) -> str:
        """Slide name."""
        return self.plan.name

    @property
    def mpp(self) -> float:
        """um per pixel of level 0."""
        return MPP["high_mag"]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of level 0 in pixels."""
        return round(EXTENT / self.mpp), round(EXTENT / self.mpp)

    def read_region(self, center_x_um: float, center_y_um: float, mpp: float, size_px: int) -> Image.Image:
        """Returns the square field around a point as RGB of ``size_px`` x ``size_px``.

        Args:
            center_x_um: centre in um from the left edge.
            center_y_um: centre in um from the top edge.
            mpp: wanted um per pixel, any.
            size_px: pixels along a side.

        Raises:
            InputError: where the field leaves the slide.
        """
        half = size_px * mpp / 2
        left, top = center_x_um - half, center_y_um - half
        slack = self.mpp / 2
        if min(left, top) < -slack or max(center_x_um, center_y_um) + half > EXTENT + slack:
            found = f"a field of {2 * half:.0f} um around ({center_x_um:.0f}, {center_y_um:.0f}) um"
            expected = f"a field on the slide ({EXTENT:.0f} x {EXTENT:.0f} um)"
            raise InputError(
                Problem(self.name, expected, found, "move the field or make it smaller; nothing is padded")
            )
        return Image.fromarray(self.pixels((left, top), mpp, (size_px, size_px)))

    def thumbnail(self, max_px: int) -> Image.Image:
        """Returns the whole slide as RGB of at most ``max_px`` pixels along a side."""
        side = min(max_px, self.size[0])
        return Image.fromarray(self.pixels((0.0, 0.0), EXTENT / side, (side, side)))

    def pixels(self, origin: tuple[float, float], mpp: float, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Returns a rectangle as RGB, shape (height, width, 3); beyond the slide there is bare glass.

        Args:
            origin: left and top, um.
            mpp: um per pixel.
            size: width and height, pixels.
        """
        right, bottom = origin[0] + size[0] * mpp, origin[1] + size[1] * mpp
        inside = []
        for number in range(len(self.plan.paths)):
            x, y = self.fragment_centre(number)
            if x - FRAME < right and x + FRAME > origin[0] and y - FRAME < bottom and y + FRAME > origin[1]:
                inside.append(self.fragment(number))
        return render(inside, self.stain, self._sheet, origin, mpp, size)

    def fragment(self, number: int) -> Fragment:
        """Returns the scene graph of a fragment, by the number of its path."""
        return self._built(number)[0]

    def fragment_centre(self, number: int) -> tuple[float, float]:
        """Returns the centre of a fragment, um."""
        first = (EXTENT - PITCH) / 2
        return first + PITCH * (number % 2), first + PITCH * (number // 2)

    def views(self, number: int) -> dict[str, View]:
        """Returns view name -> field of a path; without ``high_mag`` where the plan says so."""
        views = dict(self._built(number)[1])
        if not self.plan.paths[number].has_high:
            del views["high_mag"]
        return views

    def view_image(self, view: View, size_px: int) -> Image.Image:
        """Returns a view of a path as RGB: the same field for any number of pixels, coarser with fewer."""
        return self.read_region(view.x, view.y, 2 * view.half / size_px, size_px)

    def _built(self, number: int) -> tuple[Fragment, dict[str, View]]:
        """Builds a fragment, anew under another seed where no field of it shows all facts (none of 600 was)."""
        if number not in self._fragments:
            for attempt in range(ATTEMPTS):
                seed = seeded(self.plan.seed, "path", number, attempt)
                fragment = build_fragment(seed, self.fragment_centre(number), self.plan.paths[number].facts)
                views = place_views(fragment)
                if views is not None:
                    self._fragments[number] = fragment, views
                    break
            else:
                raise RuntimeError(f"{self.name}: no scene of {ATTEMPTS} shows {self.plan.paths[number].facts}")
        return self._fragments[number]

    @cached_property
    def stain(self) -> Stain:
        """Colours of the slide."""
        return slide_stain(self.plan.seed)

    @cached_property
    def _sheet(self) -> SpriteSheet:
        return sprite_sheet(self.stain)


def phantom_slides(slides: int, seed: int = 42) -> list[PhantomSlide]:
    """Returns phantom slides, to be read like slide files.

    >>> [slide.name for slide in phantom_slides(2)]
    ['phantom-0001', 'phantom-0002']
    """
    return [PhantomSlide(plan) for plan in plan_slides(slides, seed)]
