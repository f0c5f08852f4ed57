"""An API key is never printed, whole or in part, whatever it looks like and whatever the server says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_endpoint import ChatEndpoint, refuse, serving

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.llm import ChatRequest, ChatSettings, LLMClient, api_key, masked
from scale_vqa_eval.predict.command import _without_secrets

KEYS = [
    "sk-live/0123456789abcdef",
    "abcdEFGH1234/secretpart+more==",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
    "pa55 word",
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "form",
    [
        "Incorrect API key provided: {key}.",
        "Bearer {key}",
        "b'Bearer {key}\\n'",
        "{quoted}",
        "{slashes}",
        "key {start}... was refused",
        "...{end} was refused",
    ],
)
def test_no_part_of_a_key_is_left_in_a_message(key: str, form: str) -> None:
    from urllib.parse import quote

    forms = {"key": key, "quoted": quote(key, safe=""), "slashes": json.dumps(key).replace("/", "\\/")}
    message = form.format(**forms, start=key[:8], end=key[-8:])
    shown = masked(message, key)
    pieces = {key[start : start + 6] for start in range(len(key) - 5)}
    assert "[key]" in shown and not any(piece in shown for piece in pieces)


def test_messages_without_a_key_stay_as_they_are() -> None:
    text = "status 400: the maximum of tokens is 4096, got 5000"
    assert masked(text, "sk-0123456789", "") == masked(text, "none") == text


@pytest.mark.parametrize("value", ["abcdEFGH1234/secretpart\n", "  abcdEFGH1234/secretpart\r\n"])
def test_white_space_around_a_key_is_removed(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MY_KEY", value)
    assert api_key("MY_KEY") == "abcdEFGH1234/secretpart"


@pytest.mark.parametrize("value", ["first-part\nsecond-part", "tab\tinside-of-it", "clé-secrète", "nul\x7f-inside"])
def test_a_key_that_no_header_can_carry_is_named_by_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("MY_KEY", value)
    client = LLMClient("http://127.0.0.1:9/v1", "m", tmp_path / "c.jsonl", ChatSettings(api_key_env="MY_KEY"))
    with pytest.raises(InputError) as raised:
        client.complete([ChatRequest(({"role": "user", "content": "q"},))], progress=False)
    assert raised.value.problems[0].location == "$MY_KEY"
    assert not any(part in str(raised.value) for part in value.split() if len(part) > 5)


def test_a_password_in_the_address_is_used_and_not_shown(tmp_path: Path) -> None:
    with serving(ChatEndpoint(lambda body: "x")) as server:
        server.problems = dict.fromkeys(range(9), refuse(500, "user me with s3cret-word has no access"))
        url = server.url.replace("http://", "http://me:s3cret-word@")
        client = LLMClient(url, "m", tmp_path / "c.jsonl", ChatSettings(retries=0))
        (reply,) = client.complete([ChatRequest(({"role": "user", "content": "q"},))], progress=False)
    assert server.authorisations == {"Basic bWU6czNjcmV0LXdvcmQ="}
    assert "s3cret" not in (reply.failure or "") + (tmp_path / "c.jsonl").read_text()


def test_a_secret_given_as_an_option_is_not_kept_in_the_provenance() -> None:
    options = {
        "token": "hf_abc",
        "max_completion_tokens": 9,
        "extra_headers": {"Authorization": "Bearer abc"},
        "n": [1],
    }
    kept = {"token": "[secret]", "max_completion_tokens": 9, "extra_headers": {"Authorization": "[secret]"}, "n": [1]}
    assert _without_secrets(options) == kept


def test_an_unset_variable_is_named_where_the_server_wants_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with serving(ChatEndpoint(lambda body: "x")) as server:
        server.problems = {0: refuse(401, "no key")}
        client = LLMClient(server.url, "m", tmp_path / "c.jsonl", ChatSettings(api_key_env="MY_KEY"))
        with pytest.raises(InputError, match=r"\$MY_KEY is not set"):
            client.complete([ChatRequest(({"role": "user", "content": "q"},))], progress=False)
