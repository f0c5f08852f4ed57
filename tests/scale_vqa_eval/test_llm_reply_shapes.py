"""The shapes in which servers reply: typed parts, thoughts, refusals, errors with status 200, streams."""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from chat_endpoint import ChatEndpoint, refuse, send, serving

from scale_vqa_eval.chat_replies import read_reply
from scale_vqa_eval.llm import ChatRequest, ChatSettings, LLMClient
from scale_vqa_eval.text import restore_thoughts

ANSWER = "<answer>B</answer>"


def reply(message: Any, finish: Any = "stop", **more: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish}], **more}).encode()


def thinking(text: Any) -> list[dict[str, Any]]:
    return [{"type": "thinking", "thinking": text}, {"type": "text", "text": ANSWER}]


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": ANSWER}, ANSWER, None),
        ({"content": ""}, "", None),
        ({"content": [{"type": "text", "text": "<answer>"}, {"type": "text", "text": "B</answer>"}]}, ANSWER, None),
        ({"content": [{"type": "output_text", "text": ANSWER}]}, ANSWER, None),
        ({"content": ["<answer>B", "</answer>"]}, ANSWER, None),
        ({"content": thinking([{"type": "text", "text": "glands"}])}, ANSWER, "glands"),
        ({"content": thinking("glands")}, ANSWER, "glands"),
        ({"content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": ANSWER}]}, ANSWER, None),
        (
            {"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "glands"}]}, ANSWER]},
            ANSWER,
            "glands",
        ),
        ({"content": {"type": "text", "text": ANSWER}}, ANSWER, None),
        ({"content": ANSWER, "reasoning_content": "glands"}, ANSWER, "glands"),
        ({"content": ANSWER, "reasoning": "glands"}, ANSWER, "glands"),
        ({"content": ANSWER, "reasoning_content": None, "reasoning": "glands", "refusal": None}, ANSWER, "glands"),
        ({"content": ANSWER, "reasoning": {"effort": "low"}}, ANSWER, None),
        ({"content": None, "reasoning_content": "glands"}, "", "glands"),
    ],
)
def test_text_and_thoughts_are_found_in_every_shape(message: Any, text: str, reasoning: str | None) -> None:
    found = read_reply(reply(message), 200)
    assert (found.failure, found.text, found.reasoning) == (None, text, reasoning)


@pytest.mark.parametrize(
    ("message", "finish", "reason"),
    [
        ({"content": None}, "content_filter", "refusal: finish reason content_filter"),
        ({"content": "The tissue"}, "content_filter", "refusal: finish reason content_filter"),
        (None, "content_filter", "refusal: finish reason content_filter"),
        ({"content": None, "refusal": "I cannot help."}, "stop", "refusal: I cannot help."),
        ({"content": "", "refusal": "No."}, "stop", "refusal: No."),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "stop", "refusal: No."),
        ({"content": ""}, "SAFETY", "refusal: finish reason SAFETY"),
        ({"content": None}, "stop", "malformed reply: no content"),
        ({"content": None, "tool_calls": [{"id": "1"}]}, "tool_calls", "malformed reply: a tool call"),
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "stop", "malformed reply: the content is"),
        ({"content": 7}, "stop", "malformed reply: the content is not text but a part 7"),
        ({"content": "half of"}, "error", "malformed reply: the generation ended in an error"),
    ],
)
def test_a_refusal_is_a_failure_with_its_reason_and_never_an_answer(message: Any, finish: str, reason: str) -> None:
    found = read_reply(reply(message, finish), 200)
    assert found.text is None and not found.fatal
    assert (found.failure or "").startswith(reason)
    assert found.refused == reason.startswith("refusal")


def test_an_answer_cut_short_before_its_first_word_is_an_answer_that_names_no_letter() -> None:
    found = read_reply(reply({"content": None}, "length"), 200)
    assert (found.failure, found.text, found.finish) == (None, "", "length")


@pytest.mark.parametrize(
    ("content", "status", "failure", "fatal", "refused"),
    [
        (b'{"error": {"message": "upstream overloaded", "code": 502}}', 200, "status 502: upstream", False, False),
        (b'{"error": "no credit"}', 402, "status 402: no credit", True, False),
        (b'{"error": {"message": "quota", "code": "insufficient_quota"}}', 429, "status 429: quota", True, False),
        (b'{"message": "no such route"}', 404, "status 404: no such route", True, False),
        (b'{"detail": [{"msg": "bad"}]}', 422, "status 422", False, False),
        (b"404 page not found", 404, "status 404: 404 page not found", True, False),
        (b"", 500, "status 500", False, False),
        (b'{"error": {"message": "m", "code": "content_filter"}}', 400, "status 400: m (content_filter)", False, True),
        (b'{"error": {"message": "flagged by moderation"}}', 403, "status 403: flagged", False, True),
        (b'{"error": {"message": "risk", "code": "DataInspectionFailed"}}', 400, "status 400: risk", False, True),
        (b'{"error": {"message": "Blocked by guardrail"}}', 400, "status 400: Blocked", False, True),
        (b'{"error": {"message": "for legal reasons"}}', 451, "status 451: for legal", False, True),
        (b'{"choices": []}', 200, "malformed reply", False, False),
        (b'{"choices": [{"error": {"message": "cut", "code": 500}}]}', 200, "status 500: cut", False, False),
        (b'["no", "object"]', 200, "malformed reply", False, False),
        (b"[" * 100_000, 200, "malformed reply", False, False),
        (b'{"choices": [{"mess', 200, "malformed reply", False, False),
        (b"\xff\xfe", 200, "malformed reply", False, False),
    ],
)
def test_errors_are_read_whatever_their_shape(
    content: bytes, status: int, failure: str, fatal: bool, refused: bool
) -> None:
    found = read_reply(content, status)
    assert (found.failure or "").startswith(failure)
    assert (found.fatal, found.refused, found.text) == (fatal, refused, None)


