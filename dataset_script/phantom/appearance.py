"""Appearance of synthetic slides: stain, textures of materials, and sprites of nuclei and cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import skia
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial import cKDTree

from dataset_script.phantom.cells import BodyKind
from dataset_script.phantom.geometry import ellipses, seeded, smooth_path, waves

Stain = Mapping[str, tuple[int, int, int]]
"""The colours of a slide: material -> RGB."""

# optical density per channel of haematoxylin (Ruifrok & Johnston 2001), and of eosin and blood as seen on slides
_VECTORS: Final = np.array([[0.65, 0.70, 0.29], [0.10, 0.90, 0.34], [0.10, 0.66, 0.66]])

_AMOUNTS: Final[Mapping[str, tuple[float, float, float]]] = MappingProxyType(
    {
        "background": (0.00, 0.00, 0.00),
        "stroma_compact": (0.04, 0.23, 0.00),
        "stroma_swollen": (0.03, 0.10, 0.00),
        "fibre_dark": (0.08, 0.44, 0.00),
        "fibre_swollen": (0.06, 0.27, 0.00),
        "gap": (0.00, 0.02, 0.00),
        "tone": (0.14, 0.34, 0.00),
        "lymphoid": (0.30, 0.14, 0.00),
        "cytoplasm": (0.15, 0.27, 0.00),
        "cell_edge": (0.05, 0.14, 0.00),
        "membrane": (0.16, 0.46, 0.00),
        "apical": (0.10, 0.40, 0.00),
        "lumen": (0.00, 0.01, 0.00),
        "secretion": (0.06, 0.10, 0.00),
        "vacuole": (0.05, 0.04, 0.00),
        "wall": (0.05, 0.44, 0.00),
        "plasma": (0.00, 0.10, 0.02),
        "blood": (0.02, 0.24, 0.34),
        "red_cell": (0.02, 0.32, 0.46),
        "necrosis": (0.02, 0.17, 0.03),
        "necrosis_dark": (0.12, 0.30, 0.04),
        "debris": (0.55, 0.30, 0.00),
        "ghost": (0.10, 0.28, 0.00),
        "bundle": (0.02, 0.46, 0.00),
        "bundle_dark": (0.06, 0.68, 0.00),
        "fat_wall": (0.04, 0.26, 0.00),
        "nucleus_pale": (0.44, 0.12, 0.00),
        "nucleus": (0.62, 0.16, 0.00),
        "nucleus_dark": (0.95, 0.22, 0.00),
        "chromatin": (1.20, 0.30, 0.00),
        "granules": (0.00, 0.62, 0.08),
        "granules_dark": (0.00, 0.85, 0.16),
        "halo": (0.01, 0.04, 0.00),
        "pale_cell": (0.02, 0.16, 0.00),
    }
)
"""Material -> amounts of haematoxylin, eosin and blood colour, chosen by comparison with real slides."""


def slide_stain(seed: int) -> Stain:
    """Draws a random stain: strength and hue of each dye, and the light of the scanner."""
    rng = np.random.default_rng(seeded(seed, "stain"))
    hue = rng.normal(0.0, 0.05, (3, 3))
    vectors = np.clip(_VECTORS + hue, 0.02, None)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    strength = np.array([rng.uniform(0.72, 1.15), rng.uniform(0.68, 1.15), rng.uniform(0.92, 1.10)])
    light = np.array([rng.uniform(240, 246), rng.uniform(238, 244), rng.uniform(240, 247)])
    colours: dict[str, tuple[int, int, int]] = {}
    for material, amounts in _AMOUNTS.items():
        density = (np.array(amounts) * strength) @ vectors
        red, green, blue = np.rint(light * 10.0**-density).astype(int).tolist()
        colours[material] = (red, green, blue)
    return MappingProxyType(colours)


SIDE: Final = 768
"""Side of a texture in pixels."""


def _noise(name: str, along: float, across: float) -> NDArray[np.float32]:
    """Returns periodic Gaussian noise (mean 0, standard deviation 1), smoothed over ``along`` x ``across`` pixels."""
    rng = np.random.default_rng(seeded(0, "texture", name))
    white = rng.standard_normal((SIDE, SIDE), np.float32)
    x, y = fft.rfftfreq(SIDE), fft.fftfreq(SIDE)
    filtered = np.exp(-2 * np.pi**2 * ((along * x[None, :]) ** 2 + (across * y[:, None]) ** 2)).astype(np.float32)
    noise = fft.irfft2(fft.rfft2(white) * filtered, (SIDE, SIDE))
    return np.asarray((noise - noise.mean()) / noise.std(), np.float32)


def _waved(noise: NDArray[np.float32], name: str, reach: float, length: float) -> NDArray[np.float32]:
    """Warps a texture by displacements of about ``reach`` pixels."""
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    rows = rows + reach * _noise(name + " rows", length, length)
    columns = columns + reach * _noise(name + " columns", length, length)
    return np.asarray(ndimage.map_coordinates(noise, [rows, columns], order=1, mode="grid-wrap"), np.float32)


def _mosaic(name: str, across: int) -> NDArray[np.float32]:
    """Returns the edges between cells about ``across`` pixels wide, periodic."""
    rng = np.random.default_rng(seeded(0, "texture", name))
    side = SIDE // 2
    grid = np.stack(np.meshgrid(*[np.arange(0, side, across)] * 2), axis=-1).reshape(-1, 2)
    sites = (grid + rng.uniform(0, across, grid.shape)) % side
    pixels = np.stack(np.mgrid[:side, :side], axis=-1).reshape(-1, 2)
    nearest, _ = cKDTree(sites, boxsize=side).query(pixels, k=2)
    edges = np.clip(1 - (nearest[:, 1] - nearest[:, 0]) / 3.5, 0, 1).reshape(side, side)
    return np.tile(edges.astype(np.float32), (2, 2))


def _alpha(name: str) -> NDArray[np.float32]:
    """Returns the alpha of a named texture, 0 to 1."""
    if name == "fibres":
        streaks = _waved(_noise(name, 34, 1.5), name, 16, 60)
        return np.clip(0.28 + 0.42 * streaks, 0, 1)
    if name == "bundles":
        streaks = _waved(_noise(name, 60, 5), name, 22, 70)
        return np.clip(0.35 + 0.5 * streaks, 0, 1)
    if name == "gaps":
        lace = np.abs(_waved(_noise(name, 16, 9), name, 12, 40))
        return np.clip(2.2 * lace - 0.5, 0, 1)
    if name == "strands":
        lines = np.abs(_waved(_noise(name, 26, 7), name, 14, 50))
        return np.clip(1 - 5.5 * lines, 0, 1)
    if name == "smudge":
        return np.clip(0.4 + 0.3 * _noise(name, 9, 9) + 0.2 * _noise(name + " fine", 2, 2), 0, 1)
    if name == "mosaic":
        return _mosaic(name, 32)
    if name == "tone":
        return np.clip(0.5 + 0.28 * _noise(name, 24, 24), 0, 1)
    if name == "grain":
        return np.clip(0.5 + 0.3 * _noise(name, 1.6, 1.6), 0, 1)
    raise ValueError(f"no texture is called {name!r}")


def texture_shader(name: str, mpp: float, angle: float = 0.0) -> skia.Shader:
    """Returns a shader that modulates the paint's colour by a texture, fixed to slide coordinates.

    Args:
        name: name of the texture.
        mpp: um per texture pixel; coarser views average it by mip maps.
        angle: direction of the fibres, degrees.
    """
    matrix = skia.Matrix()
    matrix.setRotate(angle)
    matrix.preScale(mpp, mpp)
    sampling = skia.SamplingOptions(skia.FilterMode.kLinear, skia.MipmapMode.kNearest)
    return _image(name).makeShader(skia.TileMode.kRepeat, skia.TileMode.kRepeat, sampling, matrix)


@lru_cache(maxsize=16)
def _image(name: str) -> skia.Image:
    alpha = np.rint(255 * _alpha(name)).astype(np.uint8)
    size = skia.ISize(SIDE, SIDE)
    return skia.Image.frombytes(alpha.tobytes(), size, skia.ColorType.kAlpha_8_ColorType).withDefaultMipmaps()


SPRITE_MPP: Final = 0.25
CELL: Final = 96
"""Side of a sprite in pixels of ``SPRITE_MPP``: 24 um."""
VARIANTS: Final = 10
FACTORS: Final = (1, 2, 4, 8)
"""Downsampling factors of the levels of a sheet."""


@dataclass(frozen=True)
class SpriteSheet:
    """Sprites, one row per kind: premultiplied RGBA of shape (kinds * CELL, VARIANTS * CELL, 4)."""

    pixels: NDArray[np.uint8]
    _levels: dict[int, skia.Image] = field(default_factory=dict, compare=False)

    def level(self, factor: int) -> skia.Image:
        """Returns the sheet downsampled by one of ``FACTORS``."""
        if factor not in self._levels:
            averaged = np.rint(box_averaged(self.pixels, factor)).astype(np.uint8)
            self._levels[factor] = skia.Image.fromarray(
                averaged, skia.ColorType.kRGBA_8888_ColorType, skia.AlphaType.kPremul_AlphaType
            )
        return self._levels[factor]

    @cached_property
    def reach(self) -> NDArray[np.int64]:
        """Half the side of the square around a kind's variants, in pixels, a multiple of the coarsest factor."""
        cells = self.pixels[:, :, 3].reshape(-1, CELL, VARIANTS, CELL).max(axis=2)
        off_centre = np.abs(np.arange(CELL) - (CELL - 1) / 2)
        across = np.where(cells.any(axis=1), off_centre, 0).max(axis=1)
        down = np.where(cells.any(axis=2), off_centre, 0).max(axis=1)
        needed = np.maximum(across, down) + 1.5
        return np.asarray(np.minimum(np.ceil(needed / FACTORS[-1]) * FACTORS[-1], CELL // 2), np.int64)

    @cached_property
    def masses(self) -> NDArray[np.float64]:
        """Mean coverage of each kind, shape (kinds, 4): RGB times area, and area, in um2."""
        kinds = self.pixels.shape[0] // CELL
        cells = self.pixels.reshape(kinds, CELL, -1, 4).astype(np.float64)
        return np.asarray(cells.sum(axis=(1, 2)) / VARIANTS * SPRITE_MPP**2 / np.array([1, 1, 1, 255.0]))


def box_averaged(pixels: NDArray[Any], factor: int) -> NDArray[np.float32]:
    """Returns an image averaged over ``factor`` x ``factor`` pixels, unrounded; ``factor`` divides its sides."""
    total = np.zeros((pixels.shape[0] // factor, pixels.shape[1] // factor, pixels.shape[2]), np.float32)
    for row in range(factor):
        for column in range(factor):
            total += pixels[row::factor, column::factor]
    return total / np.float32(factor * factor)


def sprite_sheet(stain: Stain) -> SpriteSheet:
    """Draws the sprites in the colours of a stain; the shapes are the same for all slides."""
    pixels = np.zeros((len(BodyKind) * CELL, VARIANTS * CELL, 4), np.uint8)
    info = skia.ImageInfo.Make(
        pixels.shape[1], pixels.shape[0], skia.ColorType.kRGBA_8888_ColorType, skia.AlphaType.kPremul_AlphaType
    )
    surface = skia.Surface.MakeRasterDirect(info, pixels)
    canvas = surface.getCanvas()
    for kind in BodyKind:
        for variant in range(VARIANTS):
            rng = np.random.default_rng(seeded(0, "sprite", int(kind), variant))
            canvas.save()
            canvas.translate((variant + 0.5) * CELL, (kind + 0.5) * CELL)
            canvas.scale(1 / SPRITE_MPP, 1 / SPRITE_MPP)
            _DRAWN[kind](_Pen(canvas, stain, rng))
            canvas.restore()
    surface.flushAndSubmit()
    return SpriteSheet(pixels)


@dataclass(frozen=True)
class _Pen:
    """Draws one sprite around the origin, in um."""

    canvas: skia.Canvas
    stain: Stain
    rng: np.random.Generator

    def blob(
        self,
        material: str,
        radii: tuple[float, float],
        at: tuple[float, float] = (0, 0),
        alpha: float = 1.0,
        wave: float = 0.05,
        soft: float = 0.25,
        angle: float = 0.0,
    ) -> skia.Path:
        outline = ellipses(np.array([at]), np.array([radii]), np.array([angle]), waves(self.rng, 1, 20, 2, 6, wave))
        path = smooth_path(outline)
        paint = self.paint(material, alpha)
        paint.setMaskFilter(skia.MaskFilter.MakeBlur(skia.BlurStyle.kNormal_BlurStyle, soft))
        self.canvas.drawPath(path, paint)
        return path

    def paint(self, material: str, alpha: float = 1.0) -> skia.Paint:
        return skia.Paint(AntiAlias=True, Color=skia.Color(*self.stain[material], round(255 * alpha)))

    def nucleus(
        self, fill: str, radii: tuple[float, float], clumps: int, wave: float = 0.05, at: tuple[float, float] = (0, 0)
    ) -> None:
        """Draws a nucleus: fill, chromatin clumps and a darker membrane."""
        path = self.blob(fill, radii, at, 0.94, wave)
        self.canvas.save()
        self.canvas.clipPath(path, skia.ClipOp.kIntersect, True)
        for _ in range(clumps):
            spot = self.rng.uniform(-0.85, 0.85, 2) * radii + at
            size = float(self.rng.uniform(0.4, 1.0))
            pale = self.rng.uniform() < 0.35
            material = "nucleus_pale" if pale else "chromatin"
            self.blob(material, (size, size * 0.8), (float(spot[0]), float(spot[1])), 0.45, 0.1, 0.35)
        self.canvas.restore()
        rim = self.paint("chromatin", 0.55)
        rim.setStyle(skia.Paint.kStroke_Style)
        rim.setStrokeWidth(0.45)
        self.canvas.drawPath(path, rim)


def _fibroblast(pen: _Pen) -> None:
    long = float(pen.rng.uniform(5.0, 8.0))
    pen.nucleus("nucleus", (long, float(pen.rng.uniform(1.1, 1.8))), 6, 0.08)


def _lymphocyte(pen: _Pen) -> None:
    radius = float(pen.rng.uniform(3.2, 3.8))
    pen.blob("cytoplasm", (radius + 0.7, radius + 0.7), alpha=0.5)
    pen.nucleus("nucleus_dark", (radius, radius * 0.95), 7, 0.02)


def _neutrophil(pen: _Pen) -> None:
    pen.blob("pale_cell", (5.4, 5.1), alpha=0.95, soft=0.3)
    turn = pen.rng.uniform(0, 2 * np.pi)
    lobes = int(pen.rng.integers(3, 5))
    for lobe in range(lobes):
        bend = turn + lobe * 4.2 / lobes
        at = (float(2.5 * np.cos(bend)), float(2.5 * np.sin(bend)))
        pen.blob("chromatin", (1.55, 1.25), at, 1.0, 0.08, 0.2, float(bend))


def _eosinophil(pen: _Pen) -> None:
    pen.blob("granules", (5.4, 5.0), alpha=0.97, soft=0.3)
    for _ in range(26):
        way, out = pen.rng.uniform(0, 2 * np.pi), 4.5 * pen.rng.uniform() ** 0.5
        pen.blob("granules_dark", (0.5, 0.5), (float(out * np.cos(way)), float(out * np.sin(way))), 0.7, 0, 0.12)
    for side in (-1, 1):
        pen.blob("nucleus_dark", (1.9, 1.6), (-1.3, side * 1.8), 1.0, 0.06, 0.25)


def _uniform(pen: _Pen) -> None:
    pen.nucleus("nucleus", (float(pen.rng.uniform(4.3, 4.9)), float(pen.rng.uniform(2.9, 3.4))), 12, 0.03)


def _bizarre(pen: _Pen) -> None:
    long, across = float(pen.rng.uniform(4.8, 9.0)), float(pen.rng.uniform(3.8, 6.4))
    fill = ("nucleus", "nucleus_dark", "nucleus_dark")[int(pen.rng.integers(3))]
    pen.nucleus(fill, (long, across), 26, 0.16)
    for _ in range(int(pen.rng.integers(1, 4))):
        at = pen.rng.uniform(-0.4, 0.4, 2) * (long, across)
        pen.blob("chromatin", (1.3, 1.2), (float(at[0]), float(at[1])), 1.0, 0.05, 0.2)


def _mitosis(pen: _Pen) -> None:
    pen.blob("halo", (8.2, 7.6), alpha=0.96, soft=0.6)
    plates = ((0.0,), (-2.6, 2.6), (0.0,))[int(pen.rng.integers(3))]
    for shift in plates:
        pen.blob("chromatin", (1.5, 4.9), (shift, 0.0), 1.0, 0.22, 0.2)
        for _ in range(5):
            at = (float(shift + pen.rng.normal(0, 0.9)), float(pen.rng.uniform(-4.6, 4.6)))
            pen.blob("chromatin", (1.0, 0.6), at, 1.0, 0.2, 0.15, float(pen.rng.uniform(0, 3)))


def _red_cell(pen: _Pen) -> None:
    pen.blob("red_cell", (3.5, 3.2), alpha=0.95, soft=0.25)
    pen.blob("blood", (1.5, 1.3), alpha=0.6, soft=0.8)


def _debris(pen: _Pen) -> None:
    for _ in range(int(pen.rng.integers(2, 6))):
        at = pen.rng.normal(0, 2.2, 2)
        size = float(pen.rng.uniform(0.5, 1.5))
        pen.blob("debris", (size, size), (float(at[0]), float(at[1])), 0.85, 0.15, 0.3)


def _ghost(pen: _Pen) -> None:
    pen.blob("ghost", (5.0, 4.2), alpha=0.5, wave=0.1, soft=1.2)


def _vacuole(pen: _Pen) -> None:
    pen.blob("vacuole", (4.4, 2.9), alpha=0.85, wave=0.06, soft=0.4)


_DRAWN: Final[dict[BodyKind, Callable[[_Pen], None]]] = {
    BodyKind.FIBROBLAST: _fibroblast,
    BodyKind.LYMPHOCYTES: _lymphocyte,
    BodyKind.NEUTROPHILS: _neutrophil,
    BodyKind.EOSINOPHILS: _eosinophil,
    BodyKind.UNIFORM: _uniform,
    BodyKind.BIZARRE: _bizarre,
    BodyKind.MITOSIS: _mitosis,
    BodyKind.RED_CELL: _red_cell,
    BodyKind.DEBRIS: _debris,
    BodyKind.GHOST: _ghost,
    BodyKind.VACUOLE: _vacuole,
}
