"""Draws the tissue of a fragment below its nuclei: stroma, follicles, focus, vessels, glands."""

from __future__ import annotations

from dataclasses import dataclass

import skia

from dataset_script.phantom.scene import Fragment, FragmentPaths
from dataset_script.phantom.stain import Stain
from dataset_script.phantom.textures import texture_shader


def draw_tissue(canvas: skia.Canvas, fragment: Fragment, stain: Stain, mpp: float) -> None:
    """Draws a fragment on a canvas whose units are um of the slide.

    Args:
        canvas: drawn on.
        fragment: the scene.
        stain: colours of the slide.
        mpp: um a pixel of the canvas covers; soft edges finer than that are left out.
    """
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

    def fill(self, path: skia.Path, material: str, alpha: float = 1.0, soft: float = 0.0) -> None:
        paint = skia.Paint(AntiAlias=True, Color=skia.Color(*self.stain.rgb(material), round(255 * alpha)))
        if soft > 0.3 * self.mpp:
            paint.setMaskFilter(skia.MaskFilter.MakeBlur(skia.BlurStyle.kNormal_BlurStyle, soft))
        self.canvas.drawPath(path, paint)

    def line(self, path: skia.Path, material: str, width: float, alpha: float = 1.0) -> None:
        paint = skia.Paint(
            AntiAlias=True,
            Color=skia.Color(*self.stain.rgb(material), round(255 * alpha)),
            Style=skia.Paint.kStroke_Style,
            StrokeWidth=width,
        )
        self.canvas.drawPath(path, paint)

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
        """Lays a material on by a texture of ``mpp`` um a pixel, along the fragment's fibres."""
        shader = texture_shader(name, mpp, self.angle + turn)
        colour = skia.Color(*self.stain.rgb(material), round(255 * strength))
        paint = skia.Paint(AntiAlias=True, Color=colour, Shader=shader)
        if soft > 0.3 * self.mpp:
            paint.setMaskFilter(skia.MaskFilter.MakeBlur(skia.BlurStyle.kNormal_BlurStyle, soft))
        self.canvas.drawPath(path, paint)


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
    if fragment.facts.vessels == "congested":
        brush.fill(paths.vessel_lumens, "blood")
    else:
        brush.fill(paths.vessel_lumens, "lumen")
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
