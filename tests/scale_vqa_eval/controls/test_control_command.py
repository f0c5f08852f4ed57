"""``scale-vqa control`` as a user calls it: files and release folders in, rows and configs out."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from click.testing import CliRunner, Result
from datasets import Image, load_dataset
from PIL import Image as Picture

from scale_vqa_eval.controls.command import control
from scale_vqa_eval.controls.exchange import PairRules, exchange
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.release_folder.write import folder_digest, write_release

STEMS = {"type_A": "Which option fits both views?", "type_E": "Which diagnosis fits best?"}


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    Picture.new("RGB", (8, 8), (seed % 256, seed * 7 % 256, 90)).save(file, "JPEG", quality=60 + seed % 30)
    return file.getvalue()


def released_rows(patients: int = 8, start: int = 0) -> list[dict[str, Any]]:
    """Rows in the authors' format: every patient has one question of each template, and a free one."""
    rows = []
    for patient in range(start, start + patients):
        for number, (kind, stem) in enumerate([*STEMS.items(), ("type_C", f"A free question {patient}?")]):
            gold = f"finding{patient}{number} zone{patient}{number}"
            texts = [f"{gold} wrong{place}" for place in range(4)]
            texts[patient % 4] = gold
            slide = f"01K46{patient:05d}"
            rows.append(
                {
                    "question": stem,
                    "options": dict(zip("ABCD", texts, strict=True)),
                    "answer": "ABCD"[patient % 4],
                    "rationale": "Only B fits both views." if patient % 2 else "Necrosis is seen in both views.",
                    "image_path": {
                        "low_mag": f"{slide}/rois/10_{number}.jpg",
                        "mid_mag": f"{slide}/rois/40_{number}.jpg",
                        "high_mag": None if patient == start else f"{slide}/rois/200_{number}.jpg",
                    },
                    "extra_info": {"wsi_name": slide, "path_id": f"path{patient}", "question_type": kind},
                    "No": len(rows) + 1,
                }
            )
    return rows


@pytest.fixture
def val_json(tmp_path: Path) -> Path:
    path = tmp_path / "val.json"
    path.write_text(json.dumps(released_rows()))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release folder with images and two splits, in the authors' image names."""
    tables: dict[str, dict[str, Any]] = {"default": {}, "text": {}}
    for split, start in (("val", 0), ("test", 100)):
        rows = []
        for row in released_rows(start=start):
            info = row["extra_info"]
            flat = {
                "id": f"{info['wsi_name']}::{info['path_id']}::{info['question_type']}",
                "question": row["question"],
                "options": list(row["options"].values()),
                "answer": row["answer"],
                "rationale": row["rationale"],
                "dimension": {"type_A": "Correspondence", "type_C": "Localization"}.get(
                    info["question_type"], "Diagnosis"
                ),
                "wsi_name": info["wsi_name"],
                "patient_id": info["wsi_name"],
                "path_id": info["path_id"],
                "source": "a test",
            }
            views = {
                view: {"bytes": picture(len(name) + len(rows)), "path": name}
                for view, name in row["image_path"].items()
                if name
            }
            rows.append({**flat, **views})
        tables["default"][split] = rows
        tables["text"][split] = [{k: v for k, v in row.items() if not k.endswith("_mag")} for row in rows]
    out = tmp_path / "scale-vqa"
    write_release(out, tables, {"default": "the test's rows"})
    return out


