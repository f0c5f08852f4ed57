"""The checks of folders that are to be published; each returns the lines that say what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Features
from tqdm import tqdm

from model_card.cards.dataset import check_croissant
from model_card.cards.text import CROISSANT
from model_card.hub.local import CardKind, check_card
from scale_vqa_eval.release_folder.card import head
from scale_vqa_eval.release_folder.read import release_configs

SCAN_LIMIT = 300_000_000
"""Uncompressed bytes of a row group that the Hub's viewer reads at most (its documented scan limit)."""
LOAD = """
import json, sys, datasets
found = {}
for config in datasets.get_dataset_config_names(sys.argv[1]):
    for split, rows in datasets.load_dataset(sys.argv[1], config).items():
        found[f"{config}/{split}"] = rows.num_rows
        rows[0], rows[len(rows) - 1]
print(json.dumps(found))
"""
METRIC = """
import json, sys, evaluate
print(json.dumps(evaluate.load(sys.argv[1]).compute(**json.loads(sys.argv[2]))))
"""
EXAMPLE = {
    "predictions": ["<think>x</think> <answer>B</answer>", "<answer>C</answer>", "A", None],
    "references": ["B", "C", "A", "D"],
    "cluster": ["1", "1", "2", "3"],
}


def card_problems(folder: Path, kind: CardKind) -> list[str]:
    """Checks YAML, sections, citation, blanks and paths of a card."""
    return [str(problem) for problem in check_card(folder, kind)]


def croissant_problems(folder: Path) -> list[str]:
    """Checks Croissant metadata, its hashes, and that its records are the rows."""
    problems = [str(problem) for problem in check_croissant(folder / CROISSANT)]
    if problems:
        return problems
    import mlcroissant

    dataset = mlcroissant.Dataset(jsonld=str(folder / CROISSANT))
    for config, splits in release_configs(folder).items():
        for split, files in splits.items():
            wanted = [row for file in files for row in pq.read_table(file, columns=["id"])["id"].to_pylist()]
            found = [record[f"{config}/{split}/id"].decode() for record in dataset.records(f"{config}/{split}")]
            if found != wanted:
                problems.append(
                    f"{folder / CROISSANT}: expected the rows of {config}/{split}, found {len(found)} others"
                )
    return problems


def viewer_problems(folder: Path) -> list[str]:
    """Checks what the Hub's viewer needs: no loading script, features in each file, row groups that it can scan."""
    problems = [f"{path}: expected no code beside the data" for path in sorted(folder.rglob("*.py"))]
    infos = head((folder / "README.md").read_text(encoding="utf-8"))["dataset_info"]
    by_config = {info.get("config_name", "default"): info for info in ([infos] if isinstance(infos, dict) else infos)}
    for config, splits in release_configs(folder).items():
        stated = Features._from_yaml_list(by_config[config]["features"])
        counts = {split["name"]: split["num_examples"] for split in by_config[config]["splits"]}
        for split, files in splits.items():
            metas = [pq.ParquetFile(file) for file in files]
            for file, parquet in zip(files, metas, strict=True):
                if b"huggingface" not in (parquet.schema_arrow.metadata or {}):
                    problems.append(f"{file}: expected the features in its schema, found none")
                elif Features.from_arrow_schema(parquet.schema_arrow) != stated:
                    problems.append(f"{file}: expected the features of dataset_info, found others")
                groups = parquet.metadata
                sizes = [groups.row_group(place).total_byte_size for place in range(groups.num_row_groups)]
                if max(sizes, default=0) > SCAN_LIMIT:
                    problems.append(f"{file}: expected row groups of at most {SCAN_LIMIT} bytes, found {max(sizes)}")
            rows = sum(parquet.metadata.num_rows for parquet in metas)
            if rows != counts.get(split):
                problems.append(f"{config}/{split}: expected {counts.get(split)} rows of dataset_info, found {rows}")
    return problems


def loading_problems(folder: Path, home: Path) -> list[str]:
    """Loads every config and split in a process of its own, offline, with an empty cache, without this package."""
    code = f"import sys; sys.modules['scale_vqa_eval'] = None\n{LOAD}"
    done = isolated([sys.executable, "-c", code, str(folder)], home)
    if done.returncode:
        return [f"{folder}: expected a folder that loads, found {last_line(done.stderr)}"]
    loaded = json.loads(done.stdout.splitlines()[-1])
    there = {f"{config}/{split}" for config, splits in release_configs(folder).items() for split in splits}
    return [f"{folder}: expected the splits {sorted(there)}, loaded {sorted(loaded)}"] * (loaded.keys() != there)


def publish_problems(folder: Path, kind: str) -> list[str]:
    """Runs the scan of ``scale-vqa publish``: secrets, paths of this machine, files that do not belong."""
    from model_card.hub.local import KINDS, PublishRequest, read_local

    local = read_local(
        PublishRequest(KINDS[kind], "release-check/x", folder, "v0"), "", lambda total: tqdm(disable=True)
    )
    return [str(finding.problem()) for finding in local.findings]


def metric_problems(folder: Path, python: Path, home: Path) -> list[str]:
    """Loads and computes the metric with an interpreter that has nothing but its requirements."""
    import evaluate

    script = folder / f"{folder.name}.py"
    done = isolated([str(python), "-c", METRIC, str(script), json.dumps(EXAMPLE)], home)
    if done.returncode:
        return [f"{folder}: expected a metric that needs its requirements alone, found {last_line(done.stderr)}"]
    ours = evaluate.load(str(script)).compute(**EXAMPLE)
    theirs = json.loads(done.stdout.splitlines()[-1])
    return [f"{folder}: expected {ours}, found {theirs}"] * (theirs != json.loads(json.dumps(ours)))


def bare_python(folder: Path, requirements: Path) -> Path:
    """Makes an environment with nothing but ``requirements``, less this package; returns its interpreter.

    The metric's page needs this package, the metric itself does not.

    Raises:
        SystemExit: where they cannot be installed.
    """
    venv.create(folder, with_pip=True, clear=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += metric_requirements(requirements)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"release-check: {requirements} cannot be installed: {last_line(done.stderr)}")
    return python


def metric_requirements(requirements: Path) -> list[str]:
    """Returns the lines of a requirements file that do not name this package."""
    return [line for line in requirements.read_text().split("\n") if line and not line.startswith("scale-vqa")]


def isolated(command: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command offline with an HF_HOME and a working directory of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SCALE_VQA_", "PYTHON"))}
    home.mkdir(parents=True, exist_ok=True)
    environment = kept | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=600)


def last_line(text: str) -> str:
    """Returns the line that says why a process ended."""
    return (text.strip().splitlines() or ["nothing"])[-1]
