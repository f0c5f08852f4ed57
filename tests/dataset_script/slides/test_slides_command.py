"""``scale-vqa build slides`` as it is typed: exit codes, messages, which files are taken."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from command_line import run_in_process
from drawn_slides import tissue_pixels, tissue_slide, write_slide

from dataset_script.slides import slide_files
from dataset_script.slides.command import slides
from dataset_script.slides.slide_files import find_slides, read_patients
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.wsi import OpenSlideSource

Capture = pytest.CaptureFixture[str]


def scale_vqa(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_in_process("build", "slides", *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides, one of them without a scale in a sub-folder, and files that are none."""
    folder = tmp_path_factory.mktemp("slides")
    tissue_slide(folder / "stated.tif", seed=1)
    (folder / "deep").mkdir()
    tissue_slide(folder / "deep" / "unstated.tif", seed=2, mpp=None)
    (folder / "notes.txt").write_text("no slide")
    (folder / ".hidden.tif").write_text("no slide")
    return folder


def test_a_folder_is_searched_and_what_is_no_slide_is_named(folder: Path, capsys: Capture) -> None:
    found = find_slides([folder, folder / "stated.tif"])
    assert [path.name for path in found] == ["stated.tif", "unstated.tif"]
    assert capsys.readouterr().err == f"skipped, not a slide that OpenSlide opens: {folder / 'notes.txt'}\n"


def test_a_file_that_is_no_slide_is_a_problem(folder: Path) -> None:
    with pytest.raises(InputError, match=r"notes\.txt.*OpenSlide"):
        find_slides([folder / "notes.txt"])


def test_two_slides_of_one_name_are_a_problem(folder: Path, tmp_path: Path) -> None:
    write_slide(tmp_path / "stated.tif", [tissue_pixels(300, 300, seed=0)])
    with pytest.raises(InputError, match="a unique slide name"):
        find_slides([folder, tmp_path])


def test_one_slide_under_two_names_is_a_problem(folder: Path, tmp_path: Path) -> None:
    """Each name would be a patient of its own, and the slide in two splits."""
    for name in ("linked", "copied"):
        (tmp_path / name).mkdir()
    (tmp_path / "linked" / "other.tif").symlink_to(folder / "stated.tif")
    (tmp_path / "linked" / "stated.tif").symlink_to(folder / "stated.tif")
    shutil.copy(folder / "stated.tif", tmp_path / "copied" / "other.tif")
    for name in ("linked", "copied"):
        with pytest.raises(InputError) as refused:
            find_slides([folder, tmp_path / name])
        (problem,) = refused.value.problems
        assert Path(problem.location).stem == "other" and problem.found == f"the bytes of {folder / 'stated.tif'}"


def test_linked_folders_are_searched_once_and_dead_links_named(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "slides").symlink_to(folder)
    (tmp_path / "self").symlink_to(tmp_path)
    (tmp_path / "dead.tif").symlink_to(tmp_path / "nowhere.tif")
    found = find_slides([tmp_path])
    assert [path.name for path in found] == ["stated.tif", "unstated.tif"]
    assert [Path(line).name for line in capsys.readouterr().err.splitlines()] == ["dead.tif", "notes.txt"]


@pytest.mark.parametrize("name", [b"line\nbreak.tif", b"latin-1 \xe9.tif"], ids=["line break", "not UTF-8"])
def test_a_name_with_control_characters_is_a_problem(tmp_path: Path, name: bytes) -> None:
    path = write_slide(tmp_path / "a.tif", [tissue_pixels(300, 300, seed=0)])
    path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    with pytest.raises(InputError, match=r"a name without line breaks.*rename it") as refused:
        find_slides([tmp_path])
    assert str(refused.value).isprintable()


def test_the_dicom_files_of_one_series_are_one_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, name in enumerate(("level-0.tif", "level-1.tif", "other.tif")):
        write_slide(tmp_path / name, [tissue_pixels(300, 300, seed=seed)])
    series = {"level-0": "1.2.3", "level-1": "1.2.3", "other": "4.5"}
    monkeypatch.setattr(slide_files, "_dicom_series", lambda path: series[path.stem])
    assert [path.name for path in find_slides([tmp_path])] == ["level-0.tif", "other.tif"]
    assert [path.name for path in find_slides(sorted(tmp_path.iterdir()))] == ["level-0.tif", "other.tif"]


def test_composed_and_decomposed_names_are_one_name(tmp_path: Path) -> None:
    for folder, name in (("a", "nai\u0308ve.tif"), ("b", "na\u00efve.tif")):
        (tmp_path / folder).mkdir()
        write_slide(tmp_path / folder / name, [tissue_pixels(300, 300, seed=0)])
    with pytest.raises(InputError, match="a unique slide name"):
        find_slides([tmp_path])


