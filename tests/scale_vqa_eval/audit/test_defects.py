from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scale_vqa_eval.audit.defects import KINDS, find_defects, named_right, named_wrong, normalised
from scale_vqa_eval.questions import Question, read_questions


def question(row: str = "S::p::type_A", **fields: object) -> Question:
    defaults = {"question": "Which?", "options": ("one", "two", "three", "four"), "answer": 0}
    return Question(id=row, **{**defaults, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "rationale, letters",
    [
        ("Option A pairs a gland with stroma.", "A"),
        ("A pairs two findings across scales.", "A"),
        ("B only combines what is seen.", "B"),
        ("A correctly links low and mid.", "A"),
        ("(C) is seen at both scales.", "C"),
        ("D. The glands fuse.", "D"),
        ("Only option B keeps the pairing.", "B"),
        ("The necrosis is focal, so only A matches the view.", "A"),
        ("The correct answer is C because of the crypts.", "C"),
        ("Nests persist at mid power; option D is clearly correct.", "D"),
        ("A matching feature is seen at two scales.", ""),
        ("A dense infiltrate is seen.", ""),
        ("A mass with necrosis.", ""),
        ("A focus of necrosis.", ""),
        ("A diagnosis of adenoma fits.", ""),
        ("Options B and C change one feature.", ""),
        ("Low power shows glands; the other options cite absent features.", ""),
        ("Option B is wrong since the stroma is loose.", ""),
        ("a pairs of something", ""),
        ("", ""),
    ],
)
def test_letters_named_right(rationale: str, letters: str) -> None:
    assert named_right(rationale) == list(letters)


@pytest.mark.parametrize(
    "rationale, letters",
    [
        ("Options B and C each change one feature.", "BC"),
        ("It fits; options A, C, and D introduce findings not seen.", "ACD"),
        ("Option B is wrong since the stroma is loose.", "B"),
        ("Option B is supported.", ""),
    ],
)
def test_letters_named_wrong(rationale: str, letters: str) -> None:
    assert named_wrong(rationale) == list(letters)


@given(st.text())
def test_any_rationale_is_read(text: str) -> None:
    assert set(named_right(text) + named_wrong(text)) <= set("ABCD")


def test_each_kind_is_found_at_its_row() -> None:
    rows = [
        question("a", rationale="Option B fits."),
        question("b", rationale="It follows from the feature list.", answer=1),
        question("c", options=("x", " X ", "y", "z"), answer=1),
        question("d", question="Where?", images=(("low_mag", "l.jpg"), ("mid_mag", "m.jpg"))),
        question("e", question="What?", slide="s1", patient="p1", split="val", answer=2),
        question("f", question="Why?", slide="s1", patient="p1", split="test", answer=3),
        question("g", question=" which ", options=("four", "three", "two", "one!"), answer=3),
    ]
    found = {(defect.id, defect.kind) for defect in find_defects(rows)}
    assert ("a", "rationale-letter") in found
    assert ("b", "feature-list-rationale") in found
    assert ("c", "duplicate-options") in found
    assert ("d", "null-view") in found
    assert ("s1", "slide-in-two-splits") in found
    assert ("p1", "patient-in-two-splits") in found
    assert ("g", "repeated-question") in found
    assert not any(kind == "repeated-question" and row != "b" and row != "g" for row, kind in found)
    assert {kind for _, kind in found} <= set(KINDS)


def test_a_clean_set_has_no_defect() -> None:
    rows = [question(f"{i}", question=f"Q{i}", answer=i % 4, split="val", slide=f"s{i}") for i in range(8)]
    assert find_defects(rows) == []


def test_letters_are_balanced_by_split_and_dimension() -> None:
    rows = [question(f"{i}", question=f"Q{i}", answer=0, dimension="Diagnosis", split="val") for i in range(6)]
    assert [defect.id for defect in find_defects(rows)] == ["val", "val/Diagnosis"]


def test_exchange_groups_repeat_their_text_by_design() -> None:
    rows = [question(f"{i}", group="g1", answer=i) for i in range(4)]
    assert find_defects(rows) == []


def test_letters_that_differ_by_luck_are_not_a_defect() -> None:
    rows = [
        question(f"{i}", question=f"Q{i}", answer=answer) for i, answer in enumerate([0] * 9 + [1] * 7 + [2, 3] * 5)
    ]
    assert find_defects(rows) == []
    skewed = [question(f"{i}", question=f"Q{i}", answer=i % 4 if i < 40 else 0) for i in range(80)]
    ((only),) = find_defects(skewed)
    assert (only.id, only.kind) == ("all", "unbalanced-letters")
    assert only.detail.startswith("A 50, B 10, C 10, D 10; chi-square p = ")


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


def test_released_questions_show_their_known_defects(shared: Path) -> None:
    path = shared / "scale_vqa" / "val.json"
    found = Counter(defect.kind for defect in find_defects(read_questions(path)))
    rows = json.loads(path.read_text())
    assert found["null-view"] == sum(None in row["image_path"].values() for row in rows)
    assert found["rationale-letter"] > 20
    assert found["unbalanced-letters"] == 0  # A 91, B 125, C 113, D 121: p = 0.10
