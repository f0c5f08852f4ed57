"""``dataset_script.ScaleVQA`` as a builder of ``datasets``, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, Value
from loading_checks import digest, raw
from loading_data import HEAD, SIZES, jpeg, result, rows, write_folder

from dataset_script import ScaleVQA
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.release_folder.write import row_features, write_release
from scale_vqa_eval.schema import CONFIGS

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    place = tmp_path_factory.mktemp("builder") / "data"
    return place, write_folder(place)


def builder(folder: Path, tmp_path: Path, config: str | None = None, **options: Any) -> ScaleVQA:
    return ScaleVQA(config_name=config, data_dir=str(folder), cache_dir=str(tmp_path / "cache"), **options)


def test_one_config_a_view() -> None:
    assert [config.name for config in ScaleVQA.BUILDER_CONFIGS] == list(CONFIGS)


@pytest.mark.parametrize("config", [None, *SIZES])
def test_rows_features_and_stream(written: tuple[Path, dict[str, Any]], tmp_path: Path, config: str | None) -> None:
    folder, expected = written
    made = builder(folder, tmp_path, config)
    assert made.info.features == row_features(images=config != "text")
    stream = made.as_streaming_dataset()
    assert {split: digest(raw(data)) for split, data in stream.items()} == expected[config or "default"]
    made.download_and_prepare()
    data = made.as_dataset()
    assert {split: digest(raw(data)) for split, data in data.items()} == expected[config or "default"]


def test_processes_share_the_shards(written: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, expected = written
    made = builder(folder, tmp_path, "default")
    assert len(made.shards["test"]) == 3
    made.download_and_prepare(num_proc=2)
    data = made.as_dataset(split="test")
    assert len(data.cache_files) == 2
    assert digest(raw(data)) == expected["default"]["test"]


def test_columns_and_filters(written: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    made = builder(written[0], tmp_path, "default", columns=["id", "answer"], filters=[("answer", "==", 2)])
    made.download_and_prepare()
    data = made.as_dataset(split="test")
    assert data.column_names == ["id", "answer"]
    assert set(data["answer"]) == {2}
    with pytest.raises(InputError, match="answers"):
        builder(written[0], tmp_path, "default", columns=["id", "answers"])


def test_rebuilt_folder_is_another_version(tmp_path: Path) -> None:
    for seed in (0, 1):
        expected = write_folder(tmp_path / "data", seed, {"text": {"test": 6}})
        made = builder(tmp_path / "data", tmp_path)
        made.download_and_prepare()
        assert digest(made.as_dataset(split="test")) == expected["text"]["test"]


@pytest.mark.slow
def test_bare_name_after_the_builder_alone(fresh_python: Run, written: tuple[Path, dict[str, Any]]) -> None:
    """As ``datasets`` documents it: name and version given, one config prepared, no ``scale-vqa prepare``."""
    folder, expected = written
    code = f"""
