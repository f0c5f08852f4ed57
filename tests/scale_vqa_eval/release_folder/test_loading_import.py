"""``import scale_vqa_eval`` makes the bare names resolve, in a fixed order, and touches no other name."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_double import hub_double
from loading_data import SIZES, write_folder
from test_loading_folder import HEAD, check_uses, result

Run = Callable[..., "subprocess.CompletedProcess[str]"]
NO_NETWORK = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
BARE = f"{HEAD}import scale_vqa_eval\nprint(json.dumps(plain('scale-vqa', [None])))"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    place = tmp_path_factory.mktemp("import") / "named"
    return place, write_folder(place)


def small(place: Path, seed: int) -> dict[str, dict[str, str]]:
    """A folder with the ``text`` config alone; returns what the bare name gives there."""
    return {"None": write_folder(place, seed, {"text": {"test": 6}})["text"]}


def test_import_is_cheap(fresh_python: Run) -> None:
    code = """
import sys, scale_vqa_eval, dataset_script
print([name for name in ("datasets", "evaluate", "torch", "numpy", "pyarrow", "yaml") if name in sys.modules])"""
    assert fresh_python(code).stdout.strip() == "[]"


@pytest.mark.parametrize("order", ["", "import datasets, evaluate\n"], ids=["before", "after"])
def test_folder_of_the_variable(fresh_python: Run, written: tuple[Path, dict[str, Any]], order: str) -> None:
    folder, expected = written
    # the same objects either way: once is enough
    next_steps = '[uses("scale-vqa"), evaluate.load("scale_vqa_acc").module_type]' if order else "None"
    code = f"""{HEAD}{order}import scale_vqa_eval
from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset
try:
    load_dataset("scale-vqa", "screened")
except ValueError as error:
    refused = str(error)
print(json.dumps({{
    "plain": plain("scale-vqa", {[None, *SIZES]}), "streamed": plain("scale-vqa", {[*SIZES]}, streaming=True),
    "columns": load_dataset("scale-vqa", split="test", columns=["id", "answer"]).column_names,
    "uses": {next_steps}, "configs": get_dataset_config_names("scale-vqa"),
    "splits": get_dataset_split_names("scale-vqa", "text"), "refused": refused}}))"""
    found = result(fresh_python(code, SCALE_VQA_PATH=str(folder), **NO_NETWORK))
    assert found["plain"] == {**expected, "None": expected["default"]}
    assert found["streamed"] == expected
    assert found["columns"] == ["id", "answer"]
    assert sorted(found["configs"]) == sorted(SIZES)
    assert sorted(found["splits"]) == ["test", "validation"]
    assert all(config in found["refused"] for config in SIZES)
    if order:
        check_uses(found["uses"][0], expected["default"]["test"])
        assert found["uses"][1] == "metric"


def test_order_of_the_places(fresh_python: Run, tmp_path: Path) -> None:
    here = small(tmp_path / "work" / "scale-vqa", 1)
    named = small(tmp_path / "named", 2)
    prepared = small(tmp_path / "prepared", 3)
    hub = small(tmp_path / "hub" / "datasets" / "org" / "any-name", 4)
    checkout = tmp_path / "checkout" / "scale-vqa"  # of the code: has the name, and is no release folder
    checkout.mkdir(parents=True)
    (checkout / "README.md").write_text("# Scale-VQA\n\nThe package.\n")
    prepare = f"""
from pathlib import Path
from dataset_script.caches import prepare_dataset
prepare_dataset(Path({str(tmp_path / "prepared")!r}))"""
    name = {"SCALE_VQA_PATH": str(tmp_path / "named")}
    with hub_double(tmp_path / "hub") as server:
        online = {**server.environment(), "SCALE_VQA_HUB_ID": "org/any-name"}
        assert result(fresh_python(BARE, cwd=tmp_path / "checkout", **online)) == hub
        assert fresh_python(prepare).returncode == 0
        assert result(fresh_python(BARE, cwd=tmp_path / "checkout", **online)) == prepared
        assert result(fresh_python(BARE, cwd=tmp_path / "checkout", **online, **name)) == named
        assert result(fresh_python(BARE, cwd=tmp_path / "work", **online, **name)) == here


def test_nothing_here_says_what_to_run_without_asking_the_network(fresh_python: Run) -> None:
    code = """
import time, scale_vqa_eval, evaluate
from datasets import load_dataset
start = time.monotonic()
try:
    load_dataset("scale-vqa")
except FileNotFoundError as error:
    print(error)
print(time.monotonic() - start < 2)
print(evaluate.load("scale_vqa_acc").compute(predictions=["<answer>A</answer>"], references=["B"])["accuracy"])
"""
    done = fresh_python(code, **NO_NETWORK)
    message, quick, accuracy = done.stdout.splitlines()
    assert "scale-vqa build release" in message
    assert "scale-vqa prepare" in message
    assert (quick, accuracy) == ("True", "0.0")
    assert "Retrying" not in done.stderr


def test_a_wrong_variable_is_named(fresh_python: Run, tmp_path: Path) -> None:
    done = fresh_python(BARE, SCALE_VQA_PATH=str(tmp_path))
    assert "InputError: $SCALE_VQA_PATH" in done.stderr
    assert "scale-vqa build" in done.stderr


def test_other_names_are_left_alone(fresh_python: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "rows.jsonl").write_text('{"x": 1}\n')
    (tmp_path / "own_metric").mkdir()
    (tmp_path / "scale_vqa_acc").mkdir()
    for name in ("own_metric", "scale_vqa_acc"):
        (tmp_path / name / f"{name}.py").write_text(OWN_METRIC)
    code = """
import json, scale_vqa_eval, evaluate
from datasets import load_dataset
print(json.dumps([load_dataset("mine", split="train")[:], load_dataset("json", data_files="mine/rows.jsonl").shape,
                  evaluate.load("own_metric").compute(predictions=["a"], references=["b"]),
                  evaluate.load("scale_vqa_acc").compute(predictions=["a"], references=["b"])]))"""
    found = result(fresh_python(code, cwd=tmp_path))
    assert found == [{"x": [1]}, {"train": [1, 1]}, {"mine": 7}, {"mine": 7}]


OWN_METRIC = """
import datasets
import evaluate

class Own(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"mine": 7}
"""


def test_card_that_leaves_its_folder_is_refused(fresh_python: Run, tmp_path: Path) -> None:
    small(tmp_path / "secret", 5)
    folder = tmp_path / "work" / "scale-vqa"
    small(folder, 6)
    card = folder / "README.md"
    card.write_text(card.read_text().replace("path: text/", "path: ../../secret/text/"))
    done = fresh_python(BARE, cwd=tmp_path / "work")
    assert done.returncode != 0
    assert "InputError" in done.stderr
    assert "secret" in done.stderr


def test_the_digests_tell_rows_apart(written: tuple[Path, dict[str, Any]]) -> None:
    digests = [digest for splits in written[1].values() for digest in splits.values()]
    assert len(set(digests)) == len(digests)
