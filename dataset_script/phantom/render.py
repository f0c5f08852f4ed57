"""Renders a rectangle of a phantom slide at any scale: tissue as vectors, nuclei as sprites or, coarser, as coverage.

Everything is composed of layers whose average over an area is the layer of the averaged coverage, so a coarse view
agrees with a fine one that is averaged. Where a nucleus is smaller than two pixels it is spread over the pixels around
its place with the area and colour of its sprite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import skia
from numpy.typing import NDArray

from dataset_script.phantom.bodies import Bodies
from dataset_script.phantom.lattice import Rect, grown, overlap
from dataset_script.phantom.nuclei import REACH, bodies
from dataset_script.phantom.scene import Fragment
from dataset_script.phantom.sprites import CELL, FACTORS, SPRITE_MPP, VARIANTS, SpriteSheet, box_averaged
from dataset_script.phantom.stain import Stain
from dataset_script.phantom.tissue import draw_tissue

FINE: Final = 3.0
"""um per pixel up to which a view is drawn as it is; a coarser one with sprites is drawn larger and averaged."""
COARSE: Final = 9.0
"""um per pixel from which nuclei become coverage, summed on pixels half as wide and averaged."""
WIDE: Final = 1.2
"""Pixels that a body may cover before its coverage is spread from four places instead of one."""


def render(
    fragments: Iterable[Fragment],
    stain: Stain,
    sheet: SpriteSheet,
    origin: tuple[float, float],
    mpp: float,
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """Returns a region as RGB, shape (height, width, 3).

    Args:
        fragments: tissue of the slide.
        stain: colours of the slide.
        sheet: sprites in those colours.
        origin: left and top of the region, um.
        mpp: um per pixel.
        size: width and height, pixels.
    """
    over = 1 if mpp <= FINE or mpp >= COARSE else math.ceil(mpp / FINE)
    pixel = mpp / over
    width, height = size[0] * over, size[1] * over
    rect = (origin[0], origin[1], origin[0] + width * pixel, origin[1] + height * pixel)
    pixels = np.empty((height, width, 4), np.uint8)
    info = skia.ImageInfo.Make(width, height, skia.ColorType.kRGBA_8888_ColorType, skia.AlphaType.kPremul_AlphaType)
    surface = skia.Surface.MakeRasterDirect(info, pixels)
    canvas = surface.getCanvas()
    canvas.clear(skia.Color(*stain.rgb("background")))
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
        fine = _bounded(_coverage(found, sheet, rect, mpp / 2, (2 * height, 2 * width)))
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

    A body is spread by quadratic B-splines over 3 x 3 pixels, a large one from four places within it.
    """
    masses = sheet.masses
    height, width = shape
    total: NDArray[np.float32] = np.zeros((height, width, 4), np.float32)
    for whole in found:
        block = _quartered(whole, masses[:, 3], mpp)
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
            total[rows, columns] += window[
                rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
            ]
    return total


def _quartered(found: Bodies, areas: NDArray[np.float64], mpp: float) -> Bodies:
    """Puts four bodies of half the size in place of each that covers more than ``WIDE`` pixels."""
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
    """Weights of the quadratic B-spline at the pixels before, at and after a place, offset in -0.5..0.5."""
    return 0.5 * (0.5 - offset) ** 2, 0.75 - offset**2, 0.5 * (0.5 + offset) ** 2


def _bounded(coverage: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bounds coverage by 1; where bodies would cover more than a pixel, their mean colour covers it."""
    bounded: NDArray[np.float32] = coverage / np.maximum(coverage[:, :, 3:], np.float32(1))
    return bounded
