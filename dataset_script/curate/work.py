"""The work folder of a curation: what each step leaves for the next, in files of one shard each.

A shard is the paths whose key hashes to its number, so a changed input keeps the answers that were paid for. Every
file appears complete or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from dataset_script.curate.captions import CaptionedPath, read_paths
from dataset_script.curate.settings import CurationSettings
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import atomic_path, sha256_file, write_json

MADE_BY: Final = {
    "paths": "decompose",
    "features": "decompose",
    "drafts": "generate",
    "items": "generate",
    "screened": "screen",
}
"""File of a work folder -> the step that writes it."""


@dataclass(frozen=True)
class WorkFolder:
    """A work folder.

    Attributes:
        root: the folder.
        shards: number of shards, fixed when the folder is made.
    """

    root: Path
    shards: int

    def answers(self, role: str, shard: int) -> Path:
        """Returns the file that keeps the answers of a role for a shard."""
        return self.root / "answers" / role / f"{shard:05d}.jsonl"

    def part(self, step: str, shard: int) -> Path:
        """Returns the file of a step for a shard."""
        return self.root / step / f"{shard:05d}.jsonl"

    def rows(self, step: str) -> Iterator[dict[str, Any]]:
        """Yields what a step wrote, shard by shard.

        Raises:
            InputError: if the step has not been run.
        """
        self.report(step)
        for shard in range(self.shards):
            yield from read_lines(self.part(step, shard))

    def report_file(self, step: str) -> Path:
        """Returns the file of a step's report."""
        return self.root / f"{step}.json"

    def report(self, step: str) -> dict[str, Any]:
        """Returns the report of a step.

        Raises:
            InputError: if the step has not been run.
        """
        file = self.report_file(step)
        if not file.is_file():
            hint, found = f"run --step {MADE_BY[step]} first", f"no {file.name} in {self.root}"
            raise InputError(Problem(f"work folder {self.root}", "the output of the step before", found, hint))
        found_report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found_report

    def paths(self, shard: int) -> list[CaptionedPath]:
        """Returns the paths of a shard; splits are not drawn yet."""
        return [_path_of(row) for row in read_lines(self.part("paths", shard))]

    def all_paths(self) -> list[CaptionedPath]:
        """Returns the paths of every shard."""
        return [path for shard in range(self.shards) for path in self.paths(shard)]

    def shard_of(self, path: CaptionedPath) -> int:
        """Returns the shard of a path, by the hash of its key."""
        return int.from_bytes(hashlib.sha256(path.key.encode()).digest()[:8], "big") % self.shards


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a JSON Lines file."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]], hint: str = "name another file") -> None:
    """Writes rows as JSON Lines; the file appears complete."""
    with atomic_path(file, hint) as partial, partial.open("w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")


def add_reports(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Adds reports up: numbers and counts by name are added, lists joined.

    >>> add_reports([{"n": 1, "lost": [1], "by": {"a": 1}}, {"n": 2, "lost": [2], "by": {"b": 1}}])
    {'n': 3, 'lost': [1, 2], 'by': {'a': 1, 'b': 1}}
    """
    total: dict[str, Any] = {}
    for report in reports:
        for name, value in report.items():
            if isinstance(value, Mapping):
                total[name] = add_reports([total.get(name, {}), value])
            elif isinstance(value, list):
                total[name] = [*total.get(name, []), *value]
            else:
                total[name] = total.get(name, 0) + value
    return total


def open_work(root: Path, captions: Path, settings: CurationSettings) -> WorkFolder:
    """Distributes the input over the shards of a work folder; a folder with an older input takes the new one.

    Raises:
        InputError: with every problem of the input.
    """
    digest, marker = sha256_file(captions), root / "paths.json"
    before = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else {}
    if before.get("sha256") == digest:
        return WorkFolder(root, int(before["shards"]))
    paths = read_paths(captions)
    work = WorkFolder(root, int(before.get("shards") or -(-len(paths) // settings.paths_per_shard)))
    by_shard: list[list[dict[str, Any]]] = [[] for _ in range(work.shards)]
    for path in paths:
        by_shard[work.shard_of(path)].append({name: value for name, value in asdict(path).items() if name != "split"})
    hint, about = "name another with --work", {"shards": work.shards, "paths": len(paths)}
    write_json(marker, {**about, "sha256": None}, hint)  # after a kill from here on, the input is distributed anew
    for shard, rows in enumerate(by_shard):
        write_lines(work.part("paths", shard), rows, hint)
    write_json(marker, {**about, "sha256": digest}, hint)
    return work


def _path_of(row: Mapping[str, Any]) -> CaptionedPath:
    texts, images = (tuple((name, value) for name, value in row[field]) for field in ("texts", "images"))
    return CaptionedPath(row["slide"], row["patient"], row["path_id"], texts, images)
