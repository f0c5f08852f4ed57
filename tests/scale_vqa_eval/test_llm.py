"""The client for chat servers against a real HTTP server: asked once, resumed, within limits, its key kept secret."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import chat_endpoint
import numpy as np
import pytest
from chat_endpoint import ChatEndpoint, serving

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.llm import ChatRequest, ChatSettings, LLMClient, endpoint_name
from scale_vqa_eval.store import Journal

SECRET = "sk-test-0123456789abcdef"


def asked(count: int) -> list[ChatRequest]:
    return [
        ChatRequest(({"role": "user", "content": f"question {number}"},), f"id {number}") for number in range(count)
    ]


def echo(body: Mapping[str, Any]) -> str:
    return "to " + body["messages"][-1]["content"]


def quick(**changes: Any) -> ChatSettings:
    return ChatSettings(**{"retries": 2, "timeout": 5.0, "concurrency": 4, **changes})


def test_answers_come_in_order_and_are_asked_once(tmp_path: Path) -> None:
    with serving(ChatEndpoint(echo)) as server:
        requests = [*asked(9), *asked(3)]  # the last three are the first three again
        chat = LLMClient(server.url, "m", tmp_path / "c.jsonl", quick())
        first = chat.complete(requests, progress=False)
        again = LLMClient(server.url, "m", tmp_path / "c.jsonl", quick()).complete(requests, progress=False)
    assert [reply.text for reply in first] == [f"to question {n}" for n in [*range(9), *range(3)]]
    assert [reply.text for reply in again] == [reply.text for reply in first]
    assert not any(reply.cached for reply in first)
    assert all(reply.cached for reply in again)
    assert len(server.bodies) == 9
    assert server.most_busy <= 4
    assert chat.spending.calls == 9
    assert chat.spending.prompt_tokens == 18
    assert chat.spending.completion_tokens == 90


@pytest.mark.parametrize("change", ["model", "sampling", "repeat", "messages"])
def test_whatever_an_answer_depends_on_is_part_of_the_key(tmp_path: Path, change: str) -> None:
    chat = LLMClient("http://localhost/v1", "m", tmp_path / "c")
    request = asked(1)[0]
    other_chat = LLMClient(
        "http://localhost/v1",
        "n" if change == "model" else "m",
        tmp_path / "c",
        ChatSettings(sampling={"temperature": 1.0}) if change == "sampling" else None,
    )
    other = {"repeat": ChatRequest(request.messages, "", 1), "messages": asked(2)[1]}.get(change, request)
    assert chat.key(request) != other_chat.key(other)
    assert chat.key(request) == LLMClient("http://u:p@localhost/v1/", "m", tmp_path / "c").key(request)


@pytest.mark.parametrize(
    ("problem", "wait"),
    [
        (chat_endpoint.refuse(429, "slow down", Retry_After="1"), 1.0),
        (chat_endpoint.refuse(500), 0.2),
        (chat_endpoint.drop, 0.2),
        (lambda handler: time.sleep(3), 2.0),
    ],
    ids=["429 with Retry-After", "500", "connection dropped", "timeout"],
)
def test_a_passing_problem_is_retried_within_the_run(
    tmp_path: Path, problem: chat_endpoint.Problem, wait: float
) -> None:
    with serving(ChatEndpoint(echo)) as server:
        server.problems = {0: problem}
        chat = LLMClient(server.url, "m", tmp_path / "c.jsonl", quick(timeout=2.0))
        (reply,) = chat.complete(asked(1), progress=False)
    assert reply.text == "to question 0"
    assert len(server.bodies) == chat.sent == 2
    assert set(server.keys.values()) == {2}, "a retry carries the idempotency key of the first try"
    assert server.times[1] - server.times[0] >= wait


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (chat_endpoint.malformed, "malformed reply"),
        (lambda h: chat_endpoint.send_json(h, 200, {"choices": []}), "malformed reply"),
        (lambda h: chat_endpoint.send_json(h, 200, ["no", "object"]), "malformed reply"),
        (lambda h: chat_endpoint.send(h, 200, b"<html>", Content_Type="text/html"), "malformed reply"),
        (chat_endpoint.refuse(400, "content policy"), "status 400: .*content policy"),
        (chat_endpoint.refuse(500, "down"), "status 500"),
        (chat_endpoint.drop, "connection"),
        (lambda handler: time.sleep(1), "timeout"),
    ],
    ids=["half JSON", "no choice", "a list", "html", "refused", "500 for good", "dropped", "timeout"],
)
def test_a_failed_call_is_kept_with_its_reason_and_made_again_next_time(
    tmp_path: Path, problem: chat_endpoint.Problem, reason: str
) -> None:
    with serving(ChatEndpoint(echo)) as server:
        server.problems = {0: problem}
        settings = quick(retries=0, timeout=0.5)
        (failed,) = LLMClient(server.url, "m", tmp_path / "c.jsonl", settings).complete(asked(1), progress=False)
        assert failed.text is None
        with Journal(tmp_path / "c.jsonl") as journal:
            assert [record["failure"] for record in journal.records] == [failed.failure]
        (again,) = LLMClient(server.url, "m", tmp_path / "c.jsonl", settings).complete(asked(1), progress=False)
    assert again.text == "to question 0"
    assert re.match(reason, failed.failure or "")


def test_a_wrong_key_stops_the_run_at_once_and_the_key_is_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    with serving(ChatEndpoint(echo)) as server:
        server.problems = dict.fromkeys(range(50), chat_endpoint.refuse(401, f"Incorrect API key provided: {SECRET}."))
        chat = LLMClient(server.url, "m", tmp_path / "c.jsonl", quick(api_key_env="MY_KEY"))
        with pytest.raises(InputError, match="401"):
            chat.complete(asked(50))
    assert server.authorisations == {f"Bearer {SECRET}"}
    assert len(server.bodies) <= 4
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err + (tmp_path / "c.jsonl").read_text()


def test_an_endpoint_that_is_down_is_given_up_after_some_calls(tmp_path: Path) -> None:
    chat = LLMClient("http://127.0.0.1:9/v1", "m", tmp_path / "c.jsonl", quick(retries=0))
    replies = chat.complete(asked(60), progress=False)
    assert chat.stopped is not None
    assert "in a row failed" in chat.stopped
    assert 20 <= chat.spending.failed < 30
    assert all(reply.failure for reply in replies)


CHILD = """
import sys
from scale_vqa_eval.llm import LLMClient, ChatRequest, ChatSettings
requests = [ChatRequest(({"role": "user", "content": f"question {n}"},), f"id {n}") for n in range(40)]
LLMClient(sys.argv[1], "m", sys.argv[2], ChatSettings(concurrency=4)).complete(requests)
"""


def child(server: ChatEndpoint, cache: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, server.url, str(cache)], stderr=subprocess.PIPE)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the other process did not come so far"
        time.sleep(0.01)


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []


def test_a_kill_costs_the_calls_in_flight_and_no_answer_is_paid_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "c.jsonl"
    with serving(ChatEndpoint(echo)) as server:
        server.delay = 0.1
        for stop_at in (6, 17):
            process = child(server, cache)
            wait_for(lambda at=stop_at: len(lines(cache)) >= at)  # type: ignore[misc]
            process.kill()
            process.communicate()
            with cache.open("ab") as file:
                file.write(b'{"key": "torn by the ki')
        kept = {json.loads(line)["key"] for line in lines(cache)[:-1]}
        seen = server.keys.copy()
        replies = LLMClient(server.url, "m", cache, quick()).complete(asked(40), progress=False)
    assert len(kept) >= 17
    assert "torn (23 bytes)" in capsys.readouterr().err
    assert [reply.text for reply in replies] == [f"to question {n}" for n in range(40)]
    assert all(server.keys[key] == seen[key] for key in kept), "an answer on disk was asked for again"
    assert len(server.keys) == 40
    assert sum(server.keys.values()) <= 40 + 2 * 4, "more than the calls in flight at the two kills were made again"
    assert len(lines(cache)) == 40


def test_ctrl_c_keeps_the_calls_in_flight_so_that_nothing_at_all_is_paid_twice(tmp_path: Path) -> None:
    cache = tmp_path / "c.jsonl"
    with serving(ChatEndpoint(echo)) as server:
        server.delay = 0.2
        process = child(server, cache)
        wait_for(lambda: len(lines(cache)) >= 5)
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode != 0
        assert len(server.bodies) == len(lines(cache)) < 40
        LLMClient(server.url, "m", cache, quick()).complete(asked(40), progress=False)
    assert set(server.keys.values()) == {1}
    assert len(server.keys) == 40


def test_a_second_process_on_the_same_cache_is_refused(tmp_path: Path) -> None:
    cache = tmp_path / "c.jsonl"
    with serving(ChatEndpoint(echo)) as server:
        server.delay = 0.3
        process = child(server, cache)
        wait_for(lambda: len(lines(cache)) >= 1)
        with pytest.raises(InputError, match="another process"):
            LLMClient(server.url, "m", cache, quick()).complete(asked(2), progress=False)
        process.kill()
        process.communicate()


def test_the_budget_is_never_broken_and_counts_earlier_runs(tmp_path: Path) -> None:
    sampling = {"max_tokens": 20}
    with serving(ChatEndpoint(echo)) as server:
        # 2 prompt tokens at 1000 and 10 answer tokens at 2000 a million: 0.022 a call
        settings = quick(sampling=sampling, prices=(1000.0, 2000.0), budget=0.5)
        chat = LLMClient(server.url, "m", tmp_path / "c.jsonl", settings)
        replies = chat.complete(asked(100), progress=False)
        made = len(server.bodies)
        assert chat.spending.cost == pytest.approx(0.022 * made)
        assert 0.3 < chat.spending.cost <= 0.5
        assert chat.stopped is not None and "budget" in chat.stopped
        assert sum(reply.text is not None for reply in replies) == made
        assert {reply.failure for reply in replies if reply.text is None} == {f"not asked: {chat.stopped}"}
        LLMClient(server.url, "m", tmp_path / "c.jsonl", settings).complete(asked(100), progress=False)
        assert len(server.bodies) == made, "the second run spent a budget of its own"
        more = quick(sampling=sampling, prices=(1000.0, 2000.0), budget=5.0)
        rest = LLMClient(server.url, "m", tmp_path / "c.jsonl", more).complete(asked(100), progress=False)
    assert all(reply.text for reply in rest)
    assert set(server.keys.values()) == {1}


def test_what_others_have_paid_for_in_the_same_cache_is_no_part_of_the_budget(tmp_path: Path) -> None:
    settings = quick(sampling={"max_tokens": 10}, prices=(0.0, 10_000.0), budget=1.05)
    with serving(ChatEndpoint(echo)) as server:
        for start in (0, 10, 20):
            chat = LLMClient(server.url, "m", tmp_path / "c", settings)
            assert all(reply.text for reply in chat.complete(asked(30)[start : start + 10], progress=False))
            assert chat.spending.cost == pytest.approx(1.0)


def test_the_limit_of_calls_is_kept(tmp_path: Path) -> None:
    with serving(ChatEndpoint(echo)) as server:
        chat = LLMClient(server.url, "m", tmp_path / "c.jsonl", quick(max_calls=7))
        replies = chat.complete(asked(20), progress=False)
    assert len(server.bodies) == sum(reply.text is not None for reply in replies) == 7


def test_requests_keep_to_the_pace_retries_included(tmp_path: Path) -> None:
    with serving(ChatEndpoint(echo)) as server:
        server.problems = {1: chat_endpoint.refuse(500)}
        LLMClient(server.url, "m", tmp_path / "c.jsonl", quick(per_minute=300)).complete(asked(5), progress=False)
    gaps = np.diff(sorted(server.times))
    assert len(server.times) == 6
    assert gaps.mean() >= 0.19


def test_prices_and_limits_that_make_no_sense_are_refused() -> None:
    for wrong in ({"concurrency": 0}, {"per_minute": -1}, {"budget": 1.0}):
        with pytest.raises(InputError):
            ChatSettings(**wrong)
    with pytest.raises(InputError, match="max_tokens"):
        ChatSettings(budget=1.0, prices=(1, 1), sampling={})


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://", "http://h/v1?api_key=secret-key"])
def test_an_address_that_is_none_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(InputError) as raised:
        endpoint_name(url)
    assert "secret-key" not in str(raised.value)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"key": "a", "failure": null}\nnot json\n{"key": "b", "failure": null}\n')
    with pytest.raises(InputError, match="line 2"):
        LLMClient("http://localhost/v1", "m", path).complete(asked(1))
    assert len(lines(path)) == 3, "a refused file is left as it is"


def test_a_full_disk_is_one_error_and_answers_so_far_are_kept(tmp_path: Path) -> None:
    cache = tmp_path / "c.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving(ChatEndpoint(echo)) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
        try:
            with pytest.raises(InputError, match="free disk space") as raised:
                LLMClient(server.url, "m", cache, quick()).complete(asked(40), progress=False)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert len(raised.value.problems) == 1
        replies = LLMClient(server.url, "m", cache, quick()).complete(asked(40), progress=False)
    assert [reply.text for reply in replies] == [f"to question {n}" for n in range(40)]
