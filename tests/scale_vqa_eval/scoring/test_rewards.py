"""The published reward: a row for each sentence of its rule."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from response_texts import anything, responses

from scale_vqa_eval.rewards import accuracy_reward, compute_score, format_reward

RIGHT = "<think>The glands nest at 10x and 40x.</think> <answer>A</answer>"

GOLDEN = [
    # why, response, reward where the gold letter is A
    ("right and well formed", RIGHT, 1.0),
    ("wrong and well formed", "<think>x</think><answer>B</answer>", 0.2),
    ("the letter's case does not matter", "<think>x</think><answer>a</answer>", 1.0),
    ("the tags' case does", "<think>x</think><ANSWER>A</ANSWER>", 0.0),
    ("white space around the letter is passed over", "<think>x</think><answer>\n A\t</answer>", 1.0),
    ("white space may follow", "<think>x</think><answer>A</answer> \n\n", 1.0),
    ("the think block may be empty", "<think></think><answer>A</answer>", 1.0),
    ("it may span lines", "<think>\nx\n\ny\n</think>\n<answer>A</answer>", 1.0),
    ("there may be several think blocks", "<think>x</think><think>y</think><answer>A</answer>", 1.0),
    ("text between think and answer is no fault", "<think>x</think> So: <answer>A</answer>", 1.0),
    ("the answer may sit inside the think block", "<think>x <answer>A</answer></think>", 0.8),
    ("no think block", "<answer>A</answer>", 0.8),
    ("a think block that is not closed", "<think>x <answer>A</answer>", 0.8),
    ("think tags in another case", "<Think>x</Think><answer>A</answer>", 0.8),
    ("text after the answer", "<think>x</think><answer>A</answer> as seen at 200x", 0.8),
    ("two answers, the first right", "<think>x</think><answer>A</answer><answer>B</answer>", 0.8),
    ("two answers, the second right", "<think>x</think><answer>B</answer><answer>A</answer>", 0.0),
    ("an answer that is no letter before the right one", "<think>x</think><answer>?</answer><answer>A</answer>", 0.8),
    ("any letter keeps the format", "<think>x</think><answer>Z</answer>", 0.2),
    ("a full stop in the tag", "<think>x</think><answer>A.</answer>", 0.0),
    ("brackets in the tag", "<think>x</think><answer>(A)</answer>", 0.0),
    ("the option's text in the tag", "<think>x</think><answer>A. Stroma</answer>", 0.0),
    ("two letters", "<think>x</think><answer>AB</answer>", 0.0),
    ("an empty tag", "<think>x</think><answer></answer>", 0.0),
    ("a letter beyond ASCII", "<think>x</think><answer>\uff21</answer>", 0.0),
    ("the answer tag is not closed", "<think>x</think><answer>A", 0.0),
    ("no tag at all", "The answer is A.", 0.0),
    ("one block that opens twice", "<think>x</think><answer>x <answer>A</answer>", 1.0),
    ("an empty response", "", 0.0),
    ("no response", None, 0.0),
]


@pytest.mark.parametrize("why, response, reward", GOLDEN, ids=[row[0] for row in GOLDEN])
def test_golden_table(why, response, reward):
    assert compute_score(response, "A") == reward


def published_reward(text: str, gold: str) -> float:
    """The published reward with regular expressions, as its rule is worded."""
    answers = list(re.finditer(r"<answer>\s*([A-Za-z])\s*</answer>", text))
    accuracy = float(bool(answers) and answers[0].group(1).upper() == gold.strip().upper())
    kept = float(
        re.search(r"<think>.*?</think>", text, re.DOTALL) is not None
        and len(re.findall(r"<answer>.*?</answer>", text, re.DOTALL)) == 1
        and len(answers) == 1
        and not text[answers[0].end() :].strip()
    )
    return (1.0 - 0.2) * accuracy + 0.2 * kept


@given(responses, st.sampled_from("ABCDabz") | st.just(" b\n"))
def test_bit_exact_with_the_published_rule(text, gold):
    assert compute_score(text, gold) == published_reward(text, gold)


@given(anything, st.sampled_from("ABCD"), st.sampled_from(["reference", "strict"]))
def test_never_raises_and_stays_in_range(response, gold, mode):
    reward = compute_score(response, gold, mode)
    assert reward in (0.0, 0.2, 0.8, 1.0)
    parts = (accuracy_reward(response, gold, mode), format_reward(response, mode))
    assert reward == (1.0 - 0.2) * parts[0] + 0.2 * parts[1]


def test_strict_pays_for_letters_of_the_question_after_the_think_block():
    assert compute_score(RIGHT, "A", "strict") == 1.0
    assert compute_score("<think>x</think><answer>Z</answer>", "A", "strict") == 0.0
    assert compute_score("<think>x <answer>A</answer></think>", "A", "strict") == 0.0
    assert compute_score("<think>x</think><answer>E</answer>", "E", "strict", options=5) == 1.0


def test_the_gold_answer_may_be_a_class_index_and_must_not_be_missing():
    assert compute_score(RIGHT, 0) == 1.0
    assert compute_score(RIGHT, 1) == 0.2
    with pytest.raises(ValueError, match="got None"):
        compute_score(RIGHT, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("gold", [None, True, "", "AB", "(A)", "1", "\uff21", -1, 26, 1.0, b"A"])
def test_a_gold_that_no_response_could_give_is_an_error(gold):
    with pytest.raises(ValueError, match="gold answer must be a letter or an index"):
        compute_score(RIGHT, gold)


@pytest.mark.parametrize("gold", [0, np.int64(0), np.uint8(0), np.str_("a")])
def test_a_gold_may_be_an_index_or_a_letter_of_numpy(gold):
    assert compute_score(RIGHT, gold) == 1.0
