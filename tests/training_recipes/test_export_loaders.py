"""Every export read by the loader of its own tool, in an environment of these tools: texts, images, letters."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from paths import ROOT
from training_release import make_training_release

from scale_vqa_eval import score_predictions
from scale_vqa_eval.cli import export
from training_recipes.rows import load_rows, prompt_format, trainer_row

PYTHON = Path(os.environ.get("SCALE_VQA_EXPORTS_PYTHON", ROOT / ".venv-export" / "bin" / "python"))
pytestmark = [
    pytest.mark.skipif(not PYTHON.is_file(), reason=f"no loaders: {PYTHON} is absent (make exports sets it up)"),
    pytest.mark.xdist_group("exports"),
]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_training_release(tmp_path_factory.mktemp("data") / "scale-vqa")


def read_by(tool, path, tmp_path):
    out = tmp_path / "found.json"
    env = os.environ | {
        "HF_HOME": str(tmp_path / "hf"),
        "MODELSCOPE_CACHE": str(tmp_path / "ms"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),  # the plug-in, as if installed there
    }
    command = [str(PYTHON), str(ROOT / "tests" / "helpers" / "consumer_loaders.py"), tool, str(path), str(out)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    "tool, more, config, name",
    [
        ("ms-swift", ("--rl",), "default", "default-train-rl.jsonl"),
        ("llama-factory", ("--rationales", "none", "--name", "scale_vqa_train"), "grounding", "."),
        ("verl", (), "default", "."),
        ("vlmevalkit", (), "grounding", "ScaleVQA_grounding_train.tsv"),
    ],
    ids=["swift", "llama", "verl", "vlmevalkit"],
)
def test_the_tools_own_loader_gives_our_questions(release, tmp_path, tool, more, config, name):
    given = [
        tool,
        "--data",
        str(release),
        "--config",
        config,
        "--split",
        "train",
        "--out",
        str(tmp_path / "out"),
        *more,
    ]
    assert CliRunner().invoke(export, given, catch_exceptions=False).exit_code == 0
    found = read_by(tool, tmp_path / "out" / name, tmp_path)
    ours = load_rows(str(release), config, "train")
    made = ours.with_transform(trainer_row(ours, prompt_format()))
    assert len(found) == len(made), "no row is dropped"
    for row, wanted in zip(found, made, strict=True):
        assert [tuple(one) for one in row["images"]] == [image.size for image in wanted["images"]]
        text = "".join(row["texts"])
        question = [part["text"] for part in wanted["prompt"][-1]["content"] if part["type"] == "text"][-1]
        assert all(line.partition(". ")[2] in text for line in question.splitlines()[-4:])
        assert row["answer"] == wanted["answer"] and row["id"] in (None, wanted["id"])
        assert tool == "vlmevalkit" or text.count("<image>") == len(wanted["images"])


def test_the_plug_in_asks_as_predict_and_scores_as_score(release, tmp_path):
    given = ["vlmevalkit", "--data", str(release), "--split", "train", "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(export, given, catch_exceptions=False).exit_code == 0
    ours = load_rows(str(release), None, "train")
    made = ours.with_transform(trainer_row(ours, prompt_format()))
    for part in ("", "_blind"):
        found = read_by("plugin", tmp_path / "out" / f"ScaleVQA_default_train{part}.tsv", tmp_path)
        for row, wanted in zip(found, made, strict=True):
            texts = [piece["text"] for turn in wanted["prompt"] for piece in turn["content"] if piece.get("text")]
            assert [text for text in row["texts"] if text != "<image>"] == texts
            assert len(row["images"]) == (0 if part else len(wanted["images"]))
        answered = tmp_path / "out" / f"answered_ScaleVQA_default_train{part}.xlsx"
        figures = score_predictions(answered, str(release), split="train")
        assert figures["accuracy"] == pytest.approx(found[0]["accuracy"]) and 0 < figures["accuracy"] < 1
