"""The doctor: what is missing is named with its fix, and only what nothing works without makes it fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from predict_release import make_release

from scale_vqa_eval import doctor as subject


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the checks that start processes."""
    for name in ("_torch", "_processors", "_prepared_data", "_prepared_metric"):
        monkeypatch.setattr(subject, name, lambda: [])


def report(*more: str) -> tuple[int, dict[str, dict[str, str]]]:
    result = CliRunner().invoke(subject.doctor, ["--json", *more], standalone_mode=False)
    assert result.exception is None, result.exception
    return result.return_value, {finding["what"]: finding for finding in json.loads(result.stdout)}


@pytest.mark.slow
def test_everything_that_is_looked_at_has_a_finding_and_what_is_wrong_a_hint() -> None:
    code, findings = report()
    names = {"python", "core", "slides", "audit", "train", "vllm", "torch", "cache", "downloads"}
    assert names | {"predict --backend openai", 'load_dataset("scale-vqa")'} <= set(findings)
    assert code == 0 and findings["core"]["status"] == "ok"
    assert all(bool(finding["fix"]) == (finding["status"] != "ok") for finding in findings.values())


@pytest.mark.usefixtures("quick")
def test_a_missing_extra_is_a_note_and_a_missing_core_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "requires", lambda _: ["click>=8", 'gone-one>=1; extra == "slides"'])
    code, findings = report()
    assert code == 0 and findings["slides"]["status"] == "note"
    assert "gone-one" in findings["slides"]["found"] and "scale-vqa[slides]" in findings["slides"]["fix"]
    monkeypatch.setattr(subject, "requires", lambda _: ["click>=999"])
    code, findings = report()
    assert code == 1 and findings["core"]["status"] == "broken" and "999" in findings["core"]["found"]


@pytest.mark.usefixtures("quick")
def test_data_is_read_and_its_views_counted(tmp_path: Path) -> None:
    code, findings = report("--data", str(make_release(tmp_path / "scale-vqa", paths=3)))
    assert (
        code == 0 and "15 questions, 15 with low_mag, 15 with mid_mag, 10 with high_mag" in findings["data"]["found"]
    )
    code, findings = report("--data", str(tmp_path / "gone"))
    assert code == 1 and findings["data"]["status"] == "broken" and findings["data"]["fix"]


@pytest.mark.usefixtures("quick")
def test_the_images_of_a_question_file_may_lie_elsewhere_and_another_config_be_named(tmp_path: Path) -> None:
    pictures, file = tmp_path / "pictures", tmp_path / "q.json"
    pictures.mkdir()
    (pictures / "a.jpg").write_bytes(b"any bytes: nothing is decoded")
    row = {"question": "?", "options": ["x", "y"], "answer": "A", "image_path": {"mid_mag": "a.jpg"}}
    file.write_text(json.dumps([row]))
    assert report("--data", str(file))[1]["data"]["status"] == "broken"
    assert "1 with mid_mag" in report("--data", str(file), "--images", str(pictures))[1]["data"]["found"]
    release = make_release(tmp_path / "scale-vqa", paths=1)
    assert "3 questions" in report("--data", str(release), "--config", "grounding")[1]["data"]["found"]
    assert report("--data", str(release), "--config", "nope")[0] == 1


@pytest.mark.usefixtures("quick")
def test_a_cache_without_room_or_rights_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "there"))
    monkeypatch.setattr(subject, "MIN_FREE", 10**18)
    code, findings = report()
    assert code == 0 and findings["cache"]["status"] == "note" and str(tmp_path) in findings["cache"]["found"]
    monkeypatch.setattr(subject.os, "access", lambda *_: False)
    assert report()[0] == 1


def test_a_crash_on_import_is_a_finding() -> None:
    assert subject._run_python("import os; os._exit(3)")[0] is None
    assert "boom" in subject._run_python("raise RuntimeError('boom')")[1]


@pytest.mark.slow
def test_nothing_in_the_working_directory_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a module with the name of a library, nor a metric folder, which `evaluate` itself would execute."""
    mark = tmp_path / "executed"
    code = f"open({str(mark)!r}, 'w').close()\n"
    (tmp_path / "scale_vqa_acc").mkdir()
    for name in ("datasets.py", "evaluate.py", "torch.py", "json.py", "scale_vqa_acc/scale_vqa_acc.py"):
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    subject._run_python("import datasets, json")
    (metric,) = subject._prepared_metric()
    assert not mark.exists()
    assert metric.status == "note" and "executes ./scale_vqa_acc/scale_vqa_acc.py" in metric.found
