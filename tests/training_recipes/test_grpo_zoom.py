"""The gym: a tiny Qwen3-VL is made, warmed up, trained and asked; its examples and mirrored slides are as said."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from paths import ROOT
from PIL import Image, ImageChops, ImageOps, ImageStat
from zoom_exam import make_exam

from scale_vqa_eval.predict.prompts import load_prompt
from scale_vqa_eval.schema import MAGNIFICATION
from scale_vqa_eval.zoom.environment import Budget, ZoomEnvironment
from scale_vqa_eval.zoom.questions import read_zoom_questions, slide_files
from training_recipes.grpo_zoom import demonstrated, example, with_mirrored
from training_recipes.learn import zoom as gym


def train(data: Path, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    recipe = ROOT / "training_recipes"
    command = [
        sys.executable,
        str(recipe / "grpo_zoom.py"),
        "--config",
        str(recipe / "configs" / "zoom-cpu-tiny.yaml"),
    ]
    named = {"data": data, "train_split": "test", "kinds": "where", "model_name_or_path": folder / "tiny"}
    named |= {
        "output_dir": folder / "out",
        "warm_up": 2,
        "warm_up_seeing": 2,
        "max_steps": 1,
        "per_device_train_batch_size": 8,
    }
    named |= {"prompt": recipe / "configs" / "prompts" / "zoom-short.yaml", "looks": 1, "look_px": 64}
    options = [part for name, value in named.items() for part in (f"--{name}", str(value))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    return subprocess.run(
        [*command, *options, *more], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500
    )


def test_a_step_in_the_environment(tmp_path: Path) -> None:
    data = make_exam(tmp_path / "exam", slides=1)
    done = train(data, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "out" / "final" / "zoom_training.json").read_text())
    assert record["questions"] == 4 and "rewards/ZoomEnvironment/mean" in record["log"][0]
    assert (tmp_path / "out" / "final" / "chat_template.jinja").is_file()
    wrong = train(data, tmp_path, "--kinds", "search")
    assert wrong.returncode == 1 and "kinds of the data (where)" in wrong.stderr


def test_a_mirrored_slide_shows_the_same_evidence_at_its_mirrored_place(tmp_path: Path) -> None:
    questions, root = read_zoom_questions(str(make_exam(tmp_path / "exam", slides=1)), None)
    plain = ZoomEnvironment(slide_files(root), {item.question.id: item for item in questions}, Budget(px=128))
    mirrored, store = with_mirrored(questions, root)
    assert len(mirrored) == 4 * len(questions)
    environment = ZoomEnvironment(store, {item.question.id: item for item in mirrored}, Budget(px=128))
    for item in mirrored:
        name, ways = item.question.id.split("|")

        def shown(where: ZoomEnvironment, question: str, box: tuple[float, ...]) -> Image.Image:
            where.reset(question)
            image = where.look((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, MAGNIFICATION["high_mag"])[0]["image"]
            assert where.record["hit"] is True
            return image.convert("RGB")

        original = next(one for one in questions if one.question.id == name)
        field = shown(plain, name, original.evidence[0].boxes[0])
        field = ImageOps.mirror(field) if "x" in ways else field
        field = ImageOps.flip(field) if "y" in ways else field
        difference = ImageChops.difference(field, shown(environment, item.question.id, item.evidence[0].boxes[0]))
        assert max(ImageStat.Stat(difference).mean) < 3  # both were JPEG


def test_the_examples_look_at_the_evidence_or_at_one_corner(tmp_path: Path) -> None:
    questions, root = read_zoom_questions(str(make_exam(tmp_path / "exam", slides=1)), None)
    environment = ZoomEnvironment(slide_files(root), {item.question.id: item for item in questions}, Budget(px=64))
    prompt, rng = load_prompt("zoom"), random.Random(0)
    corner, last = questions[0], questions[-1]  # of four places
    chosen = [demonstrated(last, questions, 0.35, rng) for _ in range(2000)]
    assert {item.question.id for item in chosen} == {corner.question.id, last.question.id}
    assert abs(sum(item is last for item in chosen) / 2000 - 0.35) < 0.04
    for place in (corner, last):
        messages = example(environment, prompt, last, place, rng)
        look = next(message for message in messages if message["role"] == "assistant")
        assert look["content"] == "lower right"  # where the evidence lies is said either way
        asked = look["tool_calls"][0]["function"]["arguments"]
        left, top, right, bottom = place.evidence[0].boxes[0]
        assert left <= asked["x_um"] <= right and top <= asked["y_um"] <= bottom
        assert environment.record["hit"] is (place is last)


@pytest.mark.slow
def test_a_trial_of_the_whole_gym(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slides that are drawn before are not drawn again: the stages are recorded, as those of an earlier run."""
    out, quick = tmp_path / "gym", ("--max_steps", "2", "--warm_up_seeing", "2", "--warm_up", "2")
    make_exam(out / "data", slides=4)
    make_exam(out / "unseen", slides=2)
    config = tmp_path / "tiny.yaml"
    small = {
        "train_split: train": "train_split: test",
        "named-piece": "where",
        "train_batch_size: 32": "train_batch_size: 8",
    }
    text = gym.CONFIG.read_text()
    for before, after in small.items():
        assert before in text
        text = text.replace(before, after)
    config.write_text(text)
    monkeypatch.setattr(gym, "CONFIG", config)
    monkeypatch.setattr(gym, "KIND", "where")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    first = gym.plan(out, 12, 4, quick)[0][0]
    drawn = {name: {"seconds": 0, "processor": 0, "command": first[name]} for name in ("draw", "draw-unseen")}
    (out / "stages.json").write_text(json.dumps(drawn))
    options = [str(out), "--slides", "12", "--unseen", "4", "--max-steps", "2"]
    done = CliRunner().invoke(gym.main, options, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads((out / "results.json").read_text())
    assert len(found["rewards"]["after GRPO"]) == len(found["rewards"]["twin after GRPO"]) == 2
    assert found["asked"]["twin after GRPO, wrong-slide"]["questions"] == 8
    assert "| after GRPO, blind | - |" in (out / "results.md").read_text()
    assert Image.open(out / "curves.png").size[0] > 1000
    assert json.loads((out / "grpo" / "final" / "zoom_training.json").read_text())["recipe"]["control"] is None
    assert (
        json.loads((out / "twin" / "final" / "zoom_training.json").read_text())["recipe"]["control"] == "wrong-slide"
    )
