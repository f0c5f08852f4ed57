"""The config ``hub``: the rows of another one, each with its text and one composed image."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from datasets import load_dataset
from PIL import Image
from predict_release import make_release

from dataset_script.builder import ScaleVQA
from model_card.cards.results import eval_yaml, task_id
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.export import MIN_TEXT, SIDE, compose, hub
from scale_vqa_eval.files import parse_yaml
from scale_vqa_eval.predict.images import ImageRef
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.release_folder.write import write_release


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = make_release(tmp_path / "scale-vqa", paths=3)
    done = CliRunner().invoke(hub, [str(made), "--config", "default"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return made


def test_rows_are_those_of_the_config_and_load_by_every_way(folder: Path, tmp_path: Path) -> None:
    hub_rows, rows = (read_questions(folder, "test", name) for name in ("hub", "default"))
    assert hub_rows == [replace(row, images=()) for row in rows]
    loaded = load_dataset(str(folder), "hub", split="test", cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["prompt"].startswith(rows[0].question) and "low_mag" not in loaded.column_names
    assert next(iter(release_configs(folder))) == "default"
    built = ScaleVQA(cache_dir=str(tmp_path / "built"), config_name="hub", data_dir=str(folder))
    built.download_and_prepare()
    assert built.as_dataset(split="test").num_rows == 15
    uris = pq.read_table(folder / "hub/test-00000-of-00001.parquet")["composite"].to_pylist()
    assert len(set(uris)) == 3, "one image a path"
    sizes = {Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size for uri in uris}
    assert sizes == {(3 * SIDE + 64, SIDE + 128), (2 * SIDE + 48, SIDE + 128)}, "a path has no high view"


@pytest.mark.slow
def test_the_tasks_have_the_ids_of_scores_and_stale_rows_are_refused(folder: Path) -> None:
    text = eval_yaml(folder)
    assert text is not None
    tasks = parse_yaml(text, "eval.yaml")["tasks"]
    assert [task["id"] for task in tasks] == [task_id("default", "test"), task_id("default", "test", blind=True)]
    assert ["input_image" in task["field_spec"] for task in tasks] == [True, False]
    prompt = {"hub/prompt.yaml": (folder / "hub/prompt.yaml").read_bytes()}
    row = {"id": "s::p::type_A", "question": "?", "options": list("wxyz"), "answer": "A", "dimension": "Diagnosis"}
    write_release(folder, {"exchange": {"test": [row]}}, {})
    assert "hub" in release_configs(folder), "a control does not change what it was made of"
    write_release(folder, {"default": {"test": [row]}}, {})
    assert "hub" not in release_configs(folder) and eval_yaml(folder) is None
    write_release(folder, {"hub": {"test": [row | {"prompt": "?", "composite": ""}]}}, {}, prompt)
    assert eval_yaml(folder) is not None
    row["question"] = "Another?"
    write_release(folder, {"hub": {"test": [row | {"prompt": "?", "composite": ""}]}}, {}, prompt)
    with pytest.raises(InputError, match="the rows of another config"):
        eval_yaml(folder)


def test_labels_are_beside_the_views_and_bars_have_their_length() -> None:
    views = {
        ImageRef(0, name): Image.new("RGB", size, "red")
        for name, size in {"low_mag": (256, 256), "mid_mag": (1024, 512), "high_mag": (512, 512)}.items()
    }
    page = np.asarray(compose(views))
    red = (page == (255, 0, 0)).all(axis=2)
    assert red.sum() == SIDE * SIDE + SIDE * SIDE // 2 + SIDE * SIDE, "nothing is drawn on a view"
    dark = (page < 40).all(axis=2)
    for left, height, um_per_px, length in ((16, 512, 5.0, 1000), (544, 256, 5.0, 1000), (1072, 512, 0.5, 100)):
        row = dark[56 + height + 28, left : left + SIDE]
        assert abs(int(np.argmin(row)) - length / um_per_px) <= 1
    text = dark[:56, 16:528].any(axis=1)
    assert text.sum() * 1024 / page.shape[1] >= 0.7 * MIN_TEXT, "capitals and digits of a text of MIN_TEXT pixels"


def test_option_images_are_below_with_their_letters() -> None:
    images = {ImageRef(0, "mid_mag"): Image.new("RGB", (512, 512), "red")}
    images |= {ImageRef(0, "option_images", index): Image.new("RGB", (512, 512), "blue") for index in range(4)}
    page = np.asarray(compose(images))
    assert page.shape[1] == 4 * SIDE + 5 * 16
    blue = (page == (0, 0, 255)).all(axis=2)
    assert blue.sum() == 4 * SIDE * SIDE and not blue[: SIDE + 100].any()
