"""A misspelt split, config, command or option value is an error that lists what there is and names the nearest."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.release_folder.write import write_release

SPLITS = ["train", "test", "test"]


def rows(where: str) -> list[dict[str, Any]]:
    made = [{"question": f"?{n}", "options": ["x", "y"], "answer": "A"} for n in range(len(SPLITS))]
    for row, split in zip(made, SPLITS, strict=True):
        row.update({"row": {"split": split}, "extra": {"extra_info": {"split": split}}}.get(where, {}))
    return made


def written(tmp_path: Path, suffix: str, where: str) -> Path:
    file = tmp_path / f"q{suffix}"
    if suffix == ".json":
        file.write_text(json.dumps(rows(where)))
    elif suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows(where)))
    elif suffix == ".csv":
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, ["question", "options", "answer", *(["split"] if where == "row" else [])])
            writer.writeheader()
            writer.writerows({**row, "options": json.dumps(row["options"])} for row in rows(where))
    else:
        pd.DataFrame(rows(where)).to_parquet(file)
    return file


STATED = [(suffix, "row") for suffix in (".json", ".jsonl", ".csv", ".parquet")]
STATED += [(suffix, "extra") for suffix in (".json", ".jsonl", ".parquet")]


def problem(tmp_path: Path, data: Path, split: str, config: str | None = None) -> Problem:
    with pytest.raises(InputError) as caught:
        read_questions(data, split, config)
    (found,) = caught.value.problems
    assert found.location == str(data)
    return found


@pytest.mark.parametrize(("suffix", "where"), STATED)
def test_a_file_that_states_splits(tmp_path: Path, suffix: str, where: str) -> None:
    data = written(tmp_path, suffix, where)
    assert [len(read_questions(data, split)) for split in ("train", "test", None)] == [1, 2, 3]
    for name in ("tset", "Test", "validation"):
        found = problem(tmp_path, data, name)
        assert found.expected == "a split that it has (train, test)"
        assert found.found == repr(name)
    assert problem(tmp_path, data, "tset").hint == "did you mean 'test'?"


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_a_file_that_states_none_is_taken_for_a_usual_split_only(tmp_path: Path, suffix: str) -> None:
    data = written(tmp_path, suffix, "nowhere")
    assert len(read_questions(data, "test")) == 3
    found = problem(tmp_path, data, "tset")
    assert "rows with a split field" in found.expected
    assert "did you mean 'test'?" in found.hint


def test_a_file_of_which_some_rows_state_a_split(tmp_path: Path) -> None:
    data = tmp_path / "q.json"
    data.write_text(json.dumps([*rows("row"), *rows("nowhere")[:1]]))
    assert problem(tmp_path, data, "test").found == "1 of 4 rows without one"


def test_a_release_folder(tmp_path: Path) -> None:
    release = [
        {"id": f"s{n}::p::type_A", "question": "?", "options": list("wxyz"), "answer": "A", "dimension": "Diagnosis"}
        for n in range(2)
    ]
    tables = {"text": {"val": release, "test": release}, "phantom": {"test": release}}
    folder = write_release(tmp_path / "d", tables, {})
    found = problem(tmp_path, folder, "tests", "text")
    assert (found.expected, found.hint) == ("a split that it has (val, test)", "did you mean 'test'?")
    with pytest.raises(InputError) as caught:
        read_questions(folder, config="phanton")
    (found,) = caught.value.problems
    assert (found.location, found.found, found.hint) == (str(folder), "'phanton'", "did you mean 'phantom'?")
    assert "phantom" in found.expected and "text" in found.expected


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["adit"], "audit"),
        (["build", "relase"], "release"),
        (["control", "x", "--method", "exchnge", "--out", "y"], "exchange"),
        (["predict", "--bakend", "x"], "--backend"),
        (["score", "pyproject.toml", "--data", "x", "--mode", "strickt"], "strict"),
    ],
)
def test_the_command_line_names_the_nearest(words: list[str], near: str) -> None:
    done = subprocess.run([sys.executable, "-m", "scale_vqa_eval", *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "id you mean" in done.stderr and near in done.stderr
    assert "Traceback" not in done.stderr
