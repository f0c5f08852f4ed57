"""The predictions file: nothing lost, nothing twice, and only the same run goes on."""

from __future__ import annotations

import json
import random
import resource
from pathlib import Path
from typing import Any

import pytest

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.predict.backend import PredictionsFile, Sampling, failures_path, majority_vote
from scale_vqa_eval.predict.requests import Request, VisualQuestion
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scoring.predictions import read_predictions

ASKS = [Request(VisualQuestion(Question(f"q{i}", "?", ("x", "y"), 0), (), (), "p")) for i in range(8)]
RUN = {"model": "m", "prompt_id": "published@1", "sampling": {"temperature": 0.0}, "data_hash": "d"}


def opened(path: Path, **changes: Any) -> PredictionsFile:
    return PredictionsFile(path, RUN | changes, {"python": "3"}, ASKS)


def filled(path: Path, count: int) -> None:
    with opened(path) as file:
        for ask in ASKS[:count]:
            if ask.key not in file.answered:
                file.keep(ask.key, {"response": f"answer to {ask.key[0]}"})


@pytest.mark.parametrize("torn", range(1, 60, 7))
def test_a_torn_line_is_asked_again_and_nothing_else(tmp_path: Path, torn: int) -> None:
    out = tmp_path / "p.jsonl"
    filled(out, 5)
    out.write_bytes(out.read_bytes()[:-torn])
    with opened(out) as file:
        # with its line break alone missing, a line is whole
        assert file.answered == {ask.key for ask in (ASKS[:5] if torn == 1 else ASKS[:4])}
        assert bool(file._answers.repaired_bytes) == (torn > 1)
    filled(out, 8)
    assert [row.id for row in read_predictions(out).rows] == [ask.key[0] for ask in ASKS]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "other"}, "model"),
        ({"prompt_id": "letter-only@1"}, "prompt_id"),
        ({"sampling": {"temperature": 1.0}}, "sampling"),
        ({"data_hash": "e"}, "data_hash"),
        ({"ablation": "blind"}, "ablation"),
    ],
)
def test_another_run_is_refused_and_the_file_left_alone(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    out = tmp_path / "p.jsonl"
    filled(out, 3)
    before = out.read_bytes()
    with pytest.raises(InputError, match=f"line 1, {named}: .*another --out"), opened(out, **change):
        pass
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        '[{"question": "a data file of one line"}]',
        "notes",
        '{"accuracy": 0.5}',
        '{"id": "of another program", "response": "A"}\n{"id": "torn',
    ],
)
def test_a_file_of_another_program_stays_as_it_is_to_the_byte(tmp_path: Path, content: str) -> None:
    out = tmp_path / "p.jsonl"
    out.write_text(content)
    with pytest.raises(InputError, match=r"another --out|another program's file"), opened(out):
        pass
    assert out.read_text() == content
    assert {path.name for path in tmp_path.iterdir()} - {out.name} <= {
        f"{out.name}.lock",
        f"{out.name}.failures.jsonl.lock",
    }


