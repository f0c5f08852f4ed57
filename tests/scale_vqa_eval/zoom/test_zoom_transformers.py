"""Episodes of a real Qwen3-VL (tiny, random): its chat template with tools, images in results, calls as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers.utils import get_json_schema
from zoom_exam import make_exam, oracle

from scale_vqa_eval.predict.command import predict
from scale_vqa_eval.zoom import episodes
from scale_vqa_eval.zoom.environment import TOOLS, ZoomEnvironment
from scale_vqa_eval.zoom.questions import read_zoom_questions
from scale_vqa_eval.zoom.score import zoom
from training_recipes.tiny_model import make_tiny_model, make_tiny_qwen3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_exam(tmp_path_factory.mktemp("exam"), slides=1)


def ask(data: Path, model: Path, out: Path) -> None:
    options = ["--data", str(data), "--backend", "transformers", "--model", str(model), "--out", str(out), "--zoom"]
    options += ["--looks", "1", "--look-px", "64", "--max-pixels", "4096", "--max-tokens", "12", "--batch-size", "4"]
    result = CliRunner().invoke(predict, options, standalone_mode=False)
    assert result.return_value == 0, result.output + str(result.exception)


def test_trl_reads_the_tools_that_servers_are_sent() -> None:
    read = [get_json_schema(tool) for tool in (ZoomEnvironment.look, ZoomEnvironment.answer)]
    assert json.dumps(read) == json.dumps(TOOLS)  # in the same order: it is text of the prompt


def test_a_random_model_is_asked_to_the_end(data: Path, tmp_path: Path) -> None:
    ask(data, make_tiny_qwen3(tmp_path / "qwen3"), tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(row["zoom"]["turns"] <= 6 for row in rows)
    result = CliRunner().invoke(zoom, [str(tmp_path / "out.jsonl"), "--data", str(data)], standalone_mode=False)
    assert result.exception is None, result.output


@pytest.mark.parametrize("family", ["qwen3", "qwen2.5"])
def test_calls_that_a_model_writes_are_carried_out(
    data: Path, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's text is replaced by the oracle's; processor, template and conversation are the real ones."""
    questions = iter(read_zoom_questions(str(data), None)[0])
    current: list[Any] = []
    prompts: list[str] = []

    def written(processor: Any, model: Any, config: Any, inputs: Any) -> list[Any]:
        ids = inputs["input_ids"].tolist()
        prompts.extend(processor.batch_decode(ids))
        turn = len(prompts) // len(ids) - 1
        if not turn:
            current[:] = [next(questions) for _ in ids]
        calls = [oracle(question, turn, True) for question in current]
        texts = [
            f"<tool_call>\n{json.dumps({'name': name, 'arguments': asked})}\n</tool_call>" for name, asked in calls
        ]
        return [([text], [9], "stop") for text in texts]

    monkeypatch.setattr(episodes, "generated", written)
    make = make_tiny_qwen3 if family == "qwen3" else make_tiny_model
    ask(data, make(tmp_path / "model"), tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(row["zoom"]["hit"] and row["zoom"]["looks"] == 1 for row in rows)
    last = prompts[-1]
    assert last.count("<|vision_start|>") == 3 and "Looks left: 0" in last
    assert ("<tool_response>" in last) == (family == "qwen3")
