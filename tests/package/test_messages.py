"""What the command prints when much is wrong: the first problems of each kind, counts, and where all of them are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from PIL import Image

from scale_vqa_eval.cli import cli
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.schema import VIEWS


def run(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scale_vqa_eval", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def release(tmp_path: Path, count: int, **changes: Any) -> Path:
    rows = [
        {
            "question": "Which finding?",
            "options": {letter: f"finding {letter}{number}" for letter in "ABCD"},
            "answer": "A",
            "rationale": None,
            "image_path": {view: f"S{number}/{view}.jpg" for view in VIEWS},
            "extra_info": {"wsi_name": f"S{number}", "path_id": "p", "question_type": "type_A"},
            **changes,
        }
        for number in range(count)
    ]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    return tmp_path / "test.json"


def test_a_wrong_image_root_is_few_lines_and_a_file_with_all(tmp_path: Path) -> None:
    (tmp_path / "wrong").mkdir()
    words = ["--json", f"test={release(tmp_path, 500)}", "--images", tmp_path / "wrong", "--out", tmp_path / "out"]
    done = run("build", "release", *words)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 5
    assert "... and 1495 more: expected a file inside" in done.stderr
    assert "1500 problems; nothing was written" in done.stderr
    report = Path(re.search(r"all of them, one per line: (\S+)", done.stderr)[1])
    lines = report.read_text().splitlines()
    report.unlink()
    assert len(lines) == 1500 and "row 500" in lines[-1]
    assert not (tmp_path / "out").exists()


def test_each_kind_has_its_own_first_lines(tmp_path: Path) -> None:
    rows = [{"question": "?" * (n % 3 > 0), "options": ["x", "y"], "answer": "ABX"[n % 3]} for n in range(300)]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    done = run("control", tmp_path / "q.json", "--method", "exchange", "--out", tmp_path / "o.json")
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 10
    assert done.stderr.count("... and 95 more") == 2


def test_few_problems_are_all_printed(tmp_path: Path) -> None:
    done = run("build", "release", "--json", f"test={release(tmp_path, 4, answer='Z')}", "--out", tmp_path / "out")
    assert done.stderr.count("error: ") == 4
    assert "4 problems; nothing was written" in done.stderr and "one per line" not in done.stderr


UNWRITABLE = {"below a file": "file/out", "a device": "/dev/null/out", "no file system for files": "/proc/out"}


@pytest.mark.parametrize("kind", UNWRITABLE)
@pytest.mark.parametrize("command", ["build release", "build phantom", "build single", "control", "control folder"])
def test_an_output_that_cannot_be_written_is_one_error(kind: str, command: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    file, out = release(tmp_path, 4), tmp_path / UNWRITABLE[kind]
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    row = {"question": "?", "options": ["x", "y"], "answer": "A", "img": "x.png"}
    (tmp_path / "q.json").write_text(json.dumps([row]))
    exchange = ["--method", "exchange", "--max-jaccard", "1", "--no-audit", "--out"]
    words = {
        "build release": ["build", "release", "--json", f"test={file}", "--out", out],
        "build phantom": ["build", "phantom", "--slides", "3", "--out", out],
        "build single": ["build", "single", tmp_path / "q.json", "--images", tmp_path, "--out", f"{out}.json"],
        "control": ["control", file, *exchange, f"{out}.json"],
        "control folder": ["control", tmp_path / "d", *exchange, out],
    }[command]
    if command == "control folder":
        cli.main(["build", "release", "--json", f"test={file}", "--out", str(tmp_path / "d")], standalone_mode=False)
    with pytest.raises(InputError) as refused:
        cli.main(list(map(str, words)), standalone_mode=False)
    (problem,) = refused.value.problems
    assert problem.expected == "a file that can be written"
    assert problem.location.startswith(str(out))


@pytest.mark.slow
def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: writing fails in the middle of a Parquet file."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "
        "from scale_vqa_eval.cli import main; main()"
    )
    words = ["build", "release", "--json", f"test={release(tmp_path, 400)}", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr, done.stderr
    assert "expected free disk space" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["test.json"]


@pytest.mark.slow
def test_a_closed_pipe_is_no_traceback() -> None:
    process = subprocess.Popen(
        f"{sys.executable} -m scale_vqa_eval doctor --json | head -c 1", shell=True, cwd=ROOT, stderr=-1, stdout=-1
    )
    assert b"Traceback" not in process.communicate(timeout=300)[1]
