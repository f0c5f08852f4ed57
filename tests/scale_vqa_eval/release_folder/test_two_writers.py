"""Two writers of one output exclude each other, a symlink is followed, and a refused build leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pyarrow.parquet as pq
import pytest

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.files import exclusive_output
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.release_folder.write import check_out, write_release

ROUNDS = 20


def rows(count: int, name: str = "s") -> list[dict[str, Any]]:
    return [
        {
            "id": f"{name}::p{number}::type_A",
            "question": "Q",
            "options": list("wxyz"),
            "answer": "ABCD"[number % 4],
            "dimension": "Correspondence",
            "wsi_name": name,
            "patient_id": name,
            "path_id": f"p{number}",
            "source": "test",
        }
        for number in range(count)
    ]


def start(program: str) -> subprocess.Popen[str]:
    """Starts a Python program that prints a line and waits for one at each of its steps."""
    return subprocess.Popen([sys.executable, "-c", program], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    """The next line that is ``ready`` or says how a step ended; what commands print in between is passed over."""
    assert process.stdout is not None and process.stderr is not None
    while not (text := process.stdout.readline()).startswith(("ready", "exit")):
        assert text, process.stderr.read()
    return text.strip()


def go(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Waits until all are ready, and lets all go on at once."""
    assert {line(process) for process in processes} == {"ready"}
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


BUILDER = """
import sys
import datasets, pyarrow.parquet, dataset_script.authors_release
from scale_vqa_eval.cli import main
for number in range({rounds}):
    print("ready", flush=True)
    sys.stdin.readline()
    sys.argv[1:] = ["build", "release", "--json", "test={file}", "--out", "{out}/" + str(number)]
    try:
        main()
    except SystemExit as stop:
        print(f"exit {{stop.code}}", flush=True)
"""


@pytest.mark.slow
def test_two_builds_of_one_folder_never_lose_rows(tmp_path: Path) -> None:
    """Twenty rounds: both succeed one after another, or one is refused; the folder has all rows, nothing else lies."""
    release = [
        {
            "question": f"Which {slide}?",
            "options": {letter: f"finding {letter}{slide}" for letter in "ABCD"},
            "answer": "ABCD"[slide % 4],
            "rationale": None,
            "image_path": {},
            "extra_info": {"wsi_name": f"S{slide}", "path_id": "p", "question_type": "type_A"},
        }
        for slide in range(300)
    ]
    file, out = tmp_path / "test.json", tmp_path / "out"
    file.write_text(json.dumps(release))
    out.mkdir()
    processes = [start(BUILDER.format(rounds=ROUNDS, file=file, out=out)) for _ in range(2)]
    refused = 0
    for number in range(ROUNDS):
        go(processes)
        codes = sorted(line(process) for process in processes)
        assert codes in (["exit 0", "exit 0"], ["exit 0", "exit 1"]), codes
        refused += codes.count("exit 1")
        assert len(read_questions(out / str(number))) == 300
        assert sorted(path.name for path in out.iterdir()) == sorted(map(str, range(number + 1)))
    errors = "".join(process.communicate()[1] for process in processes)
    assert "Traceback" not in errors
    assert errors.count("another process that is writing to it") == refused


COUNTER = """
import sys
from pathlib import Path
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.files import exclusive_output
inside = Path({folder!r}, "inside")
print("ready", flush=True)
sys.stdin.readline()
held = 0
while held < 150:
    try:
        with exclusive_output(Path({folder!r}, "out")):
            inside.touch(exist_ok=False)
            inside.unlink()
            held += 1
    except InputError:
        pass
print("exit", held)
"""


def test_the_lock_is_never_held_twice_though_its_file_is_removed(tmp_path: Path) -> None:
    """Three processes take and release one lock 150 times each: no other is inside with any of them."""
    processes = [start(COUNTER.format(folder=str(tmp_path))) for _ in range(3)]
    go(processes)
    assert [line(process) for process in processes] == ["exit 150"] * 3
    for process in processes:
        process.communicate()
    assert list(tmp_path.iterdir()) == []


HOLDER = """
import sys
from scale_vqa_eval.files import exclusive_output
with exclusive_output({path!r}):
    print("ready", flush=True)
    sys.stdin.readline()
"""


def test_an_output_is_locked_under_any_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out")
    process = start(HOLDER.format(path=str(tmp_path / "link")))
    assert line(process) == "ready"
    with pytest.raises(InputError) as refused:
        check_out(tmp_path / "out")
    process.kill()
    process.communicate()
    (problem,) = refused.value.problems
    assert (problem.location, problem.found) == (str(tmp_path / "out"), "another process that is writing to it")
    with exclusive_output(tmp_path / "out") as real:  # the killed process holds nothing any more
        assert real == tmp_path / "out"


def test_a_symlink_is_followed_twice_in_a_row(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "scale-vqa").symlink_to(tmp_path / "disk" / "data")
    for count in (3, 5):
        write_release(tmp_path / "scale-vqa", {"text": {"test": rows(count)}}, {})
        assert (tmp_path / "scale-vqa").is_symlink()
        assert pq.read_table(tmp_path / "disk/data/text/test-00000-of-00001.parquet").num_rows == count
    assert sorted(path.name for path in tmp_path.rglob("*") if path.name.startswith(".")) == []


def test_a_symlink_into_itself_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError) as refused:
        write_release(tmp_path / "loop", {"text": {"test": rows(1)}}, {})
    assert refused.value.problems[0].location == str(tmp_path / "loop")


def test_writers_within_a_process_may_nest(tmp_path: Path) -> None:
    with exclusive_output(tmp_path / "d"):
        write_release(tmp_path / "d", {"text": {"test": rows(2)}}, {})
    assert set(release_configs(tmp_path / "d")) == {"text"}
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_two_threads_of_a_process_exclude_each_other(tmp_path: Path) -> None:
    def write() -> str:
        try:
            check_out(tmp_path / "d")
        except InputError as error:
            return error.problems[0].found
        return "written"

    with ThreadPoolExecutor(1) as pool:
        with exclusive_output(tmp_path / "d"):
            assert pool.submit(write).result() == "another process that is writing to it"
        assert pool.submit(write).result() == "written"


def test_a_refused_build_leaves_nothing_hidden(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.md").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("full", "file"):
        with pytest.raises(InputError):
            write_release(tmp_path / name, {"text": {"test": rows(1)}}, {})
    with pytest.raises(ValueError, match="has no row"):
        write_release(tmp_path / "new", {"text": {"test": []}}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
