"""The battery on generated questions with a known leak, none, or exchange sets; and on the released ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audit_questions import clean_questions, exchange_questions, leaking_questions
from hypothesis import given, settings
from hypothesis import strategies as st

from scale_vqa_eval.audit import battery
from scale_vqa_eval.audit.battery import FAMILIES, MEMBERS, read_features, run_battery
from scale_vqa_eval.audit.clusters import clusters_of, make_folds
from scale_vqa_eval.audit.probe import ProbeScores, credit, evaluate_probe, gold_probability
from scale_vqa_eval.questions import Question, read_questions

UNTRAINED = ("position", "length", "similarity", "overlap", "negation")


def by_name(results: list[ProbeScores]) -> dict[str, ProbeScores]:
    return {result.name: result for result in results}


def test_every_probe_finds_the_leak_that_it_is_for() -> None:
    questions = leaking_questions(120)
    results = by_name(run_battery(questions, partitions=1))
    accuracy = {name: evaluate_probe(result, questions).accuracy for name, result in results.items()}
    assert accuracy["medoid"] > 0.9 and accuracy["geometry"] > 0.9 and accuracy["contrast"] > 0.4
    assert accuracy["ensemble"] > 0.9 and accuracy["anti-medoid"] < 0.05
    assert list(results) == [
        *(f"always {letter}" for letter in "ABCD"),
        "longest",
        "shortest",
        "medoid",
        "anti-medoid",
        "question overlap",
        "most negated",
        "least negated",
        "letter prior",
        "geometry",
        "words",
        "contrast",
        "characters",
        "ensemble",
    ]


def test_wording_probes_learn_a_word_and_characters_learn_an_ending() -> None:
    questions = []
    for row, question in enumerate(clean_questions(80)):
        marks = [f"marked{row % 7}um"] * 4
        marks[question.answer] = f"notable{row % 7}ae"
        options = tuple(f"{text} {mark}" for text, mark in zip(question.options, marks, strict=True))
        questions.append(replace(question, options=options))
    results = by_name(run_battery(questions, partitions=1, families=["words", "characters"]))
    assert credit(results["words"], questions).mean() > 0.9
    assert credit(results["characters"], questions).mean() > 0.9


@pytest.mark.parametrize("mark", [str.capitalize, lambda text: f"{text}\u200b"], ids=["capital", "zero width"])
def test_a_mark_of_the_right_option_that_no_word_shows_is_found(mark: Callable[[str], str]) -> None:
    questions = [
        replace(q, options=tuple(mark(text) if at == q.answer else text for at, text in enumerate(q.options)))
        for q in clean_questions(240)
    ]
    (found,) = run_battery(questions, partitions=1, families=["characters"])
    assert evaluate_probe(found, questions).accuracy > 0.8


def test_letter_prior_is_learned_by_dimension() -> None:
    questions = [replace(q, answer=int(q.dimension == "dimension-1")) for q in clean_questions(80, dimensions=2)]
    prior = by_name(run_battery(questions, partitions=1, families=["position"]))["letter prior"]
    assert credit(prior, questions).mean() == 1.0


def test_longest_shortest_overlap_and_negation_pick_what_they_say() -> None:
    question = Question(
        "q", "Is the gland seen?", ("no", "gland is seen here", "without gland, not seen", "some tissue at all"), 1
    )
    results = by_name(run_battery([question], families=UNTRAINED))
    picks = {
        name: np.flatnonzero(result.shares()[0]).tolist() for name, result in results.items() if not result.trained
    }
    assert picks["longest"] == [2] and picks["shortest"] == [0]
    assert picks["question overlap"] == [1]
    assert picks["most negated"] == [2] and picks["least negated"] == [1, 3]
    assert picks["always C"] == [2]


def test_mixed_option_counts_in_one_file() -> None:
    questions = [
        replace(question, id=f"{k}-{row}")
        for k in (2, 3, 26, 5)
        for row, question in enumerate(leaking_questions(8, seed=k, k=k))
    ]
    results = run_battery(questions, partitions=1)
    for result in results:
        assert result.scores.shape == (32, 26)
        assert np.isfinite(result.scores[8 * 2][:26]).all() and np.isneginf(result.scores[0][2:]).all()
        assert result.probabilities().sum(axis=1) == pytest.approx(np.ones(32))
    assert evaluate_probe(by_name(results)["medoid"], questions).accuracy > 0.7
    assert evaluate_probe(by_name(results)["always A"], questions).chance == pytest.approx(
        (1 / 2 + 1 / 3 + 1 / 26 + 1 / 5) / 4
    )


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_tiny_files_get_an_answer(n: int) -> None:
    for patients in (1, 2, 12):
        for result in run_battery(leaking_questions(n, patients=patients), partitions=2):
            assert np.isfinite(result.scores).all()


def test_no_dimension_slide_or_patient() -> None:
    bare = [replace(q, dimension=None, slide=None, patient=None) for q in leaking_questions(60)]
    assert evaluate_probe(by_name(run_battery(bare, partitions=1))["ensemble"], bare).accuracy > 0.8


def test_duplicate_options_share_the_credit_of_a_duplicated_gold() -> None:
    question = Question("q", "?", ("same", "same", "other one here", "a third"), 0)
    questions = [replace(question, id=str(row), answer=row % 2, slide=f"s{row}") for row in range(12)]
    for result in run_battery(
        questions, partitions=1, families=["geometry", "words", "contrast", "characters", "ensemble"]
    ):
        assert credit(result, questions).max() <= 0.5


def test_same_seed_same_scores_and_another_seed_others() -> None:
    questions = leaking_questions(40)
    first, again, other = (run_battery(questions, seed, 1, ["geometry", "words"]) for seed in (3, 3, 4))
    for one, two in zip(first, again, strict=True):
        assert np.array_equal(one.scores, two.scores)
    assert not np.array_equal(first[0].scores, other[0].scores)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 6))
def test_exchange_sets_hold_every_probe_at_chance_exactly(seed: int, k: int, groups: int) -> None:
    """The identity holds for fitted probes too, as a set is never cut by a fold."""
    questions = exchange_questions(groups, seed, k)
    for result in run_battery(questions, seed, 1):
        reached = evaluate_probe(result, questions)
        assert reached.accuracy == pytest.approx(1 / k), result.name
        assert reached.ci_high == pytest.approx(1 / k)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 99))
def test_a_unit_is_never_on_both_sides_of_a_fold(names: list[int], seed: int) -> None:
    ids = np.unique(names, return_inverse=True)[1]
    folds = make_folds(ids, seed, 3)
    assert folds.shape == (3, len(names))
    if len(set(names)) > 1:
        for partition in folds:
            assert all(len(set(partition[ids == unit])) == 1 for unit in set(ids))
            assert len(set(partition)) == min(5, len(set(names)))


def test_partitions_differ() -> None:
    folds = make_folds(np.arange(30), 0, 3)
    assert len({partition.tobytes() for partition in folds}) == 3


def test_prepared_texts_serve_other_golds_and_fewer_questions() -> None:
    questions = leaking_questions(40)
    texts = read_features(questions)
    rows = np.arange(5, 35)
    some = [replace(questions[row], answer=0) for row in rows]
    fresh, reused = run_battery(some, 1, 1), run_battery(some, 1, 1, features=texts.take(rows))
    for one, two in zip(fresh, reused, strict=True):
        if one.family != "geometry" and one.family != "ensemble":  # rarity of tokens is counted over the whole file
            assert np.allclose(one.scores, two.scores), one.name
    with pytest.raises(ValueError, match="features are of 40 questions"):
        run_battery(some, features=texts)


def test_beyond_the_cap_models_are_fitted_to_a_sample_and_the_rest_is_streamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    questions = leaking_questions(150, patients=30)
    monkeypatch.setattr(battery, "TRAIN_CAP", 100)
    monkeypatch.setattr(battery, "chunks", lambda rows: [range(0, 60), range(60, 61), range(61, 150)])
    results = run_battery(questions)
    assert all(len(result.scores) == 150 for result in results)
    reached = {result.name: evaluate_probe(result, questions).accuracy for result in results}
    assert reached["ensemble"] > 0.85 and reached["medoid"] > 0.85
    with pytest.raises(ValueError, match="at most 100"):
        read_features(questions)


def test_families_are_chosen_by_name() -> None:
    questions = leaking_questions(30)
    assert [r.name for r in run_battery(questions, partitions=1, families=["ensemble"])] == ["ensemble"]
    assert [r.family for r in run_battery(questions, partitions=1, families=["words", "ensemble"])] == [
        "words",
        "ensemble",
    ]
    with pytest.raises(ValueError, match="unknown family wrods"):
        run_battery(questions, families=["wrods"])
    with pytest.raises(ValueError, match="at least one question"):
        run_battery([])
    assert set(MEMBERS) < set(FAMILIES)


def test_blind_score_is_the_probability_of_the_gold_option() -> None:
    questions = leaking_questions(60)
    ensemble = run_battery(questions, partitions=1, families=["ensemble"])[0]
    scores = gold_probability(ensemble, questions)
    assert ((scores >= 0) & (scores <= 1)).all() and scores.mean() > 0.5
    assert len(set(clusters_of(questions).ids)) == 12


def test_strength_on_the_released_validation_split(shared: Path) -> None:
    questions = read_questions(shared / "scale_vqa" / "val.json")
    reached = {r.name: evaluate_probe(r, questions).accuracy for r in run_battery(questions)}
    assert max(reached.values()) >= 0.70
    assert reached["medoid"] > 0.5
