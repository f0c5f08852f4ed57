"""Tables for VLMEvalKit and spreadsheets: every text as its reader will see it, every image, and the blind twin."""

from __future__ import annotations

import ast
import base64
import csv
import json

import pandas as pd
import pytest
from click.testing import CliRunner
from predict_release import make_release, picture, rows

from scale_vqa_eval.cli import export
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.release_folder.write import write_release


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("data") / "scale-vqa")


def run(kind, data, out, *more):
    return CliRunner().invoke(export, [kind, "--data", str(data), "--out", str(out), *more], catch_exceptions=False)


def images_of(table, row):
    """Returns the images of a row as VLMEvalKit finds them: an index of another row stands for that row's."""
    cell = str(row["image"])
    if len(cell) <= 64:
        cell = str(table.set_index(table["index"].astype(str)).loc[cell]["image"])
    texts = ast.literal_eval(cell) if cell.startswith("[") else [cell]
    return [base64.b64decode(text) for text in texts]


def test_a_vlmevalkit_table_has_our_questions_images_and_a_twin_without(release, tmp_path):
    run("vlmevalkit", release, tmp_path)
    table = pd.read_csv(tmp_path / "ScaleVQA_default_test.tsv", sep="\t")
    blind = pd.read_csv(tmp_path / "ScaleVQA_default_test_blind.tsv", sep="\t")
    assert blind.equals(table.drop(columns=["image", "image_path"]))
    sources = {row["id"]: row for row in rows()}
    for question, (_, row) in zip(read_questions(release, "test", "default"), table.iterrows(), strict=True):
        assert (row["id"], row["question"], row["answer"]) == (question.id, question.question, question.letter)
        assert tuple(row[letter] for letter in "ABCD") == question.options and row["category"] == question.dimension
        views = [
            sources[question.id][view] for view in ("low_mag", "mid_mag", "high_mag") if view in sources[question.id]
        ]
        assert images_of(table, row) == [view["bytes"] for view in views if view]
        assert len(ast.literal_eval(row["image_path"])) == len(images_of(table, row))
    assert sum(len(str(cell)) > 64 for cell in table["image"]) == 6, "the questions of a path share their images"


def test_option_images_are_numbered_in_the_hint_and_rotate_with_the_answer(release, tmp_path):
    run("vlmevalkit", release, tmp_path, "--config", "grounding", "--circular")
    table = pd.read_csv(tmp_path / "ScaleVQA_grounding_test_circular.tsv", sep="\t")
    assert list(table["index"]) == [number + 1_000_000 * turn for turn in range(4) for number in range(3)]
    gold = {}
    for _, row in table.iterrows():
        assert row["hint"].endswith(
            "number 2 is option A, number 3 is option B, number 4 is option C, number 5 is option D."
        )
        shown = images_of(table, row)
        gold.setdefault(row["id"], set()).add(shown[1 + "ABCD".index(row["answer"])])
    assert all(len(images) == 1 for images in gold.values()), "the right option is the same image in every rotation"


@pytest.mark.parametrize("text", ["None", "NA", "0.50", "1e3", " nan"], ids=["none", "na", "decimal", "power", "nan"])
def test_a_text_that_pandas_would_change_is_named(tmp_path, text):
    made = [{**row, "options": [text, *row["options"][1:]]} for row in rows(1)]
    folder = write_release(tmp_path / "scale-vqa", {"default": {"test": made}}, {"default": "made for a test"})
    if pd.read_csv(__import__("io").StringIO(f"A\n{text}\n"))["A"].iloc[0] == text:
        run("vlmevalkit", folder, tmp_path / "out")
        return
    with pytest.raises(InputError, match="p0::type_A, A: expected a text that pandas reads unchanged"):
        run("vlmevalkit", folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tsv"))


def test_names_at_which_vlmevalkit_changes_its_rules_are_refused(release, tmp_path):
    with pytest.raises(InputError, match="--name"):
        run("vlmevalkit", release, tmp_path, "--name", "MMBench_mine")


def test_rows_without_an_image_are_refused_because_vlmevalkit_drops_them(tmp_path):
    made = [dict(row) for row in rows(2)]
    made[0] |= {"low_mag": None, "mid_mag": None, "high_mag": None}
    folder = write_release(tmp_path / "scale-vqa", {"default": {"test": made}}, {"default": "made for a test"})
    with pytest.raises(InputError, match="1 without, the first"):
        run("vlmevalkit", folder, tmp_path / "out")


def test_csv_and_jsonl_are_read_back_as_the_same_questions(release, tmp_path):
    for kind in ("csv", "jsonl"):
        run(kind, release, tmp_path, "--split", "test")
        ours = read_questions(release, "test", "default")
        found = read_questions(tmp_path / f"test.{kind}", "test")
        content = [(one.id, one.question, one.options, one.answer, one.dimension, one.patient) for one in ours]
        assert [
            (one.id, one.question, one.options, one.answer, one.dimension, one.patient) for one in found
        ] == content
    line = json.loads((tmp_path / "test.jsonl").read_text().splitlines()[0])
    assert all(
        (tmp_path / name).read_bytes() == picture(place) for place, name in enumerate(line["image_path"].values())
    )


def test_a_formula_does_not_run_in_a_spreadsheet(tmp_path):
    made = [{**row, "question": "=1+1"} for row in rows(1)]
    folder = write_release(tmp_path / "scale-vqa", {"default": {"test": made}}, {"default": "made for a test"})
    run("csv", folder, tmp_path / "out", "--no-images")
    with (tmp_path / "out" / "questions.csv").open(encoding="utf-8-sig", newline="") as file:
        assert {row["question"] for row in csv.DictReader(file)} == {"'=1+1"}
    assert not (tmp_path / "out" / "images").exists()
