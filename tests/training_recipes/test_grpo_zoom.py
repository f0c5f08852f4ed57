"""The gym recipe: a tiny Qwen3-VL is made, warmed up, and trained a step; questions on mirrored slides stay true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from paths import ROOT
from PIL import Image, ImageChops, ImageOps, ImageStat
from zoom_exam import make_exam

from scale_vqa_eval.schema import MAGNIFICATION
from scale_vqa_eval.zoom.environment import Budget, ZoomEnvironment
from scale_vqa_eval.zoom.questions import read_zoom_questions, slide_files
from training_recipes.grpo_zoom import with_mirrored


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
