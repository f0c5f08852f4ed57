"""A build on a local Ray: the same bytes, a lost worker, a killed driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lost_workers
import pytest
from drawn_slides import tissue_slide
from grounding_builds import SMALL, build
from paths import ROOT

from dataset_script.slides.build import build_slides
from dataset_script.slides.workers import worker_pool
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.release_folder.write import folder_digest

pytest.importorskip("ray")


def test_ray_gives_the_same_bytes_and_a_killed_driver_is_resumed(tmp_path: Path) -> None:
    slides = [tissue_slide(tmp_path / f"slide_{name}.tif", seed=seed) for seed, name in enumerate("abcd")]
    code = (
        "import sys\nfrom pathlib import Path\nfrom grounding_builds import SMALL\n"
        "from dataset_script.slides.build import build_slides\nslides = [Path(name) for name in sys.argv[3:]]\n"
        "patients = {slide.stem: slide.stem for slide in slides}\n"
        "build_slides(slides, patients, SMALL, Path(sys.argv[1]), 2, print, Path(sys.argv[2]), 'local')\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "helpers")}
    out, work = tmp_path / "release", tmp_path / "work"
    driver = subprocess.Popen([sys.executable, "-c", code, out, work, *slides], env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while not list(work.glob("*/*.zip")) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL, "the build was over before it could be killed"
    time.sleep(3)  # its workers end by themselves
    before = {path: path.stat().st_mtime_ns for path in work.glob("*/*.zip")}
    patients = {slide.stem: slide.stem for slide in slides}
    build_slides(slides, patients, SMALL, out, 2, print, work, "local")
    assert before and all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())
    build(slides, tmp_path / "here")
    assert folder_digest(out) == folder_digest(tmp_path / "here")


@pytest.mark.parametrize("kills", [lost_workers.once, lost_workers.always])
def test_a_lost_ray_worker_costs_its_slide(tmp_path: Path, kills: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "helpers"))  # workers import the tasks
    tasks = [(Path(f"{name}.tif"), tmp_path) for name in "abcd"]
    with worker_pool(2, "local") as run:
        problems = [problem for found in run(kills, tasks) for problem in found]
    finished = {path.name for path in tmp_path.iterdir() if not path.suffix}
    if kills is lost_workers.once:
        assert not problems and finished == set("abcd")
    else:
        assert [problem.location for problem in problems] == ["b.tif"] and finished == set("acd")


def test_no_cluster_at_the_address_is_one_error() -> None:
    with pytest.raises(InputError, match=r"--ray 127\.0\.0\.1:1.*a Ray cluster"), worker_pool(2, "127.0.0.1:1"):
        raise AssertionError("there is no cluster there")
