"""What goes together: exchange sets by their text, else patients, slides, questions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from audit_questions import clean_questions, exchange_questions

from scale_vqa_eval.audit.clusters import clusters_of, describe_clusters, exchange_sets
from scale_vqa_eval.questions import Question


def test_exchange_sets_are_found_by_their_text_without_a_group_column() -> None:
    questions = exchange_questions(5)
    found = exchange_sets(questions)
    by_group: dict[str, set[int]] = {}
    for question, number in zip(questions, found, strict=True):
        by_group.setdefault(question.id.split("-")[0], set()).add(int(number))
    assert sorted(number for numbers in by_group.values() for number in numbers) == [0, 1, 2, 3, 4]
    assert clusters_of(questions).balanced.all()


def test_a_set_that_lost_a_member_is_no_exchange_set() -> None:
    questions = sorted(exchange_questions(2), key=lambda question: question.id)[1:]
    units = clusters_of(questions)
    assert units.balanced.tolist() == [False] * 3 + [True] * 4
    assert len(set(units.ids[:3].tolist())) == 3  # by patient again


def test_units_fall_back_to_patient_slide_question() -> None:
    base = Question("a", "?", ("x", "y"), 0)
    questions = [
        replace(base, id="1", slide="S1", patient="P"),
        replace(base, id="2", slide="S2", patient="P"),
        replace(base, id="3", slide="S3"),
        replace(base, id="4"),
        replace(base, id="S3"),  # an id that equals a slide's name is still a unit of its own
    ]
    assert clusters_of(questions).ids.tolist() == [0, 0, 1, 2, 3]


def test_the_price_of_missing_names_is_told() -> None:
    questions = clean_questions(20)
    assert describe_clusters(questions, clusters_of(questions)).note == ""
    bare = [replace(question, slide=None, patient=None) for question in questions]
    told = describe_clusters(bare, clusters_of(bare))
    assert (told.kind, told.unnamed, told.clusters) == ("question", 20, 20)
    assert "too narrow" in told.note
    for patients, word in ((1, "one cluster"), (2, "2 clusters"), (3, "3 clusters")):
        few = clean_questions(20, patients=patients)
        assert word in describe_clusters(few, clusters_of(few)).note


def test_units_are_numbered_from_zero() -> None:
    ids = clusters_of(exchange_questions(3) + clean_questions(9)).ids
    assert np.array_equal(np.unique(ids), np.arange(ids.max() + 1))
