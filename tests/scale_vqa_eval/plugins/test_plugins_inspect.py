"""A real Inspect, from its command line, against a server: the messages of ``predict``, the accuracy of ``score``."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import chat_server as server_module
import pytest
from chat_server import MODEL, Server, Trouble, chat_server
from click.testing import CliRunner
from predict_release import make_release

from scale_vqa_eval.predict.backend import InferenceConfig, Sampling
from scale_vqa_eval.predict.images import Bounds
from scale_vqa_eval.predict.prompts import load_prompt
from scale_vqa_eval.predict.requests import Request, read_visual_questions
from scale_vqa_eval.scoring.command import score

ROOT = Path(__file__).resolve().parents[3]
PYTHON = Path(os.environ.get("SCALE_VQA_INSPECT_PYTHON", ROOT / ".venv-inspect" / "bin" / "python"))
TASK = ROOT / "scale_vqa_eval" / "plugins" / "inspect_task.py"
pytestmark = [
    pytest.mark.skipif(
        not PYTHON.is_file(),
        reason=f"no Inspect: {PYTHON} is absent (make -f tools/inspect_ai.mk inspect-ai sets it up)",
    ),
    pytest.mark.xdist_group("inspect"),
]


def varied_response(messages: list[dict[str, Any]]) -> str:
    """Returns an answer that follows from what was asked: right, wrong, unreadable, and two letters in turn."""
    code = int(hashlib.sha256(json.dumps(messages[-1], sort_keys=True).encode()).hexdigest(), 16)
    letter, thought = "ABCD"[code % 4], "Glands join at the middle scale. " * 200
    return (
        f"<think>{thought}</think> <answer> {letter.lower()}\n</answer>",
        f"<think>Perhaps <answer>{letter}</answer>, no</think> <answer>{'BCDA'[code % 4]}</answer>",
        f"<answer>{letter}.</answer>",
        f"<think>{thought}</think>\n<answer>{letter}</answer>",
    )[code // 4 % 4]


def run(*arguments: str, cwd: Path, url: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "LOCAL_API_KEY": "none",
        "LOCAL_BASE_URL": url,
        "INSPECT_DISPLAY": "plain",
        "PWD": str(cwd),
    }
    command = [str(PYTHON), "-m", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=540)


def evaluate(server: Server, folder: Path, *more: str) -> Path:
    """Runs the task on ``folder / "scale-vqa"``, named by a relative path; returns the log's path."""
    given = ["--model", f"openai-api/local/{MODEL}", "--log-dir", str(folder / "logs"), "--no-log-images"]
    result = run(
        "inspect_ai", "eval", f"{TASK}@scale_vqa", "-T", "data=scale-vqa", *given, *more, cwd=folder, url=server.url
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    (log,) = (path for path in (folder / "logs").iterdir() if path.suffix in (".json", ".eval"))
    return log


def metrics(log: Path) -> dict[str, float]:
    """Returns what Inspect says of a run."""
    if log.suffix == ".json":
        text = log.read_text()
    else:
        text = run("inspect_ai", "log", "dump", "--header-only", str(log), cwd=log.parent).stdout
    scores = json.loads(text)["results"]["scores"]
    return {name: one["value"] for part in scores for name, one in part["metrics"].items()}


def scored(log: Path, release: Path, mode: str, tmp_path: Path) -> dict[str, Any]:
    """Returns what ``scale-vqa score`` says of the same responses."""
    out = tmp_path / "responses.jsonl"
    result = run("scale_vqa_eval.plugins.inspect_log", str(log), "--out", str(out), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    named = ["--data", str(release), "--split", "test", "--mode", mode, "--json", str(tmp_path / "score.json")]
    done = CliRunner().invoke(score, [str(out), *named], catch_exceptions=False)
    assert done.exit_code == 0 and "warning" not in done.output, done.output
    return dict(json.loads((tmp_path / "score.json").read_text()))


def check_figures(found: dict[str, float], figures: dict[str, Any]) -> None:
    assert 0 < figures["accuracy"] < 1
    assert found["accuracy"] == pytest.approx(figures["accuracy"], abs=1e-12)
    assert found["stderr"] == pytest.approx(figures["standard_error"], abs=1e-12)
    assert len(figures["by_dimension"]) == 5
    for dimension, part in figures["by_dimension"].items():
        assert found[dimension] == pytest.approx(part["accuracy"], abs=1e-12)


def test_accuracy_and_clustered_error_are_those_of_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "expected_response", varied_response)
    release = make_release(tmp_path / "scale-vqa")
    with chat_server() as server:
        log = evaluate(server, tmp_path)
    figures = scored(log, release, "reference", tmp_path)
    assert (figures["n"], figures["clusters"], figures["failed"]) == (30, 3, 0)
    assert set(figures["unparsed"]["reasons"]) == {"not_one_letter"}
    account = figures["provenance"]["predicted_with"]
    assert (account["split"], account["config"]) == ("test", None), "what report joins runs by"
    check_figures(metrics(log), figures)
    check_messages(server, release)


def check_messages(server: Server, release: Path) -> None:
    """Every question was asked once, with the words and image bytes that ``predict`` sends, in its order."""
    items, store = read_visual_questions(str(release), "test", None, None, blind=False)
    job = InferenceConfig(MODEL, load_prompt("published"), Sampling(4096), Bounds(), store)
    wanted = {item.question.id: job.server_messages(Request(item)) for item in items}
    assert sorted(map(seen, (body["messages"] for body in server.asked))) == sorted(map(seen, wanted.values()))
    images = [sum(part["type"] == "image_url" for part in body["messages"][-1]["content"]) for body in server.asked]
    assert sorted(images) == [2] * 10 + [3] * 20, "two of six paths have no high view"
    assert {(body["temperature"], body["max_tokens"]) for body in server.asked} == {(0.0, 4096)}


def seen(messages: list[dict[str, Any]]) -> list[str]:
    """Returns what a model sees of a request, part by part; a system message may be text or a list of one."""
    parts = []
    for message in messages:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            parts.append(f"{message['role']} {part['text'] if part['type'] == 'text' else part['image_url']['url']}")
    return parts


def test_the_blind_control_has_the_same_text_no_image_and_its_failures_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "expected_response", varied_response)
    release = make_release(tmp_path / "scale-vqa", paths=4)
    given = ["-T", "blind=true", "-T", "prompt=letter-only", "-T", "mode=strict", "--no-fail-on-error"]
    given += ["--log-format", "json"]
    with chat_server(Trouble(refuse_text="field 1, question 3")) as server:
        log = evaluate(server, tmp_path, *given)
    prompt = load_prompt("letter-only")
    items, _ = read_visual_questions(str(release), "test", None, None, blind=True)
    texts = [[f"user {prompt.text(item.question.question, item.question.options)}"] for item in items]
    assert sorted(seen(body["messages"]) for body in server.asked) == sorted(texts)
    figures = scored(log, release, "strict", tmp_path)
    assert (figures["n"], figures["clusters"], figures["failed"]) == (20, 2, 1)
    right = round(20 * figures["accuracy"])
    assert 0 < right < 19
    assert metrics(log)["accuracy"] == pytest.approx(right / 19, abs=1e-12), "Inspect leaves the failed one out"
    assert figures["provenance"]["ablation"] == "blind"
    assert figures["provenance"]["prompt_id"] == f"letter-only@{prompt.version}"


