"""Texts that are made to hang or to end a program: each is one error that names the file, within seconds."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataset_script.curate.work import read_settings
from scale_vqa_eval.errors import InputError, preview
from scale_vqa_eval.files import parse_json, parse_yaml
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.release_folder.card import head
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.scoring.results import read_reported_scores, read_results

LEVELS = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 12)]
BOMB = "a0: &a0 [x, x]\n" + "\n".join(LEVELS)
MERGES = [f"b{level}: &b{level} {{<<: [{', '.join([f'*b{level - 1}'] * 9)}]}}" for level in range(1, 12)]
MERGE_BOMB = "b0: &b0 {k: 1}\n" + "\n".join(MERGES)
HUGE = "9" * 5000

YAML = {
    "aliases": BOMB,
    "merged aliases": MERGE_BOMB,
    "configs of aliases": f"{BOMB}\nconfigs: *a11",
    "an alias of itself": "configs: &a [*a]",
    "an alias of its own value": "configs: &a {config_name: *a}",
    "deep lists": "configs: " + "[" * 200_000,
    "deep mappings": "configs: " + "{a: " * 200_000,
    "deep block lists": "configs: " + "- " * 20_000,
    "deep block mappings": "\n".join(" " * level + "a:" for level in range(1200)),
    "a long integer": f"configs: {HUGE}",
    "a long integer in base 60": "configs: " + ":".join(["59"] * 5000),
    "a date that does not exist": "configs: 2026-13-45",
    "a key that is a list": "configs: {[1, 2]: 3}",
    "a tag": "configs: !!python/object/apply:os.system ['true']",
    "control characters": "configs: \x00",
    "tabs": "configs:\n\t- a",
}


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    start = time.process_time()
    yield
    assert time.process_time() - start < 5


@pytest.mark.parametrize("kind", YAML)
def test_a_card_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(f"---\n{YAML[kind]}\n---\n# Card\n")
    for read in (release_configs, read_questions):
        with pytest.raises(InputError) as caught:
            read(tmp_path)
        assert all(problem.location == str(card) for problem in caught.value.problems)
        assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("kind", YAML)
def test_settings_and_reported_figures_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(YAML[kind])
    for read in (read_settings, read_reported_scores):
        with pytest.raises(InputError) as caught:
            read(file)
        assert all(problem.location.startswith(str(file)) for problem in caught.value.problems)
        assert len(str(caught.value)) < 3000


def test_results_of_any_depth_are_refused_by_name(tmp_path: Path) -> None:
    for text in ("[" * 100_000, f'{{"accuracy": {HUGE}}}', "{}", "[NaN"):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(InputError, match="results"):
            read_results(tmp_path / "results.json")


def test_aliases_in_reason_are_read() -> None:
    assert parse_yaml("a: &a [1, 2]\nb: *a\nc: {<<: {d: 1}}", "x") == {"a": [1, 2], "b": [1, 2], "c": {"d": 1}}
    assert head("---\n---\n") == head("no head") == {}
    assert parse_yaml("", "x") is None


ROW = {"question": "?", "options": ["x", "y"], "answer": "A"}
FILES = {
    "q.json": [
        "[" * 100_000,
        '[{"a":' * 50_000,
        f'[{{"question": "?", "options": ["x", "y"], "answer": {HUGE}}}]',
        f"[{HUGE}]",
        "[1]",
        "nul",
        "[NaN]",
        '[{"question": "?", "options": ["x", "y"], "answer": Infinity}]',
        '[{"question": "?", "options": ["x", "y"], "answer": NaN}]',
        '[{"question": "?", "options": ["x", "y"], "answer": -1}]',
        json.dumps([{**ROW, "answer": HUGE}]),
        json.dumps([{**ROW, "options": "[" * 50_000}]),
        json.dumps([{**ROW, "options": "{[1]: 2}"}]),
        json.dumps([{**ROW, "options": "-" * 50_000 + "1"}]),
        json.dumps([{**ROW, "options": f"[{HUGE}, 1]", "answer": "x"}]),
    ],
    "q.jsonl": ["[" * 100_000, f'{{"answer": {HUGE}}}', "\x00", '{"a": 1'],
    "q.csv": [
        f"question,A,B,answer\n?,x,y,{HUGE}\n",
        'question,A,B,answer\n?,x,"y,A\n',
        "question,question,A,B,answer\n?,?,x,y,A\n",
        "\x00\x00",
        "\n\n",
    ],
}


@pytest.mark.parametrize(("name", "number"), [(name, index) for name in FILES for index in range(len(FILES[name]))])
def test_a_question_file_is_refused_by_name(name: str, number: int, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[name][number])
    with pytest.raises(InputError) as caught:
        read_questions(tmp_path / name)
    assert all(problem.location.startswith(str(tmp_path / name)) for problem in caught.value.problems)
    assert len(str(caught.value)) < 2000


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to would wait for ever."""
    (tmp_path / "folder").mkdir()
    for name in ("q.json", "q.parquet", "folder/README.md"):
        os.mkfifo(tmp_path / name)
    for name in ("q.json", "q.parquet", "folder"):
        with pytest.raises(InputError) as caught:
            read_questions(tmp_path / name)
        assert caught.value.problems[0].location == str(tmp_path / name)


MALFORMED = ["http://[::1", "https://", "file:///etc/passwd", "a\x00b", "org/../x", "x" * 5000, "org/na me", "//"]


@pytest.mark.parametrize("number", range(len(MALFORMED)))
def test_a_malformed_name_is_one_error(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        read_questions(MALFORMED[number])
    assert len(caught.value.problems) == 1 and len(str(caught.value)) < 1000


def test_previews_are_short_and_quick() -> None:
    long = int(HUGE[:4000]) ** 2
    for value in (long, [long] * 3, {"k": [[[[[["deep"]]]]]] * 99}, ["x" * 10**6] * 10**6):
        assert len(preview(value)) < 120


def test_json_is_read_with_its_line() -> None:
    with pytest.raises(InputError, match="x, line 2, column 3"):
        parse_json("[1,\n  }", "x")
