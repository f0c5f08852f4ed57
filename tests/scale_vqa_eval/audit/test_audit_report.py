"""The audit's report and command, and what it tells of single items."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_questions import block_exchange_questions, clean_questions, exchange_questions, leaking_questions
from click.testing import CliRunner

from scale_vqa_eval.audit import fitted_probes
from scale_vqa_eval.audit import report as report_module
from scale_vqa_eval.audit.battery import read_features, run_battery
from scale_vqa_eval.audit.command import audit
from scale_vqa_eval.audit.language_model import embedding_probes
from scale_vqa_eval.audit.report import audit_questions, audit_table
from scale_vqa_eval.audit.verdict import find_evidence, learning_curve
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import LETTERS


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted_probes, "TREES", 10)


def written(path: Path, questions: list[Question]) -> Path:
    rows = [
        {"id": q.id, "question": q.question, "options": list(q.options), "answer": q.letter, "dimension": q.dimension}
        | {"wsi_name": q.slide}
        for q in questions
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(audit, [str(argument) for argument in arguments], standalone_mode=False)


def test_report_keeps_the_contract(tmp_path: Path) -> None:
    data, out = written(tmp_path / "q.json", leaking_questions(60)), tmp_path / "audit.json"
    done = run(data, "--json", out, "--gate")
    assert done.return_value == 1, done.output
    found = json.loads(out.read_text())
    assert {"n", "verdict", "strongest", "probes", "null_check", "overlap", "defects"} <= found.keys()
    assert (found["n"], found["verdict"], found["units"]["kind"]) == (60, "leaks", "patient")
    assert {"name", "accuracy", "ci_low", "ci_high"} == found["strongest"].keys()
    for probe in found["probes"]:
        assert {"name", "trained", "accuracy", "ci_low", "ci_high", "by_dimension"} <= probe.keys()
        assert set(probe["by_dimension"]) == {"dimension-0", "dimension-1", "dimension-2"}
        assert 0 <= probe["ci_low"] <= probe["accuracy"] <= probe["ci_high"] <= 1
    assert found["strongest"]["accuracy"] == max(probe["accuracy"] for probe in found["probes"])
    assert len(found["items"]) == 60 and len(found["leakiest"]) == 10 and len(found["learning_curve"]) >= 3
    assert "medoid" in done.output and "leaks" in done.output


@pytest.mark.slow
def test_same_command_same_bytes_and_no_gate_no_failure(tmp_path: Path) -> None:
    data = written(tmp_path / "q.json", leaking_questions(40))
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    assert run(data, "--json", first).return_value == 0
    run(data, "--json", second)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.json", "2.json", "q.json"]


def test_exchange_data_without_links_is_clean_by_construction_and_passes_the_gate(tmp_path: Path) -> None:
    rows = [replace(q, slide=f"slide {row}", patient=None) for row, q in enumerate(exchange_questions(12))]
    out = tmp_path / "audit.json"
    assert run(written(tmp_path / "q.json", rows), "--json", out, "--gate").return_value == 0
    found = json.loads(out.read_text())
    assert (found["verdict"], found["unresolved"], found["units"]["exchange_sets"]) == ("clean", [], 12)
    assert all(probe["accuracy"] == pytest.approx(0.25) for probe in found["probes"])
    assert found["whole"]["minimum_detectable_leak"] == 0.0


@pytest.mark.slow
def test_exchange_data_is_not_clean_for_a_reader_of_the_whole_file_without_power(tmp_path: Path) -> None:
    data, out = written(tmp_path / "q.json", exchange_questions(12)), tmp_path / "audit.json"
    done = run(data, "--json", out, "--gate", "--quiet")
    found = json.loads(out.read_text())
    assert (done.return_value, found["verdict"], found["unresolved"][0]) == (1, "inconclusive", "all")
    leaks = {p["name"]: p["minimum_detectable_leak"] for p in found["probes"]}
    assert leaks["ensemble"] == 0.0 and leaks["joint by slide"] > 0.05
    passed = run(data, "--gate", "--allow-inconclusive", "--quiet")
    assert passed.return_value == 0 and "inconclusive" in passed.stderr


def test_block_exchange_is_clean_for_a_reader_of_the_whole_file_too() -> None:
    found = audit_questions(block_exchange_questions(3), detailed=False)
    assert (found["verdict"], found["unresolved"]) == ("clean", [])
    assert {p["minimum_detectable_leak"] for p in found["probes"]} == {0.0}
    assert "joint by slide, one letter each" in {p["name"] for p in found["probes"]}
    assert any("Block exchange" in note for note in found["notes"])


def test_notes_tell_what_is_missing() -> None:
    bare = [replace(q, dimension=None, slide=None, patient=None) for q in clean_questions(30)]
    found = audit_questions(bare, detailed=False)
    told = " ".join(found["notes"])
    assert "No question names its patient or slide" in told and "No question names a dimension" in told
    assert "30 questions are few" in told and "Inconclusive: all" in told
    assert found["dimensions"] == {} and "items" not in found
    table = audit_table(found)
    assert all(note in table for note in found["notes"])


def test_wrong_use_is_told(tmp_path: Path) -> None:
    data = written(tmp_path / "q.json", clean_questions(5))
    assert "--chat-model" in str(run(data, "--chat", "http://127.0.0.1:1").exception)
    assert "--chat-price" in str(run(data, "--chat-budget", "1").exception)
    assert isinstance(run(tmp_path / "absent.json").exception, InputError)


def test_published_figures_stand_in_the_report(tmp_path: Path) -> None:
    path = tmp_path / "published.json"
    path.write_text('{"GPT": {"all": 58.5, "dimension-1": 60}}')
    data, out = written(tmp_path / "q.json", clean_questions(20)), tmp_path / "a.json"
    run(data, "--json", out, "--published", path)
    assert json.loads(out.read_text())["published"]["models"] == {"GPT": {"all": 0.585, "dimension-1": 0.6}}


def test_evidence_names_the_word_that_gives_an_item_away() -> None:
    questions = []
    for row, question in enumerate(clean_questions(60)):
        options = tuple(
            f"{text} notable" if at == question.answer else text for at, text in enumerate(question.options)
        )
        questions.append(replace(question, options=options, id=str(row)))
    texts = read_features(questions)
    found = find_evidence(questions, texts, [3, 11, 40])
    assert sorted(found) == [3, 11, 40]
    for row, told in found.items():
        best = told[0]
        assert (best.kind, best.text, best.letters) == ("wording", "notable", LETTERS[questions[row].answer])
        assert all(one.weight > 0 for one in told)


def test_evidence_names_the_place_among_the_options() -> None:
    questions = leaking_questions(60)
    found = find_evidence(questions, read_features(questions), range(60))
    told = [one.text for row in found.values() for one in row if one.kind == "geometry"]
    assert sum("highest of the options in mean similarity to the others" in text for text in told) > 30


def test_learning_curve_rises_on_a_leak_that_is_learned() -> None:
    questions = [
        replace(q, options=tuple(f"{t} notable" if at == q.answer else t for at, t in enumerate(q.options)))
        for q in clean_questions(120, patients=40)
    ]
    points = learning_curve(questions, run_battery(questions)[-1])
    sizes = [point["questions"] for point in points]
    assert sizes == sorted(sizes) and sizes[-1] == pytest.approx(96)
    assert points[-1]["accuracy"] > 0.9


def test_learning_curve_of_next_to_nothing_is_empty() -> None:
    assert learning_curve(clean_questions(3), run_battery(clean_questions(3))[-1]) == []


def test_the_leakiest_of_a_large_file_are_explained_within_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("battery", "report"):
        monkeypatch.setattr(f"scale_vqa_eval.audit.{module}.TRAIN_CAP", 100)
    monkeypatch.setattr("scale_vqa_eval.audit.verdict.CURVE_CAP", 50)
    monkeypatch.setattr("scale_vqa_eval.audit.battery.NULL_CAP", 50)
    questions = leaking_questions(130, patients=30)
    found = audit_questions(questions)
    by_id = {question.id: question for question in questions}
    assert found["leakiest"][0]["blind_score"] == max(item["blind_score"] for item in found["items"])
    assert any(one["evidence"] for one in found["leakiest"])
    for one in found["leakiest"]:
        assert one["answer"] == by_id[one["id"]].letter and list(one["options"].values()) == list(
            by_id[one["id"]].options
        )


def test_a_fitted_embedding_probe_joins_the_ensemble() -> None:
    def embed(texts: Sequence[str]) -> np.ndarray:
        """Letter counts stand in for a sentence encoder."""
        counts = np.array([[text.count(letter) for letter in "abcdefghij"] for text in texts], dtype=np.float32)
        return counts / np.maximum(1, np.linalg.norm(counts, axis=1, keepdims=True))

    questions = leaking_questions(50)
    found = audit_questions(questions, extra=embedding_probes(questions, embed=embed, progress=False), detailed=False)
    by_name = {probe["name"]: probe for probe in found["probes"]}
    assert by_name["ensemble with embedding"]["trained"] and by_name["ensemble with embedding"]["accuracy"] > 0.6
    assert {"embedding medoid", "embedding classifier"} < by_name.keys()


def test_rounding_keeps_small_p_values() -> None:
    assert report_module._rounded({"p": np.float64(1.23456789e-12), "a": (0.123456789, 3, None)}) == {
        "p": 1.23457e-12,
        "a": [0.123457, 3, None],
    }


def test_audit_starts_without_torch(fresh_python: Callable[..., Any]) -> None:
    heavy = "print([name for name in ('torch', 'sklearn', 'datasets') if name in sys.modules])"
    assert fresh_python(f"import sys, scale_vqa_eval.audit.command; {heavy}").stdout.strip() == "[]"
