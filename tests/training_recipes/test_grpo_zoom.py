"""The gym recipe from its command line: a tiny Qwen3-VL is made, warmed up, and trained a step in the environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from paths import ROOT
from zoom_exam import make_exam


def train(data: Path, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    recipe = ROOT / "training_recipes"
    command = [
        sys.executable,
        str(recipe / "grpo_zoom.py"),
        "--config",
        str(recipe / "configs" / "zoom-cpu-tiny.yaml"),
    ]
    named = {"data": data, "train_split": "test", "kinds": "where", "model_name_or_path": folder / "tiny"}
    named |= {"output_dir": folder / "out", "warm_up": 2, "max_steps": 1, "per_device_train_batch_size": 8}
    named |= {"prompt": recipe / "configs" / "prompts" / "zoom-short.yaml", "looks": 1, "look_px": 64}
    options = [part for name, value in named.items() for part in (f"--{name}", str(value))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    return subprocess.run(
        [*command, *options, *more], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500
    )


def test_a_step_in_the_environment(tmp_path: Path) -> None:
    data = make_exam(tmp_path / "exam", slides=1)
    done = train(data, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "out" / "final" / "zoom_training.json").read_text())
    assert record["questions"] == 4 and "rewards/ZoomEnvironment/mean" in record["log"][0]
    assert (tmp_path / "out" / "final" / "chat_template.jinja").is_file()
    wrong = train(data, tmp_path, "--kinds", "search")
    assert wrong.returncode == 1 and "kinds of the data (where)" in wrong.stderr
