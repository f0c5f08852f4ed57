"""Fours of nested fields and the sizes that fit a slide."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_slides_survey import SURVEY

from dataset_script.slides.fields import OVERLAP_LIMIT, Field
from dataset_script.slides.fours import Four, Shape, sample_fours
from dataset_script.slides.view_sizes import ViewSizes, fit_sizes, largest_of_four
from scale_vqa_eval.schema import MPP, VIEWS

SHAPES = {
    "in a 10x field": Shape(160, "mid_mag", 160, 128, 0.5),
    "without 40x view": Shape(160, "high_mag", 128, 128, 0.5),
    "anywhere": Shape(None, "mid_mag", 160, 128, 0.5),
    "10x fields apart": Shape(None, "low_mag", 80, 128, 0.5),
}


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Shape:
    return SHAPES[request.param]


@pytest.fixture(scope="module")
def fours(shape: Shape) -> list[Four]:
    return sample_fours(SURVEY, shape, 6, np.random.default_rng(7))


def test_fields_nest_and_lie_on_the_slide(fours: list[Four], shape: Shape) -> None:
    assert len(fours) == 6
    slide_width, slide_height = SURVEY.extent
    for four in fours:
        for outer, inner in zip(four.outer, four.inner, strict=True):
            assert outer.holds(inner)
            assert four.frame is None or four.frame.holds(outer)
            largest = four.frame or outer
            assert largest.side / 2 <= largest.x <= slide_width - largest.side / 2
            assert largest.side / 2 <= largest.y <= slide_height - largest.side / 2
            sizes = {field.view: field.size_px for field in (inner, outer) + ((four.frame,) if four.frame else ())}
            assert sizes["high_mag"] == shape.inner_px and sizes[shape.outer_view] == shape.outer_px


def test_only_one_option_is_right(fours: list[Four], shape: Shape) -> None:
    for four in fours:
        for one, other in itertools.permutations(range(4), 2):
            assert four.outer[one].overlap(four.inner[other]) == 0
            assert four.inner[one].overlap(four.inner[other]) == 0
            if four.frame is not None or shape.outer_view == "low_mag":
                assert four.outer[one].overlap(four.outer[other]) <= OVERLAP_LIMIT + 1e-3


def test_fields_hold_tissue(fours: list[Four], shape: Shape) -> None:
    for four in fours:
        for outer, inner in zip(four.outer, four.inner, strict=True):
            assert share(inner) >= 0.5 - 1e-9
            assert share(outer) >= (0.125 if shape.outer_view == "low_mag" else 0.5) - 1e-9


def share(field: Field) -> float:
    return float(SURVEY.tissue_share(np.array([field.x]), np.array([field.y]), field.side)[0])


def test_no_two_questions_ask_the_same(fours: list[Four]) -> None:
    inner = [field for four in fours for field in four.inner]
    for one, other in itertools.combinations(inner, 2):
        assert max(abs(one.x - other.x), abs(one.y - other.y)) >= one.side / 2 - 0.2


def test_fours_look_more_alike_than_chance() -> None:
    shape = SHAPES["anywhere"]
    matched = sample_fours(SURVEY, shape, 12, np.random.default_rng(3))
    every = looks([field for four in matched for field in four.inner])
    within = np.mean([looks(list(four.inner)).std(axis=0) for four in matched], axis=0)
    # four drawn at random would have about 0.87 of the spread of all
    assert np.mean(within / every.std(axis=0)) < 0.7


def looks(fields: list[Field]) -> np.ndarray:
    x, y = (np.array([getattr(field, axis) for field in fields]) for axis in "xy")
    return SURVEY.looks(x, y, fields[0].side)


def test_the_same_seed_gives_the_same_fours(shape: Shape, fours: list[Four]) -> None:
    assert sample_fours(SURVEY, shape, 6, np.random.default_rng(7)) == fours
    assert sample_fours(SURVEY, shape, 6, np.random.default_rng(8)) != fours


def test_a_slide_that_holds_no_more_gives_fewer() -> None:
    assert sample_fours(SURVEY, Shape(None, "low_mag", 400, 128, 0.5), 6, np.random.default_rng(0)) == []
    assert len(sample_fours(SURVEY, SHAPES["10x fields apart"], 500, np.random.default_rng(0))) < 500


def test_a_whole_slide_gets_the_default_sizes() -> None:
    sizes = fit_sizes((20_000, 15_000), VIEWS, {})
    assert isinstance(sizes, ViewSizes) and sizes.notes == ()
    assert sizes.frame[0] == sizes.zoom_out[0] == sizes.mid[0] == sizes.high[0] == 512
    assert set(sizes.high) == {512}


def test_a_small_slide_gets_a_smaller_10x_view() -> None:
    sizes = fit_sizes((3615.0, 3615.0), VIEWS, {})
    assert isinstance(sizes, ViewSizes)
    assert (sizes.frame, sizes.mid[0], sizes.high[0]) == ((352,), 512, 512)
    assert sizes.zoom_out[0] == 192


def test_a_slide_without_room_for_10x_is_refused_there_by_name() -> None:
    sizes = fit_sizes((1108.0, 1480.0), VIEWS, {})
    assert isinstance(sizes, ViewSizes)
    assert sizes.frame == sizes.zoom_out == ()
    assert sizes.mid == sizes.high  # nested 5:1
    assert "refused at the 10x view" in sizes.notes[0] and "--views mid,high" in sizes.notes[0]


@pytest.mark.parametrize("extent", [(1108.0, 1480.0), (3615.0, 3615.0)])
def test_a_size_asked_for_by_number_is_kept_or_refused(extent: tuple[float, float]) -> None:
    sizes = fit_sizes(extent, VIEWS, {"low_mag": 512, "mid_mag": 512, "high_mag": 512})
    if extent[0] < 1280:
        assert isinstance(sizes, str) and "512 px view at 40x" in sizes
    else:
        assert isinstance(sizes, ViewSizes)
        assert (sizes.frame, sizes.mid, sizes.high) == ((), (512,), (512,)) and "refused" in sizes.notes[0]


@given(
    st.tuples(st.floats(50, 40_000), st.floats(50, 40_000)),
    st.sampled_from([VIEWS, VIEWS[1:], (VIEWS[0], VIEWS[2])]),
    st.dictionaries(st.sampled_from(VIEWS), st.integers(128, 2048)),
)
def test_sizes_always_fit_and_nest(extent: tuple[float, float], views: tuple[str, ...], fixed: dict[str, int]) -> None:
    sizes = fit_sizes(extent, views, fixed)
    if isinstance(sizes, str):
        assert "too much for a slide" in sizes
        return
    for px in sizes.frame:
        assert px * MPP["low_mag"] <= min(extent)
        inner = sizes.mid[0] * MPP["mid_mag"] if sizes.mid else sizes.high[0] * MPP["high_mag"]
        assert px * MPP["low_mag"] >= 2 * inner
    if not sizes.frame:
        assert all(px * MPP["mid_mag"] <= largest_of_four(extent) for px in sizes.mid)
        assert all(m * MPP["mid_mag"] >= 2 * h * MPP["high_mag"] for m, h in zip(sizes.mid, sizes.high, strict=True))
    for view, found in (("low_mag", sizes.frame + sizes.zoom_out), ("mid_mag", sizes.mid), ("high_mag", sizes.high)):
        assert all(px == fixed[view] if view in fixed else px <= 512 for px in found)
