"""Colours and textures of a synthetic slide: stain uptake of each material, and tileable alpha textures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import numpy as np
import skia
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial import cKDTree

from dataset_script.phantom.geometry import seeded

Rgb = tuple[int, int, int]

# optical density per channel of haematoxylin (Ruifrok & Johnston 2001), of eosin and of blood as slides show them
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
"""Material -> amounts of haematoxylin, eosin and blood colour; chosen by eye beside real slides."""


@dataclass(frozen=True)
class Stain:
    """The colours of one slide: material -> RGB."""

    colours: Mapping[str, Rgb]

    def rgb(self, material: str) -> Rgb:
        """Returns the colour of a material."""
        return self.colours[material]


def slide_stain(seed: int) -> Stain:
    """Draws the stain of a slide: strength and hue of each dye, and the light of the scanner, under a seed."""
    rng = np.random.default_rng(seeded(seed, "stain"))
    hue = rng.normal(0.0, 0.05, (3, 3))
    vectors = np.clip(_VECTORS + hue, 0.02, None)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    strength = np.array([rng.uniform(0.72, 1.15), rng.uniform(0.68, 1.15), rng.uniform(0.92, 1.10)])
    light = np.array([rng.uniform(240, 246), rng.uniform(238, 244), rng.uniform(240, 247)])
    colours: dict[str, Rgb] = {}
    for material, amounts in _AMOUNTS.items():
        density = (np.array(amounts) * strength) @ vectors
        red, green, blue = np.rint(light * 10.0**-density).astype(int).tolist()
        colours[material] = (red, green, blue)
    return Stain(MappingProxyType(colours))


SIDE: Final = 768
"""Side of a texture in pixels."""


def _noise(name: str, along: float, across: float) -> NDArray[np.float32]:
    """Returns periodic Gaussian noise, mean 0 and deviation 1, smoothed over ``along`` x ``across`` pixels."""
    rng = np.random.default_rng(seeded(0, "texture", name))
    white = rng.standard_normal((SIDE, SIDE), np.float32)
    x, y = fft.rfftfreq(SIDE), fft.fftfreq(SIDE)
    filtered = np.exp(-2 * np.pi**2 * ((along * x[None, :]) ** 2 + (across * y[:, None]) ** 2)).astype(np.float32)
    noise = fft.irfft2(fft.rfft2(white) * filtered, (SIDE, SIDE))
    return np.asarray((noise - noise.mean()) / noise.std(), np.float32)


def _waved(noise: NDArray[np.float32], name: str, reach: float, length: float) -> NDArray[np.float32]:
    """Bends a texture: every pixel is fetched up to about ``reach`` pixels away."""
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
    places = np.stack(np.mgrid[:side, :side], axis=-1).reshape(-1, 2)
    nearest, _ = cKDTree(sites, boxsize=side).query(places, k=2)
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
    """Returns a shader that lays the paint's colour on by a texture, fixed to slide coordinates.

    Args:
        name: of the texture.
        mpp: um of the slide a texture pixel covers; coarser views take it averaged (mip maps).
        angle: of the fibres, degrees.
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
