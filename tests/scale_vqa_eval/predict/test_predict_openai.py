"""Predictions from a server that drops, delays, garbles and refuses: nothing lost, nothing twice."""

from __future__ import annotations

import base64
import io
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from chat_server import MODEL, Server, Trouble, chat_server, expected_response
from click.testing import CliRunner, Result
from PIL import Image
from predict_release import make_release

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.predict import images as resolution
from scale_vqa_eval.predict.backend import InferenceConfig, Sampling, failures_path
from scale_vqa_eval.predict.command import predict
from scale_vqa_eval.predict.images import Bounds
from scale_vqa_eval.predict.prompts import load_prompt
from scale_vqa_eval.predict.requests import read_visual_questions, requests_by_path
from scale_vqa_eval.scoring.command import score
from scale_vqa_eval.scoring.predictions import read_predictions


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_release(tmp_path_factory.mktemp("data") / "scale-vqa")


def arguments(release: Path, server: Server | str, out: Path, *more: str) -> list[str]:
    url = server if isinstance(server, str) else server.url
    named = {"--data": str(release), "--split": "test", "--backend": "openai", "--model": MODEL, "--out": str(out)}
    return [*(part for pair in named.items() for part in pair), "--base-url", url, *more]


def call(release: Path, server: Server | str, out: Path, *more: str) -> Result:
    return CliRunner().invoke(predict, arguments(release, server, out, *more), standalone_mode=False)


def expected(release: Path, config: str | None = None) -> dict[str, str]:
    items, store = read_visual_questions(str(release), "test", config, None, blind=False)
    job = InferenceConfig(MODEL, load_prompt("published"), Sampling(4096), Bounds(), store)
    asks = [ask for path in requests_by_path(items, circular=False) for ask in path]
    return {ask.item.question.id: expected_response(job.server_messages(ask)) for ask in asks}


def responses(out: Path) -> dict[str, str | None]:
    return {row.id: row.response for row in read_predictions(out).rows}


@pytest.mark.slow
def test_nothing_is_lost_or_twice_behind_a_bad_line(release: Path, tmp_path: Path) -> None:
    trouble = Trouble(drop=0.15, garble=0.1, cut=0.1, refuse=0.1, delay=0.05, seed=5)
    with chat_server(trouble) as server:
        result = call(release, server, tmp_path / "p.jsonl", "--retries", "8", "--timeout", "1")
        assert result.return_value == 0, result.output
        assert len(server.asked) > 35  # 30 questions, the check, and what went wrong
    assert responses(tmp_path / "p.jsonl") == expected(release)
    assert not failures_path(tmp_path / "p.jsonl").exists()