from dataset_script import ScaleVQA
ScaleVQA(config_name="text", dataset_name="scale-vqa", hash="v1", data_dir={str(folder)!r}).download_and_prepare()"""
    assert fresh_python(code).returncode == 0
    found = result(fresh_python(f"{HEAD}print(json.dumps(plain('scale-vqa', [None, 'text'])))"))
    assert found == {"None": expected["text"], "text": expected["text"]}


def test_folder_of_the_variable_and_none(
    written: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCALE_VQA_PATH", raising=False)
    with pytest.raises(InputError, match="scale-vqa build"):
        ScaleVQA(cache_dir=str(tmp_path / "cache"))
    monkeypatch.setenv("SCALE_VQA_PATH", str(written[0]))
    assert ScaleVQA(cache_dir=str(tmp_path / "cache")).folder == written[0]


def test_unknown_config_names_those_that_exist(written: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"default.*exchange.*'screened'"):
        builder(written[0], tmp_path, "screened")


@pytest.mark.parametrize("column", ["mid_mag", "option_images"])
@pytest.mark.parametrize("workers", [None, 2])
def test_image_named_by_a_path_is_never_opened(tmp_path: Path, column: str, workers: int | None) -> None:
    """``datasets`` would open any file or URL that a row names, and show it as an image."""
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg(1)["bytes"])
    made = list(rows("grounding", "test", 5, seed=0))
    outside = {"bytes": None, "path": str(secret)}
    made[3][column] = outside if column == "mid_mag" else [*made[3][column][:3], outside]
    parts = {"validation": made[:2], "test": made}
    write_release(tmp_path / "data", {"grounding": parts}, {})
    split_in_two(tmp_path / "data" / "grounding", "test")
    build = builder(tmp_path / "data", tmp_path)
    with pytest.raises(InputError) as refused:
        build.download_and_prepare(num_proc=workers)
    assert made[3]["id"] in str(refused.value)
    assert column in str(refused.value)
    assert len(refused.value.problems) == 1
    with pytest.raises(InputError, match=str(secret)):
        list(build.as_streaming_dataset(split="test"))


def split_in_two(folder: Path, split: str) -> None:
    """Makes two shards of one, so that two processes have one each."""
    whole = folder / f"{split}-00000-of-00001.parquet"
    table = pq.read_table(whole)
    for number, part in enumerate((table.slice(0, 2), table.slice(2))):
        pq.write_table(part, folder / f"{split}-{number:05d}-of-00002.parquet")
    whole.unlink()


def other_columns(table: pa.Table) -> dict[str, pa.Table]:
    """What a folder may hold in place of the columns of Scale-VQA, by what the error must say."""
    answers = Features({**row_features(False), "answer": Value("string")})
    letters = pa.array(["A"] * len(table))
    labels = row_features(False)
    labels["dimension"].names = [*labels["dimension"].names[::-1]]
    return {
        "column rationale: expected string": table.drop_columns(["rationale"]),
        "column extra: expected no such column": table.append_column("extra", letters),
        "column answer: expected int64, found string": table.set_column(3, "answer", letters).replace_schema_metadata(
            answers.arrow_schema.metadata
        ),
        "column dimension: expected the classes": table.replace_schema_metadata(labels.arrow_schema.metadata),
    }


@pytest.mark.parametrize("number", range(4))
def test_other_columns_are_refused(tmp_path: Path, number: int) -> None:
    write_folder(tmp_path / "data", 0, {"text": {"test": 6}})
    file = tmp_path / "data" / "text" / "test-00000-of-00001.parquet"
    message, table = list(other_columns(pq.read_table(file)).items())[number]
    pq.write_table(table, file)
    with pytest.raises(InputError, match=message):
        builder(tmp_path / "data", tmp_path).download_and_prepare()


def test_files_outside_of_the_folder_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", 0, {"text": {"test": 6}})
    file = tmp_path / "data" / "text" / "test-00000-of-00001.parquet"
    file.rename(tmp_path / "elsewhere.parquet")
    file.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(InputError, match="elsewhere"):
        builder(tmp_path / "data", tmp_path)


@pytest.mark.slow
def test_a_control_of_a_folder_without_images_has_none_either(tmp_path: Path) -> None:
    release = [
        {
            "question": "Which?",
            "options": {letter: f"finding {letter}{slide}" for letter in "ABCD"},
            "answer": "ABCD"[slide % 4],
            "rationale": None,
            "image_path": {},
            "extra_info": {"wsi_name": f"S{slide}", "path_id": "p", "question_type": "type_A"},
        }
        for slide in range(8)
    ]
    (tmp_path / "test.json").write_text(json.dumps(release))
    folder = tmp_path / "scale-vqa"
    command = [sys.executable, "-m", "scale_vqa_eval.cli"]
    build = ["build", "release", "--json", f"test={tmp_path / 'test.json'}", "--out", str(folder)]
    control = ["control", str(folder), "--method", "exchange", "--out", str(folder), "--max-jaccard", "1"]
    for arguments in (build, control):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
    made = ScaleVQA(config_name="exchange", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))
    made.download_and_prepare()
    assert made.info.features == row_features(images=False)
    assert len(made.as_dataset(split="test")) % 4 == 0
