"""A synthetic slide: four tissue fragments, read as fields of any scale or written as a pyramidal TIFF file.

The three nested views of a path are placed so that its facts are visible. A 40x field touches or avoids the focus, is
at the margin of the tissue or within it, and shows vessels. A 200x field shows epithelium, stroma, inflammatory cells
and, if there are any, mitoses. Fields are sampled at random until one fits.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataset_script.phantom.appearance import SpriteSheet, Stain, slide_stain, sprite_sheet
from dataset_script.phantom.cells import BodyKind, bodies
from dataset_script.phantom.geometry import Rect, grown, overlap, seeded, within
from dataset_script.phantom.plan import PhantomPlan, plan_slides
from dataset_script.phantom.render import render
from dataset_script.phantom.scene import LABEL_MPP, Fragment, Label, build_fragment, framed
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import atomic_path
from scale_vqa_eval.schema import MPP

VIEW_PIXELS: Final = 512
LOW_JITTER: Final = 60.0
TOUCHING: Final = (0.10, 0.45)
MARGIN: Final = (0.10, 0.35)
"""Minimum and maximum share of the focus, or of bare glass, in a 40x field."""
CLEARANCE: Final = 150.0
"""Minimum distance from the focus of a 40x field that avoids it, or from the margin of a field in the centre, um."""
MIN_VESSELS: Final = 6
MIN_CELLS: Final = 12
MIN_MITOSES: Final = 5
_TRIES: Final = 4000


@dataclass(frozen=True)
class View:
    """A square field: centre in slide coordinates (um), and scale."""

    x: float
    y: float
    mpp: float

    @property
    def half(self) -> float:
        """Half the side, um."""
        return VIEW_PIXELS * self.mpp / 2

    @property
    def rect(self) -> Rect:
        """The field in slide coordinates, um."""
        return self.x - self.half, self.y - self.half, self.x + self.half, self.y + self.half


def place_views(fragment: Fragment) -> dict[str, View] | None:
    """Returns view name -> field, each within the previous one, or None if no field shows all facts."""
    rng = np.random.default_rng(seeded(fragment.seed, "views"))
    x, y = np.array(fragment.centre) + rng.uniform(-LOW_JITTER, LOW_JITTER, 2)
    low = View(float(x), float(y), MPP["low_mag"])
    for mid in _mid_fields(fragment, low, rng):
        high = _high_field(fragment, mid, rng)
        if high is not None:
            return {"low_mag": low, "mid_mag": mid, "high_mag": high}
    return None


def _share(fragment: Fragment, rect: Rect, *labels: Label) -> float:
    """Returns the share of compartments in a rectangle, from about 100 x 100 samples of the raster at most."""
    frame, side = fragment.frame, fragment.labels.shape[0]
    left, top, right, bottom = (
        min(max(round((value - frame[axis % 2]) / LABEL_MPP), 0), side) for axis, value in enumerate(rect)
    )
    step = max(1, (right - left) // 100)
    counts = np.bincount(fragment.labels[top:bottom:step, left:right:step].ravel(), minlength=len(Label))
    return float(counts[list(labels)].sum() / max(1, counts.sum()))


def _mid_fields(fragment: Fragment, low: View, rng: np.random.Generator) -> Iterator[View]:
    """Yields 40x fields within the 10x field that show the facts."""
    facts = fragment.facts
    half = VIEW_PIXELS * MPP["mid_mag"] / 2
    reach = low.half - half
    for x, y in rng.uniform(-reach, reach, (_TRIES, 2)) + np.array([low.x, low.y]):
        view = View(float(x), float(y), MPP["mid_mag"])
        around = grown(view.rect, CLEARANCE)
        bare = _share(fragment, view.rect, Label.BACKGROUND)
        if facts.depth == "margin" and not MARGIN[0] <= bare <= MARGIN[1]:
            continue
        if facts.depth == "centre" and _share(fragment, around, Label.BACKGROUND) > 0:
            continue
        focus = _share(fragment, view.rect, Label.FOCUS)
        if facts.site == "touching" and not TOUCHING[0] <= focus <= TOUCHING[1]:
            continue
        if facts.site == "avoiding" and _share(fragment, around, Label.FOCUS) > 0:
            continue
        if _seen(fragment.vessels.centres, view) >= MIN_VESSELS and _share(fragment, view.rect, Label.STROMA) > 0.2:
            yield view


def _seen(centres: NDArray[np.float64], view: View) -> int:
    return int(within(centres[:, 0], centres[:, 1], view.rect).sum())


def _high_field(fragment: Fragment, mid: View, rng: np.random.Generator) -> View | None:
    """Returns a 200x field within a 40x field that shows the facts of this scale, or None if few tries find none."""
    reach = mid.half - VIEW_PIXELS * MPP["high_mag"] / 2
    tried = 0
    for x, y in rng.uniform(-reach, reach, (400, 2)) + np.array([mid.x, mid.y]):
        view = View(float(x), float(y), MPP["high_mag"])
        if _share(fragment, view.rect, Label.BACKGROUND, Label.FOCUS, Label.FOLLICLE) > 0:
            continue
        epithelium = _share(fragment, view.rect, Label.GLAND, Label.SHEET)
        if not 0.15 <= epithelium <= 0.65 or _share(fragment, view.rect, Label.STROMA) < 0.25:
            continue
        tried += 1
        if _shows_cells(fragment, view):
            return view
        if tried == 40:
            break
    return None


def _shows_cells(fragment: Fragment, view: View) -> bool:
    kinds = [block.kind for block in bodies(fragment, view.rect)]
    counts = np.bincount(np.concatenate(kinds) if kinds else np.zeros(0, np.int64), minlength=len(BodyKind))
    if counts[BodyKind[fragment.facts.cells.upper()]] < MIN_CELLS:
        return False
    return fragment.facts.mitoses == "zero" or bool(counts[BodyKind.MITOSIS] >= MIN_MITOSES)


PITCH: Final = 5300.0
"""Distance between the centres of fragments, um; their 10x fields do not overlap."""
EXTENT: Final = 11_264.0
"""Side of a slide, um: 22,528 pixels of 0.5 um."""
ATTEMPTS: Final = 20


class PhantomSlide:
    """A procedural slide, a ``scale_vqa_eval.wsi.SlideSource``; it shows drawn shapes, not tissue.

    Any region at any scale is computed from the seed when it is read; nuclei are not stored.

    Args:
        plan: name, seed and facts of the slide.
    """

    def __init__(self, plan: PhantomPlan) -> None:
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
            mpp: um per pixel.
            size_px: side in pixels.

        Raises:
            InputError: if the field leaves the slide.
        """
        half = size_px * mpp / 2
        left, top = center_x_um - half, center_y_um - half
        slack = self.mpp / 2
        if min(left, top) < -slack or max(center_x_um, center_y_um) + half > EXTENT + slack:
            found = f"a field of {2 * half:.0f} um around ({center_x_um:.0f}, {center_y_um:.0f}) um"
            expected = f"a field on the slide ({EXTENT:.0f} x {EXTENT:.0f} um)"
            hint = "move the field or make it smaller; nothing is padded"
            raise InputError(Problem(self.name, expected, found, hint))
        return Image.fromarray(self.pixels((left, top), mpp, (size_px, size_px)))

    def thumbnail(self, max_px: int) -> Image.Image:
        """Returns the slide as RGB with a side of at most ``max_px`` pixels."""
        side = min(max_px, self.size[0])
        return Image.fromarray(self.pixels((0.0, 0.0), EXTENT / side, (side, side)))

    def pixels(self, origin: tuple[float, float], mpp: float, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Returns a rectangle as RGB, shape (height, width, 3), with bare glass outside of the slide.

        Args:
            origin: left and top, um.
            mpp: um per pixel.
            size: width and height in pixels.
        """
        rect = (*origin, origin[0] + size[0] * mpp, origin[1] + size[1] * mpp)
        numbers = range(len(self.plan.paths))
        inside = [self.fragment(one) for one in numbers if overlap(rect, framed(self.fragment_centre(one)))]
        return render(inside, self.stain, self._sheet, origin, mpp, size)

    def fragment(self, number: int) -> Fragment:
        """Returns the scene graph of a fragment, by the index of its path."""
        return self._built(number)[0]

    def fragment_centre(self, number: int) -> tuple[float, float]:
        """Returns the centre of a fragment, um."""
        first = (EXTENT - PITCH) / 2
        return first + PITCH * (number % 2), first + PITCH * (number // 2)

    def views(self, number: int) -> dict[str, View]:
        """Returns view name -> field of a path, without ``high_mag`` if the path has no such view."""
        views = dict(self._built(number)[1])
        if not self.plan.paths[number].has_high:
            del views["high_mag"]
        return views

    def view_image(self, view: View, size_px: int) -> Image.Image:
        """Returns a view of a path as RGB; the field does not depend on the number of pixels."""
        return self.read_region(view.x, view.y, 2 * view.half / size_px, size_px)

    def _built(self, number: int) -> tuple[Fragment, dict[str, View]]:
        """Builds a fragment, with another seed if no field of it shows all facts (0 of 600 fragments)."""
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
        """The colours of the slide."""
        return slide_stain(self.plan.seed)

    @cached_property
    def _sheet(self) -> SpriteSheet:
        return sprite_sheet(self.stain)


def phantom_slides(slides: int, seed: int = 42) -> list[PhantomSlide]:
    """Returns synthetic slides, which can be read like slide files.

    >>> [slide.name for slide in phantom_slides(2)]
    ['phantom-0001', 'phantom-0002']
    """
    return [PhantomSlide(plan) for plan in plan_slides(slides, seed)]


TILE: Final = 512
STEP: Final = 4
"""Factor between levels; each level is drawn from the scene, not downsampled."""
SMALLEST: Final = 512
"""Maximum length in pixels of the longer side of the last level."""
STRIPE: Final = 8
"""Number of tiles, side by side, that are drawn at once."""
QUALITY: Final = 90


def write_slide(
    slide: PhantomSlide,
    path: str | Path,
    area: Rect = (0.0, 0.0, EXTENT, EXTENT),
    finest_mpp: float = MPP["high_mag"],
) -> Path:
    """Writes a slide, or a rectangle of it, as a pyramidal TIFF file; an existing file is kept.

    Args:
        slide: the synthetic slide.
        path: the file, which is written atomically.
        area: rectangle of the slide to write, um.
        finest_mpp: um per pixel of level 0.

    Returns:
        The path.
    """
    import tifffile

    path = Path(path)
    if path.exists():
        return path
    side = max(area[2] - area[0], area[3] - area[1])
    mpp, level = finest_mpp, 0
    with atomic_path(path) as partial, tifffile.TiffWriter(partial, bigtiff=True) as file:
        while True:
            size = round((area[2] - area[0]) / mpp), round((area[3] - area[1]) / mpp)
            file.write(
                _tiles(slide, (area[0], area[1]), mpp, size),
                shape=(size[1], size[0], 3),
                dtype="uint8",
                tile=(TILE, TILE),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0,
                description=f"{slide.name}: procedural phantom, no tissue" if not level else None,
                software=False,
                metadata=None,
            )
            if side / mpp <= SMALLEST:
                break
            mpp, level = mpp * STEP, level + 1
    return path


def _tiles(slide: PhantomSlide, origin: tuple[float, float], mpp: float, size: tuple[int, int]) -> Iterator[bytes]:
    """Yields the JPEG tiles of a level, row by row; ``STRIPE`` tiles are drawn at once."""
    columns, rows = -(-size[0] // TILE), -(-size[1] // TILE)
    for row in range(rows):
        for first in range(0, columns, STRIPE):
            count = min(STRIPE, columns - first)
            corner = origin[0] + first * TILE * mpp, origin[1] + row * TILE * mpp
            block = Image.fromarray(slide.pixels(corner, mpp, (count * TILE, TILE)))
            for column in range(count):
                buffer = io.BytesIO()
                tile = block.crop((column * TILE, 0, (column + 1) * TILE, TILE))
                tile.save(buffer, "JPEG", quality=QUALITY, subsampling="4:2:0")
                yield buffer.getvalue()
