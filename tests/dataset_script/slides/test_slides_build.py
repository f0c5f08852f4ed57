"""A build of grounding questions: rows, exchange groups, splits, same bytes, resuming, refusals."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from drawn_slides import halves, tissue_pixels, tissue_slide, write_slide
from grounding_builds import SMALL, build, rows_of
from paths import ROOT
from PIL import Image

from dataset_script.slides import build_cache
from dataset_script.slides.build_cache import work_root
from dataset_script.slides.build_report import BuildReport
from dataset_script.slides.plan import GroundingSettings
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.release_folder.write import folder_digest
from scale_vqa_eval.schema import GROUNDING_KINDS, VIEWS

SHOWN = {
    "zoom-in": ({"mid_mag"}, 4),
    "zoom-out": ({"high_mag"}, 4),
    "origin": ({"low_mag", "high_mag"}, 0),
    "bridge": ({"low_mag", "high_mag"}, 4),
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    return [tissue_slide(folder / f"slide_{name}.tif", seed=seed) for seed, name in enumerate("abcd")]


@pytest.fixture(scope="module")
def built(drawn: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildReport]:
    out = tmp_path_factory.mktemp("built") / "release"
    return out, build(drawn, out)[0]


@pytest.fixture(scope="module")
def rows(built: tuple[Path, BuildReport]) -> list[dict[str, Any]]:
    return rows_of(built[0])


@pytest.mark.slow
def test_every_slide_gives_every_kind(rows: list[dict[str, Any]], built: tuple[Path, BuildReport]) -> None:
    counts = Counter((row["wsi_name"], row["dimension"]) for row in rows)
    assert counts == {(f"slide_{name}", kind): 8 for name in "abcd" for kind in GROUNDING_KINDS}
    assert built[1].questions == len(rows) == 4 * 4 * 8
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["id"] == f"{row['wsi_name']}::{row['path_id']}::{row['dimension']}" for row in rows)


def test_text_says_nothing(rows: list[dict[str, Any]]) -> None:
    for kind in GROUNDING_KINDS:
        texts = {(row["question"], tuple(row["options"])) for row in rows if row["dimension"] == kind}
        assert len(texts) == 1


@pytest.mark.slow
def test_each_option_of_a_group_is_the_answer_once(rows: list[dict[str, Any]]) -> None:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    for members in groups.values():
        assert sorted(row["answer"] for row in members) == [0, 1, 2, 3]
        preview = {tuple(image["bytes"] for image in row["option_images"]) for row in members}
        if members[0]["dimension"] == "origin":
            preview = {(row["low_mag"]["bytes"],) for row in members}
        assert len(preview) == 1
        assert len({row["split"] for row in members}) == 1


def test_a_path_says_nothing_of_its_letter(rows: list[dict[str, Any]]) -> None:
    letters = Counter((int(row["path_id"][1:]) % 4, row["answer"]) for row in rows)
    assert len(letters) == 16
    order = Counter((index % 4, row["answer"]) for index, row in enumerate(rows))
    assert len(order) == 16


def test_rows_of_other_kinds_do_not_tell_which_option_belongs_to_a_path(rows: list[dict[str, Any]]) -> None:
    """A reader who does not look at the images, but knows which rows share a file, a path or a slide, is at chance."""
    for link in (("wsi_name", "path_id"), ("wsi_name",)):
        shown: dict[bytes, set[tuple[str, ...]]] = {}
        for row in rows:
            for view in (view for view in VIEWS if row[view]):
                shown.setdefault(row[view]["bytes"], set()).add(tuple(row[name] for name in link))
        credits = []
        for row in (row for row in rows if row["option_images"]):
            own = tuple(row[name] for name in link)
            hits = [own in shown.get(image["bytes"], ()) for image in row["option_images"]]
            credits.append(hits[row["answer"]] / sum(hits) if any(hits) else 0.25)
        assert np.mean(credits) == pytest.approx(0.25)


def test_views_and_options_are_jpeg_of_the_sizes_asked_for(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        views, options = SHOWN[row["dimension"]]
        assert {view for view in VIEWS if row[view]} == views
        assert len(row["option_images"]) == options
        for image in [row[view] for view in views] + row["option_images"]:
            opened = Image.open(io.BytesIO(image["bytes"]))
            assert (opened.format, opened.mode, opened.size) == ("JPEG", "RGB", (64, 64))
            assert image["path"].startswith(f"{row['wsi_name']}_") and "/" not in image["path"]


def test_no_patient_is_in_two_splits(rows: list[dict[str, Any]]) -> None:
    splits = {(row["patient_id"], row["split"]) for row in rows}
    assert len(splits) == len({patient for patient, _ in splits}) == 4
    assert {split for _, split in splits} == {"train", "val", "test"}


def test_the_rationale_names_the_answer(rows: list[dict[str, Any]]) -> None:
    assert all(row["rationale"].startswith(row["options"][row["answer"]] + ":") for row in rows)


def test_options_alone_are_right_once_in_four(built: tuple[Path, BuildReport]) -> None:
    assert [probe.kind for probe in built[1].probes] == list(GROUNDING_KINDS)
    assert all(probe.options_alone == 0.25 and not probe.leaks for probe in built[1].probes)


def test_the_card_and_the_report_tell_how_slides_were_used(built: tuple[Path, BuildReport]) -> None:
    out, report = built
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "slide\\_a" in card and "| zoom-in | 32 | 25.0% |" in card
    assert "Report `origin` separately." in card
    assert json.loads((out / "grounding/build.json").read_text())["questions"] == report.questions
    assert "/tmp" not in card + (out / "grounding/build.json").read_text()


def test_it_loads(built: tuple[Path, BuildReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    loaded = datasets.load_dataset(str(built[0]), "grounding", cache_dir=str(tmp_path))
    assert {split: len(part) for split, part in loaded.items()} == dict(built[1].splits)
    assert loaded["test"][0]["option_images"][0].size == (64, 64)


@pytest.mark.slow
def test_two_workers_give_the_same_bytes(drawn: list[Path], built: tuple[Path, BuildReport], tmp_path: Path) -> None:
    build(drawn, tmp_path / "release", processes=2)
    assert folder_digest(tmp_path / "release") == folder_digest(built[0])
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_another_seed_gives_other_questions(drawn: list[Path], rows: list[dict[str, Any]], tmp_path: Path) -> None:
    settings = GroundingSettings(paths_per_slide=4, seed=1, kinds=("zoom-in",), sizes=SMALL.sizes)
    build(drawn[:1], tmp_path / "release", settings)
    preview = {row["mid_mag"]["path"] for row in rows if row["mid_mag"]}
    assert not preview & {row["mid_mag"]["path"] for row in rows_of(tmp_path / "release")}


@pytest.mark.slow
def test_a_killed_build_goes_on_where_it_was(
    drawn: list[Path], built: tuple[Path, BuildReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "release"
    code = (
        "import sys\nfrom pathlib import Path\nfrom grounding_builds import SMALL, build\n"
        "if __name__ == '__main__':\n    build([Path(name) for name in sys.argv[2:]], Path(sys.argv[1]), SMALL, 2)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "helpers")}
    process = subprocess.Popen(
        [sys.executable, str(script), str(out), *map(str, drawn)], env=env, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(work_root(out).glob("*/*.zip")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the build was over before it could be killed"
    assert not out.exists()
    time.sleep(2)  # orphaned workers end by themselves
    done = len(list(work_root(out).glob("*/*.zip")))
    written: list[Path] = []
    real = build_cache.write_regions

    def counted(path: Path, *arguments: Any, **options: Any) -> None:
        written.append(path)
        real(path, *arguments, **options)

    monkeypatch.setattr(build_cache, "write_regions", counted)
    build(drawn, out)
    assert done > 0 and done + len(written) == 4 * 2
    assert folder_digest(out) == folder_digest(built[0])
    assert not work_root(out).exists()


def test_a_damaged_slide_stops_the_build_and_nothing_is_written(drawn: list[Path], tmp_path: Path) -> None:
    torn = tissue_slide(tmp_path / "torn.tif", seed=9)
    content = bytearray(torn.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 1_000_000] = b""
    torn.write_bytes(content)
    with pytest.raises(InputError, match=r"torn\.tif"):
        build([drawn[0], torn], tmp_path / "release")
    assert not (tmp_path / "release").exists()


def test_a_level_that_lacks_what_another_shows_stops_the_build(tmp_path: Path) -> None:
    levels = halves(tissue_pixels(3200, 2800, seed=3), 3)
    levels[0][:] = 255  # never a white image in place of tissue
    with pytest.raises(InputError, match=r"sparse, sparse_200x_.*one colour"):
        build([write_slide(tmp_path / "sparse.tif", levels)], tmp_path / "release")
    assert not (tmp_path / "release").exists()


def test_a_slide_without_tissue_is_named_and_the_others_are_used(drawn: list[Path], tmp_path: Path) -> None:
    empty = write_slide(tmp_path / "empty.tif", [np.full((2800, 3200, 3), 243, np.uint8)])
    report, told = build([drawn[0], empty], tmp_path / "release")
    assert any(line.startswith("empty: 0 of 8 paths") for line in told)
    assert [(use.slide, use.split is None) for use in report.slides] == [("slide_a", False), ("empty", True)]
    with pytest.raises(InputError, match=r"empty\.tif.*at least one group"):
        build([empty], tmp_path / "other")


@pytest.mark.slow
def test_options_from_other_slides(drawn: list[Path], tmp_path: Path) -> None:
    slides = [*drawn, *(tissue_slide(tmp_path / f"slide_{name}.tif", seed=20) for name in "ef")]
    settings = GroundingSettings(8, sizes=SMALL.sizes, distractors="cross-slide")
    report, told = build(slides, tmp_path / "release", settings)
    rows = rows_of(tmp_path / "release")
    crossed = [row for row in rows if row["dimension"] != "origin"]
    assert crossed and {row["split"] for row in crossed} == {"train"}  # val and test have not four patients
    for row in crossed:
        slides_shown = [image["path"].split("_")[1] for image in row["option_images"]]
        assert len(set(slides_shown)) == 4
        assert f"slide_{slides_shown[row['answer']]}" == row["wsi_name"]
    groups = Counter(row["group"] for row in crossed)
    assert set(groups.values()) == {4}
    assert all(probe.options_alone == 0.25 for probe in report.probes)
    assert any("cross-slide" in line and "val" in line for line in told)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of memory is read from Linux's /proc")
def test_a_level_of_20480_px_is_built_in_half_the_memory_of_its_pixels(tmp_path: Path) -> None:
    side, tile = 20_480, 512
    tissue = tissue_pixels(2048, 2048, seed=3, margin=0)
    corners = [(y, x) for y in range(0, 2048, tile) for x in range(0, 2048, tile)]
    coded = [imagecodecs.jpeg8_encode(tissue[y : y + tile, x : x + tile], 85) for y, x in corners]
    glass = imagecodecs.jpeg8_encode(np.full((tile, tile, 3), 244, np.uint8), 85)
    count = side // tile
    tiles = (
        coded[(3 * row + 5 * column) % 16] if 2 <= row < count - 2 and 2 <= column < count - 2 else glass
        for row in range(count)
        for column in range(count)
    )
    path = tmp_path / "wide.tif"
    scale = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        layout = {"shape": (side, side, 3), "dtype": np.uint8, "tile": (tile, tile)}
        file.write(tiles, photometric="ycbcr", subsampling=(2, 2), compression="jpeg", **layout, **scale)
    measured = (
        "import re\nfrom scale_vqa_eval import cli\ntry:\n    cli.main()\nfinally:\n"
        "    print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    given = ["build", "slides", path, "--out", tmp_path / "release", "--paths-per-slide", 4]
    done = subprocess.run(
        [sys.executable, "-c", measured, *map(str, given)], capture_output=True, text=True, timeout=600
    )
    path.unlink()
    assert done.returncode == 0, done.stderr
    assert "wide: zoom-in 4, zoom-out 4, origin 4, bridge 4" in done.stderr
    peak = int(done.stdout.splitlines()[-1]) * 1024
    assert peak < 3 * side**2 / 2, f"{peak / 2**20:.0f} MiB"
