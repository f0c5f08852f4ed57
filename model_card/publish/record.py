"""What the last dry run saw, kept beside the Hub's cache: so that a remote that changed since then is refused.

A record is also how an interrupted run tells its own commits from those of others.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from scale_vqa_eval.errors import InputError, Problem

from .inventory import LocalFile
from .remote import INITIAL, Remote, Repository


@dataclass(frozen=True)
class Seen:
    """The remote as it was when the plan was made, and what the plan would put there.

    Attributes:
        commit: None where there was no repository.
        files: path -> id of its content, as the Hub lists it.
        planned: path -> ids (SHA-256 and git blob) of what the plan puts there; None for what it deletes.
        suspect: files that came back as others when they were verified, so that they are sent once more.
    """

    commit: str | None
    files: dict[str, str]
    planned: dict[str, list[str] | None]
    suspect: tuple[str, ...] = ()

    @classmethod
    def of(cls, remote: Remote, planned: list[LocalFile], deletes: list[str]) -> Seen:
        ids: dict[str, list[str] | None] = {file.path: [file.sha256, file.blob_id] for file in planned}
        files = {path: file.blob_id for path, file in remote.files.items()}
        return cls(remote.commit, files, {**ids, **dict.fromkeys(deletes)})

    def going_on(self, now: Seen) -> Seen:
        """Returns this with what a new plan puts there too: the folder may have changed since, by its own user."""
        planned = {**self.planned, **now.planned}
        for path, ids in now.planned.items():
            if ids is not None:
                planned[path] = [*ids, *(one for one in self.planned.get(path) or () if one not in ids)]
        return replace(self, planned=planned)

    def foreign(self, now: Remote) -> list[str]:
        """Returns what somebody else changed since: paths, each with what happened to it."""
        changes = []
        for path in sorted(self.files.keys() | now.files.keys()):
            before, after = self.files.get(path), now.files.get(path)
            if (after.blob_id if after else None) == before:
                continue
            if self.commit is None and path in INITIAL and now.files.keys() <= INITIAL:
                continue
            if after is None and path in self.planned and self.planned[path] is None:
                continue
            if after is not None and {after.sha256, after.blob_id} & set(self.planned.get(path) or ()):
                continue
            if self.commit is None and path == ".gitattributes":
                continue
            changes.append(f"{path} ({'added' if before is None else 'removed' if after is None else 'changed'})")
        return changes


def record_path(repository: Repository, pr: bool) -> Path:
    """Returns where the record of a repository lies."""
    from huggingface_hub import constants

    location = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in constants.ENDPOINT)
    name = f"{repository.kind.repo_type}s--{repository.name.replace('/', '--')}{'--pr' if pr else ''}.json"
    return Path(constants.HF_HOME) / "scale-vqa" / "publish" / location / name


def read_record(path: Path) -> Seen | None:
    """Returns the record; None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Seen(found["commit"], dict(found["files"]), dict(found["planned"]), tuple(found["suspect"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(path: Path, seen: Seen) -> None:
    """Writes the record, whole or not at all.

    Raises:
        InputError: where it cannot be written; without it no later run could tell its own commits from others'.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    content = {"commit": seen.commit, "files": seen.files, "planned": seen.planned, "suspect": seen.suspect}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content, sort_keys=True), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        found = error.strerror or type(error).__name__
        hint = "let HF_HOME be a folder that can be written"
        raise InputError(Problem(str(path), "a file for what was seen on the Hub", found, hint)) from error
