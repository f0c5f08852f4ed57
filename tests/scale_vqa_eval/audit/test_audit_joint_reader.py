"""The joint reader finds what rows of one slide say together, and is at chance where that is excluded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audit_questions import WORDS, block_exchange_questions, clean_questions, exchange_questions
from click.testing import CliRunner
from scipy import stats

from scale_vqa_eval.audit.battery import run_battery
from scale_vqa_eval.audit.clusters import assignment_groups, is_block_exchange, joint_clusters
from scale_vqa_eval.audit.joint_reader import coherence, joint_features, joint_probes, links_of
from scale_vqa_eval.audit.probe import OptionLayout, credit, evaluate_probe
from scale_vqa_eval.questions import Question, read_questions


def themed_exchange(groups: int, slides: int = 9, seed: int = 0) -> list[Question]:
    """Exchange sets of slides drawn at random, in which every option holds a word of the slide that it is true of."""
    rng = np.random.default_rng(seed)
    rows = []
    for group in range(groups):
        own = rng.choice(slides, 4, replace=False)
        options = tuple(f"{WORDS[slide]} {' '.join(rng.choice(WORDS[50:], 4))}" for slide in own)
        for letter, slide in enumerate(own):
            name = f"slide-{slide}"
            rows.append(Question(f"{group}-{letter}", "Which?", options, letter, "D", name, name, f"path-{group}"))
    return [rows[at] for at in rng.permutation(len(rows))]


def accuracies(questions: list[Question]) -> dict[str, float]:
    return {probe.name: float(credit(probe, questions).mean()) for probe in joint_probes(questions)}


def shuffled_inside_groups(questions: list[Question], seed: int) -> list[Question]:
    rng = np.random.default_rng(seed)
    out = list(questions)
    for rows in assignment_groups(questions):
        for row, answer in zip(rows, rng.permutation([questions[row].answer for row in rows]), strict=True):
            out[row] = replace(questions[row], answer=int(answer))
    return out


def test_rows_of_one_slide_give_the_answers_of_exchange_sets_away() -> None:
    questions = themed_exchange(30)
    reached = accuracies(questions)
    assert list(reached) == [
        "joint by slide",
        "joint by slide, one letter each",
        "joint classifier",
        "joint classifier, one letter each",
    ]
    assert min(reached.values()) > 0.8
    for result in run_battery(questions, partitions=1, families=["similarity", "words"]):
        assert credit(result, questions).mean() == pytest.approx(0.25)


def test_with_gold_answers_shuffled_inside_the_groups_it_is_at_chance() -> None:
    questions, draws = themed_exchange(30), 12
    right = dict[str, float]()
    for seed in range(draws):
        drawn = shuffled_inside_groups(questions, seed)
        for probe in joint_probes(drawn, seed, 1, joint_features(questions)):
            right[probe.name] = right.get(probe.name, 0.0) + float(credit(probe, drawn).sum())
    low, high = stats.binom.ppf([0.0005, 0.9995], draws * len(questions), 0.25)
    for name, total in right.items():
        assert low <= total <= high, name


def test_block_exchange_ties_every_pick_of_a_group() -> None:
    questions = block_exchange_questions(3)
    assert is_block_exchange(questions) and int(joint_clusters(questions).ids.max()) == 2
    by_letter = sorted(questions, key=lambda question: (question.id.rpartition("-")[0], question.answer))
    for rows in (questions, by_letter):  # the order of the rows must not give the letters away
        features = joint_features(rows)
        assert features is not None
        reached = [credit(probe, rows).mean() for probe in joint_probes(rows, features=features)]
        assert np.max(np.abs(np.array(reached) - 0.25)) < 0.2
        assert reached[0] == pytest.approx(0.25)


def test_what_is_not_block_exchange_is_recognised() -> None:
    questions = block_exchange_questions(2)
    assert not is_block_exchange(exchange_questions(12))
    assert not is_block_exchange(questions[1:])
    assert not is_block_exchange([*questions, *clean_questions(1)])
    moved = [replace(q, path_id=f"{q.path_id} of {q.id}") if q.id.endswith("0-0") else q for q in questions]
    assert not is_block_exchange(moved)


def test_coherence_agrees_with_loops_over_rows_in_plain_python() -> None:
    questions = themed_exchange(4, slides=5)
    layout = OptionLayout.of_questions(questions)
    vectors = np.random.default_rng(1).random((len(layout.owner), 7))
    from scipy import sparse

    link = links_of(questions)["slide"]
    first, _ = coherence(sparse.csr_array(vectors), layout, link, [])
    expected = np.zeros(len(layout.owner))
    for option, question in enumerate(layout.owner):
        near, far = [], []
        for other in range(len(questions)):
            mean = vectors[layout.owner == other].mean(axis=0) @ vectors[option]
            if link[other] != link[question]:
                far.append(mean)
            elif other != question:
                near.append(mean)
        if link[question] >= 0:
            expected[option] = sum(near) / max(1, len(near)) - sum(far) / max(1, len(far))
    centred = layout.centred(expected[:, None])[:, 0]
    assert first == pytest.approx(centred / centred.std(), abs=1e-9)


def test_links_that_join_the_same_rows_are_read_once_and_no_link_means_no_probe() -> None:
    questions = [replace(q, path_id=q.slide) for q in clean_questions(24)]
    assert list(links_of(questions)) == ["slide"]
    alone = [replace(q, slide=None, patient=None) for q in clean_questions(8)]
    assert links_of(alone) == {} and joint_probes(alone) == []


@pytest.mark.slow
def test_the_exchange_file_of_the_released_split_is_read_and_the_split_itself_is_not(
    tmp_path: Path, shared: Path
) -> None:
    from scale_vqa_eval.controls.command import control

    source, out = shared / "scale_vqa" / "val.json", tmp_path / "exchange.json"
    arguments = [str(source), "--method", "exchange", "--out", str(out)]
    CliRunner().invoke(control, arguments, standalone_mode=False)
    assert len(json.loads(out.read_text())) > 150
    questions = read_questions(out)
    by_name = {probe.name: evaluate_probe(probe, questions) for probe in joint_probes(questions)}
    best = by_name["joint by slide, one letter each"]
    assert best.accuracy >= 0.5 and best.p_value < 0.001
