"""The array parser gives what the scalar rules give, whatever the text and wherever a chunk is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from response_texts import anything
from test_parsing import GOLDEN, MEGABYTES

from scale_vqa_eval.scale_vqa_acc import batch
from scale_vqa_eval.scale_vqa_acc.batch import parse_batch
from scale_vqa_eval.scale_vqa_acc.parsing import MODES, REASONS, keeps_format, parse_response


def assert_same(responses, mode, options):
    parsed = parse_batch(responses, mode, options)
    for place, (response, count) in enumerate(zip(responses, np.broadcast_to(options, len(responses)), strict=True)):
        letter = chr(parsed.letters[place]) if parsed.letters[place] else None
        found = (letter, REASONS[parsed.reasons[place]], bool(parsed.formats[place]))
        assert found == (*parse_response(response, mode, int(count)), keeps_format(response)), repr(response)


@pytest.mark.parametrize("mode", MODES)
def test_golden_table(mode):
    assert_same([response for response, _, _ in GOLDEN], mode, 4)


@settings(max_examples=400, deadline=None)
@given(st.data(), st.lists(anything, max_size=12), st.sampled_from(MODES))
def test_same_as_response_by_response(data, responses, mode):
    options = data.draw(st.lists(st.integers(2, 26), min_size=len(responses), max_size=len(responses)))
    assert_same(responses, mode, options)


@settings(max_examples=200, deadline=None)
@given(st.lists(anything, max_size=12), st.sampled_from(MODES), st.integers(1, 4), st.integers(0, 40))
def test_same_wherever_a_chunk_is_cut(responses, mode, most_responses, most_characters):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "CHUNK_RESPONSES", most_responses)
        patch.setattr(batch, "CHUNK_CHARACTERS", most_characters)
        assert_same(responses, mode, 4)


def test_every_unicode_space_counts_as_the_regular_expression_counts_it():
    around = [f"<think></think><answer>{chr(code)}A{chr(code)}</answer>{chr(code)}" for code in range(0x110000)]
    parsed = parse_batch(around)
    spaces = np.array([chr(code).isspace() for code in range(0x110000)])
    np.testing.assert_array_equal(parsed.letters > 0, spaces)
    np.testing.assert_array_equal(parsed.formats, spaces)


@pytest.mark.parametrize("mode", MODES)
def test_hostile_megabytes_between_others(mode):
    hostile = [
        "<answer>" * (MEGABYTES // 8),
        "<think>" * (MEGABYTES // 7),
        "<answer>" + " " * MEGABYTES + "B</answer>",
    ]
    short = ["<answer> \xa0 A</answer>"] * 3
    assert_same([*short, *hostile, None, *short], mode, 4)


def test_nothing_to_parse():
    assert parse_batch([]).letters.size == 0


def test_text_like_strings_of_numpy_are_text():
    assert parse_batch(np.array(["<answer>A</answer>"])).letters.tobytes() == b"A"


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="got 'lenient'"):
        parse_batch([""], "lenient")  # type: ignore[arg-type]
