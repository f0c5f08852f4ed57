"""The page of the metric's Space, called as its button calls it; ``test_spaces.py`` opens it in a browser."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

pytest.importorskip("gradio")

from scale_vqa_eval.scale_vqa_acc.app import answer
from scale_vqa_eval.scoring.baselines import as_response
from scale_vqa_eval.scoring.results import score_table
from scale_vqa_eval.scoring.score import score_files

HOSTILE = '<img src=x onerror="window.hacked=1">'


@pytest.fixture
def files(tmp_path):
    rows = [
        {
            "id": f"q{n}",
            "question": "?",
            "options": ["a", "b", "c", "d"],
            "answer": "ABCD"[n % 4],
            "patient_id": f"P{n % 5}",
        }
        for n in range(40)
    ]
    (tmp_path / "gold.json").write_text(json.dumps(rows))
    for name, ablation in (("run", None), ("blind", "blind")):
        lines = [{"id": f"q{n}", "response": as_response(n % 4 if n < 30 and name == "run" else 0)} for n in range(40)]
        lines[0]["provenance"] = {"model": HOSTILE, "ablation": ablation}
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {name: str(tmp_path / name) for name in ("run.jsonl", "blind.jsonl", "gold.json")}


def asked(run, gold=None, blind=None, hub=""):
    page, results = answer(run, gold, hub, "", "", blind, "reference")
    return page, results["value"]


def test_the_page_shows_what_the_command_prints(files):
    run, blind, gold = files["run.jsonl"], files["blind.jsonl"], files["gold.json"]
    page, file = asked(run, gold, blind)
    results, _ = score_files(run, gold, None, None, "reference", blind=[blind])
    assert page == f"<pre>{html.escape(score_table(results))}</pre>" and "Visual gain" in page
    written = json.loads(Path(file).read_text())
    assert written["provenance"]["predictions"] == "run.jsonl" and written["provenance"]["data"] == "gold.json"
    assert {key: value for key, value in written.items() if key not in ("provenance", "blind_runs")} == {
        key: value for key, value in results.items() if key not in ("provenance", "blind_runs")
    }
    assert str(Path(run).parent) not in Path(file).read_text(), "the server's paths stay on the server"


def test_texts_of_files_are_escaped(files, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(Path(files["blind.jsonl"]).read_text().replace('"ablation": "blind"', '"ablation": "no-low"'))
    page, _ = asked(files["run.jsonl"], files["gold.json"], str(other))
    assert "withheld" in page and "<img" not in page
    other.write_text(json.dumps({"id": HOSTILE, "response": "x"}))
    page, file = asked(str(other), files["gold.json"])
    assert html.escape(HOSTILE)[:20] in page and "<img" not in page and file is None and "other.jsonl" in page


@pytest.mark.parametrize("hub", ["/etc/passwd", "../../secret/x", "file:///etc/passwd", "a/b/c", "a/..b"])
def test_a_name_that_is_not_a_hub_id_reads_nothing(files, hub):
    page, file = asked(files["run.jsonl"], hub=hub)
    assert "expected a Hub id org/name" in page and file is None


def test_missing_files_are_named(files):
    assert "Predictions: expected a file" in asked(None)[0]
    assert "a file or a dataset on the Hub" in asked(files["run.jsonl"])[0]
