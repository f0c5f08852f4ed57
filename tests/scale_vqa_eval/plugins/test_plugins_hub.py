"""``inspect eval hf/ORG/NAME``: a data set with ``eval.yaml``, from a Hub on the loopback, without code of ours."""

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
import pytest
import yaml
from chat_server import MODEL, chat_server
from click.testing import CliRunner
from hub_double import hub_double
from PIL import Image
from predict_release import make_release

from model_card.cards.results import eval_yaml
from scale_vqa_eval.export import hub
from scale_vqa_eval.predict.prompts import load_prompt
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.scoring.command import score

ROOT = Path(__file__).resolve().parents[3]
PYTHON = Path(os.environ.get("SCALE_VQA_INSPECT_PYTHON", ROOT / ".venv-inspect" / "bin" / "python"))
pytestmark = [
    pytest.mark.skipif(not PYTHON.is_file(), reason=f"no Inspect: {PYTHON} is absent"),
    pytest.mark.xdist_group("inspect"),
]


def varied_response(messages: list[dict[str, Any]]) -> str:
    """Returns an answer that follows from what was asked: right, wrong, lower case, unreadable."""
    code = int(hashlib.sha256(json.dumps(messages[-1], sort_keys=True).encode()).hexdigest(), 16)
    letter = "ABCD"[code % 4]
    return (
        f"<think>Glands.</think> <answer> {letter.lower()}\n</answer>",
        f"<answer>{letter}.</answer>",
        f"<Answer>{letter}</Answer> no, <answer>{'BCDA'[code % 4]}</answer>",
        f"<think>Glands.</think>\n<answer>{letter}</answer>",
    )[code // 4 % 4]


def test_inspect_asks_the_published_tasks_and_scores_as_score_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "expected_response", varied_response)
    folder = make_release(tmp_path / "hub/datasets/org/scale-vqa")
    made = CliRunner().invoke(hub, [str(folder), "--config", "default"], catch_exceptions=False)
    assert made.exit_code == 0, made.output
    text = eval_yaml(folder)
    assert text is not None
    (folder / "eval.yaml").write_text(text)
    with hub_double(tmp_path / "hub") as data, chat_server() as server:
        environment = os.environ | data.environment() | {"HF_HOME": str(tmp_path / "home"), "PWD": str(tmp_path)}
        environment |= {"LOCAL_API_KEY": "none", "LOCAL_BASE_URL": server.url, "INSPECT_DISPLAY": "plain"}
        environment |= {"XDG_CACHE_HOME": str(tmp_path / "xdg")}
        command = [str(PYTHON), "-m", "inspect_ai", "eval", "hf/org/scale-vqa", "--model", f"openai-api/local/{MODEL}"]
        command += ["--log-dir", str(tmp_path / "logs"), "--log-format", "json", "--no-log-images"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    logs = {json.loads(path.read_text())["eval"]["task"]: path for path in (tmp_path / "logs").glob("*.json")}
    tasks = {task["id"]: task for task in yaml.safe_load(text)["tasks"]}
    assert set(tasks) == {name.rsplit("/", 1)[1] for name in logs} == {"default_test", "default_test_blind"}
    check_messages(server.asked, folder)
    figures = {}
    for name, path in logs.items():
        out = tmp_path / f"{name.rsplit('/', 1)[1]}.jsonl"
        convert = [str(PYTHON), "-m", "scale_vqa_eval.plugins.inspect_log", str(path), "--out", str(out)]
        assert subprocess.run(convert, cwd=tmp_path, capture_output=True, timeout=120).returncode == 0
        figures[out.stem] = json.loads(path.read_text())["results"]["scores"][0]["metrics"]["accuracy"]["value"]
    given = [str(tmp_path / "default_test.jsonl"), "--data", str(folder), "--split", "test", "--config", "default"]
    given += ["--blind", str(tmp_path / "default_test_blind.jsonl"), "--json", str(tmp_path / "score.json")]
    scored = CliRunner().invoke(score, given, catch_exceptions=False)
    assert scored.exit_code == 0, scored.output
    result = json.loads((tmp_path / "score.json").read_text())
    assert 0 < result["accuracy"] < 1 and result["n"] == 30 and result["unparsed"]["n"] > 0
    assert figures["default_test"] == pytest.approx(result["accuracy"], abs=1e-12)
    blind = result["blind"] or result["blind_withheld"]  # withheld, as many of its responses are unreadable
    assert figures["default_test_blind"] == pytest.approx(blind["accuracy"], abs=1e-12)


def check_messages(asked: list[dict[str, Any]], folder: Path) -> None:
    """Each question is asked with one image and, blind, with the same text and none, in the words of ``predict``."""
    prompt = load_prompt("published")
    wanted = sorted(prompt.text(one.question, one.options) for one in read_questions(folder, "test", "default"))
    seen: dict[bool, list[str]] = {True: [], False: []}
    for body in asked:
        system, user = body["messages"]
        content = system["content"]
        assert (content if isinstance(content, str) else content[0]["text"]) == prompt.system
        parts = user["content"] if isinstance(user["content"], list) else [{"type": "text", "text": user["content"]}]
        images = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        seen[bool(images)] += [part["text"] for part in parts if part["type"] == "text"]
        for uri in images:
            with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
                assert image.width in (2 * 512 + 3 * 16, 3 * 512 + 4 * 16)
        assert (body["temperature"], body["max_tokens"]) == (0.0, prompt.max_tokens)
    assert sorted(seen[True]) == sorted(seen[False]) == wanted
