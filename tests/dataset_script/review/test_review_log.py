"""The review log: it only grows, survives kills and other writers, and refuses what does not belong to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dataset_script.review.decisions import Decision
from dataset_script.review.log import ReviewLog
from scale_vqa_eval.errors import InputError

SUBJECT = {"name": "release", "config": "default", "data_hash": "a" * 64}


def decision(number: int, reviewer: str = "Ada") -> Decision:
    return Decision(("test", f"row {number}"), "review", reviewer, "reject", f"because \u2028 {number}\r", {})


def add(log: ReviewLog, number: int, reviewer: str = "Ada") -> Decision:
    return log.append(lambda decisions: decision(number, reviewer))


def test_decisions_come_back_and_earlier_bytes_never_change(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = ReviewLog(path, SUBJECT)
    before = b""
    for number in range(5):
        made = add(log, number)
        content = path.read_bytes()
        assert content.startswith(before) and content.endswith(b"\n") and made.at
        before = content
    again = ReviewLog(path, SUBJECT).refresh()
    assert [one.key[1] for one in again] == [f"row {number}" for number in range(5)]
    assert again[3].reason == "because \u2028 3\r" and again == log.decisions


def test_an_empty_log_is_no_file(tmp_path: Path) -> None:
    assert ReviewLog(tmp_path / "none.jsonl", SUBJECT).refresh() == []
    assert list(tmp_path.iterdir()) == []


def test_a_refused_decision_writes_nothing(tmp_path: Path) -> None:
    log = ReviewLog(tmp_path / "log.jsonl", SUBJECT)
    add(log, 0)
    before = log.path.read_bytes()

    def refuse(decisions: list[Decision]) -> Decision:
        assert len(decisions) == 1
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        log.append(refuse)
    assert log.path.read_bytes() == before
    add(log, 1)


@pytest.mark.parametrize("kept", range(1, 400, 23))
def test_a_kill_within_a_line_loses_that_line_alone(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "log.jsonl"
    log = ReviewLog(path, SUBJECT)
    add(log, 0)
    add(log, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    torn = not whole[:kept].endswith(b"\n")
    after = ReviewLog(path, SUBJECT)
    survived = len(after.refresh())
    add(after, 7)
    assert path.read_bytes().startswith(whole[:kept]), "nothing that stands there is rewritten"
    found = ReviewLog(path, SUBJECT)
    assert [one.key[1] for one in found.refresh()] == [f"row {number}" for number in range(survived)] + ["row 7"]
    assert len(found.torn) == torn


def test_a_line_that_lacks_only_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    add(ReviewLog(path, SUBJECT), 0)
    path.write_bytes(path.read_bytes()[:-1])
    log = ReviewLog(path, SUBJECT)
    seen: list[int] = []
    log.append(lambda decisions: seen.append(len(decisions)) or decision(1))
    assert seen == [1] and log.torn == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], lines[1].replace(b"reject", b"accept"), *lines[2:]], "line 3"),
        (lambda lines: [lines[0], *lines[2:]], "line 2: expected the line that was written after"),
        (lambda lines: [lines[0], b"not json\n", *lines[1:]], "line 2: expected one JSON object"),
        (lambda lines: lines[1:], "line 1: expected the line that was written after"),
        (lambda lines: [b'{"kind": "other", "prev": ""}\n'], "line 1: expected the head of a review log"),
        (lambda lines: [b'{"id": "x", "response": "y"}\n'], "line 1"),
    ],
)
def test_a_log_that_was_changed_is_refused(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "log.jsonl"
    log = ReviewLog(path, SUBJECT)
    for number in range(3):
        add(log, number)
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(InputError, match=message):
        ReviewLog(path, SUBJECT).refresh()


def test_a_log_that_shrinks_or_goes_while_it_is_open_is_refused(tmp_path: Path) -> None:
    log = ReviewLog(tmp_path / "log.jsonl", SUBJECT)
    add(log, 0)
    log.path.write_bytes(log.path.read_bytes()[:-20])
    with pytest.raises(InputError, match="only grows"):
        add(log, 1)
    log.path.unlink()
    with pytest.raises(InputError, match="the log that was there"):
        add(log, 1)


def test_a_log_of_other_data_is_refused_by_both_hashes(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    add(ReviewLog(path, SUBJECT), 0)
    other = ReviewLog(path, SUBJECT | {"data_hash": "b" * 64})
    with pytest.raises(InputError, match=r"data_hash b{16}.*data_hash a{16}.*--log"):
        other.refresh()
    with pytest.raises(InputError, match="config"):
        add(ReviewLog(path, SUBJECT | {"config": "exchange"}), 1)


WRITER = """
import sys
from dataset_script.review.decisions import Decision
from dataset_script.review.log import ReviewLog
path, name = sys.argv[1:]
log = ReviewLog(path, {"name": "release", "config": "default", "data_hash": "a" * 64})
for number in range(25):
    def check(decisions):
        assert len({one.key for one in decisions}) == len(decisions)
        return Decision(("test", f"{name} {number} after {len(decisions)}"), "review", name, "accept")
    log.append(check)
"""


def test_several_processes_write_one_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    running = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in ("Ada", "Bo", "Cy")]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    found = ReviewLog(path, SUBJECT).refresh()
    # each writer saw every line before its own: the numbers count up without a gap
    assert [int(one.key[1].split()[-1]) for one in found] == list(range(75))
    assert sum(json.loads(line)["kind"] == "review-log" for line in path.read_text().splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--log"):
        add(ReviewLog(tmp_path / "file" / "log.jsonl", SUBJECT), 0)


def test_a_log_that_cannot_be_kept_is_refused_before_anybody_works(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "file" / "log.jsonl", tmp_path / "pipe", Path("/proc/none/log.jsonl")):
        with pytest.raises(InputError, match="--log"):
            ReviewLog(path, SUBJECT).check_writable()
    log = ReviewLog(tmp_path / "log.jsonl", SUBJECT)
    log.check_writable()
    assert not log.path.exists(), "nothing is decided, so there is no log"
    add(log, 0)
    before = log.path.read_bytes()
    log.check_writable()
    assert log.path.read_bytes() == before
