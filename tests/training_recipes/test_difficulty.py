"""Rollouts: which questions can be learnt from, and what a blind reader would answer."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from training_release import make_training_release

from scale_vqa_eval.errors import InputError
from training_recipes.difficulty import main
from training_recipes.rewards import blind_priors, read_rollouts
from training_recipes.rows import load_rows
from training_recipes.selection import learnable, read_rates


def answer(letter):
    return f"<think></think> <answer>{letter}</answer>"


def written(path, rows, ablation=None):
    """Writes a predictions file as ``predict`` does: ids with the letters drawn."""
    lines = [
        {"id": name, "response": answer(letters[0]), "responses": [answer(letter) for letter in letters]}
        for name, letters in rows.items()
    ]
    lines[0]["provenance"] = {"model": "m", "ablation": ablation}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_training_release(tmp_path_factory.mktemp("data") / "scale-vqa")


def drawn(rows):
    """Gives every third row all right, every third all wrong, the rest half and half."""
    found = {}
    for place, (name, gold) in enumerate(zip(rows["id"], rows["answer"], strict=True)):
        right, wrong = "ABCD"[gold], "ABCD"[gold - 1]
        found[name] = [[right] * 4, [wrong] * 4, [right, wrong] * 2][place % 3]
    return found


def test_what_is_neither_always_right_nor_always_wrong_is_kept(release, tmp_path):
    rows = load_rows(str(release), None, "train")
    rollouts = written(tmp_path / "r.jsonl", drawn(rows))
    out = tmp_path / "difficulty.jsonl"
    asked = ["--data", str(release), "--rollouts", str(rollouts), "--out", str(out)]
    assert CliRunner().invoke(main, asked, catch_exceptions=False).exit_code == 0
    kept, left_out = learnable(rows, out)
    assert kept["id"] == rows["id"][2::3] and len(left_out) == 20
    assert {reason for _, reason in left_out} == {
        f"right in {right} of 4 rollouts: nothing to learn from" for right in (0, 4)
    }


def test_rollouts_are_drawn_by_predict_and_gone_on_with(release, tmp_path):
    from training_recipes.tiny_model import make_tiny_model

    model = make_tiny_model(tmp_path / "tiny")
    asked = ["--data", str(release), "--split", "val", "--model", str(model), "--n", "2"]
    asked += ["--out", str(tmp_path / "d.jsonl"), "--", "--max-tokens", "4", "--batch-size", "20", "--limit"]
    with pytest.raises(InputError, match="run predict again"):
        CliRunner().invoke(main, [*asked, "4"], catch_exceptions=False)
    CliRunner().invoke(main, [*asked, "40"], catch_exceptions=False)
    rates = read_rates(tmp_path / "d.jsonl")
    assert len(rates) == 10 and {n for _, n in rates.values()} == {2}


def test_problems_of_a_difficulty_file_are_named(release, tmp_path):
    rows = load_rows(str(release), None, "train")
    path = tmp_path / "d.jsonl"
    with pytest.raises(InputError, match="a difficulty file"):
        read_rates(path)
    path.write_text('{"id": "x", "right": 1, "n": 2}\n{"id": "y"}\n')
    with pytest.raises(InputError, match="line 2"):
        read_rates(path)
    path.write_text('{"id": "x", "right": 1, "n": 2}\n')
    with pytest.raises(InputError, match="none for 30 rows"):
        learnable(rows, path)
    path.write_text("".join(json.dumps({"id": name, "right": 2, "n": 2}) + "\n" for name in rows["id"]))
    with pytest.raises(InputError, match="right in some rollouts"):
        learnable(rows, path)


@given(st.lists(st.sampled_from("ABCD"), min_size=1, max_size=12))
def test_priors_are_smoothed_shares(tmp_path_factory, letters):
    path = written(tmp_path_factory.getbasetemp() / "blind.jsonl", {"x": letters}, "blind")
    prior, missing = blind_priors(path, ["x", "y"])
    assert missing is None and sum(prior) == pytest.approx(1.0) and min(prior) > 0
    assert prior == [(letters.count(letter) + 1) / (len(letters) + 4) for letter in "ABCD"]


def test_only_a_blind_run_is_a_prior(tmp_path):
    path = written(tmp_path / "seen.jsonl", {"x": ["A"]})
    assert read_rollouts(path)[0] == {"x": [answer("A")]}
    with pytest.raises(InputError, match="a blind run"):
        blind_priors(path, ["x"])
    blind = written(tmp_path / "blind.jsonl", {"x": ["A"]}, "blind")
    with pytest.raises(InputError, match="training split"):
        blind_priors(blind, ["y"])


def test_a_rollout_may_hold_any_end_of_a_line(tmp_path):
    text = "<think>one\u2028two\x85three</think> <answer>B</answer>"
    line = {"id": "q", "response": text, "responses": [text, text]}
    path = tmp_path / "r.jsonl"
    path.write_text("\ufeff" + json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_rollouts(path)[0] == {"q": [text, text]}


def test_a_difficulty_file_of_another_encoding_is_named(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes('{"id": "\u00e9", "right": 1, "n": 2}\n'.encode("latin-1"))
    with pytest.raises(InputError, match="a difficulty file"):
        read_rates(path)
    path.write_bytes('\ufeff{"id": "\u00e9", "right": 1, "n": 2}\n\n'.encode())
    assert read_rates(path) == {"\u00e9": (1, 2)}