@pytest.mark.parametrize("settled", [False, True])
def test_a_full_disk_is_one_error_and_the_run_goes_on_once_there_is_room(tmp_path: Path, settled: bool) -> None:
    out = tmp_path / "p.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(InputError, match=r"p.jsonl.*free disk space"), opened(out) as file:
            for ask in list(reversed(ASKS))[: 8 if settled else 5]:
                file.keep(ask.key, {"response": "answer"})
            resource.setrlimit(resource.RLIMIT_FSIZE, (out.stat().st_size + (-9 if settled else 9), before[1]))
            if settled:
                file.sort_and_rewrite()
            file.keep(ASKS[0].key, {"response": "cut"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with opened(out) as file:
        assert len(file.answered) == (8 if settled else 5)
        assert (file._answers.repaired_bytes > 0) == (not settled)
        for ask in ASKS:
            if ask.key not in file.answered:
                file.keep(ask.key, {"response": "answer"})
        file.sort_and_rewrite()
    assert [row.response for row in read_predictions(out).rows] == ["answer"] * 8
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl", ".lock"}


def test_a_place_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="a file that can be written"), opened(tmp_path / "file" / "p.jsonl"):
        pass


def test_other_versions_go_on_and_are_told(tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    filled(out, 3)
    with PredictionsFile(out, RUN, {"python": "4"}, ASKS) as file:
        assert "python 3 -> 4" in file.notes[0]


@pytest.mark.parametrize("damage", ["twice", "foreign", "no provenance"])
def test_a_file_changed_by_hand_is_refused_by_line(tmp_path: Path, damage: str) -> None:
    out = tmp_path / "p.jsonl"
    filled(out, 3)
    lines = out.read_text().splitlines()
    changed = {
        "twice": [*lines, lines[1]],
        "foreign": [*lines, lines[1].replace("q1", "q99")],
        "no provenance": lines[1:],
    }
    out.write_text("\n".join(changed[damage]) + "\n")
    with pytest.raises(InputError, match="line 1" if damage == "no provenance" else "line 4"), opened(out):
        pass


def test_failures_stand_beside_with_their_reasons_until_they_are_answered_or_given_up(tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    with opened(out) as file:
        file.fail(ASKS[0].key, "too long")
        file.fail(ASKS[1].key, "timeout")
        for ask in ASKS[2:]:
            file.keep(ask.key, {"response": "r"})
    with opened(out) as file:
        assert file.failures == {("q0", None): "too long", ("q1", None): "timeout"}
        file.keep(ASKS[1].key, {"response": "late"})
    assert {row.id for row in read_predictions(out).rows} == {ask.key[0] for ask in ASKS[1:]}
    with opened(out) as file:
        file.accept_failures()
        file.sort_and_rewrite()
    rows = read_predictions(out).rows
    assert [row.id for row in rows] == [ask.key[0] for ask in ASKS]
    assert (rows[0].response, rows[0].error) == (None, "too long") and rows[1].response == "late"
    failed = [json.loads(line) for line in failures_path(out).read_text().splitlines()]
    assert [record.get("provenance") for record in failed] == [RUN, None], "a file of failures alone says what failed"
    with opened(tmp_path / "other.jsonl") as file:
        file.fail(ASKS[0].key, "timeout")
    failures_path(tmp_path / "other.jsonl").rename(failures_path(tmp_path / "again.jsonl"))
    with opened(tmp_path / "again.jsonl", model="another") as file:
        file.fail(ASKS[0].key, "timeout")
        assert file.failures == {("q0", None): "timeout"}
    lines = failures_path(tmp_path / "again.jsonl").read_text().splitlines()
    assert [json.loads(line)["provenance"]["model"] for line in lines] == ["m", "another"]


def test_an_untouched_run_leaves_no_file(tmp_path: Path) -> None:
    with opened(tmp_path / "p.jsonl"):
        pass
    assert not list(tmp_path.glob("*.jsonl"))


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        opened(tmp_path / "p.jsonl"),
        pytest.raises(InputError, match="another process"),
        opened(tmp_path / "p.jsonl"),
    ):
        pass


def test_settled_files_are_the_same_whatever_the_order_of_answers(tmp_path: Path) -> None:
    contents = set()
    for seed in range(4):
        out = tmp_path / f"{seed}.jsonl"
        order = random.Random(seed).sample(ASKS, len(ASKS))
        with opened(out) as file:
            for ask in order:
                file.keep(ask.key, {"response": "\ud800 lone" if ask is ASKS[3] else "é", "images": 2})
            file.sort_and_rewrite()
        contents.add(out.read_bytes())
        with opened(out) as file:
            assert len(file.answered) == len(ASKS)
    assert len(contents) == 1
    head = json.loads(contents.pop().split(b"\n")[0])
    assert head["provenance"] == RUN and head["id"] == "q0"


def test_what_a_run_notes_is_what_scoring_reads(tmp_path: Path) -> None:
    filled(tmp_path / "p.jsonl", 8)
    noted = read_predictions(tmp_path / "p.jsonl").settings
    assert (noted["model"], noted["prompt_id"]) == ("m", "published@1")


def test_the_vote_is_by_letter_and_never_a_guess() -> None:
    assert (
        majority_vote(["<answer>B</answer>", "x", "<answer>a</answer>", "So <answer>A</answer>"], 4)
        == "<answer>a</answer>"
    )
    assert majority_vote(["<answer>B</answer>", "<answer>A</answer>"], 4) == "<answer>B</answer>"
    assert majority_vote(["none", "<answer>Z</answer>"], 4) == "none"
    with pytest.raises(InputError, match="--temperature above 0"):
        Sampling(max_tokens=4, n=3)
