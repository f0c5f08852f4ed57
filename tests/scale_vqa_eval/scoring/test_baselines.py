"""The image-free baselines: their rules, their ties, and what they reach on the released questions."""

from __future__ import annotations

import pytest

from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.rewards import compute_score
from scale_vqa_eval.scoring.baselines import BASELINES, as_response, medoid, respond


def question(*options):
    return Question("q", "Which?", options, 0)


def test_each_baseline_keeps_its_rule():
    item = question("dense stroma", "dense nests", "dense nests with necrosis", "loose fat that is the longest of all")
    assert {name: pick(item) for name, pick in BASELINES.items()} == {"always-A": 0, "longest": 3, "medoid": 1}


@pytest.mark.parametrize(
    "options, picked",
    [
        (("a", "b", "c", "d"), 0),  # nobody shares a word: the first
        (("x", "a b", "b a", "y"), 1),  # of equals the first
        (("a b c", "a b", "a c", "b c"), 0),  # the centre of the four
        (("a b", "a b c", "a b c d", "a b c d e"), 2),  # 2/4 + 3/4 + 4/5 beats 2/3 + 3/4 + 3/5
        (("!", "?", "a", "b"), 0),  # no word at all is like no word at all
        (("Dense STROMA", "dense stroma", "fat", "bone"), 0),  # case does not count
    ],
)
def test_medoid(options, picked):
    assert medoid(question(*options)) == picked


def test_medoid_ties_do_not_hang_on_the_order_of_addition():
    """Three sums of the same thirds and sevenths in other orders must tie."""
    words = ["a b c", "a d e", "b d f", "c e f"]
    for turn in range(4):
        assert medoid(question(*words[turn:], *words[:turn])) == 0


def test_responses_keep_the_answer_contract():
    assert respond("longest", [question("a", "bb"), question("ccc", "d")]) == [as_response(1), as_response(0)]
    assert compute_score(as_response(2), "C") == compute_score(as_response(2), "C", "strict") == 1.0
    with pytest.raises(KeyError):
        respond("oracle", [])


@pytest.mark.real_data
def test_the_medoid_reads_half_of_the_released_answers_from_the_options(shared):
    questions = read_questions(shared / "scale_vqa" / "val.json")
    reached = {
        name: sum(pick(item) == item.answer for item in questions) / len(questions) for name, pick in BASELINES.items()
    }
    assert reached["medoid"] == pytest.approx(0.544, abs=0.005)
    assert reached["always-A"] < 0.3 and reached["longest"] < 0.3
