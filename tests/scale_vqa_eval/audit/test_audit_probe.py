"""What a probe's scores are worth: ties, unanswered questions, intervals, p-values."""

from __future__ import annotations

import numpy as np
import pytest
from audit_questions import clean_questions, exchange_questions
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scale_vqa_eval.audit.clusters import Clusters
from scale_vqa_eval.audit.probe import (
    OptionLayout,
    ProbeScores,
    accuracy_of,
    credit,
    evaluate_probe,
    gold_probability,
    option_counts,
    p_above_chance,
    picked,
)
from scale_vqa_eval.questions import Question


def asked(*counts_and_golds: tuple[int, int]) -> list[Question]:
    return [
        Question(f"q{row}", "?", tuple(f"option {option}" for option in range(k)), gold)
        for row, (k, gold) in enumerate(counts_and_golds)
    ]


def scored(rows: list[list[float]]) -> ProbeScores:
    layout = OptionLayout.of(np.array([len(row) for row in rows]))
    return ProbeScores("probe", "similarity", False, layout.padded([score for row in rows for score in row]))


def units(ids: list[int], balanced: bool = False) -> Clusters:
    return Clusters(np.array(ids), np.full(len(ids), balanced))


def test_ties_share_the_credit_whatever_the_letters() -> None:
    result = scored([[1.0, 1.0, 0.0], [0.5, 0.5], [2.0, 2.0 + 1e-12, 2.0, 2.0]])
    questions = asked((3, 1), (2, 0), (4, 3))
    assert credit(result, questions).tolist() == [0.5, 0.5, 0.25]
    assert gold_probability(result, questions).tolist() == [0.5, 0.5, 0.25]
    assert picked(result).tolist() == [0, 0, 0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2).map(float), min_size=2, max_size=6), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_expected_credit_over_all_golds_is_one(rows: list[list[float]], random: object) -> None:
    """Whatever the scores, the credits of all options of a question sum to 1: no probe gains from the letters."""
    result = scored(rows)
    for at, row in enumerate(rows):
        golds = [
            credit(result, asked(*[(len(r), g if i == at else 0) for i, r in enumerate(rows)]))[at]
            for g in range(len(row))
        ]
        assert sum(golds) == pytest.approx(1.0)


def test_a_question_without_an_answer_is_wrong_and_its_blind_score_even() -> None:
    scores = np.array([[0.0, 0.0], [1.0, 0.0]])
    result = ProbeScores("chat", "chat", False, scores, votes=True, answered=np.array([False, True]))
    questions = asked((2, 0), (2, 0))
    assert credit(result, questions).tolist() == [0.0, 1.0]
    assert gold_probability(result, questions).tolist() == [0.5, 1.0]
    assert picked(result).tolist() == [-1, 0]


def test_scores_that_are_no_numbers_and_missing_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="not a number"):
        credit(ProbeScores("x", "x", False, np.array([[np.nan, 1.0]])), asked((2, 0)))
    with pytest.raises(ValueError, match="scored 1 questions of 2"):
        credit(scored([[1.0, 0.0]]), asked((2, 0), (2, 0)))


def test_chance_of_mixed_option_counts_is_the_mean_of_even_guesses() -> None:
    questions = asked((2, 0), (4, 0), (26, 25))
    reached = evaluate_probe(scored([[0.0] * 2, [0.0] * 4, [0.0] * 26]), questions)
    assert reached.accuracy == pytest.approx(reached.chance) == pytest.approx((1 / 2 + 1 / 4 + 1 / 26) / 3)
    assert option_counts(questions).tolist() == [2, 4, 26]


def test_p_value_is_never_below_the_binomial_tail() -> None:
    """Two clusters with the same share have no clustered variance; the binomial tail stands."""
    values = np.array([1.0, 0.0, 1.0, 0.0])
    assert p_above_chance(values, np.full(4, 0.25), np.array([0, 0, 1, 1])) >= stats.binom.sf(1, 4, 0.25)
    assert p_above_chance(np.ones(3), np.full(3, 0.25), np.array([0, 1, 2])) == pytest.approx(0.25**3)
    assert p_above_chance(np.zeros(4), np.full(4, 0.25), np.arange(4)) == 1.0


def test_p_value_heeds_clusters() -> None:
    rng = np.random.default_rng(0)
    share = np.repeat(rng.choice([0.0, 1.0], 10, p=[0.6, 0.4]), 20)  # each cluster all right or all wrong
    chance, by_cluster = np.full(200, 0.25), np.repeat(np.arange(10), 20)
    assert p_above_chance(share, chance, by_cluster) > 10 * p_above_chance(share, chance, np.arange(200))


def test_one_unit_is_judged_by_question() -> None:
    reached = accuracy_of(np.array([1.0] * 15 + [0.0] * 5), np.full(20, 0.25), units([0] * 20))
    assert reached.clusters == 20
    assert 0.4 < reached.ci_low < 0.75 < reached.ci_high < 1.0
    assert reached.p_value < 1e-4


def test_exchange_sets_at_chance_have_an_interval_without_width() -> None:
    values, ids = np.array([1.0, 0, 0, 0] * 3), [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    exact = accuracy_of(values, np.full(12, 0.25), units(ids, balanced=True))
    assert (exact.ci_low, exact.ci_high, exact.p_value) == (0.25, 0.25, 1.0)
    sampled = accuracy_of(values, np.full(12, 0.25), units(ids, balanced=False))
    assert sampled.ci_high > 0.25


def test_parts_by_dimension_and_split() -> None:
    questions = clean_questions(12, dimensions=3)
    result = scored([[1.0 * (option == question.answer) for option in range(4)] for question in questions])
    reached = evaluate_probe(result, questions)
    assert reached.accuracy == 1.0
    assert {name: (part.n, part.accuracy) for name, part in reached.by_dimension.items()} == {
        f"dimension-{number}": (4, 1.0) for number in range(3)
    }
    assert reached.by_split == {}
    assert evaluate_probe(scored([[1.0, 0, 0, 0]] * 8), exchange_questions(2)).accuracy == 0.25
