"""`scale-vqa build phantom`: what it writes loads, is the same for any number of workers, resumes, and can be seen."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("skia")

from click.testing import CliRunner
from datasets import load_dataset

from dataset_script.phantom.build import phantom
from dataset_script.phantom.slide import phantom_slides, write_slide
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.release_folder.write import folder_digest
from scale_vqa_eval.schema import VIEWS
from scale_vqa_eval.wsi import OpenSlideSource

SLIDES = 4


def command(out: Path, *more: str, slides: int = SLIDES) -> list[str]:
    return ["--slides", str(slides), "--out", str(out), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A phantom release of four slides, made by the command with two workers."""
    out = tmp_path_factory.mktemp("phantom") / "scale-vqa"
    done = subprocess.run(
        [sys.executable, "-m", "scale_vqa_eval.cli", "build", "phantom", *command(out, "--workers", "2")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "share a slide" in done.stderr
    return out


@pytest.fixture(scope="module")
def rows(folder) -> list[dict]:
    return [row for split in load_dataset(str(folder), "phantom").values() for row in split]


def test_rows_are_complete(rows):
    assert len(rows) == SLIDES * 20
    assert {row["source"] for row in rows} == {"phantom"}
    assert all(row["patient_id"] == row["wsi_name"] and row["wsi_name"].startswith("phantom-") for row in rows)
    assert all(row[view].size == (512, 512) and row[view].format == "JPEG" for row in rows for view in VIEWS)
    groups = defaultdict(set)
    for row in rows:
        groups[row["group"]].add(row["answer"])
    assert all(answers == {0, 1, 2, 3} for answers in groups.values())


def test_questions_read_as_everyone_reads_them(folder):
    questions = read_questions(folder, config="phantom")
    assert {question.split for question in questions} == {"train", "val", "test"}
    by_group = Counter(question.group for question in questions)
    assert set(by_group.values()) == {4}


def test_the_card_says_what_it_is(folder):
    card = (folder / "README.md").read_text()
    assert "A phantom, not tissue" in card
    assert "never for claims about pathology" in card
    assert "exactly 25%" in card


def test_no_work_folder_is_left(folder):
    assert [path.name for path in folder.parent.iterdir()] == ["scale-vqa"]


def test_a_killed_build_goes_on_and_the_bytes_do_not_depend_on_workers(folder, tmp_path):
    out = tmp_path / "scale-vqa"
    work = tmp_path / ".scale-vqa.phantom"
    running = subprocess.Popen(
        [sys.executable, "-m", "scale_vqa_eval.cli", "build", "phantom", *command(out, "--workers", "1")],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 600
    while len(done := sorted(work.glob("*/phantom-*.zip"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert len(done) >= 2 and not out.exists()
    stamps = {path: path.stat().st_mtime_ns for path in done}
    (done[0].parent / ".phantom-0003.zip.123").write_bytes(b"half")
    result = CliRunner().invoke(phantom, command(out, "--workers", "1"), catch_exceptions=False)
    assert result.exit_code == 0
    assert not work.exists() and stamps
    assert folder_digest(out / "phantom") == folder_digest(folder / "phantom")
    assert (out / "README.md").read_bytes() == (folder / "README.md").read_bytes()


def test_finished_slides_are_not_drawn_again(tmp_path, monkeypatch):
    import dataset_script.phantom.build as build

    out = tmp_path / "scale-vqa"
    drawn = []
    real = build.draw_slide

    def failing(task):
        drawn.append(task[0].name)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return real(task)

    monkeypatch.setattr(build, "draw_slide", failing)
    with pytest.raises(KeyboardInterrupt):
        build.build_phantom(build.PhantomSettings(3), out, 1)
    (archive,) = (tmp_path / ".scale-vqa.phantom").glob("*/*.zip")
    archive.write_bytes(archive.read_bytes())  # a new time stamp that a second drawing would change
    stamp = archive.stat().st_mtime_ns
    monkeypatch.setattr(build, "write_release", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("stop here")))
    monkeypatch.setattr(build, "draw_slide", real)
    with pytest.raises(RuntimeError):
        build.build_phantom(build.PhantomSettings(3), out, 1)
    assert archive.stat().st_mtime_ns == stamp
    assert len(list(archive.parent.glob("*.zip"))) == 3


def test_paths_may_lack_the_200x_view(tmp_path):
    out = tmp_path / "scale-vqa"
    result = CliRunner().invoke(phantom, command(out, "--missing-high", "1", slides=1), catch_exceptions=False)
    assert result.exit_code == 0
    (split,) = load_dataset(str(out), "phantom").values()
    assert len(split) == 8 and all(row["high_mag"] is None and row["mid_mag"] is not None for row in split)


@pytest.mark.parametrize("wrong", [["--slides", "0"], ["--slides", "3", "--missing-high", "2"], []])
def test_wrong_use_exits_2(wrong, tmp_path):
    assert CliRunner().invoke(phantom, [*wrong, "--out", str(tmp_path / "x")]).exit_code == 2


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    result = CliRunner().invoke(phantom, command(tmp_path))
    assert result.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_slide_file_reads_like_the_phantom(tmp_path):
    slide = phantom_slides(1, 3)[0]
    x, y = slide.fragment_centre(0)
    left, top = x + 1400, y - 500
    path = write_slide(slide, tmp_path / "phantom-0001.tif", (left, top, left + 1000, top + 900))
    with OpenSlideSource(path) as source:
        assert source.mpp == pytest.approx(0.5)
        assert source.size == (2000, 1800)
        for mpp, side in ((0.5, 512), (2.0, 400), (2.5, 320)):
            read = np.asarray(source.read_region(500, 450, mpp, side), float)
            drawn = np.asarray(slide.read_region(left + 500, top + 450, mpp, side), float)
            assert np.abs(read - drawn).mean() < 7
            assert np.abs((read - drawn).mean((0, 1))).max() < 2
    stamp = path.stat().st_mtime_ns
    assert write_slide(slide, path).stat().st_mtime_ns == stamp
