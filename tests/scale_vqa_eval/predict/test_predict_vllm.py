"""A real vLLM, server and engine, on a CPU: its greedy answers are those of the transformers backend."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_line import FAULTS, bad_line
from click.testing import CliRunner, Result
from vllm_server import ABSENT, ENGINE, ENVIRONMENT, PYTHON, vllm_server

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.predict.command import predict
from scale_vqa_eval.scoring.predictions import read_predictions

pytest.importorskip("torch")
pytest.importorskip("torchvision", reason="Qwen2.5-VL's processor needs torchvision (tools/torchvision_hook.py)")
pytestmark = [
    pytest.mark.skipif(not PYTHON.is_file(), reason=ABSENT),
    pytest.mark.xdist_group("vllm"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    with vllm_server(model, log, 3, "--enable-prompt-tokens-details", "--block-size", "32") as url:
        yield url


def arguments(release: Path, backend: str, model: str, out: Path, *more: str) -> list[str]:
    named = {"--data": str(release), "--split": "test", "--backend": backend, "--model": model, "--out": str(out)}
    named |= {"--prompt": "letter-only", "--max-tokens": "8"}
    return [*(part for pair in named.items() for part in pair), *more]


def call(*given: str) -> Result:
    return CliRunner().invoke(predict, list(given), standalone_mode=False)


def texts(out: Path) -> dict[str, str]:
    """Responses less an unfinished last character: vLLM leaves it out, transformers shows a replacement for it."""
    return {row.id: (row.response or "").rstrip("\ufffd") for row in read_predictions(out).rows}


@pytest.mark.parametrize("ablation", [(), ("--ablate", "blind"), ("--ablate", "shuffled")])
def test_server_and_transformers_agree(
    release: Path, model: Path, server: str, tmp_path: Path, ablation: tuple[str, ...]
) -> None:
    ours, theirs = tmp_path / "transformers.jsonl", tmp_path / "server.jsonl"
    assert call(*arguments(release, "transformers", str(model), ours, *ablation)).return_value == 0
    served = call(*arguments(release, "openai", "tiny", theirs, "--base-url", server, *ablation))
    assert served.return_value == 0, served.output
    assert texts(theirs) == texts(ours)
    counts = [[json.loads(line)["prompt_tokens"] for line in out.read_text().splitlines()] for out in (ours, theirs)]
    assert counts[0] == counts[1], "the same prompt to the token"


def test_the_share_of_the_prefix_cache_is_shown(release: Path, server: str, tmp_path: Path) -> None:
    shares = []
    for name in ("first", "again"):
        out = tmp_path / f"{name}.jsonl"
        done = call(*arguments(release, "openai", "tiny", out, "--base-url", server))
        found = re.search(r"prefix cache: ([\d.]+)% of ([\d,]+) prompt tokens", done.output)
        assert found, done.output
        assert int(found[2].replace(",", "")) == sum(json.loads(line)["prompt_tokens"] for line in out.open())
        shares.append(float(found[1]))
    assert shares[1] > 75, "asked again, all but the last blocks are there"


def test_nothing_is_lost_or_twice_on_a_bad_line_to_a_real_server(release: Path, server: str, tmp_path: Path) -> None:
    direct, behind = tmp_path / "direct.jsonl", tmp_path / "behind.jsonl"
    assert call(*arguments(release, "openai", "tiny", direct, "--base-url", server)).return_value == 0
    with bad_line(server, late=1.0) as (url, done):
        more = ("--base-url", url, "--retries", "30", "--timeout", "20", "--concurrency", "4")
        result = call(*arguments(release, "openai", "tiny", behind, *more))
    assert result.return_value == 0, (result.output, result.exception)
    assert set(FAULTS) <= set(done), done
    assert direct.read_bytes() == behind.read_bytes()


def test_structured_answers_are_complete_ones(release: Path, server: str, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    more = ("--base-url", server, "--structured", "--max-tokens", "32", "--limit", "5")
    assert call(*arguments(release, "openai", "tiny", out, *more)).return_value == 0
    assert set(texts(out).values()) <= {f"<answer>{letter}</answer>" for letter in "ABCD"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--config", "grounding"), "limit-mm-per-prompt"),
        (("--max-tokens", "2000"), "at most 2048 tokens"),
        (("--model", "nope"), "name one of its models .tiny."),
    ],
)
def test_what_the_server_cannot_do_is_one_error_before_any_work(
    release: Path, server: str, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    result = call(*arguments(release, "openai", "tiny", tmp_path / "p.jsonl", "--base-url", server, *more))
    with pytest.raises(InputError, match=message):
        raise result.exception or AssertionError("no error")
    assert not list(tmp_path.glob("*.jsonl"))


def test_the_engine_agrees_too(release: Path, model: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "transformers.jsonl", tmp_path / "engine.jsonl"
    assert call(*arguments(release, "transformers", str(model), ours)).return_value == 0
    options = [part for name, value in ENGINE.items() for part in ("--option", f"{name}={json.dumps(value)}")]
    command = [str(PYTHON), "-m", "scale_vqa_eval.cli", "predict"]
    command += arguments(release, "vllm", str(model), theirs, *options)
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert texts(theirs) == texts(ours)
    assert "% of " in done.stderr.split("prefix cache: ")[1]