def test_a_wrong_option_and_another_log_are_one_error_each(tmp_path: Path) -> None:
    make_release(tmp_path / "scale-vqa", paths=1)
    task = ["inspect_ai", "eval", f"{TASK}@scale_vqa", "-T", "data=scale-vqa", "--model", "mockllm/model"]
    result = run(*task, "-T", "mode=loose", cwd=tmp_path)
    assert result.returncode != 0
    assert "expected one of reference, strict" in result.stdout + result.stderr
    (tmp_path / "other.py").write_text(
        "from inspect_ai import Task, task\nfrom inspect_ai.dataset import Sample\n"
        "@task\ndef other():\n    return Task(dataset=[Sample(input='?')])\n"
    )
    given = ["--model", "mockllm/model", "--log-dir", str(tmp_path / "logs")]
    assert run("inspect_ai", "eval", "other.py", *given, cwd=tmp_path).returncode == 0
    (log,) = (tmp_path / "logs").glob("*.eval")
    result = run("scale_vqa_eval.plugins.inspect_log", str(log), "--out", str(tmp_path / "p.jsonl"), cwd=tmp_path)
    assert result.returncode == 1 and "expected a log of the task scale_vqa" in result.stderr
    assert not (tmp_path / "p.jsonl").exists()


def test_the_task_is_known_by_the_name_of_its_package() -> None:
    code = (
        "from importlib.metadata import entry_points\n"
        "(point,) = entry_points(group='inspect_ai', name='scale_vqa_eval')\n"
        "from inspect_ai._util.registry import registry_info\n"
        "print(registry_info(point.load().scale_vqa).type)"
    )
    done = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["task"], done.stderr


def test_option_images_stand_after_their_letters_as_in_predict(tmp_path: Path) -> None:
    release = make_release(tmp_path / "scale-vqa", paths=1)
    with chat_server() as server:
        log = evaluate(server, tmp_path, "-T", "config=grounding")
    items, store = read_visual_questions(str(release), "test", "grounding", None, blind=False)
    job = InferenceConfig(MODEL, load_prompt("published"), Sampling(4096), Bounds(), store)
    wanted = sorted(seen(job.server_messages(Request(item))) for item in items)
    assert len(wanted) == 3 and sorted(seen(body["messages"]) for body in server.asked) == wanted
    assert metrics(log)["zoom-in"] == metrics(log)["accuracy"]
