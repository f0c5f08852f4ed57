"""The verdict's rules, and how often it is wrong where there is nothing to find."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from audit_questions import clean_questions, leaking_questions
from scipy import stats

from scale_vqa_eval.audit import fitted_probes
from scale_vqa_eval.audit.battery import label_permutation_test, read_features, redraw_gold, run_battery
from scale_vqa_eval.audit.clusters import Clusters, clusters_of, make_folds
from scale_vqa_eval.audit.probe import Accuracy, ProbeAccuracy, accuracy_of, credit, evaluate_probe, sequential_credit
from scale_vqa_eval.audit.verdict import ALPHA, minimum_detectable_leak, reach_verdict


def cell(p_value: float, accuracy: float = 0.25, ci_high: float = 0.3, error: float = 0.01) -> Accuracy:
    return Accuracy(100, 10, accuracy, 0.25, 2 * accuracy - ci_high, ci_high, p_value, error)


def probe(name: str, whole: Accuracy, **dimensions: Accuracy) -> ProbeAccuracy:
    return ProbeAccuracy(**vars(whole), name=name, family="f", trained=False, by_dimension=dimensions)


def test_one_probe_above_chance_after_correction_leaks() -> None:
    others = [probe(f"p{number}", cell(0.5)) for number in range(9)]
    assert reach_verdict([probe("x", cell(0.004, 0.4, 0.5)), *others]).verdict == "leaks"
    assert reach_verdict([probe("x", cell(0.006, 0.4, 0.5)), *others]).verdict == "clean"  # 10 x 0.006 > 0.05
    assert reach_verdict([probe("x", cell(0.006, 0.4, 0.5))]).whole.leaking == ("x",)


def test_the_level_is_split_between_the_whole_and_the_dimensions() -> None:
    calm = {"b": cell(0.9), "c": cell(0.9)}
    whole = probe("x", cell(0.03, 0.35, 0.4), **calm)
    assert reach_verdict([whole]).verdict == "clean"
    assert reach_verdict([probe("x", cell(0.02, 0.35, 0.4), **calm)]).whole.verdict == "leaks"
    part = reach_verdict([probe("x", cell(0.9), b=cell(0.01, 0.5, 0.6), c=cell(0.9))])
    assert (part.verdict, part.whole.verdict, part.by_dimension["b"].verdict) == ("leaks", "clean", "leaks")
    assert reach_verdict([probe("x", cell(0.9), b=cell(0.02, 0.5, 0.6), c=cell(0.9))]).verdict == "clean"  # 2 x 0.02


def test_clean_needs_power_in_every_probe() -> None:
    found = reach_verdict([probe("x", cell(0.5, 0.3)), probe("y", cell(0.9, error=0.02))])
    assert (found.verdict, found.whole.strongest, found.unresolved) == ("inconclusive", "x", ("all",))
    t = stats.t(9)
    assert found.whole.minimum_detectable_leak == pytest.approx(0.02 * (t.ppf(0.975) + t.ppf(0.8)))
    assert reach_verdict([probe("x", cell(0.5))]).verdict == "clean"
    assert reach_verdict([probe("x", cell(0.9, error=0.02))], margin=0.1).verdict == "clean"
    exact = reach_verdict([probe("x", cell(1.0, error=0.0))])
    assert (exact.verdict, exact.whole.minimum_detectable_leak) == ("clean", 0.0)


def test_a_dimension_may_be_inconclusive_in_a_clean_file() -> None:
    found = reach_verdict([probe("x", cell(0.5), b=cell(0.5), c=cell(0.5, error=0.05))])
    assert (found.verdict, found.unresolved, found.by_dimension["b"].verdict) == ("clean", ("c",), "clean")


def test_a_leak_of_the_detectable_size_is_found_in_four_of_five_files() -> None:
    """Simulated clusters with a leak of the size that the verdict states: the share of files called leaking is 80%."""
    rng = np.random.default_rng(5)
    sets = Clusters(np.repeat(np.arange(40), 10), np.zeros(400, dtype=np.bool_))
    chance = np.full(400, 0.25)
    at_chance = accuracy_of((rng.random(400) < 0.25).astype(float), chance, sets)
    leak = minimum_detectable_leak(at_chance, 0.01)
    found = [
        accuracy_of((rng.random(400) < 0.25 + leak).astype(float), chance, sets).p_value <= 0.01 for _ in range(300)
    ]
    assert 0.7 < np.mean(found) < 0.95


def test_below_chance_is_no_leak() -> None:
    assert reach_verdict([probe("x", cell(1.0, 0.0, 0.05))]).whole.verdict == "clean"


def test_a_single_dimension_is_the_whole() -> None:
    found = reach_verdict([probe("x", cell(0.04, 0.4, 0.5), only=cell(0.04, 0.4, 0.5))])
    assert found.by_dimension["only"] == found.whole and found.whole.verdict == "leaks"


def test_three_questions_in_a_dimension_prove_nothing() -> None:
    questions = [*leaking_questions(60, dimensions=1), *clean_questions(3, dimensions=0)]
    questions[-3:] = [replace(q, id=f"r{row}", dimension="rare", answer=2) for row, q in enumerate(questions[-3:])]
    found = reach_verdict(
        [evaluate_probe(r, questions) for r in run_battery(questions, families=["position", "similarity"])]
    )
    assert found.by_dimension["rare"].verdict == "inconclusive"
    assert found.by_dimension["dimension-0"].verdict == "leaks"


@pytest.mark.slow
def test_shuffled_golds_are_at_chance_in_twenty_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaking texts, meaningless golds. Three bounds computed from distributions, none chosen by eye, each broken by
    luck once in a thousand: verdicts "leaks" among 20 files at the stated rate; right picks in sequence (binomial);
    cross-fitted accuracies (t over the seeds, which are independent). A light configuration, 20 trees and one
    partition, stands in for the full one: it has the same folds.
    """
    questions = leaking_questions(120, patients=20)
    assert reach_verdict([evaluate_probe(r, questions) for r in run_battery(questions, 0, 1)]).verdict == "leaks"
    texts, units = read_features(questions), clusters_of(questions)
    alarms, crossed, sequential = 0, dict[str, list[float]](), dict[str, list[float]]()
    for seed in range(20):
        drawn = redraw_gold(questions, seed)
        results = run_battery(drawn, seed, 1, features=texts)
        alarms += reach_verdict([evaluate_probe(r, drawn, units) for r in results]).verdict == "leaks"
        for result in (result for result in results if result.trained):
            crossed.setdefault(result.name, []).append(float(credit(result, drawn).mean()))
            right = sequential_credit(result, drawn)
            sequential.setdefault(result.name, []).extend(right[~np.isnan(right)])
    assert alarms <= stats.binom.ppf(0.999, 20, ALPHA)
    assert len(crossed) == 6
    for name, picks in sequential.items():
        assert 0.75 * 20 * 120 < len(picks) < 0.85 * 20 * 120
        assert sum(picks) <= stats.binom.ppf(1 - 0.001 / 6, len(picks), 0.25), name
    for name, rates in crossed.items():
        spread = float(np.std(rates, ddof=1)) / 20**0.5
        assert np.mean(rates) - 0.25 <= stats.t.ppf(1 - 0.001 / 6, 19) * spread, name


