"""``build zoom``: exchange groups, evidence where the truth is, and a folder that resumes or is refused."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from drawn_slides import tissue_slide
from PIL import Image

from dataset_script.phantom.plan import FEATURES
from dataset_script.zoom import coarse_plans, coarse_rows, synthetic_plans, synthetic_rows, zoom
from scale_vqa_eval.controls.exchange_group import find_exchange_groups
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.wsi import OpenSlideSource
from scale_vqa_eval.zoom.environment import ZoomEnvironment
from scale_vqa_eval.zoom.questions import read_zoom_questions, slide_files


def groups(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found = defaultdict(list)
    for row in rows:
        found[row["group"]].append(row)
    return found


def check_groups(rows: list[dict[str, Any]]) -> None:
    for members in groups(rows).values():
        assert sorted(row["answer"] for row in members) == list("ABCD")
        assert len({(row["question"], tuple(row["options"])) for row in members}) == 1
        assert len({row.get("split") for row in members}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_synthetic_questions_are_true_of_the_scene_and_tell_nothing_by_text(seed: int) -> None:
    plans = synthetic_plans(3, seed)
    rows = list(synthetic_rows(plans))
    assert len(rows) == 12 * 7 and len({row["id"] for row in rows}) == len(rows)
    check_groups(rows)
    pieces = ("upper left", "upper right", "lower left", "lower right")
    by_name = {plan.name: [path.facts for path in plan.paths] for plan in plans}
    for row in rows:
        facts, right = by_name[row["wsi_name"]], row["options"]["ABCD".index(row["answer"])]
        if row["dimension"] == "which-finding":
            piece = next(n for n, name in enumerate(pieces) if f"the {name} piece" in row["question"])
            phrases = {name: FEATURES[name].phrases[facts[piece].value(name)] for name in ("stroma", "cells")}
            assert right == f"{phrases['stroma']} stroma, {phrases['cells']}"
            assert [one["view"] for one in row["zoom"]["evidence"]] == ["mid_mag", "high_mag"]
            continue
        target = facts[pieces.index(right)]
        others = [one for one in facts if one is not target]
        if row["dimension"] == "where-high":
            assert target.mitoses == "many" and {one.mitoses for one in others} == {"zero"}
        elif row["dimension"] == "where-mid":
            assert FEATURES["vessels"].phrases[target.vessels] in row["question"]
            assert {one.vessels for one in others} == set(FEATURES["vessels"].phrases) - {target.vessels}
        else:
            pair = (target.growth, target.nuclei)
            assert [(one.growth, one.nuclei) for one in facts].count(pair) == 1
            assert FEATURES["growth"].phrases[pair[0]] in row["question"]


@pytest.mark.slow
def test_coarse_questions_are_true_of_the_scene_and_tell_nothing_by_text(tmp_path: Path) -> None:
    plans = coarse_plans(1, 5)
    rows = list(coarse_rows(plans))
    check_groups(rows)
    pieces = ("upper left", "upper right", "lower left", "lower right")
    by_name = {plan.name: [path.facts for path in plan.paths] for plan in plans}
    for row in rows:
        facts = by_name[row["wsi_name"]]
        named = [n for n, name in enumerate(pieces) if f"the {name} piece" in row["question"]]
        piece = named[0] if named else [one.infiltrate for one in facts].index("diffuse")
        assert row["dimension"] == ("named-piece" if named else "lone-piece")
        phrases = {name: FEATURES[name].phrases[facts[piece].value(name)] for name in ("stroma", "vessels")}
        right = row["options"]["ABCD".index(row["answer"])]
        assert right == f"{phrases['stroma']} stroma, {phrases['vessels']} vessels"
        (box,) = row["zoom"]["evidence"][0]["boxes"]
        assert (box[0] + box[2] > 4200, box[1] + box[3] > 4200) == (piece % 2 == 1, piece >= 2)
        assert box[2] - box[0] >= 700


@pytest.mark.slow
def test_questions_of_slides_have_their_evidence_where_the_shown_field_lies(tmp_path: Path) -> None:
    for seed in range(3):
        (tmp_path / "in").mkdir(exist_ok=True)
        tissue_slide(tmp_path / "in" / f"s{seed}.tif", 2600, 2400, seed)
    arguments = [str(tmp_path / "in"), "--out", str(tmp_path / "zoom"), "--paths-per-slide", "4"]
    result = CliRunner().invoke(zoom, arguments, standalone_mode=False)
    assert result.exception is None, result.output
    path = tmp_path / "zoom" / "zoom.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    check_groups(rows)
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    assert len(find_exchange_groups(read_questions(path))) > 0
    questions, root = read_zoom_questions(str(tmp_path / "zoom"), None)
    environment = ZoomEnvironment(slide_files(root), {item.question.id: item for item in questions})
    for item in questions:
        assert item.query is not None
        left, top, right, bottom = item.evidence[0].boxes[0]
        with OpenSlideSource(root / item.slide) as source:
            field = source.read_region((left + right) / 2, (top + bottom) / 2, 0.5, round((right - left) / 0.5))
        shown = Image.open(item.query).convert("RGB")
        difference = [abs(a - b) for a, b in zip(field.tobytes(), shown.tobytes(), strict=True)]
        assert sum(difference) / len(difference) < 6
        environment.reset(item.question.id)
        environment.look((left + right) / 2, (top + bottom) / 2, "40x")
        assert environment.record["hit"] is True
    before = path.read_bytes()
    CliRunner().invoke(zoom, arguments, standalone_mode=False)
    assert path.read_bytes() == before
    (tmp_path / "zoom" / "notes.txt").write_text("mine")
    result = CliRunner().invoke(zoom, arguments, standalone_mode=False)
    assert "holds something else" in str(result.exception) and (tmp_path / "zoom" / "notes.txt").exists()


def test_real_slides_do_not_go_to_a_folder_of_synthetic_ones(tmp_path: Path) -> None:
    (tmp_path / "zoom" / "slides").mkdir(parents=True)
    result = CliRunner().invoke(zoom, [str(tmp_path), "--out", str(tmp_path / "zoom")], standalone_mode=False)
    assert "one with synthetic slides" in str(result.exception)


@pytest.mark.parametrize("more", [[], ["--synthetic", "4", "."]], ids=("neither", "both"))
def test_slides_or_synthetic(more: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(zoom, [*more, "--out", str(tmp_path / "zoom")])
    assert result.exit_code == 2 and "and not both" in result.output


def test_the_finest_scale_is_of_synthetic_slides(tmp_path: Path) -> None:
    result = CliRunner().invoke(zoom, [str(tmp_path), "--finest", "40x", "--out", str(tmp_path / "zoom")])
    assert result.exit_code == 2 and "--synthetic" in result.output
