"""The three folders that would be published, built from demo data: phantom slides, the metric, a tiny random model.

None of it says anything about pathology or about a real model; it goes through the same commands as the real ones.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
ORG = "release-check"
CONFIG = "phantom"
FACTS = {
    "repo": f"{ORG}/tiny-random",
    "dataset": f"{ORG}/scale-vqa",
    "name": "Tiny random model of the release check",
    "license": "apache-2.0",
    "developers": "make release-check",
    "contact": "none: this folder is not meant to be published",
    "base_model": f"{ORG}/random-weights",
    "power_w": 0,
    "power_source": "nothing was trained",
    "pue": 1.0,
    "carbon_g_per_kwh": 0,
    "carbon_source": "nothing was trained",
    "limits": ["Random weights: every answer is noise."],
}
TRAINING = {
    "method": "no training: random weights",
    "base_model": f"{ORG}/random-weights",
    "data": "none",
    "train_split": "none",
    "train_rows": 0,
    "prompt_id": "think-answer",
    "steps": 0,
    "seconds": 0.0,
    "seed": 0,
    "learning_rate": 0.0,
    "per_device_batch": 0,
    "gradient_accumulation": 0,
    "world_size": 1,
    "device": "CPU",
    "versions": {"note": "nothing was trained"},
}


def run(*command: object) -> None:
    """Runs a command of the package; its data goes to the log's end, its messages to standard error."""
    line = [sys.executable, "-m", "scale_vqa_eval.cli", *map(str, command)]
    print(f"$ scale-vqa {' '.join(map(str, command))}", file=sys.stderr)
    done = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"release-check: the command above failed with {done.returncode}\n{done.stdout}")


def build_dataset(out: Path, slides: int) -> Path:
    """Builds phantom slides, audits them, completes their card and writes Croissant metadata."""
    folder, audit = out / "dataset" / "scale-vqa", out / "audit.json"
    run("build", "phantom", "--slides", slides, "--out", folder)
    run("audit", folder, "--config", CONFIG, "--json", audit)
    named = ("--license", "apache-2.0", "--repo", FACTS["dataset"], "--croissant")
    run("card", "dataset", folder, "--audit", audit, *named)
    return folder


def build_metric(out: Path) -> Path:
    """Copies the metric as it stands and completes its card."""
    folder = out / "metric" / "scale_vqa_acc"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "scale_vqa_eval" / "scale_vqa_acc", folder, ignore=ignored)
    run("card", "metric", "--folder", folder, "--out", folder / "README.md")
    return folder


def build_model(out: Path, dataset: Path) -> Path:
    """Makes a tiny random model, prepares its weights, scores it with and without images, writes its card."""
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    from carded_runs import answer_by_letters
    from tiny_qwen import make_tiny_qwen

    checkpoint, folder = make_tiny_qwen(out / "checkpoint"), out / "model"
    run("weights", checkpoint, "--out", folder, "--max-shard-size", "300KB")
    asked = ("--data", dataset, "--config", CONFIG, "--split", "test", "--max-tokens", 8)
    asked += ("--backend", "transformers", "--model", folder)
    run("predict", *asked, "--out", out / "seen.jsonl")
    run("predict", *asked, "--ablate", "blind", "--out", out / "blind.jsonl")
    for name in ("seen.jsonl", "blind.jsonl"):
        answer_by_letters(out / name)
    scored = ("--data", dataset, "--config", CONFIG, "--split", "test", "--json", out / "results.json")
    run("score", out / "seen.jsonl", "--blind", out / "blind.jsonl", *scored)
    (out / "facts.yaml").write_text(yaml.safe_dump(FACTS), encoding="utf-8")
    (out / "training_metadata.json").write_text(json.dumps(TRAINING), encoding="utf-8")
    files = ("--facts", out / "facts.yaml", "--training", out / "training_metadata.json")
    run("card", "model", *files, "--results", out / "results.json", "--out", folder)
    return folder