def test_a_gold_trains_no_model_that_scores_it_or_comes_before_it() -> None:
    """Changing one gold changes sequential votes of later folds only, and cross-fitted votes of other folds only."""
    questions = leaking_questions(50, patients=10)
    turned = list(questions)
    turned[7] = replace(questions[7], answer=(questions[7].answer + 1) % 4)
    folds = make_folds(clusters_of(questions).ids, 0, 1)[0]
    for one, two in zip(*(run_battery(q, 0, 1, ["words", "geometry"]) for q in (questions, turned)), strict=True):
        same = np.isclose(one.scores, two.scores).all(axis=1)
        assert same[folds == folds[7]].all() and not same[folds != folds[7]].all()
        assert one.sequential is not None and two.sequential is not None
        same = np.isclose(one.sequential, two.sequential).all(axis=1)
        assert same[folds <= folds[7]].all()
        assert np.isneginf(one.sequential[folds == 0]).all() and np.isfinite(one.sequential[folds > 0]).all()


def test_null_check_fails_a_probe_that_sees_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = leaking_questions(60)
    report = label_permutation_test(questions, families=("words", "position"), draws=2)
    assert report["passed"] and set(report["probes"]) == {"words", "letter prior"}
    assert report["probes"]["words"]["accuracy"] == pytest.approx(np.mean(report["probes"]["words"]["per_draw"]))

    def everything(chosen: np.ndarray, seed: int) -> fitted_probes.Model:
        return fitter(np.arange(len(questions)), seed)

    def peeking(family: str, sample: object, gold: np.ndarray) -> fitted_probes.Fitter:
        nonlocal fitter
        fitter = honest(family, sample, gold)  # type: ignore[arg-type]
        return everything

    honest = fitted_probes.make_fitter
    fitter = honest("words", read_features(questions), np.zeros(60, dtype=np.int64))
    monkeypatch.setattr("scale_vqa_eval.audit.battery.make_fitter", peeking)
    assert not label_permutation_test(questions, families=("words",), draws=2)["passed"]


def test_null_check_of_a_large_file_takes_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scale_vqa_eval.audit.battery.NULL_CAP", 30)
    report = label_permutation_test(clean_questions(40), families=("position",), draws=1)
    assert report["n"] == 30


def test_redrawn_golds_are_options_of_their_questions() -> None:
    questions = clean_questions(50, k=3)
    drawn = redraw_gold(questions, 1)
    assert {question.answer for question in drawn} == {0, 1, 2}
    assert [q.answer for q in redraw_gold(questions, 1)] == [q.answer for q in drawn]
