"""The probe of options alone finds a planted leak, and nothing where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from dataset_script.slides.build_report import OptionTable, probe_options, probe_right

MEASURES = 7


def table(seed: int, questions: int = 400, leak: float = 0.0, measure: int = 0, sharpest: bool = False) -> OptionTable:
    """Random measures of options; ``leak`` is added to one measure of the gold option."""
    rng = np.random.default_rng(seed)
    options = rng.normal(size=(questions, 4, MEASURES)) + rng.normal(size=(questions, 1, MEASURES)) * 3
    gold = rng.integers(0, 4, questions)
    options[np.arange(questions), gold, measure] += leak
    queries = options[np.arange(questions), gold] + rng.normal(size=(questions, MEASURES)) * 0.1
    return OptionTable(options, queries, gold, np.array([f"slide {index % 8}" for index in range(questions)]))


@pytest.mark.slow
@pytest.mark.parametrize("measure", [0, *(pytest.param(one, marks=pytest.mark.slow) for one in (4, MEASURES - 1))])
def test_a_leak_in_any_measure_is_found(measure: int) -> None:
    result = probe_options("zoom-in", table(1, leak=1.5, measure=measure), seed=0)
    assert result.leaks and result.options_alone is not None and result.options_alone > 0.35


@pytest.mark.slow
def test_a_distractor_of_another_kind_is_found() -> None:
    planted = table(2)
    odd = (planted.gold + 1) % 4
    planted.options[np.arange(400), odd, 4] += 6  # one distractor is always sharper
    result = probe_options("zoom-in", planted, seed=0)
    assert result.leaks


@pytest.mark.slow
def test_without_a_leak_the_probe_is_at_chance() -> None:
    right = np.concatenate([probe_right(table(seed), 0) for seed in range(10, 13)])  # type: ignore[list-item]
    assert abs(right.mean() - 0.25) < 1.96 * np.sqrt(0.25 * 0.75 / right.size) + 0.01


def test_the_colour_reader_sees_the_question() -> None:
    result = probe_options("zoom-in", table(3, questions=120), seed=0)
    assert result.colour_match > 0.9
    assert result.chance_low < 0.25 < result.chance_high


def test_one_slide_alone_is_not_probed() -> None:
    whole = table(4)
    alone = OptionTable(whole.options, whole.queries, whole.gold, np.full(400, "slide"))
    assert probe_options("zoom-in", alone, seed=0).options_alone is None
