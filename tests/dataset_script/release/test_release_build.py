from __future__ import annotations

import copy
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import run_in_process
from datasets import load_dataset
from PIL import Image

from dataset_script.authors_release import read_release
from scale_vqa_eval.release_folder.card import CONTROLS
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.release_folder.write import folder_digest, write_release
from scale_vqa_eval.schema import QUESTION_TYPES, VIEWS


def jpeg(seed: int, size: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((size, size), 40 + seed % 50).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def row(slide: str = "S1", path: str = "p1", kind: str = "type_A", **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "question": f"Which finding of {path} ({kind}) holds?",
        "options": {"A": "one", "B": "two", "C": "three", "D": "four"},
        "answer": "B",
        "rationale": "It is seen.",
        "image_path": {view: f"{slide}/rois/{path}_{view}.jpg" for view in VIEWS},
        "extra_info": {"wsi_name": slide, "path_id": path, "question_type": kind},
        "No": 1,
    }
    return {**base, **changes}


@pytest.fixture
def release(tmp_path: Path) -> tuple[Path, Path, list[dict[str, Any]]]:
    """A release of 2 slides x 2 paths x 5 types with images; one path has no high view."""
    rows = [row(slide, path, kind) for slide in ("S1", "S2") for path in ("p1", "p2") for kind in QUESTION_TYPES]
    root = tmp_path / "images"
    for number, item in enumerate(rows):
        if item["extra_info"]["path_id"] == "p2":
            item["image_path"]["high_mag"] = None
        for name in item["image_path"].values():
            if name:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(jpeg(number))
    file = tmp_path / "test.json"
    file.write_text(json.dumps(rows))
    return file, root, rows


def build(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return run_in_process("build", "release", *args)


@pytest.mark.slow
def test_images_are_embedded_byte_for_byte_and_nulls_stay(release: Any, tmp_path: Path) -> None:
    file, root, rows = release
    done = build("--json", f"test={file}", "--images", root, "--out", tmp_path / "scale-vqa")
    assert done.returncode == 0, done.stderr
    data = load_dataset("parquet", data_files=str(tmp_path / "scale-vqa/default/*.parquet"), cache_dir=str(tmp_path))
    table = data["train"].with_format("arrow")[:]
    assert table.num_rows == len(rows)
    for record, source in zip(table.to_pylist(), rows, strict=True):
        for view in VIEWS:
            name = source["image_path"][view]
            expected = None if name is None else {"bytes": (root / name).read_bytes(), "path": name}
            assert record[view] == expected
        assert record["options"] == list(source["options"].values())
        assert record["option_images"] == []


@pytest.mark.slow
def test_folder_loads_with_both_configs_and_the_report_names_rows(release: Any, tmp_path: Path) -> None:
    file, root, _ = release
    done = build("--json", f"test={file}", "--json", f"val={_other(file)}", "--images", root, "--out", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    data = load_dataset(str(tmp_path / "o"), cache_dir=str(tmp_path / "cache"))
    assert {split: part.num_rows for split, part in data.items()} == {"test": 20, "val": 5}
    assert data["test"][0]["low_mag"].size == (48, 48)
    text = load_dataset(str(tmp_path / "o"), "text", cache_dir=str(tmp_path / "cache"))
    assert not set(VIEWS) & set(text["test"].column_names)
    assert "defect: null-view: S1::p2::type_C: no image for high_mag" in done.stderr
    listed = json.loads((tmp_path / "o/default/defects.json").read_text())
    assert {"id": "S2::p2::type_E", "kind": "null-view", "detail": "no image for high_mag"} in listed


def _other(file: Path) -> Path:
    other = file.with_name("val.json")
    rows = [row("TCGA-AA-0001-01Z", "p9", kind) for kind in QUESTION_TYPES]
    for item in rows:
        item["image_path"] = dict.fromkeys(VIEWS)
    other.write_text(json.dumps(rows))
    return other


@pytest.mark.slow
def test_without_images_there_is_the_text_config_only(release: Any, tmp_path: Path) -> None:
    file, _, _ = release
    done = build("--json", f"test={file}", "--out", tmp_path / "o")
    assert done.returncode == 0
    assert "text config only" in done.stderr
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["README.md", "text"]
    assert load_dataset(str(tmp_path / "o"), cache_dir=str(tmp_path / "c"))["test"].num_rows == 20


@pytest.mark.slow
def test_same_command_same_bytes(release: Any, tmp_path: Path) -> None:
    file, root, _ = release
    for out in ("a", "b", "b"):
        assert build("--json", f"test={file}", "--images", root, "--out", tmp_path / out).returncode == 0
    assert folder_digest(tmp_path / "a") == folder_digest(tmp_path / "b")


@pytest.mark.slow
def test_building_again_drops_what_was_made_of_older_rows(release: Any, tmp_path: Path) -> None:
    file, _, _ = release
    older = {"id": "s::p::type_A", "question": "?", "options": list("wxyz"), "answer": "A", "dimension": "Diagnosis"}
    write_release(tmp_path / "o", {name: {"test": [older]} for name in ("phantom", "text", *CONTROLS)}, {})
    assert build("--json", f"test={file}", "--out", tmp_path / "o").returncode == 0
    assert set(release_configs(tmp_path / "o")) == {"phantom", "text"}


BAD_ROWS = {
    "no option": ({"answer": "E"}, "answer in A, B, C, D"),
    "lower case": ({"answer": "b"}, "answer in A, B, C, D"),
    "list answer": ({"answer": ["A"]}, "answer in A, B, C, D"),
    "missing option": ({"options": {"A": "1", "B": "2", "C": "3"}}, "found no D"),
    "extra option": ({"options": {"A": "1", "B": "2", "C": "3", "D": "4", "E": "5"}}, "also 'E'"),
    "options as list": ({"options": ["1", "2", "3", "4"]}, "options to be an object"),
    "empty option": ({"options": {"A": "1", "B": " ", "C": "3", "D": "4"}}, "B: a text that is not empty"),
    "empty question": ({"question": ""}, "question: a text that is not empty"),
    "question of a number": ({"question": 7}, "question: a text that is not empty"),
    "surrogate": ({"question": "\ud800"}, "whole Unicode characters"),
    "empty rationale": ({"rationale": ""}, "rationale: a text"),
    "unknown type": ({"extra_info": {"wsi_name": "S", "path_id": "p", "question_type": "type_F"}}, "question_type in"),
    "unhashable type": ({"extra_info": {"wsi_name": "S", "path_id": "p", "question_type": []}}, "question_type in"),
    "no slide": ({"extra_info": {"path_id": "p", "question_type": "type_A"}}, "wsi_name: a text"),
    "unknown view": ({"image_path": {"low": "x.jpg"}}, "views low_mag, mid_mag, high_mag"),
    "view of a number": ({"image_path": {"low_mag": 3}}, "low_mag: a text"),
    "no extra": ({"extra_info": None}, "extra_info to be an object"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_each_structural_problem_is_named(case: str, tmp_path: Path) -> None:
    changes, message = BAD_ROWS[case]
    file = tmp_path / "test.json"
    file.write_text(json.dumps([row("S", "p0"), row("S", "p", **changes)]))
    found = read_release({"test": file})
    assert len(found.questions) == 1
    assert any("row 2" in str(problem) and message in str(problem) for problem in found.problems), found.problems


@pytest.mark.parametrize(
    "text, message",
    [
        ('[{"question": "x",}]', "line 1, column"),
        ('[\n  {"question" "x"}]', "line 2, column 15"),
        ("{}", "a JSON list of rows"),
        ("[]", "an empty list"),
        ("[3]", "the row to be an object"),
        ("[" * 100_000, "JSON"),
        ('[{"options": {"A": "1", "A": "2"}}]', "twice: A"),
    ],
)
def test_malformed_json_is_placed(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "test.json"
    file.write_text(text)
    found = read_release({"test": file})
    assert found.questions == []
    assert any(message in str(problem) for problem in found.problems), found.problems


def test_wrong_encoding_is_placed(tmp_path: Path) -> None:
    file = tmp_path / "test.json"
    file.write_bytes('["é"]'.encode("latin-1"))
    (problem,) = read_release({"test": file}).problems
    assert "byte 2" in str(problem)


def test_all_problems_are_listed_in_one_run_and_nothing_is_written(release: Any, tmp_path: Path) -> None:
    file, root, rows = release
    bad = copy.deepcopy(rows)
    bad[0]["answer"] = "Z"
    bad[0]["image_path"]["high_mag"] = "gone.jpg"
    bad[1]["options"]["E"] = "five"
    bad[3] = copy.deepcopy(bad[2])
    outside = tmp_path / "secret.jpg"
    outside.write_bytes(jpeg(1))
    names = ["../secret.jpg", str(outside), "link.jpg", "absent.jpg", "cut.jpg", "bomb.png", "text.jpg", "empty.jpg"]
    names += ["linked/secret.jpg", "C:\\x.jpg", "a\0b.jpg"]
    (root / "link.jpg").symlink_to(outside)
    (root / "linked").symlink_to(tmp_path)
    whole = jpeg(2, 256)
    (root / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "text.jpg").write_text("no image")
    (root / "empty.jpg").write_bytes(b"")
    Image.new("1", (12_000, 12_000)).save(root / "bomb.png")
    for number, name in enumerate(names):
        bad[5 + number]["image_path"]["low_mag"] = name
    file.write_text(json.dumps(bad))
    done = build("--json", f"test={file}", "--images", root, "--out", tmp_path / "o")
    assert done.returncode == 1
    assert not (tmp_path / "o").exists()
    expected = ["answer in A, B, C, D", "also 'E'", "row 4 (S1::p1::type_C)", "'..'", "absolute", "symlink"]
    expected += ["no file there", "truncated", "decompression bomb", "no image in", "an empty file", "NUL"]
    for message in expected:
        assert message in done.stderr, f"{message} not in:\n{done.stderr}"
    assert done.stderr.count("error: ") == 4 + len(names)
    assert done.stderr.count("symlink that leaves") == 2
    assert "Traceback" not in done.stderr


def test_a_repeated_id_across_splits_is_a_problem(tmp_path: Path) -> None:
    for split in ("val", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps([row()]))
    (problem,) = read_release({split: tmp_path / f"{split}.json" for split in ("val", "test")}).problems
    assert "which is" in str(problem) and "val.json, row 1" in str(problem)


@pytest.mark.parametrize(
    "args", [[], ["--json", "test=absent.json"], ["--json", "no-equals"], ["--json", "te/st=pyproject.toml"]]
)
def test_wrong_use_exits_2(args: list[str], tmp_path: Path) -> None:
    assert build(*args, "--out", tmp_path / "o").returncode == 2


def test_a_folder_of_other_things_is_not_touched(release: Any, tmp_path: Path) -> None:
    file, _, _ = release
    (tmp_path / "o").mkdir()
    (tmp_path / "o/thesis.txt").write_text("mine")
    done = build("--json", f"test={file}", "--out", tmp_path / "o")
    assert done.returncode == 1 and "a folder with other contents" in done.stderr
    assert (tmp_path / "o/thesis.txt").read_text() == "mine"


@pytest.mark.slow
def test_killed_at_any_moment_no_half_folder_loads(release: Any, tmp_path: Path) -> None:
    file, root, rows = release
    many = [{**copy.deepcopy(item), "question": f"{n} {item['question']}"} for n in range(40) for item in rows]
    for number, item in enumerate(many):
        item["extra_info"]["path_id"] += f"-{number // 5}"
    file.write_text(json.dumps(many))
    out = tmp_path / "o"
    command = [sys.executable, "-m", "scale_vqa_eval.cli", "build", "release"]
    command += ["--json", f"test={file}", "--images", str(root), "--out", str(out)]
    states = set()
    for delay in (0.4, 0.7, 0.9, 1.1, 1.4):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        states.add(out.exists())
        if out.exists():
            assert load_dataset(str(out), cache_dir=str(tmp_path / f"c{delay}"))["test"].num_rows == len(many)
    assert build(*command[5:]).returncode == 0
    assert load_dataset(str(out), cache_dir=str(tmp_path / "last"))["test"].num_rows == len(many)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".o")]


@pytest.mark.slow
def test_released_questions_build(shared: Path, tmp_path: Path) -> None:
    done = build("--json", f"val={shared / 'scale_vqa/val.json'}", "--out", tmp_path / "scale-vqa")
    assert done.returncode == 0, done.stderr
    data = load_dataset(str(tmp_path / "scale-vqa"), cache_dir=str(tmp_path / "cache"))
    assert data["val"].num_rows == 450
    assert done.stderr.count("defect: null-view") == 15