def run(*arguments: object) -> Result:
    return CliRunner().invoke(control, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def by_group(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row["extra_info"]["group"]].append(row)
    return groups


def test_rows_stay_in_the_authors_format(val_json: Path, tmp_path: Path) -> None:
    result = done(val_json, "--method", "exchange", "--out", tmp_path / "ex.json")
    rows = json.loads((tmp_path / "ex.json").read_text())
    source = {row["No"]: row for row in json.loads(val_json.read_text())}
    assert "16 of 24 questions in 4 groups of four (at most 4 are possible)" in result.stdout
    assert len(rows) == 16
    for row in rows:
        old = source[row["No"]]
        assert row.keys() == old.keys()
        assert row["image_path"] == old["image_path"]
        assert row["rationale"] is None
        assert row["options"][row["answer"]] == old["options"][old["answer"]]
        assert row["extra_info"].keys() - old["extra_info"].keys() == {"group", "option_sources"}
        assert row["extra_info"]["option_sources"][row["answer"]].startswith(old["extra_info"]["wsi_name"])
    for group in by_group(rows).values():
        assert len({(row["question"], tuple(row["options"].values())) for row in group}) == 1
        assert sorted(row["answer"] for row in group) == list("ABCD")
        assert len({row["extra_info"]["wsi_name"] for row in group}) == 4
    again = read_questions(tmp_path / "ex.json")
    assert {question.id for question in again} <= {question.id for question in read_questions(val_json)}
    assert all(question.group for question in again)


def test_same_command_same_bytes(val_json: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        done(val_json, "--method", "exchange", "--out", tmp_path / f"{name}.json", "--json", tmp_path / f"{name}.txt")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert (tmp_path / "one.txt").read_bytes() == (tmp_path / "two.txt").read_bytes()
    done(val_json, "--method", "exchange", "--out", tmp_path / "other.json", "--seed", 7)
    assert (tmp_path / "one.json").read_bytes() != (tmp_path / "other.json").read_bytes()


def test_report_counts_everything(val_json: Path, tmp_path: Path) -> None:
    done(val_json, "--method", "exchange", "--out", tmp_path / "ex.json", "--json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["groups"], report["bound"], report["kept"], report["questions"]) == (4, 4, 16, 24)
    assert report["expert_review"] == "not yet confirmed by experts"
    parts = {part["dimension"]: part for part in report["parts"]}
    assert parts["Localization"]["lost"] == {"the question text stands in fewer than four usable rows": 8}
    assert report["audit"]["after"]["strongest"]["accuracy"] == pytest.approx(0.25)
    assert report["audit"]["after"]["ceiling"] == pytest.approx(0.25)
    assert report["audit"]["before"]["strongest"]["accuracy"] > 0.5
    assert sorted(len(ids) for ids in report["members"].values()) == [4] * 4
    # one patient has no high view: it can only be grouped with patients that have one
    assert 1 <= len(report["groups_with_unlike_views"]) <= 2


def test_rationales_may_stay_where_they_name_no_letter(val_json: Path, tmp_path: Path) -> None:
    done(val_json, "--method", "exchange", "--out", tmp_path / "ex.json", "--rationales", "keep")
    kept = Counter(row["rationale"] for row in json.loads((tmp_path / "ex.json").read_text()))
    assert kept == {None: 8, "Necrosis is seen in both views.": 8}


def test_json_lines_and_other_formats(tmp_path: Path) -> None:
    rows = [
        {"qid": f"q{n}", "stem": "Which?", "choices": [f"g{n} x{n}", "no", "yes"], "answer_index": 0}
        | {"case_id": f"c{n}", "organ": "colon", "image": f"img{n}.png"}
        for n in range(4)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done(tmp_path / "in.jsonl", "--method", "exchange", "--out", tmp_path / "out.jsonl")
    made = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(row["answer"] for row in made) == list("ABCD")
    assert {row["id"] for row in made} == {"q0", "q1", "q2", "q3"}
    assert made[0]["extra_info"]["organ"] == "colon" and made[0]["extra_info"]["image"] == "img0.png"
    questions = read_questions(tmp_path / "out.jsonl")
    assert {question.patient for question in questions} == {"c0", "c1", "c2", "c3"}


def test_unknown_patients_are_refused_unless_allowed(tmp_path: Path) -> None:
    rows = [{"id": f"q{n}", "question": "Which?", "options": [f"g{n} x{n}", "no"], "answer": "A"} for n in range(5)]
    (tmp_path / "in.json").write_text(json.dumps(rows))
    result = run(tmp_path / "in.json", "--method", "exchange", "--out", tmp_path / "out.json")
    assert isinstance(result.exception, InputError)
    assert "--allow-unknown-patients" in str(result.exception) and "5 of 5" in str(result.exception)
    assert not (tmp_path / "out.json").exists()
    done(tmp_path / "in.json", "--method", "exchange", "--out", tmp_path / "out.json", "--allow-unknown-patients")
    assert len(json.loads((tmp_path / "out.json").read_text())) == 4


def test_nothing_to_group_says_why(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps(released_rows(3)))
    result = run(tmp_path / "in.json", "--method", "exchange", "--out", tmp_path / "out.json")
    assert isinstance(result.exception, InputError)
    assert "fewer than four" in str(result.exception)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--method", "exchange", "--out", "rows.csv"),
        ("--method", "exchange", "--out", "a-folder"),
        ("--method", "exchange", "--out", "rows.json", "--no-hold-out"),
        ("--method", "screened", "--out", "rows.json", "--max-jaccard", "0.3"),
        ("--method", "exchange", "--out", "rows.json", "--allow-shared-images"),
        ("--method", "block-exchange", "--out", "rows.json", "--weights", "w.json"),
        ("--method", "exchange", "--out", "rows.json", "--max-jaccard", "1.5"),
        ("--method", "swap", "--out", "rows.json"),
        ("--method", "exchange"),
    ],
)
def test_wrong_use(val_json: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    placed = [str(tmp_path / part) if part.startswith(("rows", "a-")) else part for part in arguments]
    assert run(val_json, *placed).exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["val.json"]


def test_a_release_folder_gets_the_config_with_its_images(folder: Path) -> None:
    before = {path: path.read_bytes() for path in sorted((folder / "default").iterdir())}
    done(folder, "--method", "exchange", "--out", folder)
    assert {path: path.read_bytes() for path in sorted((folder / "default").iterdir())} == before
    assert list(release_configs(folder)) == ["default", "exchange", "text"]
    made = load_dataset(str(folder), "exchange")
    assert {split: rows.num_rows for split, rows in made.items()} == {"val": 16, "test": 16}
    source = {row["id"]: row for rows in load_dataset(str(folder), "default").values() for row in undecoded(rows)}
    for split, rows in made.items():
        assert rows.features == load_dataset(str(folder), "default", split=split).features
        groups = defaultdict(list)
        for row in undecoded(rows):
            groups[row["group"]].append(row)
            old = source[row["id"]]
            for view in ("low_mag", "mid_mag", "high_mag"):
                assert row[view] == old[view]  # the original bytes and names
            assert row["options"][row["answer"]] == old["options"][old["answer"]]
            assert row["rationale"] is None
            assert row["source"].startswith("a test; options are the right answers of A ")
        for name, group in groups.items():
            assert name.startswith(f"exchange-{split}-")
            assert sorted(row["answer"] for row in group) == [0, 1, 2, 3]
            assert len({(row["question"], tuple(row["options"])) for row in group}) == 1
    streamed = list(load_dataset(str(folder), "exchange", split="val", streaming=True))
    assert len(streamed) == 16 and streamed[0]["low_mag"].size == (8, 8)
    assert load_dataset(str(folder), split="val").num_rows == 24  # what loads without a name is as it was


def undecoded(rows: Any) -> Any:
    for view in ("low_mag", "mid_mag", "high_mag"):
        rows = rows.cast_column(view, Image(decode=False))
    return rows


def test_block_exchange_in_a_folder_and_as_rows(folder: Path, tmp_path: Path) -> None:
    done(folder, "--method", "block-exchange", "--out", folder)
    assert list(release_configs(folder)) == ["default", "block_exchange", "text"]
    made = load_dataset(str(folder), "block_exchange")
    assert {split: rows.num_rows % 4 for split, rows in made.items()} == {"val": 0, "test": 0}
    assert {row["source"] for row in undecoded(made["val"])} == {
        "a test; options are the right answers of the rows of its group"
    }
    report = json.loads((folder / "block_exchange" / "control.json").read_text())
    assert report["method"] == "block-exchange" and report["groups"] <= report["bound"]
    named = [name for quadruples in report["blocks"].values() for names in quadruples.values() for name in names]
    assert sorted(named) == sorted(report["members"]) == sorted(set(made["val"]["group"]) | set(made["test"]["group"]))
    card = " ".join((folder / "README.md").read_text().split())
    assert "whatever it combines, is right on exactly 25% of the items on average over the relabellings" in card
    assert "probes lie from 25.0% to 25.0%" in card
    done(folder, "--method", "block-exchange", "--split", "val", "--out", tmp_path / "rows.json", "--no-audit")
    rows = json.loads((tmp_path / "rows.json").read_text())
    places = defaultdict(set)
    for row in rows:
        places[row["extra_info"]["quadruple"]].add((row["extra_info"]["wsi_name"], row["extra_info"]["path_id"]))
        assert row["extra_info"]["quadruple"].startswith(row["extra_info"]["block"])
        assert "option_sources" not in row["extra_info"]  # would tell the answers to a reader of the whole file
    assert {len(paths) for paths in places.values()} == {4}
    assert load_dataset(str(folder), split="val").num_rows == 24  # what loads without a name is as it was


def test_the_card_gives_the_account(folder: Path) -> None:
    done(folder, "--method", "exchange", "--out", folder, "--seed", 5)
    card = (folder / "README.md").read_text()
    assert "Not yet confirmed by experts" in card
    assert "--seed 5 --max-jaccard 0.35" in card
    assert "the test's rows" in card  # other configs keep their note
    assert "probes lie from 25.0% to 25.0%" in card
    assert "| val | Diagnosis | 8 | 2 | 2 |" in card
    report = json.loads((folder / "exchange" / "control.json").read_text())
    assert report["groups"] == 8 and report["config"] == "default"


def test_a_folder_without_images_and_a_second_folder(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    result = done(folder, "--method", "exchange", "--config", "text", "--split", "val", "--out", other, "--no-audit")
    assert "no images" in result.stderr
    assert list(release_configs(other)) == ["exchange"]
    rows = load_dataset(str(other), "exchange")
    assert list(rows) == ["val"] and "low_mag" not in rows["val"].features
    assert "No audit was run" in (other / "README.md").read_text()
    assert list(release_configs(folder)) == ["default", "text"]


def test_again_replaces_and_starts_from_the_default(folder: Path) -> None:
    done(folder, "--method", "exchange", "--out", folder, "--no-audit")
    first = folder_digest(folder)
    done(folder, "--method", "exchange", "--out", folder, "--no-audit")
    assert folder_digest(folder) == first
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_a_killed_run_leaves_the_folder_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = folder_digest(folder)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scale_vqa_eval.release_folder.write.write_card", killed)
    assert run(folder, "--method", "exchange", "--out", folder, "--no-audit").exit_code != 0
    assert folder_digest(folder) == before


def test_a_folder_that_is_no_release_is_left_alone(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"meow")
    assert isinstance(
        run(folder, "--method", "exchange", "--out", other, "--no-audit").exception,
        InputError,
    )
    assert [path.name for path in other.iterdir()] == ["cat.jpg"]


def test_rows_of_a_folder_name_their_images(folder: Path, tmp_path: Path) -> None:
    done(folder, "--method", "exchange", "--split", "val", "--out", tmp_path / "ex.json")
    rows = json.loads((tmp_path / "ex.json").read_text())
    assert {row["extra_info"]["split"] for row in rows} == {"val"}
    source = {row["extra_info"]["wsi_name"]: row for row in released_rows()}
    for row in rows:
        assert row["image_path"].keys() == {"low_mag", "mid_mag", "high_mag"}
        assert row["image_path"]["low_mag"].startswith(row["extra_info"]["wsi_name"])
        missing = source[row["extra_info"]["wsi_name"]]["image_path"]["high_mag"] is None
        assert (row["image_path"]["high_mag"] is None) is missing
    assert "id" not in rows[0]  # the id follows from slide, path and type
    assert read_questions(tmp_path / "ex.json")[0].id == f"{rows[0]['extra_info']['wsi_name']}::path0::type_A"


def test_help_needs_no_science_library(fresh_python: Callable[..., CompletedProcess[str]]) -> None:
    code = (
        "import sys; from scale_vqa_eval.cli import cli; cli.main(['--help'], standalone_mode=False);"
        "print(sorted({'sklearn', 'scipy', 'datasets', 'torch'} & set(sys.modules)), file=sys.stderr)"
    )
    assert fresh_python(code).stderr.strip() == "[]"


@pytest.mark.slow
def test_released_val(shared: Path, tmp_path: Path) -> None:
    data = shared / "scale_vqa" / "val.json"
    done(data, "--method", "exchange", "--out", tmp_path / "ex.json")
    rows = json.loads((tmp_path / "ex.json").read_text())
    groups = by_group(rows)
    assert len(groups) >= 44 and len(rows) == 4 * len(groups)
    assert len(exchange(PairRules(read_questions(data))).groups) >= 48  # without a limit on ambiguity
    right = sum(
        hashlib.sha256(repr((row["question"], row["options"])).encode()).digest()[0] % 4 == "ABCD".index(row["answer"])
        for row in rows
    )
    assert right == len(groups)
    assert {row["extra_info"]["question_type"] for row in rows} == {f"type_{letter}" for letter in "ABCDE"}
