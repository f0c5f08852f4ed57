"""The check before a run refuses only what the run cannot survive; everything else is a warning."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import MODEL, Trouble, chat_server, expected_response
from click.testing import CliRunner, Result
from predict_release import make_release

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.predict.command import predict
from scale_vqa_eval.scoring.predictions import read_predictions

Script = Callable[[dict[str, Any], str], tuple[int, Any] | None]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_release(tmp_path_factory.mktemp("data") / "scale-vqa", paths=2)


def call(release: Path, out: Path, url: str, *more: str) -> Result:
    named = {"--data": str(release), "--split": "test", "--backend": "openai", "--model": MODEL, "--out": str(out)}
    fixed = [part for pair in named.items() for part in pair]
    return CliRunner().invoke(predict, [*fixed, "--base-url", url, "--retries", "0", *more], standalone_mode=False)


def error(status: int, message: str, **more: Any) -> tuple[int, Any]:
    return status, {"error": {"message": message, **more}}


def limit_of(body: dict[str, Any]) -> int:
    return int(body.get("max_completion_tokens", body.get("max_tokens", 10**6)))


def filtered(body: dict[str, Any], path: str) -> tuple[int, Any] | None:
    return error(400, "The prompt triggered the content management policy.", code="content_filter") if body else None


def filtered_by_moderation(body: dict[str, Any], path: str) -> tuple[int, Any] | None:
    return error(403, "Your input was flagged by the moderation of the provider") if body else None


def needs_16_tokens(body: dict[str, Any], path: str) -> tuple[int, Any] | None:
    message = "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got 1 instead."
    return error(400, message, code="integer_below_min_value") if body and limit_of(body) < 16 else None


def needs_more_tokens_in_other_words(body: dict[str, Any], path: str) -> tuple[int, Any] | None:
    return error(422, "max_tokens must be at least 2 tokens") if body and limit_of(body) < 2 else None


def needs_more_completion_tokens(body: dict[str, Any], path: str) -> tuple[int, Any] | None:
    return error(400, "max_completion_tokens must be at least 16") if body and limit_of(body) < 16 else None


def one_strange_error(body: dict[str, Any], path: str) -> tuple[int, Any] | None:
    """The question with most and largest images alone meets an error that nobody knows."""
    images = sum(part["type"] == "image_url" for part in body["messages"][-1]["content"]) if body else 0
    return error(400, "internal tensor mismatch") if images == 3 and "question 2" in json.dumps(body) else None


@pytest.mark.parametrize(
    ("models", "note"),
    [
        (("base-model-1", "base-model-2"), "base-model-1, base-model-2 and not 'test-model'"),
        ((f"{MODEL}:latest",), None),
        ((), None),
    ],
)
def test_a_model_that_the_server_does_not_list_is_asked(
    release: Path, tmp_path: Path, models: tuple[str, ...], note: str | None
) -> None:
    with chat_server(Trouble(models=models)) as server:
        result = call(release, tmp_path / "p.jsonl", server.url)
    assert result.return_value == 0
    assert ("warning" in result.stderr) == (note is not None)
    assert note is None or note in result.stderr


@pytest.mark.parametrize("script", [needs_16_tokens, needs_more_tokens_in_other_words])
def test_a_provider_with_a_minimum_of_output_tokens_is_asked_for_a_whole_answer(
    release: Path, tmp_path: Path, script: Script
) -> None:
    with chat_server(Trouble(script=script)) as server:
        assert call(release, tmp_path / "p.jsonl", server.url, "--max-tokens", "1024").return_value == 0
    with chat_server(Trouble(script=needs_more_completion_tokens)) as server:
        fields = ("--option", "max_completion_tokens=900")
        assert call(release, tmp_path / "c.jsonl", server.url, *fields).return_value == 0
    with chat_server(Trouble(script=needs_16_tokens)) as server:
        result = call(release, tmp_path / "q.jsonl", server.url, "--max-tokens", "8")
    assert isinstance(result.exception, InputError)
    assert result.exception.problems[0].hint == "give more --max-tokens"


@pytest.mark.parametrize("script", [filtered, filtered_by_moderation])
def test_questions_that_are_filtered_fail_and_the_run_does_not(release: Path, tmp_path: Path, script: Script) -> None:
    with chat_server(Trouble(script=script)) as server:
        result = call(release, tmp_path / "p.jsonl", server.url)
    assert result.return_value == 1 and "warning: the check" in result.stderr
    failed = [json.loads(line) for line in (tmp_path / "p.jsonl.failures.jsonl").read_text().splitlines()]
    assert len(failed) == 10 and all("status 40" in record["reason"] for record in failed)


def test_an_error_of_the_largest_question_alone_is_a_warning(release: Path, tmp_path: Path) -> None:
    with chat_server(Trouble(script=one_strange_error)) as server:
        result = call(release, tmp_path / "p.jsonl", server.url)
    assert result.return_value == 1
    assert len(read_predictions(tmp_path / "p.jsonl").rows) == 8
    with chat_server(Trouble(script=lambda body, path: error(400, "internal tensor mismatch") if body else None)) as s:
        result = call(release, tmp_path / "q.jsonl", s.url)
    assert isinstance(result.exception, InputError), "what two different questions meet, all would meet"


def only_v1(body: dict[str, Any], path: str) -> tuple[int, Any] | None:
    return None if path.startswith("/v1/") else (404, b"404 page not found")


def only_v1_html(body: dict[str, Any], path: str) -> tuple[int, Any] | None:
    return None if path.startswith("/v1/") else (200, b"<!doctype html><title>Welcome</title>")


def streams_only(body: dict[str, Any], path: str) -> tuple[int, Any] | None:
    if not body:
        return None
    if not body.get("stream"):
        return error(400, "This model only support stream mode, please enable the stream parameter.")
    text = expected_response(body["messages"])
    parts = [{"role": "assistant", "content": text[:9]}, {"content": text[9:]}, {}]
    chunks = [{"choices": [{"index": 0, "delta": part, "finish_reason": None}]} for part in parts]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    lines = [": keep-alive", *(f"data: {json.dumps(chunk)}" for chunk in chunks), "data: [DONE]"]
    return 200, "\n\n".join(lines).encode()


@pytest.mark.parametrize("script", [only_v1, only_v1_html])
def test_an_address_without_v1_is_named(release: Path, tmp_path: Path, script: Script) -> None:
    with chat_server(Trouble(script=script)) as server:
        result = call(release, tmp_path / "p.jsonl", server.url.removesuffix("/v1"))
        assert isinstance(result.exception, InputError) and "/v1" in result.exception.problems[0].hint
        assert call(release, tmp_path / "p.jsonl", server.url).return_value == 0
        result = call(release, tmp_path / "q.jsonl", f"{server.url}/chat/completions")
    assert isinstance(result.exception, InputError) and result.exception.problems[0].hint.endswith(server.url)


@pytest.mark.parametrize(
    ("reply", "hint"),
    [
        (error(402, "Insufficient balance"), "add credit"),
        (error(429, "You exceeded your quota", code="insufficient_quota"), "add credit"),
        ((413, b"<html>413 Request Entity Too Large</html>"), "fewer --max-pixels"),
        (error(400, "image exceeds 5 MB maximum"), "fewer --max-pixels"),
        ((200, b"<html>log in</html>"), "--base-url is the address of the API"),
    ],
    ids=["balance", "quota", "request", "image", "page"],
)
def test_the_hint_fits_an_error_of_all_questions(
    release: Path, tmp_path: Path, reply: tuple[int, Any], hint: str
) -> None:
    with chat_server(Trouble(script=lambda body, path: reply if body else None)) as server:
        found = call(release, tmp_path / "p.jsonl", server.url)
    assert isinstance(found.exception, InputError) and hint in str(found.exception)


def test_a_model_that_only_streams_is_named_and_can_be_asked(release: Path, tmp_path: Path) -> None:
    with chat_server(Trouble(script=streams_only)) as server:
        result = call(release, tmp_path / "p.jsonl", server.url)
        assert isinstance(result.exception, InputError)
        assert "--option stream=true" in result.exception.problems[0].hint
        assert call(release, tmp_path / "p.jsonl", server.url, "--option", "stream=true").return_value == 0
    assert all(
        row.response and row.response.endswith("</answer>") for row in read_predictions(tmp_path / "p.jsonl").rows
    )


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "socks://127.0.0.1:9", "nonsense://me:secret-word@h:1"])
def test_a_proxy_that_cannot_be_used_is_named(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setitem(__import__("sys").modules, "socksio", None)
    result = call(release, tmp_path / "p.jsonl", "http://example.test/v1")
    assert isinstance(result.exception, InputError)
    assert "$ALL_PROXY" in result.exception.problems[0].location and "secret-word" not in str(result.exception)


@pytest.mark.parametrize("url", ["http://[::1", "http://host:port/v1", "http://", "file:///v1"])
def test_a_malformed_address_is_one_error(release: Path, tmp_path: Path, url: str) -> None:
    result = call(release, tmp_path / "p.jsonl", url)
    assert isinstance(result.exception, InputError) and len(result.exception.problems) == 1


def test_a_vllm_server_does_not_sample_by_the_generation_config_of_the_model(release: Path, tmp_path: Path) -> None:
    def vllm(body: dict[str, Any], path: str) -> tuple[int, Any] | None:
        return None if body else (200, {"data": [{"id": MODEL, "owned_by": "vllm"}]})

    with chat_server(Trouble(script=vllm)) as server:
        assert call(release, tmp_path / "p.jsonl", server.url, "--option", "top_k=7").return_value == 0
        assert {(body["repetition_penalty"], body["top_k"], body["min_p"]) for body in server.asked} == {(1.0, 7, 0.0)}
