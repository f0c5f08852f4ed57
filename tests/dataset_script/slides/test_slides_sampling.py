"""Fours of nested fields and the sizes that fit a slide."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from drawn_slides import TISSUE_MAP
from hypothesis import given
from hypothesis import strategies as st

from dataset_script.slides.plan import ViewSizes, fit_sizes, largest_of_four
from dataset_script.slides.sampling import OVERLAP_LIMIT, Field, FieldGroup, SamplingSpec, sample_groups
from scale_vqa_eval.schema import MPP, VIEWS

SPECS = {
    "in a 10x field": SamplingSpec(160, "mid_mag", 160, 128, 0.5),
    "without 40x view": SamplingSpec(160, "high_mag", 128, 128, 0.5),
    "anywhere": SamplingSpec(None, "mid_mag", 160, 128, 0.5),
    "10x fields apart": SamplingSpec(None, "low_mag", 80, 128, 0.5),
}


@pytest.fixture(scope="module", params=SPECS)
def spec(request: pytest.FixtureRequest) -> SamplingSpec:
    return SPECS[request.param]


@pytest.fixture(scope="module")
def groups(spec: SamplingSpec) -> list[FieldGroup]:
    return sample_groups(TISSUE_MAP, spec, 6, np.random.default_rng(7))


def test_fields_nest_and_lie_on_the_slide(groups: list[FieldGroup], spec: SamplingSpec) -> None:
    assert len(groups) == 6
    slide_width, slide_height = TISSUE_MAP.extent
    for group in groups:
        for outer, inner in zip(group.parents, group.targets, strict=True):
            assert outer.holds(inner)
            assert group.context is None or group.context.holds(outer)
            largest = group.context or outer
            assert largest.side / 2 <= largest.x <= slide_width - largest.side / 2
            assert largest.side / 2 <= largest.y <= slide_height - largest.side / 2
            sizes = {
                field.view: field.size_px for field in (inner, outer) + ((group.context,) if group.context else ())
            }
            assert sizes["high_mag"] == spec.target_px and sizes[spec.parent_view] == spec.parent_px


def test_only_one_option_is_right(groups: list[FieldGroup], spec: SamplingSpec) -> None:
    for group in groups:
        for one, other in itertools.permutations(range(4), 2):
            assert group.parents[one].overlap(group.targets[other]) == 0
            assert group.targets[one].overlap(group.targets[other]) == 0
            if group.context is not None or spec.parent_view == "low_mag":
                assert group.parents[one].overlap(group.parents[other]) <= OVERLAP_LIMIT + 1e-3


def test_fields_hold_tissue(groups: list[FieldGroup], spec: SamplingSpec) -> None:
    for group in groups:
        for outer, inner in zip(group.parents, group.targets, strict=True):
            assert share(inner) >= 0.5 - 1e-9
            assert share(outer) >= (0.125 if spec.parent_view == "low_mag" else 0.5) - 1e-9


def share(field: Field) -> float:
    return float(TISSUE_MAP.tissue_share(np.array([field.x]), np.array([field.y]), field.side)[0])


def test_no_two_questions_ask_the_same(groups: list[FieldGroup]) -> None:
    inner = [field for group in groups for field in group.targets]
    for one, other in itertools.combinations(inner, 2):
        assert max(abs(one.x - other.x), abs(one.y - other.y)) >= one.side / 2 - 0.2


def test_fours_look_more_alike_than_chance() -> None:
    spec = SPECS["anywhere"]
    matched = sample_groups(TISSUE_MAP, spec, 12, np.random.default_rng(3))
    every = looks([field for group in matched for field in group.targets])
    within = np.mean([looks(list(group.targets)).std(axis=0) for group in matched], axis=0)
    # group drawn at random would have about 0.87 of the spread of all
    spread = every.std(axis=0)
    assert np.mean(within[spread > 0] / spread[spread > 0]) < 0.7


def looks(fields: list[Field]) -> np.ndarray:
    x, y = (np.array([getattr(field, axis) for field in fields]) for axis in "xy")
    return TISSUE_MAP.appearance(x, y, fields[0].side)


def test_the_same_seed_gives_the_same_fours(spec: SamplingSpec, groups: list[FieldGroup]) -> None:
    assert sample_groups(TISSUE_MAP, spec, 6, np.random.default_rng(7)) == groups
    assert sample_groups(TISSUE_MAP, spec, 6, np.random.default_rng(8)) != groups


@pytest.mark.slow
def test_a_slide_that_holds_no_more_gives_fewer() -> None:
    assert sample_groups(TISSUE_MAP, SamplingSpec(None, "low_mag", 400, 128, 0.5), 6, np.random.default_rng(0)) == []
    assert len(sample_groups(TISSUE_MAP, SPECS["10x fields apart"], 500, np.random.default_rng(0))) < 500


def test_a_whole_slide_gets_the_default_sizes() -> None:
    sizes = fit_sizes((20_000, 15_000), VIEWS, {})
    assert isinstance(sizes, ViewSizes) and sizes.notes == ()
    assert sizes.context[0] == sizes.zoom_out[0] == sizes.mid[0] == sizes.high[0] == 512
    assert set(sizes.high) == {512}


def test_a_small_slide_gets_a_smaller_10x_view() -> None:
    sizes = fit_sizes((3615.0, 3615.0), VIEWS, {})
    assert isinstance(sizes, ViewSizes)
    assert (sizes.context, sizes.mid[0], sizes.high[0]) == ((352,), 512, 512)
    assert sizes.zoom_out[0] == 192


def test_a_slide_without_room_for_10x_is_refused_there_by_name() -> None:
    sizes = fit_sizes((1108.0, 1480.0), VIEWS, {})
    assert isinstance(sizes, ViewSizes)
    assert sizes.context == sizes.zoom_out == ()
    assert sizes.mid == sizes.high  # nested 5:1
    assert "refused at the 10x view" in sizes.notes[0] and "--views mid,high" in sizes.notes[0]


@pytest.mark.parametrize("extent", [(1108.0, 1480.0), (3615.0, 3615.0)])
def test_a_size_asked_for_by_number_is_kept_or_refused(extent: tuple[float, float]) -> None:
    sizes = fit_sizes(extent, VIEWS, {"low_mag": 512, "mid_mag": 512, "high_mag": 512})
    if extent[0] < 1280:
        assert isinstance(sizes, str) and "512 px view at 40x" in sizes
    else:
        assert isinstance(sizes, ViewSizes)
        assert (sizes.context, sizes.mid, sizes.high) == ((), (512,), (512,)) and "refused" in sizes.notes[0]


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
    for px in sizes.context:
        assert px * MPP["low_mag"] <= min(extent)
        inner = sizes.mid[0] * MPP["mid_mag"] if sizes.mid else sizes.high[0] * MPP["high_mag"]
        assert px * MPP["low_mag"] >= 2 * inner
    if not sizes.context:
        assert all(px * MPP["mid_mag"] <= largest_of_four(extent) for px in sizes.mid)
        assert all(m * MPP["mid_mag"] >= 2 * h * MPP["high_mag"] for m, h in zip(sizes.mid, sizes.high, strict=True))
    for view, found in (("low_mag", sizes.context + sizes.zoom_out), ("mid_mag", sizes.mid), ("high_mag", sizes.high)):
        assert all(px == fixed[view] if view in fixed else px <= 512 for px in found)


def test_a_reader_of_mean_colour_is_right_once_in_four() -> None:
    settings = {"anywhere": 14, "in a 10x field": 10}
    for name, count in settings.items():
        groups = sample_groups(TISSUE_MAP, SPECS[name], count, np.random.default_rng(5))
        right = []
        for group in groups:
            targets, parents = (looks(list(fields))[:, :3] for fields in (group.targets, group.parents))
            distance = np.linalg.norm(targets[:, None] - parents, axis=2)
            right += [distance.argmin(axis=axis) == np.arange(4) for axis in (0, 1)]
        assert abs(np.mean(right) - 0.25) < 1.96 * np.sqrt(0.25 * 0.75 / np.size(right)), name
