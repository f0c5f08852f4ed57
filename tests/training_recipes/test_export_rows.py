"""Conversations for ms-swift and LLaMA-Factory, and EasyR1's columns: our questions, whole, with their images."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image
from training_release import make_training_release, trained_rows

from scale_vqa_eval.cli import export
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.release_folder.write import write_release
from training_recipes.rows import load_rows, prompt_format, trainer_row


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_training_release(tmp_path_factory.mktemp("data") / "scale-vqa")


def run(kind, release, out, *more):
    return CliRunner().invoke(export, [kind, "--data", str(release), "--out", str(out), *more], catch_exceptions=False)


def test_swift_conversations_ask_what_a_trainer_row_asks(release, tmp_path):
    run("ms-swift", release, tmp_path, "--rl")
    found = [json.loads(line) for line in (tmp_path / "train-rl.jsonl").read_text().splitlines()]
    ours = load_rows(str(release), None, "train")
    for row, source, made in zip(found, ours, ours.with_transform(trainer_row(ours, prompt_format())), strict=True):
        assert [turn["role"] for turn in row["messages"]] == ["system", "user"]
        user = row["messages"][1]["content"]
        assert user.count("<image>") == len(row["images"]) == len(made["images"])
        assert user.replace("<image>", "") == made["prompt"][-1]["content"][-1]["text"]
        views = [view for view in ("low_mag", "mid_mag", "high_mag") if source[view]]
        assert [Path(path).read_bytes() for path in row["images"]] == [source[view]["bytes"] for view in views]
        assert (row["solution"], row["id"]) == (made["answer"], made["id"])


def test_sft_learns_rationales_that_agree_and_names_what_is_left_out(release, tmp_path):
    done = run("llama-factory", release, tmp_path)
    found = json.loads((tmp_path / "scale_vqa_train.json").read_text())
    assert "left out: 6 of 30 rows, no rationale" in done.stderr and len(found) == 18
    for row in found:
        assert row["messages"][-1]["role"] == "assistant"
        assert row["messages"][-1]["content"].endswith(f"<answer>{row['answer']}</answer>")
        assert all((tmp_path / name).is_file() for name in row["images"])
    run("llama-factory", release, tmp_path, "--split", "val", "--rationales", "none")
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert {name: one["file_name"] for name, one in info.items()} == {
        "scale_vqa_train": "scale_vqa_train.json",
        "scale_vqa_val": "scale_vqa_val.json",
    }


def test_option_images_follow_their_letters(release, tmp_path):
    run("ms-swift", release, tmp_path, "--config", "grounding", "--rl", "--max-pixels", "3136")
    row = json.loads((tmp_path / "grounding-train-rl.jsonl").read_text().splitlines()[0])
    assert row["messages"][-1]["content"].startswith("<image>A.<image>B.<image>C.<image>D.<image>Which")
    assert len(row["images"]) == 5
    assert all(Image.open(path).size == (56, 56) for path in row["images"])


def test_easyr1_has_a_text_images_and_a_letter(release, tmp_path):
    run("easyr1", release, tmp_path)
    (path,) = tmp_path.glob("*.parquet")
    rows = pq.read_table(path).to_pylist()
    assert len(rows) == 30 and list(rows[0])[:3] == ["images", "problem", "answer"]
    for row in rows:
        assert row["problem"].count("<image>") == len(row["images"]) and row["answer"] in "ABCD"
        assert row["problem"].startswith("You are an expert") and set(row["images"][0]) == {"bytes", "path"}
        Image.open(io.BytesIO(row["images"][0]["bytes"])).verify()
    with pytest.raises(InputError, match="this export of train"):
        run("verl", release, tmp_path)


@pytest.mark.parametrize("field", ["question", "rationale"])
def test_a_text_with_a_placeholder_is_refused_and_nothing_is_left(tmp_path, field):
    rows = [{**row, "rationale": "Fits.", field: "See <image>."} for row in trained_rows(1)]
    folder = write_release(tmp_path / "scale-vqa", {"default": {"train": rows}}, {"default": "made for a test"})
    with pytest.raises(InputError, match=r"p0::type_A: expected a .* without <image>"):
        run("ms-swift", folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_rows_without_images_are_refused(release, tmp_path):
    with pytest.raises(InputError, match="rows with images"):
        run("llama-factory", release, tmp_path, "--config", "text", "--rationales", "none")
