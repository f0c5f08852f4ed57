"""The curation's input and configuration: what is read, and what is refused by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from curate_inputs import write_config, write_input

from dataset_script.curate import work
from dataset_script.curate.captions import PATH_VIEW, read_paths
from dataset_script.curate.command import curate
from dataset_script.curate.work import open_work, read_settings
from scale_vqa_eval.errors import InputError


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_path_is_read_and_a_high_view_may_be_absent_in_each_way(tmp_path: Path) -> None:
    file = write_input(tmp_path, 2, missing_high=0.0)
    rows = rows_of(file)
    rows[0]["paths"][0]["high_mag"] = None
    del rows[0]["paths"][1]["high_mag"]
    rows[0]["paths"][2]["high_mag"] = {"image_path": None, "caption": None}
    rows[1]["patient_id"] = "P7"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = read_paths(file, tmp_path)
    assert len(paths) == 8
    assert [len(path.images) for path in paths[:4]] == [2, 2, 2, 3]
    assert paths[3].texts[0][1] == rows[0]["paths"][3]["low_mag"]["caption"]
    assert dict(paths[0].texts)[PATH_VIEW].startswith("At 10x")
    assert [path.patient for path in paths[3:5]] == ["phantom-0001", "P7"]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda row: row.pop("wsi_name"), "wsi_name"),
        (lambda row: row.update(paths=[]), "at least 1 item"),
        (lambda row: row["paths"][0].pop("path_id"), "path_id"),
        (lambda row: row["paths"][1].update(path_id="path-1"), "a path_id that is unique on its slide"),
        (lambda row: row["paths"][0].update(low_mag=None), "a mapping"),
        (lambda row: row["paths"][0]["mid_mag"].update(caption=" "), "at least 1 character"),
        (lambda row: row["paths"][0]["high_mag"].update(caption=3), "a valid string"),
        (lambda row: row["paths"][0]["high_mag"].update(image_path="../../etc/passwd"), "a file inside"),
        (lambda row: row["paths"][0]["high_mag"].update(image_path="/etc/passwd"), "a file inside"),
        (lambda row: row["paths"][0]["high_mag"].update(image_path="none.png"), "a file inside"),
        (lambda row: row["paths"][0].update(path_summary=["x"]), "a valid string"),
        (lambda row: row.update(patient_id=["P1"]), "a name or a number"),
        (lambda row: row.update(patient_id=" "), "a name or a number"),
    ],
)
def test_what_breaks_the_format_is_refused_with_its_place(tmp_path: Path, spoil: Any, expected: str) -> None:
    file = write_input(tmp_path, 1, missing_high=0.0)
    rows = rows_of(file)
    spoil(rows[0])
    file.write_text("not json\n" + json.dumps(rows[0]) + "\n")
    with pytest.raises(InputError) as refused:
        read_paths(file, tmp_path)
    assert any("line 1" in problem.location for problem in refused.value.problems)
    assert any(expected in problem.expected for problem in refused.value.problems), refused.value


def test_slides_of_one_patient_stay_together_where_patients_are_numbers(tmp_path: Path) -> None:
    file = write_input(tmp_path, 3, missing_high=0.0)
    rows = rows_of(file)
    for row, patient in zip(rows, (7, "7", 0), strict=True):
        row["patient_id"] = patient
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [path.patient for path in read_paths(file)[::4]] == ["7", "7", "0"]


def test_a_slide_of_two_patients_is_refused(tmp_path: Path) -> None:
    file = write_input(tmp_path, 1, missing_high=0.0)
    (row,) = rows_of(file)
    halves = [
        {**row, "patient_id": name, "paths": paths}
        for name, paths in (("P", row["paths"][:2]), ("Q", row["paths"][2:]))
    ]
    file.write_text("".join(json.dumps(half) + "\n" for half in halves))
    with pytest.raises(InputError, match="one patient"):
        read_paths(file)


def test_a_list_of_slides_is_no_json_lines(tmp_path: Path) -> None:
    file = write_input(tmp_path, 2)
    file.write_text(json.dumps(rows_of(file)))
    with pytest.raises(InputError, match="on its own line"):
        read_paths(file)


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    file = write_input(tmp_path / "in", 1)
    config = write_config(tmp_path / "c.yaml", "http://127.0.0.1:9/v1")
    command = [str(file), "--config", str(config), "--out"]
    below_a_file = CliRunner().invoke(curate, [*command, str(file / "out")])
    assert below_a_file.exit_code == 2 and "cannot be written" in below_a_file.output
    work = CliRunner().invoke(curate, [*command, str(tmp_path / "out"), "--work", str(file / "work")])
    assert isinstance(work.exception, InputError) and "--work" in str(work.exception)


def test_a_changed_input_keeps_its_shards_and_so_its_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_input(tmp_path / "in", 4)
    settings = read_settings(write_config(tmp_path / "c.yaml", "http://localhost/v1", paths_per_shard=5))
    first = open_work(tmp_path / "w", file, settings)
    before = {path.key: shard for shard in range(first.shards) for path in first.paths(shard)}
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    second = open_work(tmp_path / "w", file, settings)
    after = {path.key: shard for shard in range(second.shards) for path in second.paths(shard)}
    assert first.shards == second.shards == 4

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(work, "write_lines", killed)
        open_work(tmp_path / "w", file, settings)
    third = open_work(tmp_path / "w", file, settings)
    assert third.shards == 4 and len(third.all_paths()) == 8
    assert len(before) == 16 and len(after) == 12
    assert after.items() <= before.items()


@pytest.mark.parametrize(
    ("change", "location"),
    [
        ({"rounds": 0}, "rounds"),
        ({"sed": 1}, "c.yaml"),
        ({"alpha": "x"}, "alpha"),
        ({"roles": {"generate": {"base_url": "ftp://x"}}}, "roles.generate"),
        ({"roles": {"generate": {"api_key": "sk-1"}}}, "roles.generate"),
        ({"roles": {"generate": {"budget": 1}}}, "budget"),
        ({"roles": {"adversary": {"structured": "yes"}}}, "structured"),
    ],
)
def test_a_configuration_that_is_wrong_is_refused_by_key(
    tmp_path: Path, change: dict[str, Any], location: str
) -> None:
    roles = change.pop("roles", None)
    file = write_config(tmp_path / "c.yaml", "http://localhost/v1", roles, **change)
    with pytest.raises(InputError) as refused:
        read_settings(file)
    assert any(location in problem.location for problem in refused.value.problems)
