"""A real lmms-eval, from its command line, against a server: the messages of ``predict``, the score of ``score``."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import chat_server as server_module
import numpy as np
import pytest
from chat_server import MODEL, chat_server
from click.testing import CliRunner
from PIL import Image
from predict_release import make_release

from scale_vqa_eval.predict.items import Ask, read_items
from scale_vqa_eval.predict.job import Job
from scale_vqa_eval.predict.prompt import load_prompt
from scale_vqa_eval.predict.resolution import Bounds
from scale_vqa_eval.predict.sampling import Sampling
from scale_vqa_eval.score_command import score

ROOT = Path(__file__).resolve().parents[1]
PYTHON = Path(os.environ.get("SCALE_VQA_LMMS_PYTHON", ROOT / ".venv-lmms" / "bin" / "python"))
FOLDER = ROOT / "scale_vqa_eval" / "plugins" / "lmms_eval_task"
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
            shown = part.get("text")
            if part["type"] == "image_url":
                content = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                shown = hashlib.sha256(
                    np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).tobytes()
                ).hexdigest()
            parts.append(f"{message['role']} {part['type']} {shown}")
    return parts


def test_accuracy_and_clustered_error_are_those_of_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "expected_response", response)
    release = make_release(tmp_path / "scale-vqa")
    out = tmp_path / "out"
    with chat_server() as server:
        model = f"model={MODEL},base_url={server.url},api_key=none,num_concurrent=2"
        given = ["--model", "openai", "--model_args", model, "--tasks", "scale_vqa", "--include_path", str(FOLDER)]
        environment = os.environ | {"SCALE_VQA_PATH": str(release), "HF_HOME": str(tmp_path / "hf")}
        environment |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""}
        command = [str(PYTHON), "-m", "lmms_eval", *given, "--log_samples", "--output_path", str(out)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (results,) = out.rglob("*_results.json")
    (samples,) = out.rglob("*_samples_scale_vqa.jsonl")
    found = json.loads(results.read_text())["results"]["scale_vqa"]
    rows = [json.loads(line)["scale_vqa_acc"] for line in samples.read_text().splitlines()]
    predictions = tmp_path / "p.jsonl"
    predictions.write_text("".join(json.dumps({"id": row["id"], "response": row["response"]}) + "\n" for row in rows))
    named = ["--data", str(release), "--split", "test", "--json", str(tmp_path / "score.json")]
    assert CliRunner().invoke(score, [str(predictions), *named], catch_exceptions=False).exit_code == 0
    figures = json.loads((tmp_path / "score.json").read_text())
    assert figures["n"] == 30 and figures["clusters"] == 3 and 0 < figures["accuracy"] < 1
    assert found["scale_vqa_acc,none"] == pytest.approx(figures["accuracy"], abs=1e-12)
    items, store = read_items(str(release), "test", None, None, blind=False)
    job = Job(MODEL, load_prompt("published"), Sampling(4096), Bounds(), store)
    wanted = sorted(seen(job.chat(Ask(item))) for item in items)
    assert sorted(seen(body["messages"]) for body in server.asked) == wanted
