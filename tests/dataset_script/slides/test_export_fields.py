"""Nested fields of slides: exact scales, each inside the next, the same in the manifest, GeoJSON and coordinates."""

from __future__ import annotations

import csv
import hashlib
import json

import h5py
import numpy as np
import openslide
import pytest
from click.testing import CliRunner
from drawn_slides import tissue_slide
from PIL import Image

from scale_vqa_eval.cli import export
from scale_vqa_eval.errors import InputError


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return tissue_slide(tmp_path_factory.mktemp("slides") / "TCGA-AA-0001-01Z-00-DX1.tif")


def run(slide, out, *more):
    given = ["fields", str(slide), "--out", str(out), "--mpps", "2.5,0.5", "--per-slide", "5", *more]
    return CliRunner().invoke(export, given, catch_exceptions=False)


def manifest(out):
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_fields_nest_and_every_file_agrees_with_the_slide(slide, tmp_path):
    run(slide, tmp_path, "--sizes", "200,128")
    rows = manifest(tmp_path)
    assert len(rows) == 10 and {row["patient_id"] for row in rows} == {"TCGA-AA-0001"}
    by_file = {row["file"]: row for row in rows}
    for row in rows:
        assert Image.open(tmp_path / row["file"]).size == (int(row["size_px"]),) * 2
        outer = by_file.get(row["inside_of"])
        assert (outer is None) == (row["mpp"] == "2.5")
        if outer is not None:
            for axis in ("center_x_um", "center_y_um"):
                distance = abs(float(row[axis]) - float(outer[axis]))
                assert distance <= (float(outer["side_um"]) - float(row["side_um"])) / 2 + 0.051
    fine = next(row for row in rows if row["mpp"] == "0.5")
    with openslide.OpenSlide(str(slide)) as source:  # 0.5 um/px is level 0: the same pixels, but for the JPEG
        place, side = (int(fine["left_px"]), int(fine["top_px"])), int(fine["side_px"])
        raw = np.asarray(source.read_region(place, 0, (side, side)).convert("RGB"), dtype=int)
    assert np.abs(raw - np.asarray(Image.open(tmp_path / fine["file"]), dtype=int)).mean() < 4


def test_geojson_and_coordinates_are_in_pixels_of_level_0(slide, tmp_path):
    run(slide, tmp_path, "--sizes", "200,128")
    rows = manifest(tmp_path)
    features = json.loads((tmp_path / slide.stem / "fields.geojson").read_text())["features"]
    assert len({feature["id"] for feature in features}) == len(rows)
    corners = {tuple(feature["geometry"]["coordinates"][0][0]) for feature in features}
    assert corners == {(int(row["left_px"]), int(row["top_px"])) for row in rows}
    with h5py.File(tmp_path / "0.5um_128px" / "patches" / f"{slide.stem}_patches.h5") as file:
        attributes, coords = dict(file["coords"].attrs), file["coords"][:]
    assert coords.tolist() == [[int(row["left_px"]), int(row["top_px"])] for row in rows if row["mpp"] == "0.5"]
    assert (attributes["patch_size"], attributes["patch_size_level0"]) == (128, 128)
    assert (attributes["level0_magnification"], attributes["target_magnification"]) == (20, 20)


def test_the_same_seed_gives_the_same_bytes_and_a_second_run_reads_nothing_again(slide, tmp_path):
    def digests(out):
        files = sorted(path for path in out.rglob("*") if path.suffix in (".jpg", ".csv", ".geojson"))
        return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    run(slide, tmp_path / "a")
    run(slide, tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    one = next((tmp_path / "a").rglob("*.jpg"))
    before = one.stat().st_mtime_ns
    (tmp_path / "a" / "manifest.csv").unlink()
    (tmp_path / "a" / slide.stem / "manifest.csv").unlink()
    run(slide, tmp_path / "a")
    assert digests(tmp_path / "a") == digests(tmp_path / "b") and one.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="this export, or an empty folder"):
        run(slide, tmp_path / "a", "--seed", "7")


def test_a_grid_covers_the_tissue(slide, tmp_path):
    run(slide, tmp_path, "--sizes", "200,128", "--step", "200")
    rows = [row for row in manifest(tmp_path) if row["mpp"] == "0.5"]
    assert len(rows) > 20 and all(float(row["tissue"]) >= 0.5 for row in rows)
    assert len({float(row["center_x_um"]) for row in rows}) > 3


def test_a_slide_too_small_for_a_scale_is_named(slide, tmp_path):
    done = run(slide, tmp_path / "a", "--mpps", "10,2.5,0.5")
    assert "140 px at 10 um/px" in done.stderr or "no field at 10 um/px" in done.stderr
    with pytest.raises(InputError, match="a slide that holds a field of 5120 um"):
        run(slide, tmp_path / "b", "--mpps", "10,2.5,0.5", "--sizes", "512")
    assert not list((tmp_path / "b").rglob("*.jpg"))


@pytest.mark.parametrize(
    "more",
    [("--mpps", "0.5,0.5"), ("--sizes", "64,512"), ("--mpps", "a"), ("--sizes", "1,2,3")],
    ids=["twice", "order", "text", "count"],
)
def test_wrong_use_is_one_error(slide, tmp_path, more):
    assert run(slide, tmp_path, *more).exit_code == 2
