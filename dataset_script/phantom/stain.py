"""Colours of a phantom slide: what each material holds of the stains, and how strongly a slide took them up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from dataset_script.phantom.lattice import seeded

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
