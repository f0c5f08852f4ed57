"""What the tests of cards need: a small release with its audit, a tiny model's runs on it, blind and seeing, facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner
from predict_release import rows

from scale_vqa_eval.audit.report import audit_questions
from scale_vqa_eval.predict.command import predict
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.release_folder.write import write_release
from scale_vqa_eval.scoring.command import score

FACTS: dict[str, Any] = {
    "repo": "org/tiny",
    "dataset": "org/scale-vqa",
    "license": "apache-2.0",
    "developers": "A test",
    "contact": "nobody",
    "base_model": "org/base",
    "power_w": 65,
    "power_source": "a guess | of *ours*",
    "pue": 1.0,
    "carbon_g_per_kwh": 400,
    "carbon_source": "an assumption",
}
TRAINING: dict[str, Any] = {
    "method": "grpo",
    "base_model": "org/base",
    "data": "org/scale-vqa",
    "train_split": "train",
    "train_rows": 40,
    "prompt_id": "think-answer",
    "steps": 3,
    "seconds": 7200.0,
    "seed": 42,
    "learning_rate": 1e-6,
    "per_device_batch": 4,
    "gradient_accumulation": 2,
    "world_size": 8,
    "device": "8 x TEST",
    "versions": {"trl": "1.16.0"},
    "config": {"beta": 0.01, "not_shown": "x"},
}


def make_folder(folder: Path) -> Path:
    """Writes a release with the configs ``default`` and ``text``: 30 questions of 3 patients."""
    drop = ("low_mag", "mid_mag", "high_mag")
    source = {"source": "Scale-VQA release (arXiv:2606.17412)"}
    text = [{key: value for key, value in row.items() if key not in drop} for row in rows()]
    tables = {"default": {"test": (row | source for row in rows())}, "text": {"test": text}}
    return write_release(folder, tables, {name: "Made for a test." for name in tables})


def make_audit(folder: Path, out: Path, config: str = "default") -> Path:
    """Writes the audit of a config, without its slow details."""
    out.write_text(json.dumps(audit_questions(read_questions(folder, None, config), detailed=False)))
    return out


def answer_by_letters(run: Path) -> None:
    """Replaces the noise of a random model by letters: a blind run without readable answers is not a valid control."""
    rows = [json.loads(line) for line in run.read_text().splitlines()]
    for index, row in enumerate(row for row in rows if "response" in row):
        row["response"] = f"<think>x</think> <answer>{'ABCD'[(index * 7 + len(run.name)) % 4]}</answer>"
    run.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_results(folder: Path, model: Path, out: Path) -> dict[str, Path]:
    """Asks a tiny model with and without images; returns results: ``control`` with its blind run, ``bare`` without."""
    runs = {}
    for name, more in (("seen", ()), ("unseen", ("--ablate", "blind"))):
        runs[name] = out / f"{name}.jsonl"
        given = ["--data", str(folder), "--split", "test", "--config", "default", "--backend", "transformers"]
        given += ["--model", str(model), "--out", str(runs[name]), "--max-tokens", "8", *more]
        done = CliRunner().invoke(predict, given, standalone_mode=False)
        assert done.return_value == 0, done.output
        answer_by_letters(runs[name])
    found = {}
    for name, more in (("control", ("--blind", str(runs["unseen"]))), ("bare", ())):
        found[name] = out / f"{name}.json"
        given = [str(runs["seen"]), "--data", str(folder), "--split", "test", "--config", "default"]
        done = CliRunner().invoke(score, [*given, "--json", str(found[name]), *more], standalone_mode=False)
        assert done.exception is None, done.output
    return found


def write_facts(
    folder: Path, facts: dict[str, Any] | None = None, training: dict[str, Any] | None = None
) -> list[str]:
    """Writes facts and training metadata; returns the options that name them."""
    (folder / "facts.yaml").write_text(yaml.safe_dump(FACTS if facts is None else facts))
    (folder / "training_metadata.json").write_text(json.dumps(TRAINING if training is None else training))
    return ["--facts", str(folder / "facts.yaml"), "--training", str(folder / "training_metadata.json")]
