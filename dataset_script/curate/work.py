"""The settings of a curation (``curate.yaml``) and its work folder.

The work folder has the output of each step, one file per shard. A shard has the paths whose key hashes to its number,
so that paid answers stay valid if the input changes. Files are written atomically.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from dataset_script.curate.captions import CaptionedPath, read_paths
from scale_vqa_eval.errors import InputError, Problem, preview, validated
from scale_vqa_eval.files import atomic_path, parse_yaml, sha256_file, write_json
from scale_vqa_eval.llm import ChatSettings, endpoint_name

_MAX_TOKENS: Final = {"decompose": 4096, "generate": 2048, "analyse": 1024}
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RoleSettings(_Section):
    """The endpoint of a role; docs/curation.md explains the fields.

    Attributes:
        name: ``decompose``, ``generate``, ``analyse``, or the name of an adversary.
        structured: form of the ``response_format`` that is sent.
        repeats: how often an adversary answers each question, with rotated options.
    """

    name: _Text
    base_url: str
    model: _Text
    api_key_env: _Text = "OPENAI_API_KEY"
    price: list[float] | None = Field(None, min_length=2, max_length=2)
    concurrency: int = 8
    per_minute: float | None = None
    budget: float | None = None
    max_calls: int | None = None
    timeout: float = 120.0
    retries: int = Field(5, ge=0)
    sampling: dict[str, Any]
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    repeats: int = Field(4, ge=1)

    @property
    def chat(self) -> ChatSettings:
        """The settings of the chat client."""
        shared = {field.name for field in fields(ChatSettings)} - {"prices"}
        prices = (self.price[0], self.price[1]) if self.price else None
        return ChatSettings(prices=prices, **self.model_dump(include=shared))

    @model_validator(mode="after")
    def _usable(self) -> Self:
        endpoint_name(self.base_url)
        _ = self.chat  # raises InputError for a budget without prices and the like
        return self


class Roles(_Section):
    """The endpoints: one for each step that writes, and at least one adversary."""

    decompose: RoleSettings
    generate: RoleSettings
    analyse: RoleSettings
    adversary: list[RoleSettings] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        filled = {name: _filled(role, str(name)) for name, role in raw.items()}
        if isinstance(raw.get("adversary"), list):
            filled["adversary"] = [_filled(one, f"adversary-{n}") for n, one in enumerate(raw["adversary"], 1)]
        return filled

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [one.name for one in self.adversary]
        if len(set(names)) < len(names):
            raise InputError(Problem("adversary", "a unique name for each adversary", preview(names), "rename one"))
        return self


def _filled(raw: Any, name: str) -> Any:
    """Returns a role with its default name and sampling."""
    if not isinstance(raw, Mapping):
        return raw
    sampling = raw.get("sampling", {})
    if isinstance(sampling, Mapping):
        sampling = {"temperature": 0.0, "max_tokens": _MAX_TOKENS.get(name, 512), **sampling}
    return {"name": name, **raw, "sampling": sampling}


class CurationSettings(_Section):
    """The content of ``curate.yaml``; docs/curation.md explains each field."""

    roles: Roles
    seed: int = Field(42, ge=0, lt=2**31)
    tries: int = Field(3, ge=1, le=20)
    rounds: int = Field(3, ge=1, le=20)
    alpha: float = Field(0.05, ge=1e-6, le=0.5)
    probes: bool = True
    exchange_sets: bool = True
    near_duplicate: float = Field(0.9, ge=0.5, le=1.0)
    paths_per_shard: int = Field(1000, ge=1, le=10**6)
    source: _Text = "curated"


def read_settings(file: Path) -> CurationSettings:
    """Reads ``curate.yaml``.

    Raises:
        InputError: with all unknown or missing keys and invalid values.
    """
    try:
        raw = parse_yaml(file.read_text(encoding="utf-8-sig"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(str(file), "a YAML file", preview(str(error), 200), "correct it")) from error
    return validated(CurationSettings, raw, str(file))


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
    """A work folder; the number of shards is fixed when it is created."""

    root: Path
    shards: int

    def answers(self, role: str, shard: int) -> Path:
        """Returns the file with the answers of a role for a shard."""
        return self.root / "answers" / role / f"{shard:05d}.jsonl"

    def part(self, step: str, shard: int) -> Path:
        """Returns the output file of a step for a shard."""
        return self.root / step / f"{shard:05d}.jsonl"

    def rows(self, step: str) -> Iterator[dict[str, Any]]:
        """Yields the output rows of a step, shard by shard; raises InputError if the step has not been run."""
        self.report(step)
        for shard in range(self.shards):
            yield from read_lines(self.part(step, shard))

    def report_file(self, step: str) -> Path:
        """Returns the report file of a step."""
        return self.root / f"{step}.json"

    def report(self, step: str) -> dict[str, Any]:
        """Returns the report of a step; raises InputError if the step has not been run."""
        file = self.report_file(step)
        if not file.is_file():
            hint, found = f"run --step {MADE_BY[step]} first", f"no {file.name} in {self.root}"
            raise InputError(Problem(f"work folder {self.root}", "the output of the step before", found, hint))
        found_report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found_report

    def paths(self, shard: int) -> list[CaptionedPath]:
        """Returns the paths of a shard; splits are not drawn yet."""
        found = []
        for row in read_lines(self.part("paths", shard)):
            texts, images = (tuple(map(tuple, row[field])) for field in ("texts", "images"))
            found.append(CaptionedPath(row["slide"], row["patient"], row["path_id"], texts, images))
        return found

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
    """Writes rows as JSON Lines, atomically."""
    with atomic_path(file, hint) as partial, partial.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)


def add_reports(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Adds up reports: numbers are added, also in nested mappings, and lists are joined.

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
    """Returns the work folder with the input distributed over its shards; a changed input replaces the old one.

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
    write_json(marker, {**about, "sha256": None}, hint)  # a run after a kill distributes the input again
    for shard, rows in enumerate(by_shard):
        write_lines(work.part("paths", shard), rows, hint)
    write_json(marker, {**about, "sha256": digest}, hint)
    return work
