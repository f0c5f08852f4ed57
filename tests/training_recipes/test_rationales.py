"""Texts to learn: rationales whose letters are right or can be put right, and no others."""

from __future__ import annotations

import doctest
from collections import Counter

import pytest
from training_release import make_training_release

from scale_vqa_eval.audit.defects import find_defects
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.rewards import compute_score
from training_recipes import grpo, sft_data, verl_reward
from training_recipes.learn import data
from training_recipes.rows import load_rows
from training_recipes.sft_data import repaired, target_of, with_targets


def question(rationale, answer="C"):
    return Question("q", "Which?", ("w", "x", "y", "z"), "ABCD".index(answer), rationale=rationale)


REPAIRED = [
    # rationale, gold, what it becomes
    ("Option A pairs the findings.", "C", "Option C pairs the findings."),
    ("A pairs the findings; the others do not.", "D", "D pairs the findings; the others do not."),
    ("Only B fits. A, C and D add atypia.", "C", "Only C fits. A, B and D add atypia."),
    ("Option D is best; options A, B, and C differ.", "A", "Option A is best; options B, C, and D differ."),
    ("Option B pairs them; B is seen at 200x.", "A", "Option A pairs them; A is seen at 200x."),
    # not clear which options are meant
    ("Only B fits. A is too strong, D too weak.", "C", None),
    ("Option B pairs them; C and D do not.", "A", None),
    ("Option A pairs them. A matching finding is seen.", "C", None),
    ("Glands nest.", "C", None),
    ("Option C pairs the findings.", "C", None),
    ("Options B and C are incorrect.", "C", None),
]  # fmt: skip


@pytest.mark.parametrize("rationale, gold, becomes", REPAIRED)
def test_letters_are_put_right_where_that_is_safe(rationale, gold, becomes):
    assert repaired(question(rationale, gold)) == becomes


def test_what_is_learnt_keeps_the_format_and_the_gold_letter():
    for policy in ("checked", "repaired", "none"):
        text, _ = target_of(question("Option C pairs them."), policy)
        assert compute_score(text, "C") == compute_score(text, "C", "strict") == 1.0
    assert target_of(question("Option C pairs them."), "none")[0] == "<think></think> <answer>C</answer>"


@pytest.mark.parametrize(
    "rationale, policy, said",
    [
        (None, "checked", "no rationale"),
        ("  ", "repaired", "no rationale"),
        ("Option A pairs them.", "checked", "names another letter"),
        ("Option A fits; B is too strong.", "repaired", "not clear"),
        ("The feature list has it.", "repaired", "feature list"),
        ("So <answer>C</answer>", "repaired", "tags"),
    ],
)
def test_what_is_not_learnt_says_why(rationale, policy, said):
    text, reason = target_of(question(rationale), policy)
    assert text is None and said in reason


def test_rows_without_a_text_are_named(tmp_path):
    rows = load_rows(str(make_training_release(tmp_path / "scale-vqa")), None, "train")
    for policy, kept in (("checked", 12), ("repaired", 18), ("none", 30)):
        chosen, left_out = with_targets(rows, policy)
        assert len(chosen) == kept and len(left_out) == 30 - kept
        assert {name for name, _ in left_out} | set(chosen["id"]) == set(rows["id"])
        for row in chosen:
            assert row["target"].endswith(f"<answer>{'ABCD'[row['answer']]}</answer>")


@pytest.mark.slow
@pytest.mark.real_data
def test_released_rationales_end_without_a_wrong_letter(shared):
    questions = read_questions(shared / "scale_vqa" / "val.json")
    wrong = {defect.id for defect in find_defects(questions) if defect.kind == "rationale-letter"}
    learnt = {policy: Counter() for policy in ("checked", "repaired")}
    for one in questions:
        for policy, counts in learnt.items():
            text, _ = target_of(one, policy)
            counts["wrong" if one.id in wrong else "right"] += text is not None
            if text is not None:
                assert not [d for d in find_defects([repaired_row(one, text)]) if d.kind == "rationale-letter"]
    assert learnt["checked"]["wrong"] == 0
    assert learnt["repaired"]["right"] == learnt["checked"]["right"] > 300
    assert 0 < learnt["repaired"]["wrong"] < len(wrong)


def test_examples_in_docstrings():
    for module in (grpo, sft_data, verl_reward, data):
        result = doctest.testmod(module)
        assert result.attempted and not result.failed, module.__name__


def repaired_row(row, text):
    import dataclasses

    return dataclasses.replace(row, rationale=text.split("<think>")[1].split("</think>")[0])
