"""Stages of a build: stopping, adding slides, stable splits, lost workers, folders built apart and joined."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import lost_workers
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from drawn_slides import halves, tissue_pixels, tissue_slide, write_slide
from grounding_builds import build, rows_of

from dataset_script.slides import build_cache
from dataset_script.slides.build import build_slides
from dataset_script.slides.command import slides as command
from dataset_script.slides.plan import GroundingSettings
from dataset_script.slides.slide_files import read_splits
from dataset_script.slides.workers import worker_pool
from dataset_script.splits import SPLITS, join, join_releases, patient_splits, split_table
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.release_folder.write import folder_digest

ZOOM = GroundingSettings(
    4, kinds=("zoom-in",), views=("mid_mag", "high_mag"), sizes=(("high_mag", 128), ("mid_mag", 128))
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    return [tissue_slide(folder / f"slide_{name}.tif", 1600, 1400, seed=seed) for seed, name in enumerate("abcdef")]


def splits_of(out: Path) -> dict[str, str]:
    return read_splits(out / "grounding" / "splits.csv")


@pytest.mark.slow
def test_a_finished_build_is_extended_by_the_new_slides(
    drawn: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path / "release", tmp_path / "work"
    patients = {slide.stem: slide.stem for slide in drawn}
    build_slides(drawn[:4], patients, ZOOM, out, 1, print, work)
    before = splits_of(out)
    assert set(before.values()) == set(SPLITS)
    rendered: list[str] = []
    planned: list[str] = []
    render, plan = build_cache.write_regions, build_cache.plan_slide
    monkeypatch.setattr(
        build_cache, "write_regions", lambda path, s, *a, **b: (rendered.append(s.name), render(path, s, *a, **b))
    )
    monkeypatch.setattr(build_cache, "plan_slide", lambda source, s: (planned.append(source.name), plan(source, s))[1])
    told: list[str] = []
    build_slides(drawn, patients, ZOOM, out, 1, told.append, work)
    assert planned == rendered == ["slide_e", "slide_f"]
    assert splits_of(out).items() >= before.items() and len(splits_of(out)) == 6
    assert any("keep the splits" in line for line in told)
    digest = folder_digest(out)
    build_slides(drawn, patients, ZOOM, out, 1, told.append, work)
    assert len(rendered) == 2 and folder_digest(out) == digest
    build_slides(drawn, patients, ZOOM, tmp_path / "other", 1, told.append, work, splits=splits_of(out))
    assert folder_digest(tmp_path / "other") == digest
    assert not list(work.glob("blocks/*")) and not list(work.glob("*/.*"))


@pytest.mark.slow
def test_stages_stop_where_asked_and_go_on(drawn: list[Path], tmp_path: Path) -> None:
    arguments = [*map(str, drawn[:2]), "--out", str(tmp_path / "r"), "--views", "mid,high", "--paths-per-slide", "4"]
    for stage in ("plan", "render"):
        result = CliRunner().invoke(command, [*arguments, "--work", str(tmp_path / "work"), "--stop-after", stage])
        assert result.exit_code == 0 and f"stopped after {stage}" in result.output
        assert bool(list((tmp_path / "work").glob("*/*.zip"))) == (stage == "render")
        assert not (tmp_path / "r").exists()
    result = CliRunner().invoke(command, [*arguments, "--work", str(tmp_path / "work")])
    assert result.exit_code == 0, result.output
    assert len(rows_of(tmp_path / "r")) == 8
    inside = CliRunner().invoke(command, [*arguments, "--work", str(tmp_path / "r" / "work")])
    assert inside.exit_code == 2 and "neither inside the other" in inside.output


def test_a_given_split_table_is_kept_and_checked(drawn: list[Path], tmp_path: Path) -> None:
    table = tmp_path / "splits.csv"
    table.write_bytes(split_table({"slide_a": "test", "slide_b": "test", "absent, one": "val"}))
    arguments = [*map(str, drawn[:3]), "--views", "mid,high", "--paths-per-slide", "4", "--splits", str(table)]
    result = CliRunner().invoke(command, [*arguments, "--out", str(tmp_path / "r")])
    assert result.exit_code == 0, result.output
    assert splits_of(tmp_path / "r") == {"slide_a": "test", "slide_b": "test", "slide_c": "train"}
    assert "splits.csv" in (tmp_path / "r" / "README.md").read_text()
    assert "1 of 3 patients with a given split have no slide here: 'absent, one'" in result.output
    for content, message in (("patient,split\na,dev\n", "one of train"), ("patient,split\na,val\na,test\n", "line 3")):
        table.write_text(content)
        with pytest.raises(InputError, match=message):
            read_splits(table)


def test_patients_with_a_split_keep_it_and_new_ones_fill_up() -> None:
    fixed = {"p0": "val", "p1": "train"}
    splits = patient_splits({f"p{number}": 10 for number in range(40)}, fixed=fixed)
    assert splits["p0"] == "val" and splits["p1"] == "train"
    assert [list(splits.values()).count(split) for split in SPLITS] == [28, 4, 8]
    assert patient_splits({"p0": 1, "p9": 1}, fixed={"p0": "train", "gone": "test"}) == {"p0": "train", "p9": "test"}


@pytest.mark.parametrize("kills", [lost_workers.once, lost_workers.always])
def test_a_lost_worker_costs_its_slide(tmp_path: Path, kills: object) -> None:
    tasks = [(Path(f"{name}.tif"), tmp_path) for name in "abcdef"]
    with worker_pool(2) as run:
        problems = [problem for found in run(kills, tasks) for problem in found]
    finished = {path.name for path in tmp_path.iterdir() if not path.suffix}
    if kills is lost_workers.once:
        assert not problems and finished == set("abcdef")
    else:
        assert [problem.location for problem in problems] == ["b.tif"] and finished == set("acdef")


@pytest.mark.slow
def test_folders_built_apart_are_joined(drawn: list[Path], tmp_path: Path) -> None:
    parts = [tmp_path / "a", tmp_path / "b"]
    build(drawn[:3], parts[0], ZOOM)
    build(drawn[3:], parts[1], ZOOM)
    for part, licence in zip(parts, ("cc0-1.0", "cc-by-nc-4.0"), strict=True):
        card = (part / "README.md").read_text()
        (part / "README.md").write_text(card.replace("license: other\n", f"license: {licence}\n", 1))
        text = (part / "README.md").read_text()
        (part / "README.md").write_text(text.replace("license_name: see-the-configs\n", "", 1))
    counts = join_releases(parts, tmp_path / "c")
    ids = [row["id"] for part in parts for row in rows_of(part)]
    joined = rows_of(tmp_path / "c")
    assert sorted(row["id"] for row in joined) == sorted(ids) and sum(counts["grounding"].values()) == len(ids) == 24
    assert splits_of(tmp_path / "c") == splits_of(parts[0]) | splits_of(parts[1])
    assert json.loads((tmp_path / "c/grounding/build.2.json").read_text())["questions"] == 12
    card = (tmp_path / "c" / "README.md").read_text()
    assert "slide\\_a" in card and "slide\\_f" in card
    assert "license: other\n" in card and "a: cc0-1.0; b: cc-by-nc-4.0" in card
    names = [path.name for path in sorted((tmp_path / "c" / "grounding").glob("train-*"))]
    assert names == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]


def test_what_does_not_fit_together_is_refused_by_name(drawn: list[Path], tmp_path: Path) -> None:
    build(drawn[:3], tmp_path / "a", ZOOM)
    shutil.copytree(tmp_path / "a", tmp_path / "same")
    with pytest.raises(InputError, match=r"slide_a::i0000::zoom-in.*no other folder has") as raised:
        join_releases([tmp_path / "a", tmp_path / "same"], tmp_path / "c")
    assert {problem.location.split(", ")[-1].split()[0] for problem in raised.value.problems} == {"id", "group"}
    patients = {slide.stem: "slide_a" for slide in drawn}
    other = "test" if splits_of(tmp_path / "a")["slide_a"] != "test" else "val"
    build_slides(drawn[3:4], patients, ZOOM, tmp_path / "b", 1, print, splits={"slide_a": other})
    result = CliRunner().invoke(join, [str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")])
    assert isinstance(result.exception, InputError) and "patient 'slide_a'" in str(result.exception)
    assert not (tmp_path / "c").exists()
    once = CliRunner().invoke(join, [str(tmp_path / "a"), "--out", str(tmp_path / "c")])
    assert once.exit_code == 2
    with pytest.raises(InputError, match="side by side"):
        join_releases([tmp_path / "a", tmp_path / "b"], tmp_path / "a" / "c")
    shard = next((tmp_path / "same" / "grounding").glob("train-*"))
    content = bytearray(shard.read_bytes())
    content[2000:4000] = bytes(2000)
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"train-00000-of-00001.parquet: expected rows that can be read"):
        join_releases([tmp_path / "same", tmp_path / "b"], tmp_path / "c")


def test_a_work_folder_with_other_files_is_refused_and_left_alone(drawn: list[Path], tmp_path: Path) -> None:
    mine = [tmp_path / "x.tif", tmp_path / "work" / "blocks" / "y.tif"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for work in (tmp_path, tmp_path / "work"):
        with pytest.raises(InputError, match="name another --work"):
            build_slides(drawn[:1], {"slide_a": "a"}, ZOOM, tmp_path / "out", 1, print, work=work)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(mine)


def test_an_image_of_several_kinds_is_stored_once_per_column(drawn: list[Path], tmp_path: Path) -> None:
    settings = GroundingSettings(8, views=("mid_mag", "high_mag"), kinds=("zoom-in",))
    build(drawn[:1], tmp_path / "r", settings)
    images = {
        (column, cell["bytes"])
        for row in rows_of(tmp_path / "r")
        for column in ("mid_mag", "high_mag", "option_images")
        for cell in (row[column] if isinstance(row[column], list) else [row[column]])
        if cell
    }
    files = list((tmp_path / "r" / "grounding").glob("*.parquet"))
    assert sum(path.stat().st_size for path in files) < 1.05 * sum(len(content) for _, content in images) + 20_000
    assert [pq.ParquetFile(path).num_row_groups for path in files] == [1]


def test_levels_that_show_different_places_are_refused(tmp_path: Path) -> None:
    """Geometry would then say nothing about the images."""
    levels = halves(tissue_pixels(1600, 1400, seed=1), 3)
    levels[2] = np.roll(levels[2], (50, 50), (0, 1))
    slide = write_slide(tmp_path / "rolled.tif", levels)
    with pytest.raises(InputError, match=r"rolled_200x.*same tissue in the 40x field.*levels.*do not agree"):
        build([slide], tmp_path / "r", ZOOM)
    assert not (tmp_path / "r").exists()


def test_damaged_finished_work_is_named(tmp_path: Path) -> None:
    slide, work = tissue_slide(tmp_path / "a.tif", 1600, 1400), tmp_path / "work"
    for stage, pattern, content in (("plan", "*/plan.json", b"{"), ("render", "*/*.zip", b"PK")):
        build_slides([slide], {"a": "a"}, ZOOM, tmp_path / "r", 1, print, work, last_stage=stage)
        (file,) = work.glob(pattern)
        file.write_bytes(content)
        build_cache._read_plan.cache_clear()
        with pytest.raises(InputError, match=f"{file.name}.*a damaged file.*delete it"):
            build_slides([slide], {"a": "a"}, ZOOM, tmp_path / "r", 1, print, work)
        file.unlink()
    build_slides([slide], {"a": "a"}, ZOOM, tmp_path / "r", 1, print, work)
