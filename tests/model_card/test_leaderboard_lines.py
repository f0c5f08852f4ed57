"""Lines of the leaderboard: one hostile file never hides the others, and no run without images is ranked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model_card.leaderboard.app import NO_BLIND, NO_GAIN, UPLOADED, read_board


def results(model: str = "good", **changed: Any) -> dict[str, Any]:
    """Returns a results file of a model whose images raise the accuracy from 30 to 60 per cent."""
    blind = {"accuracy": 0.3, "interval": [0.25, 0.35], "gain_interval": [0.2, 0.4], "unparsed": {"rate": 0.0}}
    about = {"model": model, "prompt_id": "p", "data_hash": "ab" * 32, "predictions_hash": "1", "split": "test"}
    control = {"model": model, "prompt_id": "p", "ablation": "blind", "predictions_hash": "2"}
    content = {
        "accuracy": 0.6,
        "interval": [0.55, 0.65],
        "by_dimension": {"Diagnosis": {"accuracy": 0.6}},
        "n": 100,
        "blind": blind | changed.pop("blind", {}),
        "visual_gain": 0.3,
        "leakage_adjusted_accuracy": 0.43,
        "provenance": about | {"blind": control | changed.pop("control", {})} | changed.pop("about", {}),
    }
    return content | changed


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(results(accuracy=10**400)),
        json.dumps(results(n=10**400)),
        '{"accuracy": ' + "9" * 5000 + "}",
        json.dumps(results(accuracy=float("nan"))),
        json.dumps(results(accuracy=float("inf"))),
        json.dumps(results(interval=[0.1])),
        json.dumps(results(interval={"a": 1})),
        json.dumps(results(by_dimension=[1])),
        json.dumps(results(by_dimension={"Diagnosis": None})),
        json.dumps(results(provenance=None)),
        json.dumps(results(provenance=[])),
        json.dumps(results(blind={"accuracy": "x"})),
        json.dumps(results(unparsed=7)),
        "[" * 200_000,
        '{"a":' * 200_000,
        "",
        "null",
        b"\xff\xfe\x00\x01",
    ],
    ids=range(18),
)
def test_one_hostile_file_is_left_out_by_name_and_the_others_stay(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "bad.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    (tmp_path / "good.json").write_text(json.dumps(results()))
    (tmp_path / "empty.json").symlink_to("/dev/null")
    board = read_board(tmp_path)
    assert [line.model for line in board.lines if line.source == "good.json"] == ["good (p)"]
    assert not [line for line in board.lines if line.source == "bad.json"]
    assert [one.split(":")[0] for one in board.left_out] == ["bad.json", "empty.json"]
    for one in board.left_out:
        one.encode()


def test_texts_of_a_file_can_be_written_as_utf8(tmp_path: Path) -> None:
    odd = results("lone \ud800 \u202e name", by_dimension={"Diagnosis": {"accuracy": 0.1}})
    (tmp_path / "odd.json").write_text(json.dumps(odd))
    (line,) = (line for line in read_board(tmp_path).lines if line.source == "odd.json")
    assert line.model == "lone \\u{D800} \\u{202E} name (p)"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"about": {"ablation": "blind"}}, "run of an ablation"),
        ({"control": {"ablation": None}}, "a run of the ablation blind"),
        ({"control": {"ablation": "text-baseline"}}, "a run of the ablation blind"),
        ({"control": {"predictions_hash": "1"}}, "a separate run as the blind control"),
        ({"control": {"model": "another"}}, "a blind control with the same model"),
        ({"control": {"data_hash": "cd" * 32}}, "a blind control of the same questions"),
        ({"blind": {"unparsed": {"rate": 0.9}}}, "at most 2% unparsed"),
        ({"about": {"blind": None}}, "has no provenance"),
        ({"about": {"model": None}, "control": {"model": None}}, "a blind control with the same model"),
        ({"by_dimension": {"zoom-in": {"accuracy": 0.6}}}, "labelled default"),
    ],
)
def test_a_run_without_a_valid_control_or_of_another_config_is_not_shown(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(results(**change)))
    board = read_board(tmp_path)
    assert not [line for line in board.lines if line.source == "a.json"]
    assert len(board.left_out) == 1 and reason in board.left_out[0]


def test_only_a_shown_gain_is_ranked(tmp_path: Path) -> None:
    (tmp_path / "seen.json").write_text(json.dumps(results("seen")))
    (tmp_path / "text.json").write_text(json.dumps(results("text", blind={"gain_interval": [-0.05, 0.05]})))
    bare = results("bare", about={"blind": None}) | {"blind": None}
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    upload = tmp_path / "other"
    upload.mkdir()
    (upload / "mine.txt").write_text(json.dumps(results("mine")))
    found = {line.model: line for line in read_board(tmp_path, [upload / "mine.txt"]).lines}
    assert found["seen (p)"].ranked and found["seen (p)"].marks == ()
    assert not found["text (p)"].ranked and found["text (p)"].marks == (NO_GAIN,)
    assert not found["bare (p)"].ranked and found["bare (p)"].marks == (NO_BLIND,)
    assert found["mine (p)"].marks == (UPLOADED,)