@pytest.mark.parametrize(
    "usage", [None, {}, [], "9", {"prompt_tokens": "9"}, {"prompt_tokens": -1}, {"prompt_tokens": True}]
)
def test_a_usage_that_counts_nothing_is_left_out(usage: Any) -> None:
    found = read_reply(reply({"content": ANSWER}, usage=usage), 200)
    assert (found.failure, found.prompt_tokens) == (None, None)


def stream(*deltas: dict[str, Any], end: str = "data: [DONE]", **last: Any) -> bytes:
    chunks = [{"choices": [{"index": 0, "delta": delta}], "model": "m"} for delta in deltas]
    lines = [": comment", *(f"data: {json.dumps(chunk)}" for chunk in [*chunks, *([last] if last else [])]), end]
    return "\r\n\r\n".join(lines).encode()


def test_a_stream_is_joined_and_one_that_was_cut_is_not_an_answer() -> None:
    assert read_reply(stream({"content": "a\u2028b"}).replace(b"\\u2028", "\u2028".encode()), 200).text == "a\u2028b"
    assert read_reply("\ufeff".encode() + reply({"content": ANSWER}), 200).text == ANSWER
    deltas = {"role": "assistant"}, {"reasoning_content": "gl"}, {"reasoning_content": "ands"}, {"content": ANSWER[:4]}
    found = read_reply(stream(*deltas, {"content": ANSWER[4:]}, usage={"prompt_tokens": 3}, choices=[]), 200)
    assert (found.text, found.reasoning, found.prompt_tokens, found.served) == (ANSWER, "glands", 3, "m")
    assert (read_reply(stream(*deltas, end=""), 200).failure or "").startswith("malformed")
    assert (
        read_reply(stream(*deltas, error={"message": "down", "code": 503}), 200).failure or ""
    ) == "status 503: down"
    for choices in ({"a": 1}, ["x"], [{"delta": "x"}]):
        assert (read_reply(stream(choices=choices), 200).failure or "").startswith("malformed")
    mixed = stream({"content": "a"}, {"content": [{"type": "text", "text": "b"}]})
    assert (read_reply(mixed, 200).failure or "").startswith("malformed")


def test_one_rule_puts_thoughts_in_front_of_the_answer() -> None:
    whole = f"<think>glands</think>\n{ANSWER}"
    assert restore_thoughts(ANSWER, "glands") == whole
    assert restore_thoughts(whole, "glands") == restore_thoughts(whole) == whole, "thoughts are not given twice"
    assert restore_thoughts(f"glands</think>\n{ANSWER}") == whole, "the chat template has opened the block"
    assert restore_thoughts(ANSWER) == restore_thoughts(ANSWER, "  ") == ANSWER
    assert (
        restore_thoughts(f"so <think>x</think> {ANSWER}", "first")
        == f"<think>first</think>\nso <think>x</think> {ANSWER}"
    )


def ask_once(server: ChatEndpoint, path: Path, **settings: Any) -> Any:
    request = ChatRequest(({"role": "user", "content": "q"},), "id")
    client = LLMClient(server.url, "m", path, ChatSettings(**{"retries": 2, "timeout": 5.0, **settings}))
    return client.complete([request], progress=False)[0]


def test_shapes_arrive_over_http_and_a_refusal_is_asked_again_next_time(tmp_path: Path) -> None:
    with serving(ChatEndpoint(lambda body: ANSWER)) as server:
        server.problems = {
            0: lambda handler: send(handler, 200, reply({"content": None}, "content_filter")),
            1: lambda handler: send(handler, 200, stream({"content": ANSWER}), Content_Type="text/event-stream"),
        }
        refused = ask_once(server, tmp_path / "c.jsonl")
        assert (refused.text, refused.failure) == (None, "refusal: finish reason content_filter")
        assert ask_once(server, tmp_path / "c.jsonl").text == ANSWER
        assert len(server.bodies) == 2, "a refusal is not retried within a run"


@pytest.mark.parametrize(
    "header", [{"Retry_After": "1.5"}, {"retry_after_ms": "1500"}, {"Retry_After": "date"}, {"Retry_After": "soon"}]
)
def test_retry_after_is_honoured_in_each_of_its_forms(tmp_path: Path, header: dict[str, str]) -> None:
    sent = {
        name: formatdate(time.time() + 2.5, usegmt=True) if value == "date" else value
        for name, value in header.items()
    }
    with serving(ChatEndpoint(lambda body: ANSWER)) as server:
        server.problems = {0: refuse(429, "slow down", **sent)}
        assert ask_once(server, tmp_path / "c.jsonl").text == ANSWER
    waited = server.times[1] - server.times[0]
    assert waited >= (0.3 if "soon" in header.values() else 1.2)
