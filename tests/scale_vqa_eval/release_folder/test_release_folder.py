from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.release_folder import write as release_shards
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.release_folder.write import folder_digest, write_release
from scale_vqa_eval.schema import ALL_DIMENSIONS


def rows(count: int, name: str = "s", image: bytes | None = None) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {
            "id": f"{name}::p{number}::type_A",
            "question": "Q",
            "options": list("wxyz"),
            "answer": "ABCD"[number % 4],
            "low_mag": image and {"bytes": image, "path": "low.jpg"},
            "dimension": ALL_DIMENSIONS[number % 5],
            "wsi_name": name,
            "patient_id": name,
            "path_id": f"p{number}",
            "source": "test",
        }


def test_card_makes_it_load_and_counts_are_true(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "scale-vqa", {"default": {"test": rows(100), "val": rows(7, "v")}}, {})
    data = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"), verification_mode="all_checks")
    assert {name: part.num_rows for name, part in data.items()} == {"test": 100, "val": 7}
    assert data["test"].features["dimension"].int2str(data["test"][4]["dimension"]) == "Diagnosis"
    assert data["test"][0]["option_images"] == [] and data["test"][0]["mid_mag"] is None


def test_shards_are_bounded_and_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_shards, "SHARD_BYTES", 200_000)
    monkeypatch.setattr(release_shards, "GROUP_BYTES", (200_000, 10**7))
    distinct = (row | {"low_mag": {"bytes": os.urandom(20_000), "path": "low.jpg"}} for row in rows(200))
    folder = write_release(tmp_path / "d", {"default": {"test": distinct}}, {})
    shards = sorted((folder / "default").glob("*.parquet"))
    assert len(shards) > 1
    assert [shard.name for shard in shards] == [
        f"test-{n:05d}-of-{len(shards):05d}.parquet" for n in range(len(shards))
    ]
    assert sum(pq.ParquetFile(shard).metadata.num_rows for shard in shards) == 200
    assert load_dataset(str(folder), cache_dir=str(tmp_path / "c"))["test"].num_rows == 200


def test_an_image_that_questions_share_is_stored_once(tmp_path: Path) -> None:
    images = [os.urandom(300_000) for _ in range(12)]
    shared = (row | {"low_mag": {"bytes": images[n // 5], "path": "low.jpg"}} for n, row in enumerate(rows(60)))
    folder = write_release(tmp_path / "d", {"default": {"test": shared}}, {})
    size = (folder / "default/test-00000-of-00001.parquet").stat().st_size
    assert 12 * 300_000 < size < 13 * 300_000


def test_rows_are_streamed(tmp_path: Path) -> None:
    alive = most = 0

    class Counted(dict[str, Any]):
        def __init__(self, row: dict[str, Any]) -> None:
            nonlocal alive, most
            super().__init__(row)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    write_release(tmp_path / "d", {"text": {"test": (Counted(row) for row in rows(1000))}}, {})
    assert most < 200


def test_a_config_is_added_and_the_others_stay(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "d", {"default": {"test": rows(5)}}, {"default": "first account"})
    (folder / "notes.txt").write_text("kept")
    before = (folder / "default/test-00000-of-00001.parquet").read_bytes()
    write_release(folder, {"phantom": {"train": rows(3)}}, {"phantom": "second account"})
    assert set(release_configs(folder)) == {"default", "phantom"}
    assert (folder / "default/test-00000-of-00001.parquet").read_bytes() == before
    card = (folder / "README.md").read_text()
    assert "first account" in card and "second account" in card
    assert (folder / "notes.txt").read_text() == "kept"
    write_release(folder, {"phantom": {"train": rows(4)}}, {}, drop={"default"})
    assert set(release_configs(folder)) == {"phantom"}
    assert pq.read_table(folder / "phantom/train-00000-of-00001.parquet").num_rows == 4


def test_same_rows_same_bytes(tmp_path: Path) -> None:
    folders = [write_release(tmp_path / name / "scale-vqa", {"text": {"test": rows(70)}}, {}) for name in "ab"]
    assert folder_digest(folders[0]) == folder_digest(folders[1])


def test_a_failing_source_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "d", {"text": {"test": rows(5)}}, {})
    before = folder_digest(folder)

    def broken() -> Iterator[dict[str, Any]]:
        yield from rows(100)
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        write_release(folder, {"text": {"test": broken()}}, {})
    assert folder_digest(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_kill_between_the_two_renames_is_repaired(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "d", {"text": {"test": rows(5)}}, {})
    folder.rename(tmp_path / ".d.retired")
    write_release(folder, {"phantom": {"test": rows(2)}}, {})
    assert set(release_configs(folder)) == {"text", "phantom"}
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_no_other_folder_is_touched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.md").write_text("x")
    for name in ("file", "full"):
        with pytest.raises(InputError, match="name another --out"):
            write_release(tmp_path / name, {"text": {"test": rows(1)}}, {})
    assert (tmp_path / "full/thesis.md").read_text() == "x"


def test_unknown_config_and_empty_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown config"):
        write_release(tmp_path / "d", {"extra": {"test": rows(1)}}, {})
    with pytest.raises(ValueError, match="has no row"):
        write_release(tmp_path / "d", {"text": {"test": rows(0)}}, {})
    assert not (tmp_path / "d").exists()
