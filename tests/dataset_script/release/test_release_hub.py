"""``build release --hub`` and ``--images`` find the images wherever they lie, and guess nothing."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest
from authors_layouts import (
    LAYOUTS,
    Images,
    authors_data_set,
    batches,
    jpeg,
    loose,
    questions,
    tarred,
    write_questions,
    zipped,
)
from click.testing import CliRunner
from hub_double import HubDouble, hub_double

from dataset_script.authors_release import release
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.schema import VIEWS

REPO = "iMVR-PL/Scale-VQA"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    """A Hub on the loopback that this process takes for the Hub, with an empty cache."""
    from huggingface_hub import constants

    with hub_double(tmp_path / "hub") as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        changes = {"ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False}
        changes |= {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": True}
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        with mock.patch.multiple(constants, **changes):
            yield server


@pytest.fixture
def data_set(hub: HubDouble) -> Path:
    return hub.root / "datasets" / REPO


def build(*arguments: str | Path) -> str:
    """Runs the command; returns what it says, and raises its error."""
    done = CliRunner().invoke(release, [*map(str, arguments)], catch_exceptions=False)
    if isinstance(done.exception, InputError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def refused(*arguments: str | Path) -> str:
    with pytest.raises(InputError) as error:
        build(*arguments)
    return str(error.value)


def check_images(folder: Path, images: Images, splits: tuple[str, ...] = ("val", "test")) -> None:
    """Every image of the rows is there, byte for byte, under its name."""
    seen: Images = {}
    for split in splits:
        for row in pq.read_table(folder / f"default/{split}-00000-of-00001.parquet").to_pylist():
            for view in VIEWS:
                assert (row[view] is None) == (view == "high_mag" and row["path_id"] == "p1")
                if row[view]:
                    seen[row[view]["path"]] = row[view]["bytes"]
    assert seen == images


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_found_on_the_hub_and_in_a_folder(
    layout: str, hub: HubDouble, data_set: Path, tmp_path: Path
) -> None:
    images = authors_data_set(data_set, layout)
    build("--hub", REPO, "--out", tmp_path / "from-hub")
    check_images(tmp_path / "from-hub", images)
    commit = next(line.rsplit("/", 1)[1] for line in hub.requests if "/tree/" in line)
    note = (tmp_path / "from-hub/README.md").read_text()
    assert f"data set {REPO} on the Hub at revision `{commit}`" in note.replace("\\", "")
    files = [f"{split}={data_set / f'Scale-VQA_{split}.json'}" for split in ("val", "test")]
    build("--json", files[0], "--json", files[1], "--images", data_set, "--out", tmp_path / "local")
    for name in ("default/test-00000-of-00001.parquet", "text/val-00000-of-00001.parquet"):
        assert (tmp_path / "local" / name).read_bytes() == (tmp_path / "from-hub" / name).read_bytes()


def test_only_what_is_needed_is_downloaded_and_a_second_run_downloads_nothing(
    hub: HubDouble, data_set: Path, tmp_path: Path
) -> None:
    images = authors_data_set(data_set, "several batches")
    loose(data_set / "Triplet/TCGA_BRCA_batch1/unused/rois", {"1.jpg": jpeg(90)})
    tarred(data_set / "slides.tar.gz", {"a.svs": b"raw"}, "gz")
    said = build("--hub", REPO, "--out", tmp_path / "text", "--no-images")
    assert "text config only" in said and not any(".jpg" in line for line in hub.requests)
    said = build("--hub", REPO, "--out", tmp_path / "o")
    assert "not downloaded, because all images are found elsewhere: slides.tar.gz" in said
    fetched = [line for line in hub.requests if line.startswith("GET") and "/resolve/" in line]
    assert sum(".jpg" in line for line in fetched) == len(images)
    assert not any("slides.tar.gz" in line or "unused" in line for line in fetched)
    hub.requests.clear()
    build("--hub", REPO, "--out", tmp_path / "o")
    assert not any("/resolve/" in line for line in hub.requests)


AMBIGUOUS: dict[str, tuple[Callable[[Path, Images], Any], str]] = {
    "two complete folders": (
        lambda root, images: [loose(root / name, images) for name in ("data", "backup")],
        "backup: 15 of 15 images; data: 15 of 15 images",
    ),
    "a folder and a zip": (
        lambda root, images: [loose(root / "data", images), zipped(root / "images.zip", images)],
        "data: 15 of 15 images; images.zip: 15 of 15 images",
    ),
    "batches that share a slide": (
        lambda root, images: [batches(root, images), loose(root / "Triplet/b3", dict(list(images.items())[:6]))],
        "Triplet/b3: 6 of 15",
    ),
    "a sample of other sizes": (
        lambda root, images: [loose(root, images), loose(root / "small", {next(iter(images)): b"other"})],
        ".: 15 of 15 images; small: 1 of 15",
    ),
    "nothing": (lambda root, images: loose(root / "pictures", {"a/1.jpg": jpeg(1)}), "pictures/a: none in 1 files"),
    "other names below": (
        lambda root, images: loose(root, {f"all/{name.replace('/rois', '')}": one for name, one in images.items()}),
        "such as '10_0_70.jpg'",
    ),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_two_places_that_fit_and_none_are_errors_that_show_what_was_tried(
    case: str, data_set: Path, tmp_path: Path
) -> None:
    rows, images = questions()
    write_questions(data_set, rows)
    write, message = AMBIGUOUS[case]
    write(data_set, images)
    if case == "batches that share a slide":  # each batch holds a slide that no other has
        loose(data_set / "Triplet/b3", dict(list(images.items())[-1:]))
        (data_set / "Triplet/TCGA_BRCA_batch2" / list(images)[-1]).unlink()
        message = "Triplet/b3: 7 of 15"
    error = refused("--hub", REPO, "--out", tmp_path / "o")
    assert message in error and "--images" in error
    assert not (tmp_path / "o").exists()
    if case == "two complete folders":
        build("--hub", REPO, "--images", "data", "--out", tmp_path / "o")
        check_images(tmp_path / "o", images)
    if case == "a folder and a zip":
        build("--hub", REPO, "--images", "images.zip", "--out", tmp_path / "o")
        check_images(tmp_path / "o", images)


def test_a_download_that_breaks_goes_on_where_it_stopped(
    hub: HubDouble, data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = authors_data_set(data_set, "data")
    held = data_set / "data" / list(images)[7]
    content = held.read_bytes()
    answer, cut = hub.RequestHandlerClass._file, [True]  # type: ignore[attr-defined]

    def breaking(self: Any, repository: Path, file: Path) -> None:
        if cut[0] and file == held and self.command == "GET":
            self.close_connection = True
            self.connection.close()
            return
        answer(self, repository, file)

    monkeypatch.setattr(hub.RequestHandlerClass, "_file", breaking)
    error = refused("--hub", REPO, "--out", tmp_path / "o")
    assert "the same command resumes" in error and not (tmp_path / "o").exists()
    hub.requests.clear()
    cut[0] = False
    build("--hub", REPO, "--out", tmp_path / "o")
    check_images(tmp_path / "o", images)
    fetched = [line for line in hub.requests if line.startswith("GET") and line.endswith(".jpg")]
    assert len(fetched) < len(images) and held.read_bytes() == content


def test_missing_images_are_named_by_count_and_slide(data_set: Path, tmp_path: Path) -> None:
    images = authors_data_set(data_set, "several batches")
    slide = "TCGA-AA-0002-01Z-00-DX1"
    for name in [name for name in images if name.startswith(slide)][:2]:
        next(path for path in data_set.rglob("*.jpg") if path.as_posix().endswith(name)).unlink()
    done = CliRunner().invoke(release, ["--hub", REPO, "--out", str(tmp_path / "o")])
    assert isinstance(done.exception, InputError) and len(done.exception.problems) == 10
    assert f"missing: 2 of 15 images, by slide: {slide} 2" in done.output
    assert not (tmp_path / "o").exists()


def test_files_of_one_split_and_without_a_split_are_errors_and_can_be_named(data_set: Path, tmp_path: Path) -> None:
    authors_data_set(data_set, "data")
    (data_set / "old").mkdir()
    (data_set / "old/test.json").write_bytes((data_set / "Scale-VQA_test.json").read_bytes())
    error = refused("--hub", REPO, "--out", tmp_path / "o")
    assert "Scale-VQA_test.json (20 rows)" in error and "old/test.json (20 rows)" in error
    build("--hub", REPO, "--json", "test=old/test.json", "--out", tmp_path / "o")
    assert [path.name for path in (tmp_path / "o/text").glob("*.parquet")] == ["test-00000-of-00001.parquet"]
    assert "did you mean" in refused("--hub", REPO, "--json", "test=old/tset.json", "--out", tmp_path / "p")
    assert "a data set on the Hub" in refused("--hub", "nobody/nothing", "--out", tmp_path / "p")
    (data_set / "text").mkdir()
    (data_set / "text/test-00000-of-00001.parquet").write_bytes(b"PAR1")
    assert "found a release folder; load_dataset" in refused("--hub", REPO, "--out", tmp_path / "p")


def test_names_in_archives_are_never_used_as_paths(data_set: Path, tmp_path: Path) -> None:
    rows, images = questions()
    write_questions(data_set, rows)
    name, *others = images
    rest = {one: images[one] for one in others}
    zipped(data_set / "images.zip", rest)
    with zipfile.ZipFile(data_set / "images.zip", "a") as archive:
        archive.writestr(f"../{name}", images[name])
        link = zipfile.ZipInfo(f"links/{name}")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    done = CliRunner().invoke(release, ["--hub", REPO, "--out", str(tmp_path / "o")])
    assert "images.zip: skipped 2 links or names that leave the archive" in done.output
    assert isinstance(done.exception, InputError) and "no file there" in str(done.exception)
    (data_set / "images.zip").unlink()
    tarred(data_set / "images.tar.gz", rest, "gz")
    with tarfile.open(data_set / "more.tar", "w") as archive:
        for link_type in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = link_type, "/etc/passwd"
            archive.addfile(info)
    done = CliRunner().invoke(release, ["--hub", REPO, "--out", str(tmp_path / "o")])
    assert "more.tar: skipped 3 links" in done.output and isinstance(done.exception, InputError)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_damaged_archive_is_one_error(kind: str, data_set: Path, tmp_path: Path) -> None:
    authors_data_set(data_set, f"one {kind}")
    file = data_set / f"images.{kind}"
    file.write_bytes(file.read_bytes()[:-2000])
    error = refused("--hub", REPO, "--out", tmp_path / "o")
    assert f"{REPO}, images.{kind}: expected a complete archive" in error


def test_an_archive_can_be_the_root_and_decomposed_names_match(tmp_path: Path) -> None:
    rows, images = questions()
    old, new = "01K46JNMVW0MT1HZQ89SNSKBSH", "Gew\u00e4chs"
    text = json.dumps(rows["val"]).replace(old, new)
    (tmp_path / "val.json").write_text(text)
    mac = {name.replace(old, "Gewa\u0308chs"): one for name, one in images.items() if name.startswith(old)}
    zipped(tmp_path / "images.zip", mac)
    build("--json", f"val={tmp_path / 'val.json'}", "--images", tmp_path / "images.zip", "--out", tmp_path / "o")
    wanted = {name.replace("Gewa\u0308chs", new): one for name, one in mac.items()}
    check_images(tmp_path / "o", wanted, ("val",))
    huge = zipfile.ZipInfo(next(iter(mac)))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(huge, b"x" * 1000)
    with mock.patch("dataset_script.image_files.MAX_BYTES", 999):
        (tmp_path / "images.zip").write_bytes(buffer.getvalue())
        error = refused("--json", f"val={tmp_path / 'val.json'}", "--images", tmp_path, "--out", tmp_path / "p")
    assert "a file of 1,000 bytes" in error


def test_two_commands_from_the_hub_to_a_loaded_data_set(
    hub: HubDouble, data_set: Path, tmp_path: Path, fresh_python: Callable[..., Any]
) -> None:
    images = authors_data_set(data_set, "a zip a slide")
    command = (
        "import sys; from scale_vqa_eval.cli import main; sys.argv = ['scale-vqa', 'prepare', *sys.argv[1:]]; main()"
    )
    given = command.replace("*sys.argv[1:]", f"'--data', {REPO!r}")
    done = fresh_python(given, **hub.environment())
    assert done.returncode == 0, done.stderr
    load = "from datasets import load_dataset; import evaluate; evaluate.load('scale_vqa_acc')\n"
    load += "rows = load_dataset('scale-vqa')\n"
    load += "print({split: (len(part), sum(row['low_mag'].size[0] for row in part)) for split, part in rows.items()})"
    loaded = fresh_python(load)
    assert loaded.stdout.strip() == "{'val': (10, 400), 'test': (20, 800)}", loaded.stderr
    hub.requests.clear()
    again = fresh_python(command, **hub.environment(), SCALE_VQA_HUB_ID=REPO)
    assert again.returncode == 0 and "was there already" in again.stdout, again.stderr
    assert not any("/resolve/" in line for line in hub.requests)
    (tmp_path / "hub").rename(tmp_path / "gone")
    offline = fresh_python(command, HF_HUB_OFFLINE="1", SCALE_VQA_HUB_ID=REPO)
    assert offline.returncode == 0 and "using the earlier download" in offline.stderr, offline.stderr
    assert len(images) == 15


def test_bad_use_is_said(tmp_path: Path) -> None:
    for arguments in ([], ["--json", "a=b.json", "--no-images"], ["--hub", REPO, "--images", "x", "--no-images"]):
        assert CliRunner().invoke(release, [*arguments, "--out", str(tmp_path / "o")]).exit_code == 2
