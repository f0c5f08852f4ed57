"""``scale-vqa prepare``: afterwards the two lines work in any process, and none of them knows this package."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_double import hub_double
from loading_data import HEAD, SIZES, check_uses, result, write_folder

Run = Callable[..., "subprocess.CompletedProcess[str]"]
UNREACHABLE = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
TWO_LINES = f"""{HEAD}
from datasets import load_dataset
import evaluate
data = load_dataset("scale-vqa")
metric = evaluate.load("scale_vqa_acc")
found = metric.compute(predictions=["<think></think><answer>A</answer>", "B"], references=["A", "B"])
print(json.dumps({{"data": {{split: digest(raw(rows)) for split, rows in data.items()}},
                   "accuracy": found["accuracy"], "ours": ours()}}))"""


def command(home: Path, *words: str, cwd: Path | None = None, code: str | None = None) -> Any:
    """Runs ``scale-vqa`` as a user would, or ``code`` in its place, with an HF_HOME of its own."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SCALE_VQA_"))}
    start = [sys.executable, "-c", code] if code else [str(Path(sys.executable).with_name("scale-vqa"))]
    return subprocess.run(
        [*start, *words],
        env={**clean, "HF_HOME": str(home), **UNREACHABLE},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=900,
    )


def data_alone(folder: Path) -> str:
    """Prepares the data and not the metric, whose library takes seconds to import."""
    return f"from pathlib import Path; from dataset_script.prepare import *; prepare_dataset(Path({str(folder)!r}))"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Path]:
    """A release folder, the digests of its rows, and an HF_HOME in which it has been prepared."""
    place = tmp_path_factory.mktemp("prepared")
    expected = write_folder(place / "scale-vqa")
    done = command(place / "home", "prepare", cwd=place)
    assert done.returncode == 0, done.stderr
    assert 'load_dataset("scale-vqa")' in done.stdout
    assert 'evaluate.load("scale_vqa_acc")' in done.stdout
    assert "test 140" in done.stdout
    return place / "scale-vqa", expected, place / "home"


@pytest.fixture
def home(first: tuple[Path, dict[str, Any], Path], tmp_path: Path) -> Path:
    """A copy of the prepared HF_HOME that the test may change; times are copied with it."""
    return Path(shutil.copytree(first[2], tmp_path / "home"))


@pytest.mark.parametrize("network", ["offline", "unreachable", "online"])
def test_the_two_lines_in_a_new_process_elsewhere(
    fresh_python: Run, first: tuple[Path, dict[str, Any], Path], home: Path, network: str, tmp_path: Path
) -> None:
    with hub_double(tmp_path / "no repositories") as server:
        environment = {"offline": {}, "unreachable": UNREACHABLE, "online": server.environment()}[network]
        done = fresh_python(TWO_LINES, HF_HOME=str(home), **environment)
        assert any("scale-vqa" in request for request in server.requests) is (network == "online")
    assert result(done) == {"data": first[1]["default"], "accuracy": 0.5, "ours": []}
    assert "Retrying" not in done.stderr  # without a network a bare name costs 24 s of retries otherwise


def test_every_config_and_what_a_user_does_next(
    fresh_python: Run, first: tuple[Path, dict[str, Any], Path], home: Path
) -> None:
    configs = [*SIZES]
    code = f"""{HEAD}
from datasets import load_dataset
try:
    load_dataset("scale-vqa", "screened")
except ValueError as error:
    refused = str(error)
print(json.dumps({{
    "plain": plain("scale-vqa", {configs}), "streamed": plain("scale-vqa", {configs}, streaming=True),
    "parallel": plain("scale-vqa", ["default"], num_proc=2),
    "uses": uses("scale-vqa"), "refused": refused, "ours": ours()}}))"""
    found = result(fresh_python(code, HF_HOME=str(home)))
    assert found["plain"] == found["streamed"] == first[1]
    assert found["parallel"] == {"default": first[1]["default"]}
    assert all(config in found["refused"] for config in configs)
    assert found["ours"] == []
    check_uses(found["uses"], first[1]["default"]["test"])


def test_the_bare_name_stays_the_default_when_another_config_is_written_to(
    fresh_python: Run, first: tuple[Path, dict[str, Any], Path], home: Path
) -> None:
    """``datasets`` gives the bare name to the config whose folder changed last, and ``map`` writes into it."""
    code = f"""{HEAD}
from datasets import load_dataset
load_dataset("scale-vqa", "exchange", split="test").map(lambda row: {{"n": 1}})"""
    assert fresh_python(code, HF_HOME=str(home)).returncode == 0
    assert any((home / "datasets" / "scale-vqa" / "exchange").rglob("cache-*.arrow"))
    found = result(fresh_python(f"{HEAD}print(json.dumps(plain('scale-vqa', [None])))", HF_HOME=str(home)))
    assert found == {"None": first[1]["default"]}


