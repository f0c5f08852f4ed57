"""A real lmms-eval, from its command line, against a server: the messages of ``predict``, the score of ``score``."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import chat_server as server_module
import numpy as np
import pytest
from chat_server import MODEL, chat_server
from click.testing import CliRunner
from PIL import Image
from predict_release import make_release

from scale_vqa_eval.predict.backend import InferenceConfig, Sampling
from scale_vqa_eval.predict.images import Bounds
from scale_vqa_eval.predict.prompts import load_prompt
from scale_vqa_eval.predict.requests import Request, read_visual_questions
from scale_vqa_eval.scoring.command import score

ROOT = Path(__file__).resolve().parents[3]
PYTHON = Path(os.environ.get("SCALE_VQA_LMMS_PYTHON", ROOT / ".venv-lmms" / "bin" / "python"))
FOLDER = ROOT / "scale_vqa_eval" / "plugins" / "lmms_eval_task"
TASKS = ("scale_vqa", "scale_vqa_blind", "scale_vqa_grounding")
ABSENT = f"no lmms-eval: {PYTHON} is absent (make -f tools/lmms_eval.mk lmms-eval sets it up)"
pytestmark = [pytest.mark.skipif(not PYTHON.is_file(), reason=ABSENT), pytest.mark.xdist_group("lmms")]


def response(messages: list[dict[str, Any]]) -> str:
    """Returns an answer that follows from what was asked: right, wrong, or unreadable."""
    code = int(hashlib.sha256(json.dumps(messages[-1]["content"][-1], sort_keys=True).encode()).hexdigest(), 16)
    letter = "ABCD"[code % 4]
    return (f"<think>Glands.</think> <answer> {letter.lower()}\n</answer>", f"<answer>{letter}.</answer>")[
        code // 4 % 2
    ]


def seen(messages: list[dict[str, Any]]) -> list[str]:
    """Returns what a model sees of a request, part by part; an image by its pixels (lmms-eval sends PNG)."""
    parts = []
    for message in messages:
        for part in message["content"]:
            preview = part.get("text")
            if part["type"] == "image_url":
                content = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                preview = hashlib.sha256(
                    np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).tobytes()
                ).hexdigest()
            parts.append(f"{message['role']} {part['type']} {preview}")
    return parts


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_release(tmp_path_factory.mktemp("data") / "scale-vqa")


@pytest.fixture(scope="module")
def evaluated(release: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Runs the three tasks in one go; returns lmms-eval's folder and the bodies of the requests it made."""
    place = tmp_path_factory.mktemp("lmms")
    patch = pytest.MonkeyPatch()
    patch.setattr(server_module, "expected_response", response)
    with chat_server() as server:
        model = f"model={MODEL},base_url={server.url},api_key=none,num_concurrent=2"
        given = ["--model", "openai", "--model_args", model, "--tasks", ",".join(TASKS), "--include_path", str(FOLDER)]
        environment = os.environ | {"HF_HOME": str(place / "hf"), "HF_HUB_OFFLINE": "1"}
        environment |= {"WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""}
        prepare = [sys.executable, "-m", "scale_vqa_eval.cli", "prepare", "--data", str(release)]
        subprocess.run(prepare, env=environment, check=True, capture_output=True, timeout=300)
        command = [str(PYTHON), "-m", "lmms_eval", *given, "--log_samples", "--output_path", str(place / "out")]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=540)
    patch.undo()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return place / "out", list(server.asked)


@pytest.mark.parametrize("task", TASKS)
def test_accuracy_is_that_of_score(
    release: Path, evaluated: tuple[Path, list[dict[str, Any]]], task: str, tmp_path: Path
) -> None:
    (results,) = evaluated[0].rglob("*_results.json")
    (samples,) = evaluated[0].rglob(f"*_samples_{task}.jsonl")
    found = json.loads(results.read_text())["results"][task]
    rows = [json.loads(line)["scale_vqa_acc"] for line in samples.read_text().splitlines()]
    predictions = tmp_path / "p.jsonl"
    predictions.write_text("".join(json.dumps({"id": row["id"], "response": row["response"]}) + "\n" for row in rows))
    named = ["--data", str(release), "--split", "test", "--json", str(tmp_path / "score.json")]
    named += ["--config", "grounding"] if task == "scale_vqa_grounding" else []
    assert CliRunner().invoke(score, [str(predictions), *named], catch_exceptions=False).exit_code == 0
    figures = json.loads((tmp_path / "score.json").read_text())
    assert (figures["n"], figures["clusters"]) == ((3, 3) if task == "scale_vqa_grounding" else (30, 3))
    assert {row["dimension"] for row in rows} == set(figures["by_dimension"])
    assert found["scale_vqa_acc,none"] == pytest.approx(figures["accuracy"], abs=1e-12)


def test_each_question_is_asked_with_the_words_and_pixels_of_predict(
    release: Path, evaluated: tuple[Path, list[dict[str, Any]]]
) -> None:
    wanted = []
    for config, blind in (("default", False), ("default", True), ("grounding", False)):
        items, store = read_visual_questions(str(release), "test", config, None, blind=blind)
        job = InferenceConfig(MODEL, load_prompt("published"), Sampling(4096), Bounds(), store)
        wanted += [seen(job.server_messages(Request(item))) for item in items]
    assert sorted(seen(body["messages"]) for body in evaluated[1]) == sorted(wanted)
