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


def test_the_published_answer_format_is_asked_for() -> None:
    prompt = load_prompt("think-answer")
    assert prompt.system is not None
    assert "<think>Your reasoning</think> <answer>A</answer>" in prompt.system
    assert "pathology" in prompt.system and "ONLY" in prompt.system
    assert prompt.text("Which?", ["x", "y"]) == "Which?\nA. x\nB. y"
    assert prompt.provenance.startswith("Ours")  # the id and the provenance claim no more than that


@pytest.mark.parametrize("name", prompt_ids())
def test_what_a_prompt_shows_as_an_answer_is_read_as_one(name: str) -> None:
    prompt = load_prompt(name)
    assert prompt.id == name
    assert [parse_response(text, "strict", 3).letter for text in prompt.choices(3)] == ["A", "B", "C"]
    assert keeps_format("<think></think>" + prompt.choices(1)[0])


@given(st.text(), st.lists(st.text(), min_size=2, max_size=26))
def test_text_of_a_dataset_stays_as_it_is(question: str, options: list[str]) -> None:
    text = load_prompt("think-answer").text(question, options)
    assert text.startswith(question)
    for option in options:
        assert f". {option}" in text


def test_another_word_is_another_digest_and_another_provenance_is_not(tmp_path: Path) -> None:
    fields = yaml.safe_load((FOLDER / "think-answer.yaml").read_text())
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(fields | {"provenance": "mine"}))
    assert load_prompt(str(own)).digest == load_prompt("think-answer").digest
    own.write_text(yaml.safe_dump(fields | {"option": "({letter}) {text}"}))
    assert load_prompt(str(own)).digest != load_prompt("think-answer").digest


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"user": "{question}"}, "user"),
        ({"option": "{letter} {txt}"}, "option"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"colour": "red"}, "colour"),
        ({"system": 3}, "system"),
        ({"answer": "{letter}"}, "answer: expected an answer that can be parsed"),
    ],
)
def test_a_problem_names_the_field(tmp_path: Path, change: dict[str, object], named: str) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(yaml.safe_load((FOLDER / "think-answer.yaml").read_text()) | change))
    with pytest.raises(InputError, match=named):
        load_prompt(str(own))


def test_an_unknown_prompt_is_answered_with_the_ids() -> None:
    with pytest.raises(InputError, match="letter-only, think-answer"):
        load_prompt("nope")


def test_the_earlier_id_still_names_its_runs() -> None:
    old, new = load_prompt("published"), load_prompt("think-answer")
    assert old.id == "published" and old.system == new.system and "published" not in prompt_ids()
    assert old.digest == "b1be0c826127503d"  # as in the predictions files of earlier versions


CARD = """
# A model
```python
SYSTEM_PROMPT = (
    "Look at the field. "
    "Reason, then <answer> </answer>.\\n"
    "Example: <answer>A</answer>."
)
```
```bash
vllm serve <path> --port 8000
```
```python
messages = [{"role": "user", "content": [{"type": "text", "text": "<question>\\n(A) ...\\n(B) ...\\n(C) ..."}]}]
print("<answer>A</answer>")
```
"""
SYSTEM = "Look at the field. Reason, then <answer> </answer>.\nExample: <answer>A</answer>."
PLAIN = "Say <answer> </answer>."


@pytest.mark.parametrize(
    ("card", "system", "options"),
    [
        (CARD, SYSTEM, "(A) x\n(B) y"),
        (f"```\n{PLAIN}\n```", PLAIN, "A. x\nB. y"),
        (
            f'```json\n[{{"role": "system", "content": "{PLAIN}"}}]\n```\n~~~\n<answer>A</answer>\n~~~',
            PLAIN,
            "A. x\nB. y",
        ),
        (f'````python\nask(\n    "{PLAIN}",\n    "Q?\\nA) ...\\nB) ...",\n)\n````', PLAIN, "A) x\nB) y"),
    ],
    ids=["named", "text", "message", "string"],
)
def test_the_words_of_a_card_are_read_at_run_time(tmp_path: Path, card: str, system: str, options: str) -> None:
    (tmp_path / "README.md").write_text(card)
    prompt = load_prompt(f"card:{tmp_path}")
    assert prompt.system == system
    assert prompt.text("Which?", ["x", "y"]) == f"Which?\n{options}"
    assert prompt.id == f"card:{tmp_path.name}" and keeps_format("<think></think>" + prompt.choices(1)[0])


def test_the_words_of_a_chat_template_are_read_where_the_card_has_none(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# A model\nAnswers in <answer> tags.")
    default = r"'<|im_start|>system\nSay <answer> </answer>.<|im_end|>\n'"
    template = f"{{% if messages[0]['role'] != 'system' %}}{{{{ {default} }}}}{{% endif %}}"
    (tmp_path / "chat_template.jinja").write_text(template)
    assert load_prompt(f"card:{tmp_path}").system == PLAIN


@pytest.mark.parametrize(
    ("card", "found"),
    [
        (None, "no README.md"),
        ("# A model\n```python\nprint('x')\n```", "0 of them"),
        ("```\n<answer>A</answer>\n```\n```\nSay <answer>\n```", "2 of them"),
        ("```python\nSYSTEM_A = 'say <answer>'\nSYSTEM_B = 'write <answer>'\n```", "2 of them"),
    ],
    ids=["no card", "no prompt", "two texts", "two named"],
)
def test_a_card_without_one_system_prompt_is_refused(tmp_path: Path, card: str | None, found: str) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    with pytest.raises(InputError, match=found):
        load_prompt(f"card:{tmp_path}")