def test_preparing_again_changes_nothing(first: tuple[Path, dict[str, Any], Path], home: Path) -> None:
    before = contents(home)
    done = command(home, "prepare", "--data", str(first[0]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("was there already") == len(SIZES)
    assert contents(home) == before


def test_changed_data_replaces_the_old_version(fresh_python: Run, home: Path, tmp_path: Path) -> None:
    sizes = {"exchange": {"test": 8}, "text": {"test": 12}}
    expected = write_folder(tmp_path / "changed", seed=1, sizes=sizes)
    done = command(home, code=data_alone(tmp_path / "changed"))
    assert done.returncode == 0, done.stderr
    code = f"{HEAD}print(json.dumps(plain('scale-vqa', [None, 'text'])))"
    found = result(fresh_python(code, HF_HOME=str(home)))
    assert found == {"None": expected["text"], "text": expected["text"]}  # a control is not what a bare name gives
    versions = list((home / "datasets" / "scale-vqa").glob("*/*/*"))
    assert sorted(version.parts[-3] for version in versions) == ["exchange", "text"]


def test_a_killed_run_leaves_the_old_version_and_is_taken_up(
    fresh_python: Run, first: tuple[Path, dict[str, Any], Path], home: Path, tmp_path: Path
) -> None:
    expected = write_folder(tmp_path / "changed", seed=2)
    killed = """
import os, signal
from dataset_script import builder
from scale_vqa_eval.cli import main
written = []
tables = builder.ScaleVQA._generate_tables
def slow(self, *args, **kwargs):
    for key, table in tables(self, *args, **kwargs):
        yield key, table
        if self.config.name == "exchange":
            os.kill(os.getpid(), signal.SIGKILL)
builder.ScaleVQA._generate_tables = slow
main()"""
    done = command(home, "prepare", "--data", str(tmp_path / "changed"), code=killed)
    assert done.returncode == -signal.SIGKILL
    code = f"{HEAD}print(json.dumps(plain('scale-vqa', {[None, *SIZES]})))"
    found = result(fresh_python(code, HF_HOME=str(home)))
    assert found == {"None": first[1]["default"], **first[1]}

    again = command(home, code=data_alone(tmp_path / "changed"))
    assert again.returncode == 0, again.stderr
    assert "Generating validation split" in done.stderr  # of `default`, whole before the kill and not made again:
    assert again.stderr.count("Generating validation split: 100%") == 1  # that of `text`
    found = result(fresh_python(code, HF_HOME=str(home)))
    assert found == {"None": expected["default"], **expected}
    assert not list((home / "datasets").rglob("*.incomplete"))
    assert not (home / "datasets" / ".scale-vqa.partial").exists()


def test_refused_data_leaves_the_old_version(
    fresh_python: Run, first: tuple[Path, dict[str, Any], Path], home: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    write_folder(folder, seed=3)
    victim = next((folder / "text").glob("test-*.parquet"))
    whole = victim.read_bytes()
    for damaged in (whole[:-100], whole[:100] + b"?" * 900 + whole[1000:]):  # no footer; a page that is no page
        victim.write_bytes(damaged)
        done = command(home, "prepare", "--data", str(folder))
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert f"error: {folder}" in done.stderr
        assert "text" in done.stderr.split("error: ")[-1]
    found = result(fresh_python(f"{HEAD}print(json.dumps(plain('scale-vqa', [None])))", HF_HOME=str(home)))
    assert found == {"None": first[1]["default"]}


def test_metric_of_this_version_and_all_its_modules(fresh_python: Run, tmp_path: Path) -> None:
    """``evaluate`` takes the script that changed last, and copies the modules that the script names, no others."""
    for name, value, leaf in (
        ("old", 1, "import math"),
        ("new", 2, "import math"),
        ("half", 3, "from .more import x"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "scale_vqa_acc.py").write_text(METRIC)
        (folder / "leaf.py").write_text(f"{leaf}\nVALUE = {value}\n")
        (folder / "more.py").write_text("x = 1\n")
    code = f"""
from pathlib import Path
from dataset_script.prepare import prepare_metric
for name in ("old", "new", "old"):
    prepare_metric(Path({str(tmp_path)!r}, name))
try:
    prepare_metric(Path({str(tmp_path)!r}, "half"))
except ValueError as error:
    print(error)"""
    assert "from .more import" in fresh_python(code).stdout
    code = "import evaluate; print(evaluate.load('scale_vqa_acc').compute(predictions=['a'], references=['b']))"
    assert fresh_python(code).stdout == "{'value': 1}\n"


METRIC = """
import datasets
import evaluate
from .leaf import VALUE

class Stand(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"value": VALUE}
"""


def test_without_data_the_metric_alone_is_prepared(fresh_python: Run, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    done = command(tmp_path / "home", "prepare", cwd=tmp_path / "work")
    assert done.returncode == 0, done.stderr
    assert "scale-vqa build release" in done.stderr
    assert "load_dataset(" not in done.stdout
    code = "import evaluate; print(evaluate.load('scale_vqa_acc').compute(predictions=['A'], references=['A']))"
    assert "accuracy" in fresh_python(code, HF_HOME=str(tmp_path / "home")).stdout
    done = command(tmp_path / "home", "prepare", "--data", "no such place", cwd=tmp_path / "work")
    assert done.returncode == 2
    assert "no such place" in done.stderr


def contents(home: Path) -> dict[str, bytes]:
    """Every file of the caches but locks and the metric's record of where its script came from."""
    files = (path for path in home.rglob("*") if path.is_file() and path.suffix not in (".lock", ".json", ".pyc"))
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in files}


def test_questions_are_read_by_the_bare_name_of_what_is_prepared(
    first: tuple[Path, dict[str, Any], Path], home: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from scale_vqa_eval.questions import read_questions; print(read_questions(sys.argv[1], 'test'))"
    )
    named, folder = (command(home, data, cwd=tmp_path, code=code) for data in ("scale-vqa", str(first[0])))
    assert named.returncode == folder.returncode == 0, named.stderr + folder.stderr
    assert named.stdout == folder.stdout
    assert named.stdout.count("Question(") == 140


def test_a_bare_name_that_nothing_stands_behind_says_how_to_make_one(tmp_path: Path) -> None:
    done = command(tmp_path / "empty", "audit", "scale-vqa", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    assert "scale-vqa prepare --data scale-vqa" in done.stderr
    assert "Traceback" not in done.stderr
