"""The predictions file: appended and on disk answer by answer, so that a killed run goes on, and only the same run.

One JSON object a line: ``id`` and ``response``; ``rotation`` in a circular run; ``responses`` where several were
drawn; ``finish`` and token counts as the backend gives them; ``run``, the digest of what was asked. The first line
also has ``provenance``, what that digest is made of, and ``versions``. Questions that got no answer are in
``<file>.failures.jsonl`` with the reason (its first line of a run has the provenance too), and in the predictions file
only once they are given up.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict.items import Ask
from scale_vqa_eval.store import Journal

Key = tuple[str, int | None]


def run_digest(provenance: Mapping[str, Any]) -> str:
    """Returns the first 16 hex digits of the SHA-256 over what makes two runs the same run."""
    return hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()[:16]


class RunFile:
    """The predictions file of one run with its failures beside it; open it with ``with``.

    Args:
        path: the predictions file.
        provenance: everything that an answer depends on; another one refuses the file.
        versions: of the packages at work; kept, and not compared.
        asks: everything that the run asks.

    Attributes:
        answered: keys that have a line.
        failures: key -> reason of what was asked and not answered.
        repaired: bytes of a torn last line that were cut off.
        notes: what a reader should know about the file.
    """

    def __init__(
        self, path: Path, provenance: Mapping[str, Any], versions: Mapping[str, str], asks: Iterable[Ask]
    ) -> None:
        self.path = path
        self.provenance, self.versions = dict(provenance), dict(versions)
        self.run = run_digest(provenance)
        self.keys: list[Key] = [ask.key for ask in asks]
        self.answered: set[Key] = set()
        self.failures: dict[Key, str] = {}
        self.repaired = 0
        self.notes: list[str] = []
        self._failures_told = False
        self._answers, self._failed = Journal(path), Journal(failures_path(path))

    def __enter__(self) -> Self:
        self._answers.__enter__()
        try:
            self._failed.__enter__()
            try:
                self._check()
            except BaseException:
                self._leave(self._failed)
                raise
        except BaseException:
            self._answers.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for journal in (self._failed, self._answers):
            self._leave(journal)

    def _leave(self, journal: Journal) -> None:
        if not journal.records and not journal.repaired_bytes:  # opening made it: no empty file stays
            journal.path.unlink(missing_ok=True)
        journal.__exit__(None, None, None)

    def keep(self, key: Key, fields: Mapping[str, Any]) -> None:
        """Writes one answer and returns once it is on disk; a second one of the same question is refused."""
        if key in self.answered:
            raise ValueError(f"{key} has an answer already")
        self._answers.append(self._line(key, fields, first=not self._answers.records))
        self.answered.add(key)
        self.failures.pop(key, None)

    def fail(self, key: Key, reason: str) -> None:
        """Writes down that a question got no answer, and why."""
        record: dict[str, Any] = {"id": key[0], "rotation": key[1], "reason": reason, "run": self.run}
        if not self._failures_told:
            record |= {"provenance": self.provenance, "versions": self.versions}
            self._failures_told = True
        self._failed.append(record)
        self.failures[key] = reason

    def give_up(self) -> None:
        """Writes a null response, which is scored as wrong, with its reason for each question that failed."""
        for key, reason in list(self.failures.items()):
            self.keep(key, {"response": None, "error": reason})

    def settle(self) -> None:
        """Puts a finished file into the order of the questions, at once: the same run gives the same bytes."""
        rows = {_key(record): record for record in self._answers.records}
        ordered = [rows[key] for key in self.keys]
        fields = [{name: value for name, value in row.items() if name not in _HEAD} for row in ordered]
        lines = [
            self._line(key, row, place == 0) for place, (key, row) in enumerate(zip(self.keys, fields, strict=True))
        ]
        text = "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines)
        content = text.encode("utf-8", "surrogatepass")
        if content == self.path.read_bytes():
            return
        partial = self.path.with_name(f".{self.path.name}.partial")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        except OSError as error:  # the answers are safe where they are
            partial.unlink(missing_ok=True)
            hint = "make room for a second copy of the file, then run the same command again: nothing is asked twice"
            raise InputError(Problem(str(partial), "room on the disk", error.strerror or str(error), hint)) from error

    def _line(self, key: Key, fields: Mapping[str, Any], first: bool) -> dict[str, Any]:
        line: dict[str, Any] = {"id": key[0], **fields, "run": self.run}
        if key[1] is not None:
            line["rotation"] = key[1]
        return line | {"provenance": self.provenance, "versions": self.versions} if first else line

    def _check(self) -> None:
        """Compares what the files hold with the run that is to go on."""
        self.repaired = self._answers.repaired_bytes
        known = set(self.keys)
        if self._answers.records:
            self._check_head(self._answers.records[0])
        for number, record in enumerate(self._answers.records, 1):
            key, location = _key(record), f"{self.path}, line {number}"
            if record.get("run") != self.run:
                raise InputError(Problem(location, f"run {self.run}", preview(record.get("run")), _OTHER_FILE))
            if key in self.answered:
                raise InputError(
                    Problem(location, "one line a question", f"a second one of {preview(key[0])}", "remove it")
                )
            if key not in known:
                raise InputError(Problem(location, "an id of the data", preview(key[0]), "remove the line"))
            self.answered.add(key)
        self._failures_told = any(record.get("run") == self.run for record in self._failed.records)
        for record in self._failed.records:
            if record.get("run") == self.run and _key(record) in known - self.answered:
                self.failures[_key(record)] = str(record.get("reason"))

    def _check_head(self, head: Mapping[str, Any]) -> None:
        found = head.get("provenance")
        location = f"{self.path}, line 1"
        if not isinstance(found, Mapping):
            raise InputError(Problem(location, "the provenance of a run", "none", _OTHER_FILE))
        names = sorted({*found, *self.provenance})
        problems = [
            Problem(f"{location}, {name}", preview(self.provenance.get(name)), preview(found.get(name)), _OTHER_FILE)
            for name in names
            if found.get(name) != self.provenance.get(name)
        ]
        if problems:
            raise InputError(problems)
        before = head.get("versions")
        if isinstance(before, Mapping) and dict(before) != self.versions:
            changed = [f"{name} {before.get(name)} -> {self.versions.get(name)}" for name in sorted(self.versions)]
            self.notes.append(f"versions changed since the run began: {', '.join(changed)}")
            self.versions = dict(before)


_HEAD = frozenset({"id", "rotation", "run", "provenance", "versions"})
_OTHER_FILE = "it holds another run: name another --out, or give the settings of that run"


def failures_path(path: Path) -> Path:
    """Returns where the questions without an answer are written down."""
    return path.with_name(f"{path.name}.failures.jsonl")


def _key(record: Mapping[str, Any]) -> Key:
    rotation = record.get("rotation")
    return str(record.get("id")), rotation if isinstance(rotation, int) else None
