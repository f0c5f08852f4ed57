"""The work folder of a curation: what each step leaves for the next, in files of one shard each.

A shard is the paths whose key hashes to its number: the same paths whatever engine runs it, so that answers paid for
on one machine count on many. Files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dataset_script.curate.asking.settings import Settings
from dataset_script.curate.features.captions import CaptionedPath, iter_paths
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import write_json

MADE_BY: Final = {
    "paths": "decompose",
    "features": "decompose",
    "drafts": "generate",
    "items": "generate",
    "screened": "screen",
}
"""File of a work folder -> the step that makes it."""


@dataclass(frozen=True)
class WorkFolder:
    """A work folder.

    Attributes:
        root: the folder.
        shards: number of shards, fixed when the folder is made: a changed input keeps its answers.
    """

    root: Path
    shards: int

    def answers(self, role: str, shard: int | None = None) -> Path:
        """Returns the journal of a role's answers for a shard, or the folder of its journals."""
        folder = self.root / "answers" / role
        return folder if shard is None else folder / f"{shard:05d}.jsonl"

    def part(self, step: str, shard: int) -> Path:
        """Returns the file of a step for a shard."""
        return self.root / step / f"{shard:05d}.jsonl"

    def summary(self, step: str) -> Path:
        """Returns the account of a step."""
        return self.root / f"{step}.json"

    def rows(self, step: str) -> Iterator[dict[str, Any]]:
        """Yields what a step left, shard by shard.

        Raises:
            InputError: where the step has not been run.
        """
        self.account(step)
        for shard in range(self.shards):
            yield from self.part_rows(step, shard)

    def part_rows(self, step: str, shard: int) -> Iterator[dict[str, Any]]:
        """Yields what a step left of one shard."""
        with self.part(step, shard).open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)

    def account(self, step: str) -> dict[str, Any]:
        """Returns the account of a step that was run.

        Raises:
            InputError: where it was not.
        """
        file = self.summary(step)
        if not file.is_file():
            found = f"no {file.name} in {self.root}"
            expected = "what the step before leaves"
            raise InputError(Problem(f"work folder {self.root}", expected, found, f"run --step {MADE_BY[step]} first"))
        found_account: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found_account

    def paths(self, shard: int) -> list[CaptionedPath]:
        """Returns the paths of a shard."""
        return [_path_of(row) for row in self.part_rows("paths", shard)]


def shard_of(key: str, shards: int) -> int:
    """Returns the shard of a path.

    >>> [shard_of(f"slide::path-{n}", 4) for n in range(5)]
    [1, 2, 3, 1, 0]
    """
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % shards


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON Lines beside the place and moves them there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
    os.replace(partial, file)


def open_work(root: Path, captions: Path, settings: Settings) -> WorkFolder:
    """Reads the input into the shards of a work folder, path by path; a folder that has an older input takes the new.

    Raises:
        InputError: with every fault of the input.
    """
    with captions.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    marker = root / "paths.json"
    before = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else {}
    if before.get("sha256") == digest:
        return WorkFolder(root, int(before["shards"]))
    problems: list[Problem] = []
    count = sum(1 for _ in iter_paths(captions, problems))
    if not count and not problems:
        problems.append(Problem(str(captions), "at least one slide with a path", "none", "add captions"))
    if problems:
        raise InputError(problems)
    shards = int(before.get("shards") or -(-count // settings.paths_per_shard))
    work = WorkFolder(root, shards)
    partial = root / ".paths.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        found = error.strerror or type(error).__name__
        problem = Problem(f"work folder {root}", "a folder that can be written", found, "name another with --work")
        raise InputError(problem) from error
    files = [partial / f"{shard:05d}.jsonl" for shard in range(shards)]
    _spread(captions, files)
    shutil.rmtree(root / "paths", ignore_errors=True)
    partial.rename(root / "paths")
    write_json(marker, {"shards": shards, "paths": count, "sha256": digest})
    return work


def _spread(captions: Path, files: list[Path]) -> None:
    """Writes every path to the file of its shard, some thousand lines at a time."""
    waiting: dict[int, list[str]] = {}

    def flush() -> None:
        for shard, lines in waiting.items():
            with files[shard].open("a", encoding="utf-8", newline="\n") as out:
                out.writelines(lines)
        waiting.clear()

    for file in files:
        file.touch()
    for held, path in enumerate(iter_paths(captions, []), 1):
        row = {
            "slide": path.slide,
            "patient": path.patient,
            "path_id": path.path_id,
            "texts": list(map(list, path.texts)),
            "images": list(map(list, path.images)),
        }
        line = json.dumps(row, ensure_ascii=False) + "\n"
        waiting.setdefault(shard_of(path.key, len(files)), []).append(line)
        if held % 5000 == 0:
            flush()
    flush()


def _path_of(row: Mapping[str, Any]) -> CaptionedPath:
    texts, images = (tuple((name, value) for name, value in row[field]) for field in ("texts", "images"))
    return CaptionedPath(row["slide"], row["patient"], row["path_id"], texts, images)