def test_what_stays_unanswered_is_named_and_retried_alone(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    with chat_server(Trouble(drop=0.35, seed=1)) as server:
        # the check may be dropped too: then nothing has begun, and the same command is given again
        for _ in range(20):
            result = call(release, server, out, "--retries", "0")
            if result.exception is None:
                break
        failed = [json.loads(line) for line in failures_path(out).read_text().splitlines()]
        assert result.return_value == 1 and 0 < len(failed) < 30
        assert all("connection" in record["reason"] for record in failed)
        server.trouble.drop = 0
        before = len(server.asked)
        assert call(release, server, out).return_value == 1
        assert len(server.asked) == before, "without --retry-failed nothing failed is asked again"
        assert call(release, server, out, "--retry-failed").return_value == 0
        assert len(server.asked) == before + 1 + len(failed)
    assert responses(out) == expected(release)


def test_a_question_that_is_too_long_fails_alone_and_can_be_given_up(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    with chat_server(Trouble(refuse_text="field 4, question 2")) as server:
        result = call(release, server, out)
        assert result.return_value == 1 and "maximum context length" in result.stderr
        assert len(read_predictions(out).rows) == 29
        early = call(release, server, tmp_path / "early.jsonl", "--limit", "25", "--give-up", "--concurrency", "1")
        assert "failures are written once all" in early.stderr and early.return_value == 1
        call(release, server, out, "--give-up")
    rows = [row for row in read_predictions(out).rows if row.response is None]
    assert len(rows) == 1 and "maximum context length" in (rows[0].error or "")


@pytest.mark.slow
def test_a_killed_run_goes_on(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    with chat_server(Trouble(latency=0.4)) as server:
        command = [
            sys.executable,
            "-m",
            "scale_vqa_eval.cli",
            "predict",
            *arguments(release, server, out, "--concurrency", "3"),
        ]
        kept = 0
        for stop in (signal.SIGKILL, signal.SIGINT):
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            while process.poll() is None and (out.read_bytes().count(b"\n") if out.exists() else 0) < kept + 7:
                time.sleep(0.005)
            process.send_signal(stop)
            process.wait(60)
            assert kept < out.read_bytes().count(b"\n") < 30
            kept = out.read_bytes().count(b"\n")
        asked = len(server.asked)
        assert call(release, server, out).return_value == 0
        assert len(server.asked) - asked <= 30 - kept + 1 + 1  # a torn line, and the check
    assert responses(out) == expected(release)


def test_the_first_question_of_a_path_goes_alone_and_the_others_follow_it(release: Path, tmp_path: Path) -> None:
    with chat_server(Trouble(latency=0.03)) as server:
        assert call(release, server, tmp_path / "p.jsonl", "--concurrency", "4").return_value == 0
        assert 1 < server.most_in_flight <= 4
    asked = [
        [part for part in body["messages"][-1]["content"] if part["type"] == "image_url"] for body in server.asked[1:]
    ]
    bodies = [body["messages"][-1]["content"] for body in server.asked[1:]]
    assert all(
        body[-1]["type"] == "text" and all(part["type"] == "image_url" for part in body[:-1]) for body in bodies
    )
    paths = [json.dumps(images) for images in asked]
    places = {path: [place for place, other in enumerate(paths) if other == path] for path in paths}
    assert all(len(found) == 5 for found in places.values())
    # followers come before new paths: with 4 places a path is over within the turns of its rivals
    assert max(found[-1] - found[0] for found in places.values()) <= 20


def test_a_server_that_goes_away_ends_the_run_and_its_questions_are_asked_later(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scale_vqa_eval.predict.openai_backend.MAX_UNREACHABLE", 5)
    out = tmp_path / "p.jsonl"
    with chat_server() as server:
        assert call(release, server, out, "--limit", "10").return_value == 0
        call(release, server, out, "--limit", "3")
        original = server.trouble
        real_check = "scale_vqa_eval.predict.openai_backend.OpenAIBackend.check"
        with monkeypatch.context() as patch:
            patch.setattr(real_check, lambda *_: [])
            original.dead = True
            result = call(release, server, out, "--retries", "0", "--concurrency", "2")
        assert isinstance(result.exception, InputError) and "in a row" in str(result.exception)
        assert len(read_predictions(out).rows) == 13 and not failures_path(out).exists()
        original.dead = False
        assert call(release, server, out).return_value == 0
    assert responses(out) == expected(release)


def test_each_image_is_encoded_once_for_the_questions_of_its_path(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[bytes] = []
    encode = resolution.data_uri

    def counted(content: bytes, *more: Any) -> str:
        encoded.append(content)
        return encode(content, *more)

    monkeypatch.setattr(resolution, "data_uri", counted)
    with chat_server() as server:
        assert call(release, server, tmp_path / "p.jsonl", "--max-pixels", "5000").return_value == 0
    assert len(encoded) == len(set(encoded)) == 6 * 3 - 2


def test_a_disk_that_is_full_ends_the_run_with_one_error(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with chat_server() as server:
            result = call(release, server, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(result.exception, InputError) and "free disk space" in str(result.exception)
    with chat_server() as server:
        assert call(release, server, out).return_value == 0
        assert len(server.asked) < 30
    assert responses(out) == expected(release)


@pytest.mark.parametrize(
    ("trouble", "more", "message"),
    [
        (Trouble(most_images=2), (), "At most 2 image.*limit-mm-per-prompt"),
        (Trouble(images=False), (), "not a multimodal model.*accepts images, or use --ablate blind"),
        (Trouble(context=350), ("--max-tokens", "100"), "at most 350 tokens.*307 of the prompt and 100"),
        (Trouble(), ("--split", "val"), "a split that it has"),
        (Trouble(dead=True), ("--retries", "0"), "start the server"),
        (Trouble(key="right"), (), "401.*put the server's key into .OPENAI_API_KEY"),
        (Trouble(hosted=True), (), "give --option max_completion_tokens=N"),
        (Trouble(hosted=True), ("--option", "max_completion_tokens=900"), "with --option, such as temperature=1"),
    ],
)
def test_what_cannot_work_is_one_error_before_any_work(
    release: Path, tmp_path: Path, trouble: Trouble, more: tuple[str, ...], message: str
) -> None:
    with chat_server(trouble) as server:
        result = call(release, server, tmp_path / "p.jsonl", *more)
        assert isinstance(result.exception, InputError)
        assert len(result.exception.problems) == 1
        with pytest.raises(InputError, match=message):
            raise result.exception
        assert len(server.asked) <= 1
    assert not list(tmp_path.glob("*.jsonl"))


def body_of(release: Path, tmp_path: Path, *more: str) -> list[dict[str, Any]]:
    with chat_server() as server:
        result = call(release, server, tmp_path / f"{len(more)}.jsonl", "--limit", "2", *more)
        assert result.return_value == 0, (result.output, result.exception)
        return server.asked[1:]


def test_sampling_and_structure_reach_the_server(release: Path, tmp_path: Path) -> None:
    greedy = body_of(release, tmp_path)[0]
    assert greedy["temperature"] == 0 and "seed" not in greedy and greedy["max_tokens"] == 4096
    drawn = body_of(release, tmp_path, "--n", "3", "--temperature", "0.7", "--seed", "5", "--option", "top_k=7")
    assert [body["seed"] for body in drawn] == [5, 6, 7] * 2 and drawn[0]["top_k"] == 7
    rows = [json.loads(line) for line in (tmp_path / "8.jsonl").read_text().splitlines()]
    assert all(len(row["responses"]) == 3 and row["response"] in row["responses"] for row in rows)
    chosen = body_of(release, tmp_path, "--structured", "--prompt", "letter-only")[0]
    assert chosen["structured_outputs"]["choice"] == [f"<answer>{letter}</answer>" for letter in "ABCD"]


def test_a_hosted_model_that_reasons_unseen_is_asked_in_its_own_fields(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "right")
    fields = ("--option", "max_completion_tokens=900", "--option", "temperature=1", "--key-variable", "MY_KEY")
    with chat_server(Trouble(hosted=True, key="right")) as server:
        assert call(release, server, tmp_path / "p.jsonl", *fields).return_value == 0
    assert responses(tmp_path / "p.jsonl") == expected(release)


def test_blind_differs_by_the_images_alone(release: Path, tmp_path: Path) -> None:
    seen = body_of(release, tmp_path)[0]["messages"]
    blind = body_of(release, tmp_path, "--ablate", "blind")[0]["messages"]
    assert [part for part in seen[1]["content"] if part["type"] == "text"] == blind[1]["content"]
    assert seen[0] == blind[0]


def test_guess_is_blind_with_a_prompt_that_says_so(release: Path, tmp_path: Path) -> None:
    blind = body_of(release, tmp_path, "--ablate", "blind")[0]["messages"]
    guess = body_of(release, tmp_path, "--ablate", "guess", "--n", "1")[0]["messages"]
    told = guess[1]["content"][0]["text"]
    assert len(guess[1]["content"]) == 1 and guess[0] == blind[0]
    assert told.startswith(blind[1]["content"][0]["text"]) and told.endswith("always choose one.")
    heads = [
        json.loads((tmp_path / name).read_text().splitlines()[0])["provenance"] for name in ("2.jsonl", "4.jsonl")
    ]
    assert [head["ablation"] for head in heads] == ["blind", "guess"]
    assert [head["prompt_id"] for head in heads] == ["think-answer@1", "think-answer-guess@1"]
    assert heads[0]["prompt_hash"] != heads[1]["prompt_hash"] and heads[1]["images_hash"] is None


def test_blank_shows_uniform_images_of_the_same_sizes(release: Path, tmp_path: Path) -> None:
    def images(body: dict[str, Any]) -> list[Image.Image]:
        parts = [part for part in body["messages"][1]["content"] if part["type"] == "image_url"]
        return [Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].split(",")[1]))) for part in parts]

    seen, blank = body_of(release, tmp_path)[0], body_of(release, tmp_path, "--ablate", "blank")[0]
    assert [image.size for image in images(blank)] == [image.size for image in images(seen)]
    assert {image.getextrema() for image in images(blank)} == {((128, 128),) * 3}
    assert seen["messages"][1]["content"][-1] == blank["messages"][1]["content"][-1]
    heads = [
        json.loads((tmp_path / name).read_text().splitlines()[0])["provenance"] for name in ("0.jsonl", "2.jsonl")
    ]
    assert [head["ablation"] for head in heads] == [None, "blank"]
    assert heads[0]["images_hash"] == heads[1]["images_hash"], "the images that were taken away are still named"


def test_circular_asks_every_turn_and_is_scored(release: Path, tmp_path: Path) -> None:
    out, results = tmp_path / "p.jsonl", tmp_path / "results.json"
    with chat_server() as server:
        assert call(release, server, out, "--ablate", "circular").return_value == 0
        assert len(server.asked) == 1 + 4 * 30
    scored = CliRunner().invoke(score, [str(out), "--data", str(release), "--json", str(results)])
    assert scored.exit_code == 0, scored.output
    figures = json.loads(results.read_text())
    assert figures["circular"]["n"] == 30 and figures["circular"]["accuracy"] <= figures["accuracy"]


def test_the_same_command_twice_gives_the_same_bytes(release: Path, tmp_path: Path) -> None:
    with chat_server() as server:
        for name in "ab":
            call(release, server, tmp_path / name, "--config", "grounding")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert responses(tmp_path / "a") == expected(release, "grounding")
