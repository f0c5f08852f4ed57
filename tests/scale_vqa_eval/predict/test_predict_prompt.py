"""Prompts: versioned data, filled in one pass, refused by field."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.predict.prompts import FOLDER, load_prompt, prompt_ids
from scale_vqa_eval.scale_vqa_acc.parsing import keeps_format, parse_response


def test_the_published_contract_is_kept() -> None:
    prompt = load_prompt("published")
    assert prompt.system is not None
    assert "<think>Your reasoning</think> <answer>A</answer>" in prompt.system
    assert "pathology" in prompt.system and "ONLY" in prompt.system
    assert prompt.text("Which?", ["x", "y"]) == "Which?\nA. x\nB. y"
    assert "ours" in prompt.provenance


@pytest.mark.parametrize("name", prompt_ids())
def test_what_a_prompt_shows_as_an_answer_is_read_as_one(name: str) -> None:
    prompt = load_prompt(name)
    assert prompt.id == name
    assert [parse_response(text, "strict", 3).letter for text in prompt.choices(3)] == ["A", "B", "C"]
    assert keeps_format("<think></think>" + prompt.choices(1)[0])


@given(st.text(), st.lists(st.text(), min_size=2, max_size=26))
def test_text_of_a_dataset_stays_as_it_is(question: str, options: list[str]) -> None:
    text = load_prompt("published").text(question, options)
    assert text.startswith(question)
    for option in options:
        assert f". {option}" in text


def test_another_word_is_another_digest_and_another_provenance_is_not(tmp_path: Path) -> None:
    fields = yaml.safe_load((FOLDER / "published.yaml").read_text())
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(fields | {"provenance": "mine"}))
    assert load_prompt(str(own)).digest == load_prompt("published").digest
    own.write_text(yaml.safe_dump(fields | {"option": "({letter}) {text}"}))
    assert load_prompt(str(own)).digest != load_prompt("published").digest


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"user": "{question}"}, "user"),
        ({"option": "{letter} {txt}"}, "option"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"colour": "red"}, "colour"),
        ({"system": 3}, "system"),
        ({"answer": "{letter}"}, "answer: expected an answer that scoring reads"),
    ],
)
def test_a_problem_names_the_field(tmp_path: Path, change: dict[str, object], named: str) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(yaml.safe_load((FOLDER / "published.yaml").read_text()) | change))
    with pytest.raises(InputError, match=named):
        load_prompt(str(own))


def test_an_unknown_prompt_is_answered_with_the_ids() -> None:
    with pytest.raises(InputError, match="letter-only, published"):
        load_prompt("nope")
