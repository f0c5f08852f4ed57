"""Factorial options: no probe of the options' geometry beats chance, and what would let one is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scale_vqa_eval.audit.battery import run_battery
from scale_vqa_eval.controls.exchange_group import crossed_options, geometry_problems
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import Question

WORDS = st.text("abcdefghij", min_size=3, max_size=3)


@st.composite
def features(draw: st.DrawFn) -> tuple[tuple[str, str], tuple[str, str], str]:
    """Two features with two values each, phrases of equally many words of equal length, and a template."""
    long_first, long_second = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    words = draw(
        st.lists(WORDS, min_size=2 * (long_first + long_second), max_size=2 * (long_first + long_second), unique=True)
    )
    shared = draw(st.sampled_from(["", " zz"]))
    first = (" ".join(words[:long_first]) + shared, " ".join(words[long_first : 2 * long_first]) + shared)
    rest = words[2 * long_first :]
    second = (" ".join(rest[:long_second]), " ".join(rest[long_second:]))
    return first, second, draw(st.sampled_from(["{first}, {second}", "at 10x {first}; {second} at 200x"]))


def tokens(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def similarity(options: Sequence[str], number: int, fold: Callable[..., Fraction]) -> Fraction:
    """A probe's score of an option from its Jaccard similarity to the others, exact."""
    own = tokens(options[number])
    others = [tokens(option) for index, option in enumerate(options) if index != number]
    return fold([Fraction(len(own & other), len(own | other)) for other in others])


PROBES: dict[str, Callable[[Sequence[str], int, str], object]] = {
    "medoid": lambda options, number, question: similarity(options, number, sum),
    "anti-medoid": lambda options, number, question: -similarity(options, number, sum),
    "nearest neighbour": lambda options, number, question: similarity(options, number, max),
    "farthest neighbour": lambda options, number, question: -similarity(options, number, min),
    "longest": lambda options, number, question: len(options[number]),
    "shortest": lambda options, number, question: -len(options[number]),
    "most words": lambda options, number, question: len(options[number].split()),
    "question overlap": lambda options, number, question: len(tokens(options[number]) & tokens(question)),
    "own tokens": lambda options, number, question: len(
        tokens(options[number]) - frozenset().union(*(tokens(o) for i, o in enumerate(options) if i != number))
    ),
}


def expected_accuracy(scores: Sequence[object], answer: int) -> Fraction:
    """Accuracy of picking a best-scored option at random among equals."""
    best = max(scores)  # type: ignore[type-var]
    return Fraction(scores[answer] == best, list(scores).count(best))


@settings(max_examples=60, deadline=None)
@given(features(), st.tuples(st.integers(0, 1), st.integers(0, 1)), st.permutations(range(4)))
def test_no_geometry_probe_beats_chance_whatever_is_right(chosen, truth, order):
    first, second, template = chosen
    question = f"Is it {first[0]} or {first[1]}?"
    built = crossed_options(first, second, truth, order, template, question)
    for name, probe in PROBES.items():
        scores = [probe(built.options, number, question) for number in range(4)]
        assert expected_accuracy(scores, built.answer) == Fraction(1, 4), name


@settings(max_examples=30, deadline=None)
@given(features(), st.permutations(range(4)))
def test_the_answer_is_the_option_that_states_the_truth(chosen, order):
    first, second, template = chosen
    seen = set()
    for truth in product((0, 1), repeat=2):
        built = crossed_options(first, second, truth, order, template)
        right = built.options[built.answer]
        assert right == template.format(first=first[truth[0]], second=second[truth[1]])
        seen.add(built.answer)
        assert len(set(built.options)) == 4
    assert seen == {0, 1, 2, 3}


def test_every_letter_order_can_be_asked_for():
    orders = {crossed_options(("a", "b"), ("c", "d"), (0, 0), order).options for order in permutations(range(4))}
    assert len(orders) == 24


@pytest.mark.parametrize(
    ("first", "second", "question", "what"),
    [
        (("round", "large round"), ("many", "rare"), "", "words"),
        (("round", "notch"), ("round", "other"), "", "overlap"),
        (("no gland", "a vessel"), ("many", "rare"), "", "negations"),
        (("round", "notch"), ("many", "rare"), "How round is it?", "words of the question"),
        (("round", "oval"), ("many", "rare"), "", "lengths"),
        (("round", "round"), ("many", "rare"), "", "differ in their words"),
        (("non dense stroma", "all dense stroma"), ("many mitoses", "zero mitoses"), "", "negations"),
    ],
)
def test_phrases_that_would_give_an_option_away_are_refused(first, second, question, what):
    with pytest.raises(InputError) as refused:
        crossed_options(first, second, (0, 0), question=question)
    assert any(what in problem.expected for problem in refused.value.problems)


def test_unequal_lengths_are_allowed_by_name_only():
    assert crossed_options(("round", "oval"), ("many", "rare"), (1, 0), length_slack=1).answer == 2


def test_one_feature_changed_at_a_time_is_what_the_check_finds():
    gold_is_centre = ["red round cell", "red oval cell", "blue round cell", "red round node"]
    assert any("overlap" in problem.expected for problem in geometry_problems(gold_is_centre, length_slack=9))


@pytest.mark.parametrize(("truth", "order"), [((0, 2), range(4)), ((0, 0), (0, 1, 2, 2)), ((0,), range(4))])
def test_wrong_indices_are_refused(truth, order):
    with pytest.raises(ValueError):
        crossed_options(("a", "b"), ("c", "d"), truth, tuple(order))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("non dense stroma", "all dense stroma"), ("many mitoses", "zero mitoses")),
        (("no atypia", "an atypia"), ("pure glands", "free glands")),
        (("round cells", "wedge cells"), ("absent mucin", "copious mucin")),
        (("round cells", "wedge cells"), ("scant mucin", "dense mucin")),
        (("not round cells", "not wedge cells"), ("scant mucin", "dense mucin")),
    ],
)
def test_accepted_options_have_equal_negation_counts_in_the_audit(first, second):
    try:
        options = crossed_options(first, second, (0, 1), length_slack=9).options
    except InputError as refused:
        assert any("negations" in problem.expected for problem in refused.problems)
    else:
        (most_negated, *_) = run_battery([Question("q", "Which?", options, 0)], 0, 1, ("negation",))
        assert most_negated.name == "most negated" and len(set(most_negated.scores[0].tolist())) == 1
