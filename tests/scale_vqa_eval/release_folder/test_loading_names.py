"""What the bare name ``scale-vqa`` stands for in the commands and functions of this package."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from hub_double import hub_double
from loading_data import HEAD, SIZES, result, rows, write_folder

from dataset_script.prepare import prepare_dataset
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.release_folder.read import resolve_data
from scale_vqa_eval.release_folder.verify import release_shards

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def small(place: Path, seed: int) -> str:
    """A folder with the ``text`` config alone; returns its first question."""
    write_folder(place, seed, {"text": {"test": 6}})
    return next(rows("text", "test", 6, seed))["question"]


def test_import_is_cheap_and_patches_nothing(fresh_python: Run) -> None:
    code = """
import sys, scale_vqa_eval, dataset_script
print([name for name in ("datasets", "evaluate", "torch", "numpy", "pyarrow", "yaml") if name in sys.modules])
import datasets.load
print(datasets.load.dataset_module_factory.__module__)"""
    assert fresh_python(code).stdout.split("\n")[:2] == ["[]", "datasets.load"]


@pytest.mark.slow
def test_order_of_the_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = small(tmp_path / "work" / "scale-vqa", 1)
    named = small(tmp_path / "named", 2)
    prepared = small(tmp_path / "prepared", 3)
    (tmp_path / "empty").mkdir()
    checkout = tmp_path / "checkout" / "scale-vqa"  # of the code: has the name, and is not a release folder
    checkout.mkdir(parents=True)
    (checkout / "README.md").write_text("# Scale-VQA\n\nThe package.\n")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("SCALE_VQA_PATH", "SCALE_VQA_HUB_ID"):
        monkeypatch.delenv(name, raising=False)

    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match="scale-vqa build release") as nothing:
        read_questions("scale-vqa")
    assert "scale-vqa prepare" in str(nothing.value)
    monkeypatch.setenv("SCALE_VQA_HUB_ID", "org/any-name")
    assert resolve_data("scale-vqa") == "org/any-name"
    prepare_dataset(tmp_path / "prepared")
    assert read_questions("scale-vqa")[0].question == prepared
    monkeypatch.chdir(tmp_path / "checkout")  # `datasets` would take the checkout for the data
    with pytest.raises(InputError, match="hides what is prepared"):
        read_questions("scale-vqa")
    monkeypatch.setenv("SCALE_VQA_PATH", str(tmp_path / "named"))
    assert resolve_data("scale-vqa") == str(tmp_path / "named")
    monkeypatch.chdir(tmp_path / "empty")
    assert read_questions("scale-vqa")[0].question == named
    monkeypatch.chdir(tmp_path / "work")
    assert read_questions("scale-vqa")[0].question == here


@pytest.mark.slow
def test_a_hub_id_in_the_variable_is_read(fresh_python: Run, tmp_path: Path) -> None:
    question = small(tmp_path / "hub" / "datasets" / "org" / "any-name", 4)
    code = "from scale_vqa_eval.questions import read_questions; print(read_questions('scale-vqa')[0].question)"
    with hub_double(tmp_path / "hub") as server:
        done = fresh_python(code, **{**server.environment(), "SCALE_VQA_HUB_ID": "org/any-name"})
    assert done.stdout.strip() == question, done.stderr


def test_a_wrong_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCALE_VQA_PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"\$SCALE_VQA_PATH") as caught:
        read_questions("scale-vqa")
    assert "scale-vqa build" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["SCALE_VQA_PATH", "SCALE_VQA_HUB_ID"])
def test_prepare_takes_the_variables(fresh_python: Run, tmp_path: Path, variable: str) -> None:
    """Afterwards the bare name loads in a process that knows neither this package nor the variable."""
    expected = write_folder(tmp_path / "hub" / "datasets" / "org" / "named", 5, {"text": {"test": 6}})
    values = {"SCALE_VQA_PATH": str(tmp_path / "hub/datasets/org/named"), "SCALE_VQA_HUB_ID": "org/named"}
    code = "import sys; from scale_vqa_eval.cli import main; sys.argv[1:] = ['prepare']; main()"
    with hub_double(tmp_path / "hub") as server:
        done = fresh_python(code, **{**server.environment(), variable: values[variable]})
    assert done.returncode == 0, done.stderr
    found = result(fresh_python(f"{HEAD}print(json.dumps([plain('scale-vqa', [None]), ours()]))"))
    assert found == [{"None": expected["text"]}, []]


def test_card_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    small(tmp_path / "secret", 5)
    folder = tmp_path / "work" / "scale-vqa"
    small(folder, 6)
    card = folder / "README.md"
    card.write_text(card.read_text().replace("path: text/", "path: ../../secret/text/"))
    for read in (read_questions, release_shards):
        with pytest.raises(InputError, match="secret"):
            read(folder)


def test_the_digests_tell_rows_apart(tmp_path: Path) -> None:
    digests = [digest for splits in write_folder(tmp_path / "d", sizes=SIZES).values() for digest in splits.values()]
    assert len(set(digests)) == len(digests)
