"""The screened control: what it keeps is at chance in both directions, for probes that it has not seen as well."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from scale_vqa_eval.audit.battery import FAMILIES
from scale_vqa_eval.audit.probe import OptionLayout, ProbeScores
from scale_vqa_eval.controls.command import control
from scale_vqa_eval.controls.output import figures, weights_summary
from scale_vqa_eval.controls.screened import (
    Readers,
    both_ways,
    fresh_audit,
    held_out_figures,
    keep_weights,
    prune,
    stack_probes,
    too_few,
)
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import Question

LIGHT = ("position", "length", "similarity", "overlap", "negation", "words")
WORDS = np.array([f"{start}{end}" for start in ("ker", "fib", "muc", "nec", "ade", "lym") for end in
                  ("a", "osis", "itis", "oma", "oid", "al", "ic", "ous", "in", "ent")])  # fmt: skip


def leaky(n: int, leak: float, seed: int = 0) -> list[Question]:
    """Questions in which, with probability ``leak``, the right option is the centre of the four."""
    rng = np.random.default_rng(seed)
    questions = []
    for row in range(n):
        gold = int(rng.integers(4))
        centre = gold if rng.random() < leak else int(rng.integers(4))
        core = list(rng.choice(WORDS, 8, replace=False))
        options = []
        for place in range(4):
            text = core.copy()
            if place != centre:
                text[int(rng.integers(8))] = str(rng.choice(WORDS))
            options.append(" ".join(text))
        patient = f"p{row // 8}"
        dimension = "Diagnosis" if row % 2 else "Localization"
        questions.append(Question(f"q{row}", "Which fits?", tuple(options), gold, dimension, patient, patient))
    return questions


def probe(name: str, scores: np.ndarray, trained: bool = True) -> ProbeScores:
    return ProbeScores(name, "words", trained, scores, votes=trained)


def test_rejection_makes_gold_even_whatever_the_reader_sees() -> None:
    """A reader whose probabilities are right: among what stays, every rank of option is gold equally often."""
    rng = np.random.default_rng(1)
    n = 6000
    votes = rng.dirichlet([0.6] * 4, n)
    gold = np.array([rng.choice(4, p=row) for row in votes])
    questions = [Question(f"{row}", "q", ("a", "b", "c", "d"), int(gold[row])) for row in range(n)]
    reading = stack_probes(questions, [probe("votes", votes)], seed=0)
    assert reading.p_value < 1e-6
    assert reading.information == pytest.approx(float(np.log(4 * votes[np.arange(n), gold]).mean()), abs=0.03)
    stays = rng.random(n) < reading.acceptance()
    rank = (votes > votes[np.arange(n), gold][:, None]).sum(axis=1)
    shares = np.bincount(rank[stays], minlength=4) / stays.sum()
    assert np.abs(shares - 0.25).max() < 4.5 * np.sqrt(0.1875 / stays.sum())
    assert stays.mean() == pytest.approx(float((4 * votes.min(axis=1)).mean()), rel=0.25)  # what it has to cost


def test_a_reader_that_knows_nothing_costs_nothing() -> None:
    rng = np.random.default_rng(2)
    votes = rng.dirichlet([2.0] * 4, 800)
    questions = [Question(f"{row}", "q", ("a", "b", "c", "d"), int(rng.integers(4))) for row in range(800)]
    reading = stack_probes(questions, [probe("votes", votes)], seed=0)
    assert reading.information < 0.005
    assert reading.acceptance().mean() > 0.85


def test_different_numbers_of_options() -> None:
    questions = [Question(f"{row}", "q", ("a", "b", "c", "d")[: 2 + row % 3], 0) for row in range(60)]
    counts = OptionLayout.of_questions(questions).counts
    scores = np.where(np.arange(4) < counts[:, None], 1.0 / counts[:, None], -np.inf)
    reading = stack_probes(questions, [probe("even", scores)], seed=0)
    assert np.allclose(reading.probability.sum(axis=1), 1)
    assert np.allclose(reading.acceptance(), 1)


def test_pruning_ends_at_chance_both_ways() -> None:
    questions = leaky(600, 0.7)
    readers = Readers(questions, 1, families=LIGHT)
    rows = np.arange(600)
    before = figures(both_ways(readers.whole(900, rows, LIGHT), questions))
    assert before["strongest"]["accuracy"] > 0.6
    pruned = prune(readers, rows)
    assert pruned.at_chance and pruned.rounds[-1].calm
    assert 60 < len(pruned.rows) < 500
    after = fresh_audit(readers, pruned.rows)
    assert not figures(after)["off_chance"]
    assert max(found.accuracy for found in after) < 0.4
    assert {"words, reversed", "words, refitted", "words, refitted, reversed"} <= {found.name for found in after}


def test_pruning_repeats_and_follows_the_seed() -> None:
    questions = leaky(200, 0.6, seed=3)
    kept = [prune(Readers(questions, seed, families=LIGHT), np.arange(200)).rows.tolist() for seed in (1, 1, 2)]
    assert kept[0] == kept[1] != kept[2]


def test_weights_take_the_leak_out_and_keep_more_than_the_sample() -> None:
    questions = leaky(600, 0.7)
    readers = Readers(questions, 1, families=LIGHT)
    rows = np.arange(600)
    weights, reader = keep_weights(readers, rows)
    assert ((weights > 0) & (weights <= 1)).all() and "medoid" in reader
    summary = weights_summary(questions, weights, readers.whole(900, rows, LIGHT))
    assert summary["strongest"]["accuracy"] < 0.4 and summary["probes"]["medoid"] < 0.32
    assert len(prune(readers, rows).rows) < summary["effective_size"] < 600
    assert set(summary["effective_size_by_dimension"]) == {"Diagnosis", "Localization"}


def test_without_a_leak_nothing_is_taken_out() -> None:
    kept = []
    for seed in range(4):
        questions = leaky(240, 0.0, seed=seed)
        kept.append(len(prune(Readers(questions, seed, families=LIGHT), np.arange(240)).rows))
    assert np.median(kept) == 240  # a false alarm in one of four would still leave the median


def test_families_left_out_are_tried_on_what_stays() -> None:
    questions = leaky(300, 0.7, seed=5)
    families = ("similarity", "words")
    done: list[int] = []
    found = held_out_figures(Readers(questions, 1, families=families), np.arange(300), lambda: done.append(1))
    assert list(found) == list(families) and len(done) == 2
    for family, figure in found.items():
        assert 0 < figure["kept"] <= 300
        assert figure["strongest"]["name"].split(",")[0] in (
            {"medoid", "anti-medoid"} if family == "similarity" else {"words"}
        )


def test_too_few_questions_or_patients() -> None:
    assert too_few(leaky(19, 0.5))
    assert too_few([Question(f"{row}", "q", ("a", "b"), 0, None, "s", "s") for row in range(50)])
    assert not too_few(leaky(60, 0.5))
    pruned = prune(Readers(leaky(15, 0.5), 1), np.arange(15))
    assert not pruned.at_chance and pruned.rounds == ()


def as_rows(questions: list[Question]) -> str:
    rows = [
        {
            "question": question.question,
            "options": dict(zip("ABCD", question.options, strict=True)),
            "answer": question.letter,
            "rationale": "as released",
            "image_path": {"low_mag": "a.jpg", "mid_mag": "b.jpg", "high_mag": None},
            "extra_info": {"wsi_name": question.slide, "path_id": question.id, "question_type": "type_A"},
        }
        for question in questions
    ]
    return json.dumps(rows)


@pytest.mark.slow
def test_command_writes_rows_as_they_were_and_reports_the_price(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(as_rows(leaky(300, 0.6)))
    arguments = [
        str(tmp_path / "in.json"),
        "--method",
        "screened",
        "--no-hold-out",
        "--weights",
        str(tmp_path / "w.json"),
        "--json",
        str(tmp_path / "r.json"),
    ]
    result = CliRunner().invoke(control, [*arguments, "--out", str(tmp_path / "out.json")])
    assert result.exit_code == 0, (result.output, result.exception)
    rows = json.loads((tmp_path / "out.json").read_text())
    source = json.loads((tmp_path / "in.json").read_text())
    assert 20 <= len(rows) < 300 and all(row in source for row in rows)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["reached"] and report["kept"] == len(rows)
    weights = json.loads((tmp_path / "w.json").read_text())
    assert list(weights) == ["method", "seed", "reader", "weights"] and weights["seed"] == 42
    assert len(weights["weights"]) == 300 and all(0 < value <= 1 for value in weights["weights"].values())
    assert report["weights"]["all"]["effective_size"] >= len(rows)
    (part,) = report["splits"]
    assert part["by_dimension"] == {"Correspondence": {"questions": 300, "kept": len(rows)}}
    assert part["audit"]["before"]["strongest"]["accuracy"] > 0.5
    assert part["audit"]["after"]["off_chance"] == []
    assert part["rounds"][-1]["calm"]
    assert set(FAMILIES) >= {found["family"] for found in part["audit"]["after"]["probes"]}


def test_command_says_when_chance_is_not_reached(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(as_rows(leaky(16, 1.0)))
    arguments = [str(tmp_path / "in.json"), "--method", "screened", "--out", str(tmp_path / "out.json")]
    result = CliRunner().invoke(control, [*arguments, "--json", str(tmp_path / "r.json")])
    assert isinstance(result.exception, InputError)
    assert "not reached: 16 left" in str(result.exception)
    assert not (tmp_path / "out.json").exists()
    assert json.loads((tmp_path / "r.json").read_text())["reached"] is False
