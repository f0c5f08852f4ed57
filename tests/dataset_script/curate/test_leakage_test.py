"""The rule by which questions are made again: luck is left alone, knowledge is found, and what is left is chance."""

from __future__ import annotations

import numpy as np
import pytest

from dataset_script.curate.leakage_test import BlindAnswers, all_agree, find_leaks
from scale_vqa_eval.questions import Question


def pool(n: int, dimensions: int = 5) -> list[Question]:
    return [
        Question(f"q{row:04d}", "?", ("a", "b", "c", "d"), row % 4, f"d{row % dimensions}", slide=f"s{row // 5}")
        for row in range(n)
    ]


def reading(
    name: str, right: np.ndarray, sure: np.ndarray | None = None, pick: np.ndarray | None = None
) -> BlindAnswers:
    """A reader by what it got right; gold of row r is option r % 4, and what is wrong is the next option."""
    picked = (np.arange(len(right)) + ~right.astype(bool)) % 4 if pick is None else pick
    right = right.astype(float)
    return BlindAnswers(
        name, "adversary", right, right if sure is None else sure, np.full(len(right), 0.25), pick=picked
    )


def guess(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """What a reader who knows nothing picks, and where that is right."""
    pick = rng.integers(0, 4, n)
    return pick, pick == np.arange(n) % 4


def test_readers_who_know_nothing_have_questions_made_again_no_more_often_than_the_level() -> None:
    questions, rng = pool(200), np.random.default_rng(0)
    alarms = 0
    for _ in range(60):
        readings = []
        for name in "xyz":
            pick, right = guess(rng, 200)
            readings.append(reading(name, right, pick=pick))
        alarms += bool(find_leaks(questions, [*readings, *all_agree(readings)], 0.05).flagged)
    assert alarms <= 9  # 3 expected at the level; P(more than 9) < 0.001


@pytest.mark.parametrize("known", [0.2, 0.6, 1.0])
def test_of_a_reader_who_knows_a_share_the_excess_goes_and_chance_stays(known: float) -> None:
    questions, rng = pool(400), np.random.default_rng(1)
    knows = rng.random(400) < known
    right = knows | (rng.random(400) < 0.25)
    sure = np.where(knows, 0.95, np.where(right, 0.6, 0.1))
    found = find_leaks(questions, [reading("x", right, sure)], 0.05)
    flagged = np.array([question.id in found.flagged for question in questions])
    assert flagged[knows].mean() > 0.75
    assert right[~flagged].mean() == pytest.approx(0.25, abs=0.06) if known < 1 else flagged.all()
    assert all(test["n"] in (400, 80) for test in found.tests)


def test_a_leak_in_one_dimension_is_found_there() -> None:
    questions, rng = pool(500), np.random.default_rng(2)
    right = rng.random(500) < 0.25
    leaky = np.array([question.dimension == "d3" for question in questions])
    right[leaky] = rng.random(leaky.sum()) < 0.7
    found = find_leaks(questions, [reading("x", right)], 0.05)
    assert {question.dimension for question in questions if question.id in found.flagged} == {"d3"} or leaky[
        [question.id in found.flagged for question in questions]
    ].mean() > 0.6
    assert any(test["above_chance"] and test["dimension"] == "d3" for test in found.tests)


def test_a_single_lucky_guess_is_no_reason() -> None:
    found = find_leaks(pool(6), [reading("x", np.array([1, 0, 1, 0, 0, 0]))], 0.05)
    assert found.flagged == {}


def test_readers_who_are_right_together_too_often_are_seen_by_their_agreement() -> None:
    questions, rng = pool(600, 1), np.random.default_rng(3)
    shared = rng.random(600) < 0.09
    readings = []
    for name in "xy":
        pick, _ = guess(rng, 600)
        pick = np.where(shared, np.arange(600) % 4, pick)
        right = pick == np.arange(600) % 4
        # elsewhere wrong more often than a guess: neither is above chance alone
        spoilt = right & ~shared & (rng.random(600) < 0.28)
        pick = np.where(spoilt, (pick + rng.integers(1, 4, 600)) % 4, pick)
        readings.append(reading(name, right & ~spoilt, pick=pick))
    assert not find_leaks(questions, readings, 0.05).flagged
    assert find_leaks(questions, [*readings, *all_agree(readings)], 0.05).flagged


def test_readers_of_one_taste_who_know_nothing_are_no_leak() -> None:
    """Two models that guess alike are right together as often as one of them."""
    questions, rng = pool(400), np.random.default_rng(5)
    alarms = 0
    for _ in range(40):
        pick, right = guess(rng, 400)
        readings = [reading(name, right, pick=pick) for name in "xy"]
        alarms += bool(find_leaks(questions, [*readings, *all_agree(readings)], 0.05).flagged)
    assert alarms <= 6  # 2 expected at the level; P(more than 6) < 0.005
