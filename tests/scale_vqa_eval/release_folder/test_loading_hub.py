"""By Hub id, from a test double of the Hub: the data set, its stream, the metric's Space, and ``prepare``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_double import hub_double
from loading_data import HEAD, SIZES, result, write_folder

from scale_vqa_eval.schema import METRIC_FOLDER

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.slow
def test_data_set_and_metric_by_hub_id(fresh_python: Run, tmp_path: Path) -> None:
    expected = write_folder(tmp_path / "hub" / "datasets" / "org" / "scale-vqa", 7, {**SIZES, "default": {"test": 70}})
    space = tmp_path / "hub" / "spaces" / "org" / "scale_vqa_acc"
    shutil.copytree(METRIC_FOLDER, space)
    code = f"""{HEAD}
import evaluate
metric = evaluate.load("org/scale_vqa_acc")
print(json.dumps({{
    "plain": plain("org/scale-vqa", {[None, *SIZES]}),
    "streamed": plain("org/scale-vqa", ["default", "text"], streaming=True), "uses": uses("org/scale-vqa"),
    "metric": metric.compute(predictions=["<answer>A</answer>"], references=["A"])["accuracy"], "ours": ours()}}))"""
    with hub_double(tmp_path / "hub") as server:
        found = result(fresh_python(code, **server.environment()))
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SCALE_VQA_"))}
        prepared = subprocess.run(
            [str(Path(sys.executable).with_name("scale-vqa")), "prepare", "--data", "org/scale-vqa"],
            env={**clean, **server.environment(), "HF_HOME": str(tmp_path / "other_home")},
            capture_output=True,
            text=True,
        )
    assert found["plain"] == {**expected, "None": expected["default"]}
    assert found["streamed"] == {name: expected[name] for name in ("default", "text")}
    assert found["uses"]["pickled"] == expected["default"]["test"]
    assert (found["metric"], found["ours"]) == (1.0, [])
    assert prepared.returncode == 0, prepared.stderr
    offline = fresh_python(
        f"{HEAD}print(json.dumps(plain('scale-vqa', [None])))", HF_HOME=str(tmp_path / "other_home")
    )
    assert json.loads(offline.stdout) == {"None": expected["default"]}
