"""Tissue, pen and empty glass on the tissue_map of a slide."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_slides import TISSUE_MAP, Picture, tissue_pixels
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from dataset_script.slides.sampling import MIN_STRUCTURE
from dataset_script.slides.thumbnail import map_slide

PENS = {"green": (30, 140, 70), "blue": (30, 60, 170), "black": (25, 25, 30), "teal": (20, 120, 130)}


def at(x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    return np.array([x]), np.array([y])


def test_tissue_is_told_from_glass() -> None:
    tissue_map = map_slide(Picture(tissue_pixels(600, 500, seed=0, margin=120)))
    assert tissue_map.tissue[140:360, 140:460].mean() > 0.9
    assert tissue_map.tissue[:110].mean() == 0 and tissue_map.tissue[:, :110].mean() == 0
    assert tissue_map.tissue_share(*at(1200, 1000), 400)[0] > 0.9
    assert tissue_map.tissue_share(*at(200, 200), 200)[0] == 0


def test_a_slide_that_is_all_tissue_is_kept() -> None:
    tissue_map = map_slide(Picture(tissue_pixels(500, 500, seed=1, margin=0)))
    assert tissue_map.tissue.mean() > 0.9


def test_an_empty_slide_has_no_tissue() -> None:
    rng = np.random.default_rng(0)
    glass = np.clip(rng.normal(243, 1.5, (300, 400, 3)), 0, 255).astype(np.uint8)
    for pixels in (glass, np.full_like(glass, 255)):
        tissue_map = map_slide(Picture(pixels))
        assert tissue_map.tissue.mean() == 0 and tissue_map.ink.mean() == 0


@pytest.mark.parametrize("pen", PENS)
def test_fields_that_a_pen_touched_are_rejected(pen: str) -> None:
    image = Image.fromarray(tissue_pixels(600, 500, seed=2, margin=100))
    ImageDraw.Draw(image).line([(150, 150), (450, 200), (300, 380)], fill=PENS[pen], width=20)
    tissue_map = map_slide(Picture(np.asarray(image)))
    drawn = np.asarray(image) == np.array(PENS[pen], np.uint8)
    assert tissue_map.ink[drawn.all(axis=-1)].mean() > 0.95
    assert not (tissue_map.tissue & tissue_map.ink).any()
    assert tissue_map.tissue_share(*at(300 * 4, 175 * 4), 400)[0] == -1
    assert tissue_map.tissue_share(*at(200 * 4, 320 * 4), 200)[0] > 0.8


FILLER = {"black": (0, 1), "black after JPEG": (0, 5), "grey": (128, 129), "pale grey": (200, 201)}


@pytest.mark.parametrize("levels", FILLER.values(), ids=FILLER)
def test_filler_is_neither_tissue_nor_pen(levels: tuple[int, int]) -> None:
    pixels = tissue_pixels(600, 500, seed=4, margin=60)
    pixels[:, 430:] = np.random.default_rng(0).integers(*levels, (500, 170, 3))
    blurred = Image.fromarray(pixels).resize((1200, 1000)).resize((600, 500))  # as a thumbnail's edge
    tissue_map = map_slide(Picture(np.asarray(blurred)))
    assert not tissue_map.ink.any() and not tissue_map.tissue[:, 432:].any()
    assert tissue_map.tissue[100:400, 100:420].mean() > 0.9
    assert tissue_map.tissue_share(*at(430 * 4, 1000), 400)[0] == pytest.approx(0.5, abs=0.1)


def test_structure_is_the_spread_of_lightness() -> None:
    rng = np.random.default_rng(1)
    plain = np.clip(rng.normal(180, 20, (500, 600, 3)), 0, 255)  # noise, as of nuclei
    coarse = np.kron(rng.normal(180, 20, (25, 30)), np.ones((20, 20)))  # structures of 80 um
    fields = [
        map_slide(Picture(np.clip(image, 0, 255).astype(np.uint8))) for image in (plain, np.stack([coarse] * 3, -1))
    ]
    found = [field.structure(*at(1000, 1000), 800)[0] for field in fields]
    assert found[0] < MIN_STRUCTURE < 5 < found[1] < 10


def test_stained_tissue_is_no_ink() -> None:
    stains = [(60, 30, 110), (90, 50, 140), (190, 40, 90), (150, 20, 40), (120, 90, 170), (230, 170, 200)]
    image = Image.new("RGB", (600, 400), (244, 244, 244))
    for number, colour in enumerate(stains):
        ImageDraw.Draw(image).rectangle([number * 100 + 5, 50, number * 100 + 95, 350], fill=colour)
    tissue_map = map_slide(Picture(np.asarray(image)))
    assert tissue_map.ink.mean() == 0
    assert tissue_map.tissue[60:340, 50::100].all()


@given(st.integers(60, 500), st.integers(60, 400), st.integers(8, 200))
def test_means_over_a_field_are_those_of_its_pixels(x: int, y: int, side: int) -> None:
    tissue_map = TISSUE_MAP
    left, top = max(0, round((x * 4 - side * 2) / 4)), max(0, round((y * 4 - side * 2) / 4))
    right, bottom = min(600, round((x * 4 + side * 2) / 4)), min(500, round((y * 4 + side * 2) / 4))
    expected = tissue_map.tissue[top:bottom, left:right].mean()
    assert tissue_map.means(*at(x * 4, y * 4), side * 4)[0, 0] == pytest.approx(expected)
