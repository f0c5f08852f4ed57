"""Where an inner field lies: by names exactly, by matching where it is sure, and nowhere else."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from review_release import PLACE, nested_views

from dataset_script.review.registration import BY_MATCHING, BY_NAME, BoundingBox, place_by_matching, place_by_name
from dataset_script.slides.sampling import field
from scale_vqa_eval.schema import MPP
from scale_vqa_eval.wsi import OpenSlideSource

LOW, MID, HIGH = "low_mag", "mid_mag", "high_mag"


def test_fields_are_found_where_they_were_cut() -> None:
    views = nested_views(3)
    mid = place_by_matching(views[LOW]["bytes"], views[MID]["bytes"], LOW, MID)
    high = place_by_matching(views[MID]["bytes"], views[HIGH]["bytes"], MID, HIGH)
    assert mid is not None and high is not None and mid.how == BY_MATCHING
    assert (mid.left, mid.top) == pytest.approx((PLACE["mid"][0] / 2048, PLACE["mid"][1] / 2048), abs=0.003)
    assert (high.left, high.top) == pytest.approx((PLACE["high"][0] / 512, PLACE["high"][1] / 512), abs=0.004)
    assert mid.width == pytest.approx(0.25) and high.width == pytest.approx(0.2, abs=0.003)
    both = high.within(mid)
    assert both.left == pytest.approx((PLACE["mid"][0] + PLACE["high"][0]) / 2048, abs=0.005)


def test_a_field_of_another_picture_is_not_found() -> None:
    views, other = nested_views(3), nested_views(4)
    for outer, inner in ((LOW, MID), (MID, HIGH), (LOW, HIGH)):
        assert place_by_matching(views[outer]["bytes"], other[inner]["bytes"], outer, inner) is None


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff no image", b"<svg onload=x>"])
def test_what_is_no_image_lies_nowhere(content: bytes) -> None:
    view = nested_views(3)[LOW]["bytes"]
    assert place_by_matching(view, content, LOW, MID) is None
    assert place_by_matching(content, view, LOW, MID) is None


@pytest.mark.parametrize("shape", [(512, 512), (64, 64), (512, 20), (3000, 200)])
def test_flat_and_odd_images_lie_nowhere(shape: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((*shape, 3), 240, np.uint8)).save(file, "PNG")
    view = nested_views(3)[LOW]["bytes"]
    assert place_by_matching(view, file.getvalue(), LOW, MID) is None
    assert place_by_matching(file.getvalue(), view, LOW, MID) is None


def test_names_of_the_slide_builder_place_a_field_exactly() -> None:
    outer, inner = field(MID, 1000, 2000, 512), field(HIGH, 1200, 1900, 512)
    place = place_by_name(outer.name("a slide"), inner.name("a slide"))
    assert place is not None and place.how == BY_NAME
    assert place.left == pytest.approx((1200 - 128 - 1000 + 640) / 1280) and place.width == pytest.approx(0.2)
    assert place.top == pytest.approx((1900 - 128 - 2000 + 640) / 1280)


@pytest.mark.parametrize(
    "names",
    [
        (None, None),
        ("10_5_7.jpg", "40_6_8.jpg"),
        ("a_10x_x0.0_y0.0_512px.jpg", "b_40x_x0.0_y0.0_512px.jpg"),
        ("a_10x_x0.0_y0.0_512px.jpg", "a_40x_x9000.0_y0.0_512px.jpg"),
        ("a_40x_x0.0_y0.0_512px.jpg", "a_10x_x0.0_y0.0_512px.jpg"),
        ("a_10x_x0.0_y0.0_0px.jpg", "a_40x_x0.0_y0.0_0px.jpg"),
    ],
)
def test_other_names_say_nothing(names: tuple[str | None, str | None]) -> None:
    assert place_by_name(*names) is None


def test_a_place_within_a_place() -> None:
    place = BoundingBox(0.5, 0.5, 0.5, 0.5, BY_NAME).within(BoundingBox(0.2, 0.4, 0.5, 0.5, BY_MATCHING, 0.9))
    assert (place.left, place.top, place.width) == pytest.approx((0.45, 0.65, 0.25))
    assert place.how == BY_MATCHING and place.score == 0.9


@pytest.mark.slow
def test_real_tissue_is_found_where_it_lies_and_only_there(shared: Path) -> None:
    slides = sorted((shared / "slides").glob("*.tif"))[:4]
    rng = np.random.default_rng(7)
    views: dict[str, list[tuple[bytes, bytes, float, float]]] = {MID: [], LOW: []}
    for slide in slides:
        source = OpenSlideSource(slide)
        for view, inner, side in ((LOW, MID, 352), (MID, HIGH, 512)):
            outer = side * MPP[view]
            x, y = (pixels * source.mpp / 2 for pixels in source.size)
            part = 256 if view == LOW else 512
            reach = (outer - part * MPP[inner]) / 2
            u, v = rng.uniform(-reach, reach, 2)
            cut = source.read_region(x + u, y + v, MPP[inner], part)
            whole = source.read_region(x, y, MPP[view], side)
            share = part * MPP[inner] / outer
            files = []
            for image in (whole, cut):
                file = io.BytesIO()
                image.save(file, "JPEG", quality=90)
                files.append(file.getvalue())
            views[view].append((*files, u / outer + 0.5 - share / 2, v / outer + 0.5 - share / 2))  # type: ignore[arg-type]
    for view, inner in ((LOW, MID), (MID, HIGH)):
        found = [place_by_matching(whole, cut, view, inner) for whole, cut, _, _ in views[view]]
        for place, (_, _, left, top) in zip(found, views[view], strict=True):
            if place is not None:
                assert (place.left, place.top) == pytest.approx((left, top), abs=0.01)
        assert sum(place is not None for place in found) >= len(slides) - 1
        for (whole, _, _, _), (_, cut, _, _) in itertools.permutations(views[view], 2):
            assert place_by_matching(whole, cut, view, inner) is None
