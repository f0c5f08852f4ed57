"""The zoom exam in a real Inspect, from its command line: the scripted oracle, and the blind control."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from chat_server import MODEL
from paths import ROOT
from zoom_exam import Examiner, make_exam, oracle, policy_server

from scale_vqa_eval.zoom.environment import Budget

PYTHON = Path(os.environ.get("SCALE_VQA_INSPECT_PYTHON", ROOT / ".venv-inspect" / "bin" / "python"))
pytestmark = [
    pytest.mark.skipif(not PYTHON.is_file(), reason=f"no Inspect: {PYTHON} is absent (make inspect-ai sets it up)"),
    pytest.mark.xdist_group("inspect"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_exam(tmp_path_factory.mktemp("exam"), slides=2)


def evaluate(data: Path, folder: Path, control: str | None = None) -> dict[str, float]:
    with policy_server(Examiner(data, control=control, budget=Budget(3, 256)), oracle) as server:
        environment = os.environ | {
            "LOCAL_API_KEY": "none",
            "LOCAL_BASE_URL": server.url,
            "INSPECT_DISPLAY": "plain",
            "PYTHONPATH": str(ROOT),
            "PWD": str(folder),
        }
        task = f"{ROOT / 'scale_vqa_eval' / 'plugins' / 'inspect_zoom.py'}@scale_vqa_zoom"
        given: dict[str, Any] = {"data": data.parent, "looks": 3, "look_px": 256}
        given |= {"control": control} if control else {}
        options = [part for name, value in given.items() for part in ("-T", f"{name}={value}")]
        command = [str(PYTHON), "-m", "inspect_ai", "eval", task, *options, "--model", f"openai-api/local/{MODEL}"]
        command += ["--log-dir", str(folder / "logs"), "--log-format", "json", "--no-log-images"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (log,) = (folder / "logs").glob("*.json")
    scores = json.loads(log.read_text())["results"]["scores"]
    return {part["name"]: part["metrics"]["mean"]["value"] for part in scores}


def test_the_oracle_sees_and_answers_and_the_blind_one_is_at_chance(data: Path, tmp_path: Path) -> None:
    for name in ("seen", "blind"):
        (tmp_path / name).mkdir()
    seen = evaluate(data, tmp_path / "seen")
    assert seen == {"right": 1.0, "evidence": 1.0, "looks": 1.0, "refused": 0.0}
    blind = evaluate(data, tmp_path / "blind", "blind")
    assert blind["right"] == 0.25 and blind["evidence"] == 0.0
