"""The phantom's scene: any rectangle is the same scene, fields show what the plan says, views nest at every scale."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("skia")

from skimage.feature import match_template

from dataset_script.phantom.cells import BodyKind, bodies
from dataset_script.phantom.geometry import lattice, overlap
from dataset_script.phantom.scene import Label
from dataset_script.phantom.slide import EXTENT, VIEW_PIXELS, PhantomSlide, phantom_slides
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.wsi import SlideSource

SIDE = st.floats(-500, 500)


@pytest.fixture(scope="module")
def slides() -> list[PhantomSlide]:
    return phantom_slides(3, seed=7)


def boxed(pixels: np.ndarray, factor: int) -> np.ndarray:
    height, width, _ = pixels.shape
    return pixels.astype(float).reshape(height // factor, factor, width // factor, factor, 3).mean((1, 3))


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(pixels, float).mean(-1)


@settings(max_examples=60, deadline=None)
@given(SIDE, SIDE, SIDE, SIDE, st.floats(5, 300), st.floats(5, 300), st.integers(0, 2**64 - 1))
def test_overlapping_rectangles_hold_the_same_points(x, y, other_x, other_y, width, height, seed):
    one, two = (x, y, x + width, y + height), (other_x, other_y, other_x + height, other_y + width)
    shared = overlap(one, two)
    if shared is None:
        return
    found = []
    for rect in (one, two):
        points = lattice(seed, "test", rect, 17.0, 0.4)
        inside = (points.x >= shared[0]) & (points.x < shared[2]) & (points.y >= shared[1]) & (points.y < shared[3])
        kept = points.select(inside)
        found.append(sorted(zip(kept.x, kept.y, kept.key.tolist(), kept.uniform(5), strict=True)))
    assert found[0] == found[1]


def test_a_lattice_has_the_density_of_its_pitch():
    points = lattice(3, "test", (0, 0, 4000, 4000), 20.0, 0.3)
    assert len(points) == pytest.approx(4000**2 / (20**2 * 0.75**0.5), rel=0.02)
    assert abs(points.uniform(7).mean() - 0.5) < 0.01


def test_bodies_are_the_same_in_any_rectangle(slides):
    fragment = slides[0].fragment(0)
    x, y = fragment.centre
    whole = (x - 400, y - 300, x + 400, y + 300)
    part = (x - 100, y - 50, x + 120, y + 90)

    def placed(rect):
        return {
            (round(body_x, 6), round(body_y, 6), int(kind), int(key))
            for block in bodies(fragment, rect)
            for body_x, body_y, kind, key in zip(block.x, block.y, block.kind, block.key, strict=True)
        }

    inside = {body for body in placed(whole) if part[0] <= body[0] < part[2] and part[1] <= body[1] < part[3]}
    assert inside == placed(part)
    assert len(inside) > 20


@pytest.mark.slow
def test_a_phantom_slide_is_a_slide_source(slides):
    assert isinstance(slides[0], SlideSource)
    assert slides[0].name == "phantom-0001"
    assert min(slides[0].size) * slides[0].mpp > 2 * 5120, "several 10x fields fit side by side"
    assert slides[0].thumbnail(100).size == (100, 100)


@pytest.mark.parametrize("centre", [(100.0, 4000.0), (4000.0, EXTENT - 100), (-50.0, -50.0)])
def test_a_field_that_leaves_the_slide_is_refused(slides, centre):
    with pytest.raises(InputError, match="nothing is padded"):
        slides[0].read_region(*centre, 2.5, 512)


def test_views_nest_and_lie_on_the_slide(slides):
    for slide in slides:
        for number in range(4):
            low, mid, high = (view.rect for view in slide.views(number).values())
            assert 0 <= low[0] <= mid[0] <= high[0] < high[2] <= mid[2] <= low[2] <= EXTENT
            assert 0 <= low[1] <= mid[1] <= high[1] < high[3] <= mid[3] <= low[3] <= EXTENT


def test_fields_bear_out_the_facts(slides):
    for slide in slides:
        for number, path in enumerate(slide.plan.paths):
            fragment, views = slide.fragment(number), slide.views(number)
            share = {view: compartment_shares(fragment, views[view].rect) for view in views}
            facts = path.facts
            assert (share["mid_mag"][Label.BACKGROUND] > 0.05) == (facts.depth == "margin")
            assert (share["mid_mag"][Label.FOCUS] > 0.05) == (facts.site == "touching")
            assert (share["low_mag"][Label.FOLLICLE] > 0.01) == (facts.infiltrate == "nodular")
            assert share["low_mag"][Label.FOCUS] > 0.03
            found = [block.kind for block in bodies(fragment, views["high_mag"].rect)]
            counts = np.bincount(np.concatenate(found), minlength=len(BodyKind))
            assert counts[BodyKind[facts.cells.upper()]] >= 8
            assert counts[[BodyKind.LYMPHOCYTES, BodyKind.NEUTROPHILS, BodyKind.EOSINOPHILS]].argmax() == [
                "lymphocytes",
                "neutrophils",
                "eosinophils",
            ].index(facts.cells)
            assert counts[BodyKind.MITOSIS] >= 3 if facts.mitoses == "many" else counts[BodyKind.MITOSIS] == 0
            assert (counts[BodyKind.UNIFORM] > 0) == (facts.nuclei == "uniform")
            assert (counts[BodyKind.BIZARRE] > 0) == (facts.nuclei == "bizarre")


def compartment_shares(fragment, rect) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(rect[0], rect[2], 200), np.linspace(rect[1], rect[3], 200))
    return np.bincount(fragment.label(x.ravel(), y.ravel()), minlength=len(Label)) / x.size


@pytest.mark.parametrize("number", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2, 3))])
def test_a_coarse_view_is_the_average_of_a_fine_one(slides, number):
    """0.5 against 2.5 um/px over 0.5 mm, 2.5 against 10 um/px over 1.28 mm: within 8 grey levels on average."""
    slide = slides[1]
    x, y = slide.fragment_centre(number)
    fine = boxed(slide.pixels((x, y), 0.5, (1000, 1000)), 5)
    assert np.abs(fine - slide.pixels((x, y), 2.5, (200, 200))).mean() < 8
    mid = boxed(slide.pixels((x, y), 2.5, (512, 512)), 4)
    low = slide.pixels((x, y), 10.0, (128, 128))
    difference = mid - low
    assert np.abs(difference).mean() < 8
    assert np.abs(difference.mean((0, 1))).max() < 3
    assert np.corrcoef(grey(mid).ravel(), grey(low).ravel())[0, 1] > 0.93


@pytest.mark.parametrize(("fine", "factor"), [(1.0, 4), (4.0, 2), (4.0, 5)])
def test_scales_between_and_beyond_the_views_agree_too(slides, fine, factor):
    x, y = slides[0].fragment_centre(2)
    side = 240 // factor * factor
    averaged = boxed(slides[0].pixels((x, y), fine, (side, side)), factor)
    difference = averaged - slides[0].pixels((x, y), fine * factor, (side // factor, side // factor))
    assert np.abs(difference).mean() < 8
    assert np.abs(difference.mean((0, 1))).max() < 5


@pytest.mark.slow
def test_every_view_is_found_in_the_next_coarser_one_where_it_lies(slides):
    for slide in slides[:2]:
        for number in (0, 3):
            views = slide.views(number)
            for outer, inner, factor in (("low_mag", "mid_mag", 4), ("mid_mag", "high_mag", 5)):
                field, within = views[inner], views[outer]
                pixels = np.asarray(slide.view_image(field, VIEW_PIXELS))
                rest = VIEW_PIXELS // factor * factor
                small = grey(boxed(pixels[:rest, :rest], factor))
                scores = match_template(grey(np.asarray(slide.view_image(within, VIEW_PIXELS))), small)
                row, column = np.unravel_index(scores.argmax(), scores.shape)
                assert scores.max() > 0.8
                assert column == pytest.approx((field.rect[0] - within.rect[0]) / within.mpp, abs=1.5)
                assert row == pytest.approx((field.rect[1] - within.rect[1]) / within.mpp, abs=1.5)


@pytest.mark.parametrize("mpp", [0.5, 2.5, 10.0])
def test_tiles_join_without_a_seam(slides, mpp):
    slide = slides[2]
    x, y = slide.fragment_centre(1)
    origin = (x - 64 * mpp, y - 64 * mpp)
    whole = slide.pixels(origin, mpp, (128, 128)).astype(int)
    tiles = [
        np.hstack([slide.pixels((origin[0] + c * 64 * mpp, origin[1] + r * 64 * mpp), mpp, (64, 64)) for c in (0, 1)])
        for r in (0, 1)
    ]
    difference = np.abs(np.vstack(tiles).astype(int) - whole)
    assert difference.mean() < 0.2
    assert difference[:, 62:66].mean() < 0.5
    assert difference[62:66].mean() < 0.5


def test_the_same_seed_draws_the_same_pixels_and_another_one_others():
    x, y = phantom_slides(1, 5)[0].fragment_centre(0)
    first, again = (phantom_slides(1, 5)[0].pixels((x, y), 1.0, (96, 96)) for _ in range(2))
    assert (first == again).all()
    assert (first != phantom_slides(1, 6)[0].pixels((x, y), 1.0, (96, 96))).any()


def test_stain_differs_between_slides(slides):
    colours = [slide.stain["stroma_compact"] for slide in slides]
    assert len(set(colours)) == len(slides)
