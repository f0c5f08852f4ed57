"""Validation in training gives the figures that ``scale-vqa score`` gives of the same answers."""

from __future__ import annotations

import pytest
from training_release import trained_rows

from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.release_folder.write import write_release
from scale_vqa_eval.scoring.predictions import join, read_predictions
from scale_vqa_eval.scoring.score import score_answers
from training_recipes.rows import load_rows, prompt_format, trainer_row
from training_recipes.trainer import figures, write_answers


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Six paths; no patient is known for some rows, and four rows are a group."""

    def rows():
        for number, row in enumerate(trained_rows()):
            group = "g" if number < 4 else None
            yield {**row, "patient_id": None if number % 2 else row["patient_id"], "group": group}

    return write_release(tmp_path_factory.mktemp("data") / "scale-vqa", {"default": {"val": rows()}}, {"default": "x"})


def answers_to(rows):
    letters = ["ABCD"[gold if place % 3 else gold - 1] for place, gold in enumerate(rows["answer"])]
    return [f"<think>x</think><answer>{letter}</answer>" for letter in letters]


def test_figures_are_those_of_score(release, tmp_path):
    held = load_rows(str(release), None, "val")
    rows, answers = held.with_transform(trainer_row(held, prompt_format())), answers_to(held)
    found = figures(rows, answers)
    write_answers(tmp_path / "validation" / "final.jsonl", rows, answers)
    told = read_predictions(tmp_path / "validation" / "final.jsonl")
    scored = score_answers(join(told, read_questions(release, "val")))
    same = ("accuracy", "interval", "clusters", "clustered", "group_accuracy", "groups", "reward", "by_dimension")
    del scored["groups"]["block_exchange"]  # about the questions, not the answers
    assert {name: found[name] for name in same} == {name: scored[name] for name in same}
    assert found["clustered"] and found["groups"]["n"] == 1


def test_a_part_of_a_group_has_no_group_accuracy(release):
    held = load_rows(str(release), None, "val").select(range(2, 20))
    assert figures(held, answers_to(held))["group_accuracy"] is None
