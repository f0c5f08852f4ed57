"""Options as hashed columns and as geometry, against plain Python on the same texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from audit_questions import clean_questions, leaking_questions
from hypothesis import given, settings
from hypothesis import strategies as st

from scale_vqa_eval.audit.fitted_probes import fit_listwise
from scale_vqa_eval.audit.probe import OptionLayout
from scale_vqa_eval.audit.text_features import (
    BLOCKS,
    COLUMN,
    FEATURES,
    HASH_COLUMNS,
    NGramColumns,
    TextReader,
    chunks,
    hash_of,
    ngrams,
)
from scale_vqa_eval.questions import Question


def one(*options: str, stem: str = "Which option?") -> Question:
    return Question("q", stem, options, 0)


def held(question: Question, family: str) -> dict[tuple[int, int], set[int]]:
    """(block, column) -> options that hold it."""
    presence = TextReader.fit([question]).read([question]).presence[family]
    out: dict[tuple[int, int], set[int]] = {}
    for option in range(len(question.options)):
        for number in presence.columns[presence.pointer[option] : presence.pointer[option + 1]]:
            out.setdefault((int(number) // HASH_COLUMNS, int(number) % HASH_COLUMNS), set()).add(option)
    return out


def test_only_what_varies_within_a_question_is_kept() -> None:
    found = held(one("tumour in stroma", "tumour in gland", "Tumour IN stroma"), "words")
    words = {column: options for (block, column), options in found.items() if block == 0}
    assert words == {hash_of("stroma"): {0, 2}, hash_of("gland"): {1}}
    phrases = {column for (block, column) in found if block == 1}
    assert phrases == {hash_of(t) for t in ("in stroma", "in gland", "tumour in stroma", "tumour in gland")}


def test_contrast_tells_how_many_options_hold_a_word() -> None:
    found = held(one("a b c", "a b d", "a c d", "a b c"), "contrast")  # a: all; b: 0 1 3; c: 0 2 3; d: 1 2
    assert found == {
        (1, hash_of("d")): {1, 2},
        (2, hash_of("b")): {0, 1, 3},
        (2, hash_of("c")): {0, 2, 3},
        (3, hash_of("b")): {2},
        (3, hash_of("c")): {1},
    }
    assert (0, hash_of("z")) in held(one("z", "y", "x"), "contrast")


def test_crossed_columns_belong_to_one_dimension() -> None:
    questions = clean_questions(6, dimensions=2)
    texts = TextReader.fit(questions).read(questions)
    owner = np.repeat(texts.layout.owner, np.diff(texts.presence["words"].pointer))
    block = texts.presence["words"].columns // HASH_COLUMNS
    crossed = block >= len(BLOCKS["words"])
    assert crossed.any()
    assert np.array_equal(block[crossed] - len(BLOCKS["words"]), texts.types[owner[crossed]])


def test_texts_without_a_word_still_have_characters() -> None:
    found = held(one("+", "-", "+/-"), "characters")
    assert len({frozenset(options) for options in found.values()}) > 1
    assert ngrams(("+", "", "a  b"), "characters").sum(axis=1).tolist() == [1, 0, 5]
    assert held(one("+", "-", ""), "words") == {}


def test_chunks_cover_every_question_once() -> None:
    questions = clean_questions(25, k=4)
    assert [row for part in chunks(questions, pairs=50) for row in part] == list(range(25))
    assert len(list(chunks(questions, pairs=50))) > 5


def test_chunked_reading_is_the_same_as_reading_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = clean_questions(7, k=2) + clean_questions(7, k=5) + clean_questions(7, k=3)
    reader = TextReader.fit(questions)
    whole = reader.read(questions)
    monkeypatch.setattr("scale_vqa_eval.audit.text_features.chunks", lambda all_of_them: chunks(all_of_them, 30))
    parts = reader.read(questions)
    assert np.array_equal(whole.geometry, parts.geometry)
    for family in BLOCKS:
        assert np.array_equal(whole.presence[family].pointer, parts.presence[family].pointer)
        assert np.array_equal(whole.presence[family].columns, parts.presence[family].columns)


def test_taking_questions_is_the_same_as_reading_them() -> None:
    questions = clean_questions(9, k=2) + clean_questions(9, k=4)
    chosen = np.array([16, 2, 9])
    reader = TextReader.fit(questions)
    taken, read = reader.read(questions).take(chosen), reader.read([questions[row] for row in chosen])
    assert np.array_equal(taken.geometry, read.geometry)
    for family in BLOCKS:
        assert np.array_equal(taken.presence[family].columns, read.presence[family].columns)


def test_geometry_agrees_with_sets_in_plain_python() -> None:
    questions = leaking_questions(5) + clean_questions(5, k=3) + [one("no x, y", "not x (y)", "all 12 y", "x y z")]
    texts = TextReader.fit(questions).read(questions)
    row = 0
    for question in questions:
        sets = [
            set(text.lower().replace("(", " ").replace(")", " ").replace(",", " ").split())
            for text in question.options
        ]
        for at, own in enumerate(sets):
            near = [len(own & other) / len(own | other) for place, other in enumerate(sets) if place != at]
            share = [len(own & other) / len(own) for place, other in enumerate(sets) if place != at]
            expected = {
                "mean similarity to the others by tokens": np.mean(near),
                "lowest similarity to the others by tokens": min(near),
                "highest share found in the others by tokens": max(share),
                "characters": len(question.options[at]),
                "tokens of its own": sum(all(w not in o for i, o in enumerate(sets) if i != at) for w in own),
                "tokens held by most": sum(2 * sum(w in o for o in sets) > len(sets) for w in own),
            }
            for name, value in expected.items():
                assert texts.geometry[row, COLUMN[name]] == pytest.approx(value, rel=1e-6), name
            row += 1
    last = texts.geometry[-4:]
    assert last[:, COLUMN["negations"]].tolist() == [1, 1, 0, 0]
    assert last[:, COLUMN["digits"]].tolist() == [0, 0, 2, 0]
    assert len(FEATURES) == texts.geometry.shape[1]


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 5))
def test_letters_do_not_change_an_options_features(order: list[int], seed: int) -> None:
    question = leaking_questions(1, seed)[0]
    turned = replace(question, options=tuple(question.options[at] for at in order))
    reader = TextReader.fit([question])
    assert np.array_equal(reader.read([question]).geometry[order], reader.read([turned]).geometry)


def test_identical_options_have_identical_features_and_no_distinct_words() -> None:
    texts = TextReader.fit([one("same", "same", "same", "same")]).read([one("same", "same", "same", "same")])
    assert (texts.geometry == texts.geometry[0]).all()
    assert all(not len(presence.columns) for presence in texts.presence.values())


def test_listwise_weights_do_not_see_what_options_share() -> None:
    """Adding the same amount to all options of a question changes nothing: centring is implied."""
    rng = np.random.default_rng(0)
    layout = OptionLayout.of(np.array([2, 4, 3] * 10))
    matrix, gold = rng.normal(size=(90, 5)), rng.integers(0, 2, 30)
    shifted = matrix + rng.normal(size=(30, 5))[layout.owner]
    assert np.allclose(fit_listwise(matrix, layout, gold), fit_listwise(shifted, layout, gold), atol=1e-3)


def test_listwise_agrees_with_logistic_regression_on_pairs() -> None:
    """With two options the model is a logistic regression without intercept on their difference."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    layout = OptionLayout.of(np.full(200, 2))
    matrix = rng.normal(size=(400, 3))
    gap = matrix[1::2] - matrix[::2]
    gold = (gap @ [1.0, -2.0, 0.0] + rng.logistic(size=200) > 0).astype(int)
    peer = LogisticRegression(C=2.0, fit_intercept=False, tol=1e-8).fit(gap, gold)
    assert np.allclose(fit_listwise(matrix, layout, gold, strength=2.0), peer.coef_[0], atol=1e-3)


