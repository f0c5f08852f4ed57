"""Step 1 on one shard: its paths in, their features out."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from dataset_script.curate.asking.role import Role, outcomes, with_format
from dataset_script.curate.asking.settings import RoleSettings
from dataset_script.curate.features.decompose import as_row, decompose_paths, reply_schema
from dataset_script.curate.work import WorkFolder, write_lines
from scale_vqa_eval.llm import Spending


@dataclass(frozen=True)
class DecomposeTask:
    """One shard to be decomposed."""

    work: WorkFolder
    shard: int
    role: RoleSettings
    tries: int
    progress: bool = True


def decompose_shard(task: DecomposeTask) -> dict[str, Any]:
    """Writes ``features/<shard>.jsonl`` and returns its account: outcomes, rejected features, spending."""
    settings = with_format(task.role, "features", reply_schema())
    role = Role(settings, task.work.answers("decompose", task.shard), task.progress, Spending())
    paths = task.work.paths(task.shard)
    results = decompose_paths(paths, role, task.tries)
    rows = [as_row(path, result) for path, result in zip(paths, results, strict=True)]
    write_lines(task.work.part("features", task.shard), rows)
    rejected: Counter[str] = Counter()
    for row in rows:
        rejected.update(row["rejected"])
    return {
        "paths": len(rows),
        "features": sum(len(row["features"]) for row in rows),
        "rejected": dict(sorted(rejected.items())),
        "outcomes": outcomes(results),
        "lost": [[row["path"], *row["failed"][-1]] for row in rows if row["lost"]],
        "spent": asdict(role.spent),
    }
