"""What the test double of the Hub keeps: repositories with commits, branches, tags, pull requests and large files."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LARGE = (".parquet", ".safetensors", ".bin", ".png", ".jpg")


@dataclass(frozen=True)
class Blob:
    """One file of a commit: its bytes, or the SHA-256 under which the large-file store has them."""

    content: bytes | None
    sha256: str
    size: int
    oid: str


def text_blob(content: bytes) -> Blob:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return Blob(content, hashlib.sha256(content).hexdigest(), len(content), oid)


def large_blob(sha256: str, size: int) -> Blob:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return Blob(None, sha256, size, text_blob(pointer).oid)


@dataclass
class Repository:
    """One repository; ``refs`` holds branches and ``refs/pr/N``, ``commits`` every tree that ever was."""

    kind: str
    name: str
    private: bool = False
    sdk: str | None = None
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    pulls: list[dict[str, Any]] = field(default_factory=list)
    counter: Any = field(default_factory=itertools.count)

    def resolve(self, revision: str) -> str | None:
        """Commit of a branch, tag, pull request or commit id; None if there is none."""
        if revision in self.commits:
            return revision
        return self.refs.get(revision) or self.tags.get(revision)

    def files(self, revision: str = "main") -> dict[str, Blob]:
        sha = self.resolve(revision)
        assert sha is not None
        return self.commits[sha]

    def commit(self, ref: str, files: dict[str, Blob], title: str) -> str:
        """Makes a commit with this tree on a ref; every commit has an id of its own."""
        listing = json.dumps([next(self.counter), title, sorted((path, blob.oid) for path, blob in files.items())])
        sha = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[ref] = sha
        self.log.append((ref, title))
        return sha

    def change(self, ref: str = "main", title: str = "by hand", **contents: Any) -> str:
        """What another person does in the browser: sets files (``files={path: text}``); None removes one."""
        files = dict(self.files(ref))
        for path, text in contents["files"].items():
            if text is None:
                files.pop(path)
            else:
                files[path] = text_blob(text if isinstance(text, bytes) else text.encode())
        return self.commit(ref, files, title)

    def discussions(self) -> dict[str, Any]:
        """All pull requests, as the Hub lists them."""
        found = [self._shown(pull) for pull in self.pulls]
        return {"count": len(found), "start": 0, "discussions": found}

    def discussion(self, number: int) -> dict[str, Any]:
        changes = {"changes": {"base": "refs/heads/main"}, "filesWithConflicts": [], "events": []}
        return {**self._shown(self.pulls[number - 1]), **changes}

    def open_draft(self, title: str) -> int:
        """Opens a pull request without a commit; returns its number."""
        number = len(self.pulls) + 1
        self.pulls.append({"num": number, "title": title, "status": "draft"})
        self.refs[f"refs/pr/{number}"] = self.refs["main"]
        return number

    def set_status(self, number: int, status: str) -> dict[str, Any]:
        self.pulls[number - 1]["status"] = status
        event = {"id": "1", "type": "status-change", "createdAt": "2026-01-01T00:00:00.000Z"}
        return {"newStatus": {**event, "data": {"status": status}}}

    def _shown(self, pull: dict[str, Any]) -> dict[str, Any]:
        who = {"createdAt": "2026-01-01T00:00:00.000Z", "author": {"name": "someone"}, "isPullRequest": True}
        return {**pull, **who, "repo": {"name": self.name, "type": self.kind.rstrip("s")}}


@dataclass
class Hub:
    """All repositories, and the store of large files below ``root``."""

    root: Path
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)

    def create(self, kind: str, name: str, private: bool = False, sdk: str | None = None) -> Repository:
        """Makes a repository with the initial commit that the Hub makes."""
        repository = Repository(kind, name, private, sdk)
        first = {".gitattributes": text_blob(b"*.parquet filter=lfs diff=lfs merge=lfs -text\n")}
        if kind == "spaces":
            first["README.md"] = text_blob(
                f"---\ntitle: {name}\nemoji: x\nsdk: {sdk}\n---\n\nSee the docs.\n".encode()
            )
        repository.commit("main", first, "initial commit")
        self.repositories[kind, name] = repository
        return repository

    def large(self, sha256: str) -> Path:
        return self.root / sha256

    def bytes_of(self, blob: Blob) -> bytes:
        return blob.content if blob.content is not None else self.large(blob.sha256).read_bytes()


def tree_of(files: dict[str, Blob]) -> list[dict[str, Any]]:
    """The tree of a commit as the Hub lists it, folders included."""
    folders = sorted({str(parent) for path in files for parent in Path(path).parents if str(parent) != "."})
    entries: list[dict[str, Any]] = [
        {"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in folders
    ]
    for path, blob in sorted(files.items()):
        entry: dict[str, Any] = {"type": "file", "path": path, "oid": blob.oid, "size": blob.size}
        if blob.content is None:
            entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
        entries.append(entry)
    return entries


def without_large(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of a tree as a server lists it that knows neither git ids nor large files."""
    return {name: value[::-1] if name == "oid" else value for name, value in entry.items() if name != "lfs"}


def preupload_of(path: str, blob: Blob | None) -> dict[str, Any]:
    """How a file is to be uploaded, and the id of the one that is there."""
    answer: dict[str, Any] = {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular"}
    oid = None if blob is None else blob.sha256 if blob.content is None else blob.oid
    return {**answer, "shouldIgnore": False, "oid": oid}
