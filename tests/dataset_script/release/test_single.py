"""Single-image questions: from PathMMU's layout to rows with one view, a run and the transfer table."""

from __future__ import annotations

import csv
import json

import pytest
from click.testing import CliRunner
from PIL import Image

from dataset_script.single_image import single
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.predict.requests import read_visual_questions, requests_by_path
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.scoring.baselines import as_response
from scale_vqa_eval.scoring.command import report


def row(number, gold, count=5):
    options = [f"{letter}) finding {number} {letter}" for letter in "ABCDE"[:count]]
    return {
        "No": number,
        "img": f"pics/{number % 2}.png",
        "question": "What is seen?",
        "options": options,
        "answer": options[gold],
        "explanation": "as seen",
    }


@pytest.fixture
def made(tmp_path):
    """Runs the command on two subsets: five options, and four."""
    (tmp_path / "images" / "pics").mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (64, 48), (90 * number, 20, 60)).save(tmp_path / "images" / "pics" / f"{number}.png")
    content = {
        "PubMed": {"test": [row(1, 4), row(2, 0), row(3, 2)], "val": [row(4, 1)]},
        "Atlas": {"test": [row(5, 3, 4)]},
    }
    return tmp_path, content


def build(folder, content, *more):
    (folder / "data.json").write_text(json.dumps(content))
    given = [folder / "data.json", "--images", folder / "images", "--out", folder / "rows.json", *more]
    return CliRunner().invoke(single, list(map(str, given)), catch_exceptions=False)


def test_rows_have_one_view_their_own_letters_and_subsets(made):
    folder, content = made
    done = build(folder, content)
    assert done.exit_code == 0 and "5 questions on 2 images" in done.output
    questions = read_questions(folder / "rows.json", "test")
    assert [question.id for question in questions] == [
        "PubMed::test::1",
        "PubMed::test::2",
        "PubMed::test::3",
        "Atlas::test::1",
    ]
    assert [question.letter for question in questions] == ["E", "A", "C", "D"]
    assert questions[0].options == tuple(f"finding 1 {letter}" for letter in "ABCDE")
    assert {question.dimension for question in questions} == {"PubMed", "Atlas"}
    items, store = read_visual_questions(str(folder / "rows.json"), "test", None, folder / "images", blind=False)
    assert [[view.column for view in item.views] for item in items] == [["mid_mag"]] * 4
    assert store.read(items[0].views[0]) == (folder / "images/pics/1.png").read_bytes()
    assert sorted(map(len, requests_by_path(items, circular=False))) == [1, 3]  # questions of one image go together


def test_the_transfer_table_has_a_column_for_each_subset(made):
    folder, content = made
    build(folder, content)
    lines = [
        {"id": question.id, "response": as_response(question.answer if question.dimension == "PubMed" else 0)}
        for question in read_questions(folder / "rows.json", "test")
    ]
    lines[0]["provenance"] = {"model": "M", "ablation": None, "split": "test", "config": None}
    (folder / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = [folder / "run.jsonl", "--data", folder / "rows.json", "--out", folder / "report"]
    assert CliRunner().invoke(report, list(map(str, given)), catch_exceptions=False).exit_code == 0
    found = csv.DictReader((folder / "report" / "report.csv").read_text().splitlines())
    accuracies = {row["dimension"]: row["value"] for row in found if row["measure"] == "accuracy"}
    assert accuracies == {"": "75.0000", "PubMed": "100.0000", "Atlas": "0.0000"}


def test_problems_are_named_by_their_place_in_the_input(made):
    folder, content = made
    content["PubMed"]["test"][1]["answer"] = "none of these"
    content["Atlas"]["test"][0]["img"] = "../data.json"
    with pytest.raises(InputError) as caught:
        build(folder, content)
    text = str(caught.value)
    assert "data.json, PubMed, test, row 2: expected an answer" in text
    assert "data.json, Atlas, test, row 1, image '../data.json'" in text
    assert not (folder / "rows.json").exists()


def test_a_row_without_an_image_is_named(made):
    folder, content = made
    del content["PubMed"]["val"][0]["img"]
    with pytest.raises(InputError, match=r"data.json, PubMed, val, row 1: expected an image name under img"):
        build(folder, content)


@pytest.mark.parametrize("content", [{}, "text", {"a": {"b": {"c": []}}}, [1]])
def test_another_layout_is_refused(made, content):
    with pytest.raises(InputError):
        build(made[0], content)
