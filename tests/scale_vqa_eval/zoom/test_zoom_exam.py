"""``predict --zoom`` over a server: scripted policies reach what they must, and bad servers and kills lose nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_server import MODEL, Server
from click.testing import CliRunner, Result
from zoom_exam import Examiner, Policy, guess, make_exam, oracle, policy_server, random_walk

from scale_vqa_eval.audit.command import audit
from scale_vqa_eval.predict.command import predict
from scale_vqa_eval.scoring.command import score
from scale_vqa_eval.zoom.environment import Budget
from scale_vqa_eval.zoom.score import zoom

LOOKS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_exam(tmp_path_factory.mktemp("exam"))


def ask(data: Path, server: Server, out: Path, *more: str) -> Result:
    options = ["--data", str(data), "--backend", "openai", "--model", MODEL, "--out", str(out), "--zoom"]
    options += ["--base-url", server.url, "--looks", str(LOOKS), "--look-px", "256", "--retries", "0"]
    return CliRunner().invoke(predict, [*options, *more], standalone_mode=False)


def run(data: Path, out: Path, policy: Policy, control: str | None = None, **server: Any) -> Path:
    examiner = Examiner(data, control=control, budget=Budget(LOOKS, 256))
    with policy_server(examiner, policy, **server) as running:
        more = ["--ablate", control] if control else []
        result = ask(data, running, out, *more)
    assert result.return_value == 0, result.output + str(result.exception)
    return out


def figures(data: Path, *runs: Path) -> dict[str, Any]:
    path = runs[0].with_suffix(".json")
    page = runs[0].with_suffix(".html")
    options = [*map(str, runs), "--data", str(data), "--json", str(path), "--html", str(page)]
    result = CliRunner().invoke(zoom, options, standalone_mode=False)
    assert result.exception is None, result.output
    return json.loads(path.read_text())


def test_oracle_walk_and_controls_reach_what_they_must(data: Path, tmp_path: Path) -> None:
    walk = random_walk((1600, 1400), LOOKS, "200x")
    runs = [
        run(data, tmp_path / "oracle.jsonl", oracle),
        *(run(data, tmp_path / f"{name}.jsonl", oracle, name) for name in ("blind", "wrong-slide", "overview-only")),
        run(data, tmp_path / "path.jsonl", guess_or_right, "oracle-path"),
        run(data, tmp_path / "walk.jsonl", walk),
        run(data, tmp_path / "random.jsonl", guess_or_right, "random-walk"),
    ]
    found = figures(data, *runs)
    accuracy = [one["accuracy"]["mean"] for one in found["runs"]]
    seen = [one["evidence"] and one["evidence"]["mean"] for one in found["runs"]]
    assert accuracy[:5] == [1.0, 0.25, 0.25, 0.25, 1.0]
    assert seen[:5] == [1.0, None, None, 0.0, 1.0]
    # a random 200x look of 128 um has the evidence in view at about one in 60 places
    for hit, right in zip(seen[5:], accuracy[5:], strict=True):
        assert hit < 0.4 and right <= hit + (1 - hit) * 0.5
    oracle_run = found["runs"][0]
    assert oracle_run["looks"] == 1.0 and oracle_run["pixels"] == 256**2 and oracle_run["refused"] == 0
    assert [point["accuracy"]["mean"] for point in oracle_run["curve"]] == [0, 1, 1, 1]
    assert found["differences"][0]["difference"] == 0.75 and found["differences"][0]["control"] == "blind"
    result = CliRunner().invoke(
        score, [str(runs[0]), "--data", str(data), "--blind", str(runs[1])], standalone_mode=False
    )
    assert result.exception is None and "100.0" in result.output, result.output


def guess_or_right(question: Any, turn: int, seen: bool) -> tuple[str, dict[str, Any]]:
    return ("answer", {"letter": question.question.letter}) if seen else guess(question)


@pytest.mark.parametrize("protocol", ["user", "text"])
def test_servers_that_take_less_are_asked_so(data: Path, tmp_path: Path, protocol: str) -> None:
    def refuse(body: dict[str, Any]) -> str | None:
        results = [message for message in body["messages"] if message["role"] == "tool"]
        if protocol == "text" and "tools" in body:
            return '"auto" tool choice requires --enable-auto-tool-choice'
        if any(part["type"] != "text" for message in results for part in message["content"]):
            return "tool messages may only have text"
        return None

    out = run(data, tmp_path / "out.jsonl", oracle, refuse=refuse)
    assert figures(data, out)["runs"][0]["accuracy"]["mean"] == 1.0


def test_a_model_that_calls_badly_or_never_answers_ends_and_is_counted(data: Path, tmp_path: Path) -> None:
    def stubborn(question: Any, turn: int, seen: bool) -> tuple[str, dict[str, Any]]:
        return "look", {"x_um": -5, "y_um": "?", "view": "10x"}

    out = run(data, tmp_path / "out.jsonl", stubborn)
    found = figures(data, out)["runs"][0]
    assert found["unanswered"] == 16 and found["refused"] == 2 * LOOKS + 4 and found["looks"] == 0


def test_a_run_goes_on_and_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    whole = run(data, tmp_path / "whole.jsonl", oracle).read_bytes()
    out = tmp_path / "out.jsonl"
    with policy_server(Examiner(data, budget=Budget(LOOKS, 256)), oracle) as server:
        assert ask(data, server, out, "--limit", "5").return_value == 0
        kept = len(out.read_bytes().splitlines())
        before = len(server.asked)
        assert ask(data, server, out).return_value == 0
        assert kept == 5 and len(server.asked) - before == 1 + 2 * 11  # the check, and two turns a question
        other = ask(data, server, out, "--looks", "2")
    assert out.read_bytes() == whole
    assert other.exception is not None and "another run" in str(other.exception)


def test_the_page_escapes_what_a_model_says(data: Path, tmp_path: Path) -> None:
    def hostile(question: Any, turn: int, seen: bool) -> tuple[str, dict[str, Any]]:
        bad = "<script>alert(1)</script><img src=x onerror=alert(2)>\u202e"
        return ("look", {"x_um": bad, "y_um": 1, "view": bad}) if turn == 0 else guess(question)

    out = tmp_path / "out.jsonl"
    run(data, out, hostile, refuse=lambda body: "no tools" if "tools" in body else None)
    figures(data, out)
    page = out.with_suffix(".html").read_text()
    assert "<script" not in page and "<img src=x" not in page and "\u202e" not in page
    assert "&lt;script&gt;" in page and "data:image/jpeg;base64," in page


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--backend", "vllm"], "vllm serve"),
        (["--ablate", "shuffled"], "with --zoom"),
        (["--n", "2", "--temperature", "1"], "--n"),
        (["--structured"], "--structured"),
    ],
    ids=("vllm", "ablate", "votes", "structured"),
)
def test_options_that_do_not_fit_are_refused(data: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with policy_server(Examiner(data), oracle) as server:
        result = ask(data, server, tmp_path / "out.jsonl", *more)
        assert not server.asked
    assert message in str(getattr(result.exception, "message", result.exception))
    assert not (tmp_path / "out.jsonl").exists()


def test_the_audit_by_text_alone_is_at_chance(data: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(audit, [str(data), "--json", str(tmp_path / "audit.json")], standalone_mode=False)
    assert result.exception is None, result.output
    report = json.loads((tmp_path / "audit.json").read_text())
    assert report["n"] == 16 and report["probes"] and report["verdict"] != "leaks"
    assert all(probe["ci_low"] <= 0.25 for probe in report["probes"])
    folder = CliRunner().invoke(audit, [str(data.parent)], standalone_mode=False)
    assert str(data) in str(folder.exception)