def test_columns_are_weighed_without_gold_answers_and_to_one_scale() -> None:
    questions = clean_questions(60)
    texts = TextReader.fit(questions).read(questions)
    columns = NGramColumns.fit(texts.presence["words"], texts.layout)
    dense = columns.matrix(texts.presence["words"]).toarray()
    assert (texts.layout.centred(dense) ** 2).sum(axis=1).mean() == pytest.approx(1.0)
    per_question = [(dense[texts.layout.owner == row] != 0).any(axis=0) for row in range(60)]
    assert (np.sum(per_question, axis=0) >= 2).all()


def test_columns_of_the_same_options_are_joined_without_changing_the_model() -> None:
    """A ridge model sees its columns by the dot products of the options alone."""
    questions = clean_questions(60)
    texts = TextReader.fit(questions).read(questions)
    presence = texts.presence["characters"]
    columns = NGramColumns.fit(presence, texts.layout)
    pointer, index = columns.entries(presence)
    joined = columns.matrix(presence).toarray()
    assert joined.shape[1] == columns.joined.max() + 1 < len(columns.kept)
    weight = np.sqrt(
        columns.weight * np.bincount(columns.joined, columns.weight)[columns.joined]
    )  # a^2 = a^2/|a| * |a|
    apart = np.zeros((len(joined), len(columns.kept)))
    apart[np.repeat(np.arange(len(joined)), np.diff(pointer)), index] = weight[index]
    assert np.allclose(joined @ joined.T, apart @ apart.T)
