"""A trained adapter, exported: vLLM serves the folder and answers as transformers does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from training_release import CPU, make_training_release
from vllm_server import ABSENT, PYTHON, vllm_server

from model_card.weights import prepare_weights
from scale_vqa_eval.predict.command import predict
from training_recipes import sft
from training_recipes.tiny_model import make_tiny_model, teach_format

pytestmark = [pytest.mark.skipif(not PYTHON.is_file(), reason=ABSENT), pytest.mark.xdist_group("vllm")]


def answers(path):
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return {line["id"]: line["response"] for line in lines}


def test_vllm_serves_what_was_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    release = make_training_release(tmp_path / "scale-vqa")
    base = teach_format(make_tiny_model(tmp_path / "tiny"))
    options = ["--data", str(release), "--model_name_or_path", str(base), "--output_dir", "out", *CPU]
    options += ["--rationales", "none", "--max_steps", "2", "--learning_rate", "1e-3", "--save_strategy", "no"]
    sft.main([*options, "--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"])
    merged = prepare_weights(Path("out/final"), tmp_path / "merged").folder
    asked = ["--data", str(release), "--split", "val", "--max-tokens", "24"]
    here = [*asked, "--backend", "transformers", "--model", str(merged), "--out", "here.jsonl"]
    assert CliRunner().invoke(predict, here, catch_exceptions=False).exit_code == 0
    with vllm_server(merged, tmp_path / "vllm.log", 3) as url:
        there = [*asked, "--backend", "openai", "--model", "tiny", "--base-url", url, "--out", "there.jsonl"]
        assert CliRunner().invoke(predict, there, catch_exceptions=False).exit_code == 0
    assert answers("there.jsonl") == answers("here.jsonl")
    assert len(answers("here.jsonl")) == 10