def test_a_folder_without_slides_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one slide"):
        find_slides([tmp_path])


def test_patients_come_from_the_table_or_the_name(tmp_path: Path) -> None:
    names = [Path("TCGA-HT-A616-01Z-00-DX1.svs"), Path("b.tif")]
    assert read_patients(names, None) == {"TCGA-HT-A616-01Z-00-DX1": "TCGA-HT-A616", "b": "b"}
    table = tmp_path / "patients.csv"
    table.write_text("patient,slide,age\nP1,TCGA-HT-A616-01Z-00-DX1,50\nP1,b.tif,50\nP9,other,1\n")
    assert set(read_patients(names, table).values()) == {"P1"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("slide;patient\n", "line 1.*one column slide and one patient.*commas"),
        ("slide,patient,patient\n", "line 1.*one column slide"),
        ("slide,patient\na,Doe, J\n", "line 2.*2 cells, found 3"),
        ("slide,patient\na,1\na.tif,2\n", "slide 'a', found '1 and 2'"),
        ("slide,patient\na,\n", "line 2.*empty cell"),
        ("slide,patient\na,1\na,2\n", "line 3.*one patient per slide"),
        ("slide,patient\nc,1\n", "a row for slide 'a'"),
    ],
)
def test_a_patient_table_with_problems(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "patients.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_patients([Path("a.tif")], tmp_path / "patients.csv")


def test_names_in_tables_are_compared_in_one_form(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("slide,patient\nnai\u0308ve,p\nb,P\n")
    assert set(read_patients([Path("na\u00efve.tif"), Path("b.tif")], tmp_path / "patients.csv").values()) == {
        "p",
        "P",
    }
    assert "'P', 'p' differ only in case" in capsys.readouterr().err


def test_why_a_tiff_is_not_opened_and_what_converts_it(tmp_path: Path, capsys: Capture) -> None:
    """libvips reads JPEG 2000 as black, without an error: such a file needs another command."""
    pixels = tissue_pixels(600, 600, seed=0)
    write_slide(tmp_path / "jpeg2000.tif", [pixels], compression="jpeg2000")
    write_slide(tmp_path / "webp.tif", [pixels], compression="webp")
    whole = write_slide(tmp_path / "short.tif", [pixels], compression="zlib").read_bytes()
    (tmp_path / "short.tif").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none.tif").touch()
    write_slide(tmp_path / "strips.tif", [pixels], tile=None, rowsperstrip=64)
    expected = {"jpeg2000": "tifffile.imread", "webp": "pyvips", "short": "ends early", "none": "an empty file"}
    for name, message in expected.items():
        with pytest.raises(InputError, match=message):
            find_slides([tmp_path / f"{name}.tif"])
            OpenSlideSource(tmp_path / f"{name}.tif")
    find_slides([tmp_path])
    skipped = capsys.readouterr().err.splitlines()
    assert [line.partition(".tif: ")[2].split(";")[0] for line in skipped] == [
        "an empty file",
        "a TIFF in strips (NONE), not in tiles",
    ]


def test_a_slide_without_scale_names_the_option_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "release"
    result = scale_vqa(folder, "--out", out, "--size", 128, "--views", "mid,high", "--paths-per-slide", 4)
    assert result.returncode == 1 and result.stdout == ""
    assert "unstated.tif" in result.stderr and "--mpp" in result.stderr and "Traceback" not in result.stderr
    assert not out.exists()


@pytest.mark.slow
def test_with_a_scale_given_it_is_built(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "release"
    result = scale_vqa(
        folder, "--out", out, "--size", 128, "--views", "mid,high", "--paths-per-slide", 3, "--mpp", 0.5
    )
    assert result.returncode == 0, result.stderr
    assert "rounded up to 4" in result.stderr and "notes.txt" in result.stderr
    assert "zoom-out is left out" in result.stderr
    assert result.stdout.strip() == f"{out}: grounding with train 4, test 4 questions"
    again = scale_vqa(folder, "--out", out / "grounding", "--mpp", 0.5)
    assert again.returncode == 1 and "expected a new folder, or a release folder" in again.stderr  # before any read
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "64"], "128 to 4096 pixels"),
        (["--size", "low=512,wide=3"], "128 to 4096 pixels"),
        (["--size", "low=128,mid=512"], "at least 2 times as wide"),
        (["--kinds", "zoom-in,zoom"], "'zoom'"),
        (["--views", "low,mid"], "leaves no kind"),
        (["--views", "mid,high", "--kinds", "origin"], "origin needs low_mag, high_mag"),
        (["--workers", "0"], "--workers"),
        (["--mpp", "0"], "--mpp"),
        (["--min-tissue", "1.5"], "--min-tissue"),
    ],
)
def test_wrong_use_exits_2(folder: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(slides, [str(folder), "--out", str(tmp_path / "release"), *arguments])
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "release").exists()
