"""Rows in verl's layout: whole, loadable, gone on with where they were interrupted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from predict_release import picture
from training_release import make_training_release, trained_rows

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.release_folder.write import write_release
from training_recipes.export import VerlExport, verl
from training_recipes.rows import load_rows, prompt_format, trainer_row
from training_recipes.verl_reward import compute_score


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_training_release(tmp_path_factory.mktemp("data") / "scale-vqa")


def exported(release, out, *more):
    asked = ["--data", str(release), "--out", str(out), "--shard", "8", *more]
    done = CliRunner().invoke(verl, asked, catch_exceptions=False)
    return done.stdout.split()


def loaded(folder):
    from datasets import load_dataset

    files = sorted(str(path) for path in folder.glob("*.parquet"))
    return load_dataset("parquet", data_files=files, split="train")


def test_rows_have_verls_columns_and_our_questions(release, tmp_path):
    paths = exported(release, tmp_path / "verl")
    assert len(paths) == 4
    rows, ours = loaded(tmp_path / "verl"), load_rows(str(release), None, "train")
    assert rows.column_names == ["data_source", "prompt", "images", "ability", "reward_model", "extra_info"]
    for row, source, made in zip(rows, ours, ours.with_transform(trainer_row(ours, prompt_format())), strict=True):
        user = row["prompt"][-1]["content"]
        assert user.count("<image>") == len(row["images"]) == len(made["images"])
        assert user.replace("<image>", "") == made["prompt"][-1]["content"][-1]["text"]
        views = [view for view in ("low_mag", "mid_mag", "high_mag") if source[view]]
        assert [image["bytes"] for image in row["images"]] == [source[view]["bytes"] for view in views]
        assert row["reward_model"] == {"style": "rule", "ground_truth": made["answer"]}
        assert (row["extra_info"]["id"], row["extra_info"]["dimension"]) == (made["id"], made["dimension"])
        answer = f"<think></think><answer>{row['reward_model']['ground_truth']}</answer>"
        assert compute_score(row["data_source"], answer, row["reward_model"]["ground_truth"], row["extra_info"]) == 1.0


def test_images_may_be_files(release, tmp_path):
    exported(release, tmp_path / "verl", "--image-files", "--views", "low_mag")
    rows = loaded(tmp_path / "verl")
    files = {row["images"][0]["image"] for row in rows}
    assert len(files) == 6  # the five questions of a path share theirs
    for path in files:
        assert Image.open(path).size == (56, 56)


def test_an_interrupted_export_writes_what_is_missing(release, tmp_path):
    out = tmp_path / "verl"
    paths = exported(release, out)
    kept = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}
    (out / ".train-00003-of-00004.parquet.partial").write_bytes(b"torn")
    times = {path: (tmp_path / path).stat().st_mtime_ns for path in paths}
    (tmp_path / paths[2]).unlink()
    assert exported(release, out) == paths
    assert kept == {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}
    assert [path for path in paths if (tmp_path / path).stat().st_mtime_ns != times[path]] == [paths[2]]


def test_another_export_does_not_mix_in(release, tmp_path):
    exported(release, tmp_path / "verl")
    with pytest.raises(InputError, match="another views"):
        exported(release, tmp_path / "verl", "--views", "mid_mag")


def test_rows_without_images_and_texts_with_places_are_refused(release, tmp_path):
    with pytest.raises(InputError, match="rows with images"):
        exported(release, tmp_path / "a", "--views", "high_mag")
    rows = [{**row, "question": "What is <image>?"} for row in trained_rows(1)]
    folder = write_release(tmp_path / "scale-vqa", {"default": {"train": rows}}, {"default": "made for a test"})
    with pytest.raises(InputError, match="p0::type_A: expected a text without <image>"):
        exported(folder, tmp_path / "b")
    assert not list((tmp_path / "b").glob("*.parquet"))


def test_memory_stays_flat(tmp_path):
    """Ten times the rows take no more memory: pictures are read and written in small groups."""
    import pyarrow as pa

    big = picture(1, 400, "PNG")

    def rows(paths):
        for row in trained_rows(paths):
            yield {**row, "low_mag": {"bytes": big + str(row["id"]).encode(), "path": "x.png"}}

    peaks = []
    for paths in (14, 140):
        folder = write_release(tmp_path / f"of-{paths}", {"default": {"train": rows(paths)}}, {"default": "test"})
        loaded_rows = load_rows(str(folder), None, "train")
        usual = pa.default_memory_pool()
        pool = pa.proxy_memory_pool(usual)
        pa.set_memory_pool(pool)
        try:
            VerlExport(loaded_rows, prompt_format(), "train", tmp_path / f"verl-{paths}", 100_000, False).write()
        finally:
            pa.set_memory_pool(usual)
        peaks.append(pool.max_memory())
    assert peaks[1] < 2 * peaks[0]


@pytest.mark.parametrize(
    "changes, name", [({"answer": "A"}, "questions"), ({"low_mag": {"bytes": picture(7), "path": "x"}}, "images")]
)
def test_an_export_of_other_rows_under_the_same_ids_is_not_taken_for_done(tmp_path, changes, name):
    first, other = (
        [{**row, **change} for row in trained_rows(1)] for change in ({"answer": "B"}, {"answer": "B", **changes})
    )
    for number, rows in enumerate((first, other)):
        write_release(tmp_path / f"data{number}", {"default": {"train": rows}}, {"default": "made for a test"})
    exported(tmp_path / "data0", tmp_path / "verl")
    with pytest.raises(InputError, match=f"one with another {name}"):
        exported(tmp_path / "data1", tmp_path / "verl")


@pytest.mark.parametrize("place", ["<image>", "<video>", "<audio>"])
def test_a_text_with_a_place_of_verls_is_refused(tmp_path, place):
    rows = [{**row, "question": f"What is {place}?"} for row in trained_rows(1)]
    write_release(tmp_path / "data", {"default": {"train": rows}}, {"default": "made for a test"})
    with pytest.raises(InputError, match="a text without <image>, <video>, <audio>"):
        exported(tmp_path / "data", tmp_path / "verl")


@pytest.mark.parametrize("kind", [(), ("--image-files",)])
def test_bounds_of_pixels_stand_beside_every_image(release, tmp_path, kind):
    exported(release, tmp_path / "verl", "--max-pixels", "3136", *kind)
    images = [image for row in loaded(tmp_path / "verl") for image in row["images"]]
    assert images and {image["max_pixels"] for image in images} == {3136}
    assert all("min_pixels" not in image for image in images)
