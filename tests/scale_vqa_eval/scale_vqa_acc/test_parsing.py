"""Both parsing rules: a golden table, the published rule against regular expressions of its words, hostile strings."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from response_texts import anything, responses

from scale_vqa_eval.scale_vqa_acc.parsing import MODES, REASONS, keeps_format, parse_batch, parse_response

PUBLISHED = re.compile(r"<answer>\s*([A-Za-z])\s*</answer>")
MEGABYTES = 3_000_000

GOLDEN = [
    # response, reference, strict: a letter, or why there is none
    ("<think>Glands.</think> <answer>B</answer>", "B", "B"),
    ("<answer>B</answer>", "B", "B"),
    ("Glands.</think><answer>B</answer>", "B", "B"),  # the opening tag was part of the prompt
    ("<think></think>\n<answer>\n d \t</answer>\n", "D", "D"),
    ("<think></think><answer>\xa0A </answer>", "A", "A"),
    ("<think></think><answer>A</answer> because of the glands", "A", "A"),
    ("<think>Perhaps <answer>A</answer>?</think><answer>B</answer>", "A", "B"),
    ("<think>It is <answer>A</answer></think>", "A", "answer_in_think"),
    ("<think>It is <answer>A</answer>", "A", "unclosed_think"),
    ("<think>a</think><think>b <answer>A</answer>", "A", "unclosed_think"),
    ("<answer>A</answer><answer>B</answer>", "A", "several_answers"),
    ("<answer>A</answer><answer>A</answer>", "A", "several_answers"),
    ("<answer>none</answer><answer>B</answer>", "B", "several_answers"),
    ("<answer><answer>B</answer>", "B", "several_answers"),
    ("<think></think><answer>Z</answer>", "Z", "not_an_option"),
    ("<answer>A.</answer>", "not_one_letter", "not_one_letter"),
    ("<answer>(A)</answer>", "not_one_letter", "not_one_letter"),
    ("<answer>A B</answer>", "not_one_letter", "not_one_letter"),
    ("<answer></answer>", "not_one_letter", "not_one_letter"),
    ("<answer>1</answer>", "not_one_letter", "not_one_letter"),
    ("<answer>Å</answer>", "not_one_letter", "not_one_letter"),
    ("<answer>\u0391</answer>", "not_one_letter", "not_one_letter"),  # a Greek capital alpha
    ("<answer>\ud800</answer>", "not_one_letter", "not_one_letter"),
    ("</answer><answer>A", "unclosed_answer", "unclosed_answer"),
    ("<think>The glands are", "no_answer", "unclosed_think"),
    ("<Answer>A</Answer>", "no_answer", "no_answer"),
    ("< answer>A</answer>", "no_answer", "no_answer"),
    ("The answer is A.", "no_answer", "no_answer"),
    ("", "blank", "blank"),
    (" \n\xa0 ", "blank", "blank"),
    (None, "not_text", "not_text"),
    (float("nan"), "not_text", "not_text"),
    (b"<answer>A</answer>", "not_text", "not_text"),
    (["<answer>A</answer>"], "not_text", "not_text"),
]


@pytest.mark.parametrize("response, reference, strict", GOLDEN)
def test_golden_table(response, reference, strict):
    for mode, expected in (("reference", reference), ("strict", strict)):
        parsed = parse_response(response, mode)
        assert (parsed.letter or parsed.reason) == expected
        assert (parsed.letter is None) == (parsed.reason != "parsed")


def test_strict_accepts_the_letters_of_the_question_only():
    assert parse_response("<answer>E</answer>", "strict", options=5).letter == "E"
    assert parse_response("<answer>E</answer>", "strict", options=4).reason == "not_an_option"
    assert parse_response("<answer>E</answer>", "reference", options=4).letter == "E"


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="reference, strict, got 'lenient'"):
        parse_response("", "lenient")  # type: ignore[arg-type]


@given(responses)
def test_reference_is_the_published_accuracy_rule(text):
    match = PUBLISHED.search(text)
    assert parse_response(text).letter == (match.group(1).upper() if match else None)


@given(responses)
def test_format_is_the_published_format_rule(text):
    matches = list(PUBLISHED.finditer(text))
    kept = (
        re.search(r"<think>.*?</think>", text, re.DOTALL) is not None
        and len(re.findall(r"<answer>.*?</answer>", text, re.DOTALL)) == 1
        and len(matches) == 1
        and text[matches[0].end() :].strip() == ""
    )
    assert keeps_format(text) == kept


@given(responses)
def test_strict_answers_only_what_stands_behind_the_think_block(text):
    parsed = parse_response(text, "strict")
    tail = text.rpartition("</think>")[2]
    assert parsed.reason in REASONS
    if parsed.letter is not None:
        assert parsed.letter in "ABCD"
        assert PUBLISHED.findall(tail) and tail.count("<answer>") == 1 and "<think>" not in tail


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "unit",
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<answer> ",
        "<answer>A",
        "<answer>A ",
        "<",
        " ",
        "<answer>A</answer>",
    ],
)
def test_megabytes_of_openers_end_in_linear_time(mode, unit):
    """A rule that looks back or ahead from each tag would take hours here."""
    text = unit * (MEGABYTES // len(unit))
    for hostile in (text, "<think>" + text, "<answer>" + text, "<answer>A" + text, text + "</answer>"):
        assert parse_response(hostile, mode).reason in REASONS
        assert keeps_format(hostile) in (True, False)


def test_megabytes_of_white_space_inside_the_answer_are_read():
    text = f"<think></think><answer>{' ' * MEGABYTES}c{' ' * MEGABYTES}</answer>{' ' * MEGABYTES}"
    assert parse_response(text).letter == parse_response(text, "strict").letter == "C"
    assert keeps_format(text)


@given(st.lists(st.tuples(anything, st.integers(2, 26)), max_size=12), st.sampled_from(MODES))
def test_a_batch_is_parsed_response_by_response(items, mode):
    parsed = parse_batch([response for response, _ in items], mode, [options for _, options in items])
    for row, (response, options) in enumerate(items):
        letter = chr(parsed.letters[row]) if parsed.letters[row] else None
        found = (letter, REASONS[parsed.reasons[row]], bool(parsed.formats[row]))
        assert found == (*parse_response(response, mode, options), keeps_format(response))


@pytest.mark.slow
def test_every_unicode_space_counts_as_the_regular_expression_counts_it():
    around = [f"<think></think><answer>{chr(code)}A{chr(code)}</answer>{chr(code)}" for code in range(0x110000)]
    parsed = parse_batch(around)
    spaces = np.array([chr(code).isspace() for code in range(0x110000)])
    np.testing.assert_array_equal(parsed.letters > 0, spaces)
    np.testing.assert_array_equal(parsed.formats, spaces)


def test_an_empty_batch_and_numpy_strings():
    assert parse_batch([]).letters.size == 0
    assert parse_batch(np.array(["<answer>A</answer>"])).letters.tobytes() == b"A"
