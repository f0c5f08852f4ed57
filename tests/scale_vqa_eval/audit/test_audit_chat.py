"""The text-only chat adversary behind a real HTTP server."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import chat_endpoint
import numpy as np
import pytest
from chat_endpoint import ChatEndpoint, serving
from small_models import smollm

from scale_vqa_eval.audit.chat import chat_probe, chat_probes
from scale_vqa_eval.audit.probe import credit
from scale_vqa_eval.llm import ChatSettings
from scale_vqa_eval.questions import Question


def quick(**changes: Any) -> ChatSettings:
    return ChatSettings(**{"retries": 2, "timeout": 5.0, "concurrency": 4, **changes})


def questions(count: int, options: int = 4) -> list[Question]:
    texts = ["a gland", "a vessel", "a nerve", "a fold", "a crypt"][:options]
    return [
        Question(
            f"q{number}", f"What lies in field {number}?", tuple(texts), number % options, slide=f"s{number // 2}"
        )
        for number in range(count)
    ]


def test_several_models_share_one_budget_and_one_cache(tmp_path: Path) -> None:
    items, sampling = questions(30), {"max_tokens": 10}
    with serving(ChatEndpoint(lambda body: "<answer>A</answer>")) as server:
        # a call costs 0.1 for its answer and nothing for its prompt: 45 calls for two models
        settings = quick(sampling=sampling, prices=(0.0, 10_000.0), budget=4.55, concurrency=1)
        first, second = chat_probes(items, server.url, ["m", "n"], tmp_path / "c", settings, progress=False)
        made = len(server.bodies)
        again = chat_probes(items, server.url, ["m", "n"], tmp_path / "c", settings, progress=False)
    assert first.result is not None and first.report["stopped"] is None
    assert second.result is None and "budget" in second.report["stopped"]
    assert [audit.report["spending"]["calls"] for audit in (first, second)] == [30, 15]
    assert made == len(server.bodies) == 45
    assert [audit.report["spending"]["calls"] for audit in again] == [30, 15]


def test_a_model_that_reads_the_gold_is_right_under_every_rotation(tmp_path: Path) -> None:
    items = questions(10)
    gold = {question.question: question.options[question.answer] for question in items}

    def oracle(body: Mapping[str, Any]) -> str:
        asked_lines = body["messages"][-1]["content"].splitlines()
        letter = next(line[0] for line in asked_lines[1:] if line[3:] == gold[asked_lines[0]])
        return f"<think>I know.</think> <answer>{letter}</answer>"

    with serving(ChatEndpoint(oracle)) as server:
        audit = chat_probe(items, server.url, "m", tmp_path / "c.jsonl", quick(), repeats=4, progress=False)
    assert audit.result is not None
    assert credit(audit.result, items).mean() == 1.0
    assert audit.report["accuracy_by_repeat"] == [1.0] * 4
    preview = {body["messages"][-1]["content"].splitlines()[1] for body in server.bodies}
    assert preview == {"A. a gland", "A. a vessel", "A. a nerve", "A. a fold"}


def test_a_preference_for_a_letter_gains_nothing_from_rotated_repeats(tmp_path: Path) -> None:
    items = [question for question in questions(12) if question.answer == 0]
    with serving(ChatEndpoint(lambda body: "<think></think><answer>A</answer>")) as server:
        audit = chat_probe(items, server.url, "m", tmp_path / "c.jsonl", quick(), repeats=4, progress=False)
    assert audit.result is not None
    assert credit(audit.result, items).mean() == pytest.approx(0.25)


def test_what_cannot_be_read_is_wrong_and_counted(tmp_path: Path) -> None:
    items = questions(8, options=5)
    texts = itertools.cycle(["<answer>A</answer>", "I think A.", "<answer>Z</answer>", ""])
    with serving(ChatEndpoint(lambda body: next(texts))) as server:
        server.problems = {7: chat_endpoint.refuse(400, "refused")}
        audit = chat_probe(items, server.url, "m", tmp_path / "c.jsonl", quick(concurrency=1), progress=False)
    assert audit.result is not None
    assert audit.report["unparsed"] == {"blank": 1, "no_answer": 2, "not_an_option": 2}
    assert sum(audit.report["failed"].values()) == 1
    assert "6 of 8" in audit.result.note
    assert credit(audit.result, items).tolist() == [1.0, 0, 0, 0, 0, 0, 0, 0]
    assert audit.result.probabilities().sum(axis=1) == pytest.approx(np.ones(8))


def test_a_stopped_run_gives_no_result(tmp_path: Path) -> None:
    with serving(ChatEndpoint(lambda body: "<answer>A</answer>")) as server:
        audit = chat_probe(questions(9), server.url, "m", tmp_path / "c", quick(max_calls=4), progress=False)
    assert audit.result is None
    assert "limit of 4 calls" in audit.report["stopped"]


@pytest.mark.slow
def test_a_real_model_behind_the_endpoint(tmp_path: Path) -> None:
    """SmolLM2 answers with the letter that it finds likeliest; the probe's scores are that model's picks."""
    import torch

    lm = smollm()
    items = questions(4)
    letters = [lm.tokenizer(f" {letter}")["input_ids"][-1] for letter in "ABCD"]
    picked: list[str] = []

    def likeliest_letter(body: Mapping[str, Any]) -> str:
        ids = lm.tokenizer(body["messages"][-1]["content"] + "\nAnswer:", return_tensors="pt")
        with torch.inference_mode():
            picked.append("ABCD"[int(lm.model(**ids).logits[0, -1, letters].argmax())])
        return f"<think></think> <answer>{picked[-1]}</answer>"

    with serving(ChatEndpoint(likeliest_letter)) as server:
        settings = quick(concurrency=1, timeout=300.0)
        audit = chat_probe(items, server.url, "SmolLM2", tmp_path / "c.jsonl", settings, progress=False)
        again = chat_probe(items, server.url, "SmolLM2", tmp_path / "c.jsonl", settings, progress=False)
    assert audit.result is not None and again.result is not None
    assert ["ABCD"[index] for index in audit.result.scores.argmax(axis=1)] == picked
    assert again.result.scores.tolist() == audit.result.scores.tolist()
    assert again.report["cached"] == len(server.bodies) == 4
    expected = np.mean([letter == item.letter for letter, item in zip(picked, items, strict=True)])
    assert audit.report["accuracy_by_repeat"] == [pytest.approx(expected)]
