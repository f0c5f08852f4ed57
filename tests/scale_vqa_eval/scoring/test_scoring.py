"""Joining responses with questions, the figures of a score, and comparing two runs."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.schema import DIMENSIONS
from scale_vqa_eval.scoring.baselines import as_response, respond
from scale_vqa_eval.scoring.predictions import MAX_NAMED, Prediction, Predictions, join
from scale_vqa_eval.scoring.results import comparison_table, score_table
from scale_vqa_eval.scoring.score import (
    compare_answers,
    consistency_warnings,
    provenance,
    questions_digest,
    score_answers,
)

OPTIONS = ("dense stroma", "nests of cells", "fat", "necrosis")


def question(number, **fields):
    return dataclasses.replace(Question(f"q{number}", "Which?", OPTIONS, number % 4), **fields)


QUESTIONS = [
    question(number, dimension=DIMENSIONS[number % 5], slide=f"S{number % 12}", patient=f"P{number % 6}")
    for number in range(60)
]


def predictions(pairs, account=None, **noted):
    rows = tuple(
        Prediction(identity, response, line, *more) for line, (identity, response, *more) in enumerate(pairs, 1)
    )
    fields = dict.fromkeys(("model", "prompt_id", "sampling", "backend", "ablation")) | noted
    return Predictions(Path("run.jsonl"), rows, account or {}, fields, "0" * 64)


def run(questions, share, seed=0):
    """Answers that are right with probability ``share``, else the next letter."""
    generator = random.Random(seed)
    return predictions(
        [(q.id, as_response((q.answer + (generator.random() >= share)) % len(q.options))) for q in questions]
    )


def test_score_by_patient_and_dimension():
    answers = join(run(QUESTIONS, 0.7), QUESTIONS)
    figures = score_answers(answers)
    right = {
        name: [c for q, c in zip(QUESTIONS, answers.correct, strict=True) if q.dimension == name]
        for name in DIMENSIONS
    }
    assert figures["accuracy"] == np.mean(answers.correct) and figures["n"] == 60 and figures["clusters"] == 6
    assert list(figures["by_dimension"]) == list(DIMENSIONS)
    assert {name: part["accuracy"] for name, part in figures["by_dimension"].items()} == {
        name: np.mean(values) for name, values in right.items()
    }
    assert figures["group_accuracy"] is None and figures["circular"] is None and figures["failed"] == 0
    assert "No blind control" in score_table(figures)


def test_the_order_of_the_file_does_not_matter():
    straight = run(QUESTIONS, 0.5)
    shuffled = dataclasses.replace(straight, rows=tuple(random.Random(1).sample(straight.rows, 60)))
    assert score_answers(join(straight, QUESTIONS)) == score_answers(join(shuffled, QUESTIONS))


def test_every_mismatch_is_named():
    rows = [(q.id, "x") for q in QUESTIONS[2:]] + [("other", "x")]
    with pytest.raises(InputError) as caught:
        join(predictions(rows), [*QUESTIONS, question(9, split="val")])
    found = [problem.found for problem in caught.value.problems]
    assert found == [
        "no response to 'q0'",
        "no response to 'q1'",
        "a response to 'other'",
        "in more than one split: 'q9'",
    ]
    assert "--split" in caught.value.problems[0].hint


def test_a_flood_of_mismatches_is_counted():
    many = [question(number) for number in range(MAX_NAMED + 30)]
    with pytest.raises(InputError) as caught:
        join(predictions([("q0", "x")]), many)
    assert len(caught.value.problems) == MAX_NAMED + 1 and caught.value.problems[-1].found == "no response to 29 more"


def test_failed_calls_are_wrong_and_counted():
    rows = [(q.id, None, None, "timeout") for q in QUESTIONS[:3]] + [
        (q.id, as_response(q.answer)) for q in QUESTIONS[3:]
    ]
    figures = score_answers(join(predictions(rows), QUESTIONS))
    assert figures["failed"] == 3 and figures["accuracy"] == 57 / 60
    assert figures["unparsed"]["reasons"] == {"not_text": 3}
    assert "Of these, 3 are failed calls" in score_table(figures)


def test_blind_control():
    figures = score_answers(join(run(QUESTIONS, 0.8), QUESTIONS), join(run(QUESTIONS, 0.5, seed=1), QUESTIONS))
    accuracy, blind = figures["accuracy"], figures["blind"]["accuracy"]
    assert figures["visual_gain"] == pytest.approx(accuracy - blind)
    assert figures["leakage_adjusted_accuracy"] == pytest.approx((accuracy - blind) / (1 - blind))
    assert figures["by_dimension"]["Diagnosis"]["blind_accuracy"] <= 1
    table = score_table(figures)
    assert "Visual gain" in table and "No blind control" not in table


def test_an_image_free_reader_is_right_once_in_each_exchange_group():
    questions = [
        question(4 * group + place, answer=place, group=f"g{group}", patient=f"P{(group + place) % 7}")
        for group in range(9)
        for place in range(4)
    ]
    for name in ("always-A", "longest", "medoid"):
        pairs = zip(questions, respond(name, questions), strict=True)
        figures = score_answers(join(predictions([(q.id, r) for q, r in pairs]), questions))
        assert figures["accuracy"] == 0.25 and figures["group_accuracy"] == 0.0 and figures["groups"]["n"] == 9
        assert figures["groups"]["chance"] == pytest.approx(1 / 256)
        assert figures["groups"]["chance_by_assignment"] == pytest.approx(1 / 24)
        assert figures["interval"][0] < 0.25 < figures["interval"][1]
    assert "Group accuracy" in score_table(figures)


def test_circular_run_asks_for_every_turn_and_unturns_the_gold():
    items = QUESTIONS[:8]
    turned = [(q.id, as_response((q.answer - turn) % 4), turn) for q in items for turn in range(4)]
    figures = score_answers(join(predictions(turned), items))
    assert figures["accuracy"] == 1.0 and figures["n"] == 32
    assert figures["circular"]["accuracy"] == 1.0 and figures["circular"]["n"] == 8
    same_letter = [(q.id, as_response(0), turn) for q in items for turn in range(4)]
    figures = score_answers(join(predictions(same_letter), items))
    assert figures["accuracy"] == 0.25 and figures["circular"]["accuracy"] == 0.0
    assert "every rotation" in score_table(figures)
    with pytest.raises(InputError, match="a response under each rotation 0-3"):
        join(predictions(turned[:-1]), items)
    with pytest.raises(InputError, match="found one circular run"):
        score_answers(join(predictions(turned), items), join(run(items, 1.0), items))


def test_questions_of_any_number_of_options():
    items = [Question("a", "?", ("x", "y"), 1), Question("b", "?", tuple("uvwxyz"), 5)]
    answered = predictions([("a", "<answer>C</answer>"), ("b", "<answer>f</answer>")])
    lenient, strict = (score_answers(join(answered, items, mode)) for mode in ("reference", "strict"))
    assert lenient["accuracy"] == strict["accuracy"] == 0.5
    assert lenient["unparsed"]["n"] == 0 and strict["unparsed"]["reasons"] == {"not_an_option": 1}
    assert lenient["chance"] == pytest.approx((1 / 2 + 1 / 6) / 2)
    assert not lenient["clustered"] and "no patient or slide" in score_table(lenient)


def test_provenance_guesses_nothing():
    made_from = provenance(run(QUESTIONS, 1.0), QUESTIONS, "folder", "test", None, "reference")
    assert made_from["model"] is made_from["prompt_id"] is made_from["predicted_with"] is None
    assert made_from["data_hash"] == questions_digest(reversed(QUESTIONS))
    changed = [dataclasses.replace(QUESTIONS[0], answer=3), *QUESTIONS[1:]]
    assert questions_digest(changed) != made_from["data_hash"]


def test_contradictions_are_warned_of():
    digest = questions_digest(QUESTIONS)
    same = predictions([], {"data_hash": digest, "config": "default"})
    assert consistency_warnings(same, QUESTIONS, "default") == []
    other = predictions([], {"data_hash": "x", "config": "phantom"})
    found = consistency_warnings(other, QUESTIONS, "default")
    assert len(found) == 2 and "another data hash" in found[0] and "'phantom', not on 'default'" in found[1]


def test_comparison_is_paired_and_corrected():
    a, b = (join(run(QUESTIONS, share, seed), QUESTIONS) for share, seed in ((0.9, 2), (0.4, 3)))
    compared = compare_answers(a, b)
    gap = a.correct - b.correct
    sums = [sum(g for g, q in zip(gap - gap.mean(), QUESTIONS, strict=True) if q.patient == f"P{p}") for p in range(6)]
    error = np.sqrt(6 / 5 * np.sum(np.square(sums))) / 60
    assert compared["difference"] == pytest.approx(gap.mean()) and compared["standard_error"] == pytest.approx(error)
    assert compared["p_value"] == pytest.approx(2 * stats.t.sf(gap.mean() / error, 5))
    assert compared["minimum_detectable_effect"] == pytest.approx(
        (stats.t.ppf(0.975, 5) + stats.t.ppf(0.8, 5)) * error
    )
    assert compared["mcnemar"] == {"only_a": (gap > 0).sum(), "only_b": (gap < 0).sum(), "p_value": None}
    raw = sorted(part["p_value"] for part in compared["by_dimension"].values())
    corrected = sorted(part["p_holm"] for part in compared["by_dimension"].values())
    assert corrected[0] == pytest.approx(min(1.0, 5 * raw[0])) and list(compared["by_dimension"]) == list(DIMENSIONS)
    assert all(part["p_holm"] >= part["p_value"] for part in compared["by_dimension"].values())


def test_comparison_with_itself_and_mirrored():
    a, b = (join(run(QUESTIONS, share, seed), QUESTIONS) for share, seed in ((0.9, 2), (0.4, 3)))
    same = compare_answers(a, a)
    assert same["difference"] == 0 and same["p_value"] == 1
    assert same["minimum_detectable_effect"] is None and same["interval"][1] > 0
    there, back = compare_answers(a, b), compare_answers(b, a)
    assert there["difference"] == -back["difference"] and there["p_value"] == pytest.approx(back["p_value"])
    paths = {name: {"predictions": f"{name}.jsonl"} for name in "ab"}
    assert "undefined: the differences do not vary" in comparison_table({**same, **paths})
    assert "A = a.jsonl" in comparison_table({**there, **paths})


def test_mcnemar_is_exact_for_independent_questions_and_refused_for_others():
    alone = [dataclasses.replace(item, patient=None, slide=None) for item in QUESTIONS]
    a, b = (join(run(alone, share, seed), alone) for share, seed in ((0.9, 2), (0.4, 3)))
    tested = compare_answers(a, b)["mcnemar"]
    expected = stats.binomtest(tested["only_a"], tested["only_a"] + tested["only_b"]).pvalue
    assert tested["p_value"] == pytest.approx(expected)
    paths = {name: {"predictions": f"{name}.jsonl"} for name in "ab"}
    a, b = (join(run(QUESTIONS, share, seed), QUESTIONS) for share, seed in ((0.9, 2), (0.4, 3)))
    clustered = compare_answers(a, b)
    assert "McNemar is not valid" in comparison_table({**clustered, **paths})


@pytest.mark.real_data
def test_baselines_on_the_released_questions(shared):
    questions = read_questions(shared / "scale_vqa" / "val.json")
    answers = {
        name: join(
            predictions([(q.id, r) for q, r in zip(questions, respond(name, questions), strict=True)]), questions
        )
        for name in ("always-A", "medoid")
    }
    figures = score_answers(answers["medoid"])
    assert figures["n"] == 450 and figures["clusters"] == 17 and len(figures["by_dimension"]) == 5
    assert figures["accuracy"] == pytest.approx(0.544, abs=0.005) and figures["format_rate"] == 1.0
    assert figures["interval"][0] > 0.4  # leaks: far above chance
    assert compare_answers(answers["medoid"], answers["always-A"])["p_value"] < 1e-6
