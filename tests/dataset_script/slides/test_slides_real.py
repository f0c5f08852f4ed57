"""Grounding questions from real slides: enough of them, all right by pixels, none told by the options."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grounding_builds import build, rows_of
from PIL import Image
from skimage.feature import match_template

from dataset_script.slides.build_report import BuildReport
from dataset_script.slides.plan import GroundingSettings, plan_slide
from scale_vqa_eval.controls.exchange_group import GROUP_SIZE
from scale_vqa_eval.schema import GROUNDING_KINDS
from scale_vqa_eval.wsi import OpenSlideSource

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def real(
    shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[BuildReport, list[dict[str, Any]], list[str]]:
    """Questions on three of the ten slides and on the one that is too small for the 10x view."""
    out = tmp_path_factory.mktemp("real") / "release"
    named = ["CMU-1-Small-Region.svs", "colon_crohn_HE1.tif", "skin_keloid.tif", "stomach_acinarmetaplasia.tif"]
    report, told = build([shared / "slides" / name for name in named], out, GroundingSettings(paths_per_slide=4))
    return report, rows_of(out), told


def test_ten_slides_give_a_thousand_questions(shared: Path) -> None:
    settings = GroundingSettings()
    counts: Counter[str] = Counter()
    for path in sorted((shared / "slides").glob("*.tif")):
        with OpenSlideSource(path) as source:
            plan = plan_slide(source, settings)
        for layout, groups in plan.groups.items():
            counts.update({kind: GROUP_SIZE * len(groups) for kind in settings.kinds_of(layout)})
    assert counts.total() >= 1000
    assert set(counts) == set(GROUNDING_KINDS) and min(counts.values()) >= 200


def test_tiles_give_the_pixels_of_openslide(shared: Path) -> None:
    for path in sorted((shared / "slides").iterdir()):
        with OpenSlideSource(path) as fast, OpenSlideSource(path) as reference:
            assert fast._tiles is not None and reference._tiles is not None
            reference._tiles.close()
            reference._tiles = None
            for mpp, size in ((0.5, 200), (2.5, 150), (10, 80)):
                x, y = (0.4 * side * fast.mpp for side in fast.size)
                one, other = (np.asarray(source.read_region(x, y, mpp, size)) for source in (fast, reference))
                np.testing.assert_array_equal(one, other)
            assert set(fast._agreed.values()) == {True}


def test_the_small_slide_is_refused_at_the_10x_view_by_name(real: tuple[BuildReport, Any, list[str]]) -> None:
    report, rows, told = real
    assert any(line.startswith("CMU-1-Small-Region: refused at the 10x view") for line in told)
    small = [row for row in rows if row["wsi_name"] == "CMU-1-Small-Region"]
    assert {row["dimension"] for row in small} == {"zoom-in"}
    assert {use.slide: dict(use.questions) for use in report.slides}["CMU-1-Small-Region"] == {"zoom-in": 4}


def test_options_alone_stay_at_chance(real: tuple[BuildReport, Any, Any]) -> None:
    for probe in real[0].probes:
        assert probe.options_alone is not None
        assert probe.chance_low <= probe.options_alone <= probe.chance_high


def test_pixels_agree_with_geometry(real: tuple[Any, list[dict[str, Any]], Any]) -> None:
    """The 200x field, made small, is found in the field around it by template matching, and nowhere else."""
    for row in real[1]:
        options = [grey(image) for image in row["option_images"]]
        if row["dimension"] == "zoom-in":
            scores = [found(grey(row["mid_mag"]), option, 5) for option in options]
        elif row["dimension"] == "origin":
            continue
        else:
            scores = [
                found(option, grey(row["high_mag"]), 5 if row["dimension"] == "bridge" else 20) for option in options
            ]
        assert int(np.argmax(scores)) == row["answer"], row["id"]
        assert scores[row["answer"]] > 0.5


def test_the_origin_is_where_its_box_is(real: tuple[Any, list[dict[str, Any]], Any]) -> None:
    views = {row["low_mag"]["path"]: row["low_mag"] for row in real[1] if row["dimension"] == "bridge"}
    for row in real[1]:
        if row["dimension"] != "origin":
            continue
        path = row["low_mag"]["path"]
        plain, marked = grey(views[path.split("_boxes")[0] + ".jpg"]), grey(row["low_mag"])
        small = grey(row["high_mag"])
        side = round(small.width / 20)
        scores = match_template(
            np.asarray(plain, float), np.asarray(small.resize((side, side), Image.Resampling.BOX), float)
        )
        top, left = np.unravel_index(scores.argmax(), scores.shape)
        assert scores.max() > 0.5, row["id"]
        inside = np.s_[top + 1 : top + side - 1, left + 1 : left + side - 1]
        rim = np.s_[max(0, top - 4) : top + side + 4, max(0, left - 4) : left + side + 4]
        changed = np.abs(np.asarray(plain, float) - np.asarray(marked, float)) > 40
        assert changed[rim].sum() > 2 * side  # a box is drawn around it
        assert changed[inside].sum() == 0  # and hides nothing of it


def grey(image: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(image["bytes"])).convert("L")


def found(around: Image.Image, field: Image.Image, times: float) -> float:
    """Returns the best correlation of a field, ``times`` smaller, in the field around it."""
    side = max(4, round(field.width / times))
    small = np.asarray(field.resize((side, side), Image.Resampling.BOX), float)
    return float(match_template(np.asarray(around, float), small).max())
