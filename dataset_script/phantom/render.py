"""Renders a rectangle of a synthetic slide at any scale: tissue as vectors, nuclei as sprites or as coverage.

All layers are linear in the covered area, so a coarse view agrees with an averaged fine view. A nucleus smaller than
two pixels is distributed over the pixels around its position, with the area and colour of its sprite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import skia
from numpy.typing import NDArray

from dataset_script.phantom.appearance import (
    CELL,
    FACTORS,
    SPRITE_MPP,
    VARIANTS,
    SpriteSheet,
    Stain,
    box_averaged,
    texture_shader,
)
from dataset_script.phantom.cells import REACH, Bodies, bodies
from dataset_script.phantom.geometry import Rect, grown, overlap
from dataset_script.phantom.scene import Fragment, FragmentPaths


def draw_tissue(canvas: skia.Canvas, fragment: Fragment, stain: Stain, mpp: float) -> None:
    """Draws a fragment on a canvas whose units are um of the slide; edges softer than ``mpp`` um are blurred."""
    brush = _Brush(canvas, stain, mpp, fragment.fibre_angle)
    paths = fragment.paths
    _draw_stroma(brush, fragment, paths)
    if fragment.facts.infiltrate == "nodular":
        brush.fill(paths.follicles, "lymphoid", 0.8, soft=16)
    _DRAW_FOCUS[fragment.facts.focus](brush, fragment)
    _draw_vessels(brush, fragment, paths)
    _draw_epithelium(brush, fragment, paths)


@dataclass(frozen=True)
class _Brush:
    canvas: skia.Canvas
    stain: Stain
    mpp: float
    angle: float

    def fill(self, path: skia.Path, material: str, alpha: float = 1.0, soft: float = 0.0, **options: Any) -> None:
        colour = skia.Color(*self.stain[material], round(255 * alpha))
        paint = skia.Paint(AntiAlias=True, Color=colour, **options)
        if soft > 0.3 * self.mpp:
            paint.setMaskFilter(skia.MaskFilter.MakeBlur(skia.BlurStyle.kNormal_BlurStyle, soft))
        self.canvas.drawPath(path, paint)

    def line(self, path: skia.Path, material: str, width: float, alpha: float = 1.0) -> None:
        self.fill(path, material, alpha, Style=skia.Paint.kStroke_Style, StrokeWidth=width)

    def texture(
        self,
        path: skia.Path,
        name: str,
        material: str,
        strength: float,
        mpp: float,
        soft: float = 0.0,
        turn: float = 0.0,
    ) -> None:
        """Fills a path with a material, modulated by a texture of ``mpp`` um per pixel along the fibres."""
        self.fill(path, material, strength, soft, Shader=texture_shader(name, mpp, self.angle + turn))


def _draw_stroma(brush: _Brush, fragment: Fragment, paths: FragmentPaths) -> None:
    if fragment.facts.stroma == "compact":
        brush.fill(paths.tissue, "stroma_compact", soft=1.5)
        brush.texture(paths.tissue, "bundles", "fibre_dark", 0.45, 1.1, turn=12)
        brush.texture(paths.tissue, "fibres", "fibre_dark", 0.55, 0.55)
    else:
        brush.fill(paths.tissue, "stroma_swollen", soft=1.5)
        brush.texture(paths.tissue, "gaps", "gap", 0.75, 0.7)
        brush.texture(paths.tissue, "strands", "fibre_swollen", 0.9, 0.5)
        brush.texture(paths.tissue, "strands", "fibre_swollen", 0.8, 0.93, turn=50)
    brush.texture(paths.tissue, "tone", "tone", 0.2, 4.3)
    brush.texture(paths.tissue, "grain", "tone", 0.16, 0.4)
    brush.line(paths.clefts, "fibre_dark", 3.0, 0.4)
    brush.fill(paths.clefts, "background", soft=0.8)


def _draw_necrosis(brush: _Brush, fragment: Fragment) -> None:
    brush.fill(fragment.paths.focus, "necrosis", soft=14)
    brush.texture(fragment.paths.focus, "smudge", "necrosis_dark", 0.8, 1.7, soft=14)
    brush.texture(fragment.paths.focus, "smudge", "gap", 0.5, 3.1, soft=14, turn=35)


def _draw_fat(brush: _Brush, fragment: Fragment) -> None:
    brush.fill(fragment.paths.focus, "fat_wall")
    brush.texture(fragment.paths.focus, "fibres", "fibre_dark", 0.4, 0.6)
    brush.fill(fragment.paths.fat_cells, "background")


def _draw_scar(brush: _Brush, fragment: Fragment) -> None:
    brush.fill(fragment.paths.focus, "bundle", soft=10)
    brush.texture(fragment.paths.focus, "bundles", "bundle_dark", 0.85, 1.3, soft=10, turn=-25)
    brush.texture(fragment.paths.focus, "strands", "stroma_swollen", 0.8, 1.0, soft=10, turn=-25)


def _draw_haematoma(brush: _Brush, fragment: Fragment) -> None:
    brush.fill(fragment.paths.focus, "blood", soft=12)
    brush.texture(fragment.paths.focus, "strands", "plasma", 0.8, 1.2, soft=12)
    brush.texture(fragment.paths.focus, "tone", "red_cell", 0.6, 2.0, soft=12)


_DRAW_FOCUS = {
    "necrosis": _draw_necrosis,
    "adipose": _draw_fat,
    "fibrosis": _draw_scar,
    "haematoma": _draw_haematoma,
}


def _draw_vessels(brush: _Brush, fragment: Fragment, paths: FragmentPaths) -> None:
    brush.fill(paths.vessels, "wall")
    brush.texture(paths.vessels, "fibres", "fibre_dark", 0.5, 0.4, turn=90)
    brush.fill(paths.vessel_lumens, "blood" if fragment.facts.vessels == "congested" else "lumen")
    brush.line(paths.vessel_lumens, "membrane", 1.0, 0.7)


def _draw_epithelium(brush: _Brush, fragment: Fragment, paths: FragmentPaths) -> None:
    brush.line(paths.glands, "gap", 5.0, 0.55)
    brush.fill(paths.glands, "cytoplasm", soft=0.4)
    brush.texture(paths.glands, "smudge", "membrane", 0.35, 0.5)
    brush.texture(paths.glands, "mosaic", "cell_edge", 0.7, 0.5)
    brush.texture(paths.glands, "tone", "tone", 0.2, 2.9)
    brush.line(paths.glands, "membrane", 1.2, 0.8)
    if fragment.facts.growth == "sheetlike":
        return
    brush.fill(paths.lumens, "lumen", soft=0.6)
    brush.texture(paths.lumens, "tone", "secretion", 0.5, 0.6)
    brush.line(paths.lumens, "apical", 1.8, 0.75)


FINE: Final = 3.0
"""Maximum um per pixel of a view that is drawn directly; a coarser view with sprites is drawn larger and averaged."""
COARSE: Final = 9.0
"""Minimum um per pixel at which nuclei are drawn as coverage, on pixels of half the width, and averaged."""
WIDE: Final = 1.2
"""Maximum area in pixels of a body whose coverage is distributed from one point; larger ones use four points."""


def render(
    fragments: Iterable[Fragment],
    stain: Stain,
    sheet: SpriteSheet,
    origin: tuple[float, float],
    mpp: float,
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """Returns a region as RGB, shape (height, width, 3), by its left and top (um), um per pixel and size in pixels."""
    over = 1 if mpp <= FINE or mpp >= COARSE else math.ceil(mpp / FINE)
    pixel = mpp / over
    width, height = size[0] * over, size[1] * over
    rect = (origin[0], origin[1], origin[0] + width * pixel, origin[1] + height * pixel)
    pixels = np.empty((height, width, 4), np.uint8)
    info = skia.ImageInfo.Make(width, height, skia.ColorType.kRGBA_8888_ColorType, skia.AlphaType.kPremul_AlphaType)
    surface = skia.Surface.MakeRasterDirect(info, pixels)
    canvas = surface.getCanvas()
    canvas.clear(skia.Color(*stain["background"]))
    canvas.scale(1 / pixel, 1 / pixel)
    canvas.translate(-origin[0], -origin[1])
    inside = [fragment for fragment in fragments if overlap(rect, fragment.frame)]
    for fragment in inside:
        draw_tissue(canvas, fragment, stain, pixel)
    found = (block for fragment in inside for block in bodies(fragment, grown(rect, REACH)))
    if mpp < COARSE:
        for block in found:
            _draw_sprites(canvas, sheet, block, pixel)
    surface.flushAndSubmit()
    drawn: NDArray[Any] = pixels[:, :, :3]
    if mpp >= COARSE:
        fine = _coverage(found, sheet, rect, mpp / 2, (2 * height, 2 * width))
        # a pixel that bodies cover more than once gets their mean colour
        fine = fine / np.maximum(fine[:, :, 3:], np.float32(1))
        covered = box_averaged(fine, 2)
        drawn = np.rint(drawn * (1 - covered[:, :, 3:]) + covered[:, :, :3])
    elif over > 1:
        drawn = np.rint(box_averaged(drawn, over))
    return np.ascontiguousarray(drawn, np.uint8)


def _draw_sprites(canvas: skia.Canvas, sheet: SpriteSheet, found: Bodies, mpp: float) -> None:
    factor = next(step for step in FACTORS if step * SPRITE_MPP * 2 > mpp or step == FACTORS[-1])
    image = sheet.level(factor)
    reach = sheet.reach / factor
    scale = found.size * SPRITE_MPP * factor
    cosine, sine = np.cos(found.angle) * scale, np.sin(found.angle) * scale
    half = reach[found.kind]
    left = found.x - (cosine - sine) * half
    top = found.y - (sine + cosine) * half
    forms = [skia.RSXform(*row) for row in np.stack([cosine, sine, left, top], axis=1).tolist()]
    boxes = [
        skia.Rect.MakeXYWH((v + 0.5) * CELL / factor - side, (kind + 0.5) * CELL / factor - side, 2 * side, 2 * side)
        for kind, side in enumerate(reach.tolist())
        for v in range(VARIANTS)
    ]
    variant = (found.key >> np.uint64(7)) % np.uint64(VARIANTS)
    chosen = [boxes[number] for number in (found.kind * VARIANTS + variant.astype(np.int64)).tolist()]
    sampling = skia.SamplingOptions(skia.FilterMode.kLinear)
    canvas.drawAtlas(image, forms, chosen, [skia.ColorWHITE] * len(forms), skia.BlendMode.kModulate, sampling)


def _coverage(
    found: Iterable[Bodies], sheet: SpriteSheet, rect: Rect, mpp: float, shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Returns RGB times coverage, and coverage, of each pixel: shape (height, width, 4).

    Quadratic B-splines distribute a body over 3 x 3 pixels, a large one from four points within it.
    """
    masses = sheet.masses
    height, width = shape
    total: NDArray[np.float32] = np.zeros((height, width, 4), np.float32)
    for block in found:
        block = _quartered(block, masses[:, 3], mpp)
        x, y = (block.x - rect[0]) / mpp - 0.5, (block.y - rect[1]) / mpp - 0.5
        column, row = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
        left, top = int(column.min()) - 1, int(row.min()) - 1
        wide, tall = int(column.max()) + 2 - left, int(row.max()) + 2 - top
        across, down = _spline(x - column), _spline(y - row)
        present, group = np.unique(block.kind, return_inverse=True)
        first = group * (tall * wide) + (row - top - 1) * wide + column - left - 1
        area = block.size**2 / mpp**2
        amounts = np.zeros(len(present) * tall * wide)
        for j in range(3):
            for i in range(3):
                amounts += np.bincount(first + j * wide + i, area * across[i] * down[j], len(amounts))
        window = np.einsum("kp,kc->pc", amounts.reshape(len(present), -1), masses[present])
        window = window.reshape(tall, wide, 4)
        rows, columns = slice(max(top, 0), min(top + tall, height)), slice(max(left, 0), min(left + wide, width))
        if rows.start < rows.stop and columns.start < columns.stop:
            window = window[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            total[rows, columns] += window
    return total


def _quartered(found: Bodies, areas: NDArray[np.float64], mpp: float) -> Bodies:
    """Replaces each body that covers more than ``WIDE`` pixels by four of half the size."""
    area_um2 = areas[found.kind] * found.size**2
    area = area_um2 / mpp**2
    wide = np.flatnonzero(area > WIDE)
    if not len(wide):
        return found
    reach = 0.25 * np.sqrt(area_um2[wide])
    every = np.concatenate([np.flatnonzero(area <= WIDE), np.repeat(wide, 4)])
    kept = len(every) - 4 * len(wide)
    along = np.concatenate([np.zeros(kept), np.repeat(reach, 4) * np.tile([-1, -1, 1, 1], len(wide))])
    across = np.concatenate([np.zeros(kept), np.repeat(reach, 4) * np.tile([-1, 1, -1, 1], len(wide))])
    cosine, sine = np.cos(found.angle[every]), np.sin(found.angle[every])
    return Bodies(
        found.x[every] + cosine * along - sine * across,
        found.y[every] + sine * along + cosine * across,
        found.kind[every],
        found.key[every],
        found.angle[every],
        found.size[every] * np.where(np.arange(len(every)) < kept, 1.0, 0.5),
    )


def _spline(offset: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Returns the quadratic B-spline weights of the pixels before, at and after a point; offset from -0.5 to 0.5."""
    return 0.5 * (0.5 - offset) ** 2, 0.75 - offset**2, 0.5 * (0.5 + offset) ** 2
