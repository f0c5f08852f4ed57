"""The predictions file: each answer is appended and on disk at once, so that a killed run continues as the same run.

One JSON object a line: ``id`` and ``response``; ``rotation`` in a circular run; ``responses`` where several were
drawn; ``finish`` and token counts as the backend gives them; ``run``, the digest of what was asked. The first line
also has ``provenance``, from which that digest is made, and ``versions``. Questions without an answer are in
``<file>.failures.jsonl`` with the reason (the first line of a run there has the provenance too). They are in the
predictions file only once their failures are accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import atomic_write, sha256_json
from scale_vqa_eval.predict.requests import Request
from scale_vqa_eval.store import Journal, encode_record

RequestKey = tuple[str, int | None]
_HEAD: Final = frozenset({"id", "rotation", "run", "provenance", "versions"})
_OTHER_RUN: Final = "it holds another run: name another --out, or give the settings of that run"


class PredictionsFile:
    """The predictions file of one run and the file of its failures; use it with ``with``.

    Args:
        path: the predictions file.
        provenance: everything that an answer depends on; a file with another provenance is refused.
        versions: of the packages used; kept, and not compared.
        requests: everything that the run asks.

    Attributes:
        answered: keys that have a line.
        failures: key -> reason, of what was asked and not answered.
        notes: what the user should know about the file.
    """

    def __init__(
        self, path: Path, provenance: Mapping[str, Any], versions: Mapping[str, str], requests: Iterable[Request]
    ) -> None:
        self.path = path
        self.provenance, self.versions = dict(provenance), dict(versions)
        self.run = sha256_json(provenance)[:16]
        self.keys: list[RequestKey] = [request.key for request in requests]
        self.answered: set[RequestKey] = set()
        self.failures: dict[RequestKey, str] = {}
        self.notes: list[str] = []
        self._failures_have_head = False
        self._answers, self._failed = Journal(path), Journal(failures_path(path))
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for journal in (self._answers, self._failed):
                stack.enter_context(journal)
                stack.callback(_remove_if_empty, journal)
            self._check()
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def keep(self, key: RequestKey, fields: Mapping[str, Any]) -> None:
        """Writes one answer and returns once it is on disk; a second answer to the same question is refused."""
        if key in self.answered:
            raise ValueError(f"{key} has an answer already")
        self._answers.append(self._line(key, fields, first=not self._answers.records))
        self.answered.add(key)
        self.failures.pop(key, None)

    def fail(self, key: RequestKey, reason: str) -> None:
        """Records that a question has no answer, and why."""
        record: dict[str, Any] = {"id": key[0], "rotation": key[1], "reason": reason, "run": self.run}
        if not self._failures_have_head:
            record |= {"provenance": self.provenance, "versions": self.versions}
            self._failures_have_head = True
        self._failed.append(record)
        self.failures[key] = reason

    def accept_failures(self) -> None:
        """Writes a null response, which is scored as wrong, with the reason for each question that failed."""
        for key, reason in list(self.failures.items()):
            self.keep(key, {"response": None, "error": reason})

    def sort_and_rewrite(self) -> None:
        """Puts a complete file into the order of the questions in one rename: the same run gives the same bytes."""
        rows = {_key(record): record for record in self._answers.records}
        lines = []
        for index, key in enumerate(self.keys):
            fields = {name: value for name, value in rows[key].items() if name not in _HEAD}
            lines.append(encode_record(self._line(key, fields, first=index == 0)))
        content = b"".join(lines)
        if content != self.path.read_bytes():
            hint = "free disk space for a second copy of the file, then run the same command again: no answer is lost"
            atomic_write(self.path, content, hint)

    def _line(self, key: RequestKey, fields: Mapping[str, Any], first: bool) -> dict[str, Any]:
        line: dict[str, Any] = {"id": key[0], **fields, "run": self.run}
        if key[1] is not None:
            line["rotation"] = key[1]
        return line | {"provenance": self.provenance, "versions": self.versions} if first else line

    def _check(self) -> None:
        """Compares what the files hold with the run that is to continue."""
        known = set(self.keys)
        if self._answers.records:
            self._check_head(self._answers.records[0])
        for number, record in enumerate(self._answers.records, 1):
            key, location = _key(record), f"{self.path}, line {number}"
            if record.get("run") != self.run:
                raise InputError(Problem(location, f"run {self.run}", preview(record.get("run")), _OTHER_RUN))
            if key in self.answered:
                found = f"a second one of {preview(key[0])}"
                raise InputError(Problem(location, "one line per question", found, "remove it"))
            if key not in known:
                raise InputError(Problem(location, "an id of the data", preview(key[0]), "remove the line"))
            self.answered.add(key)
        for record in self._failed.records:
            if record.get("run") == self.run:
                self._failures_have_head = True
                if _key(record) in known - self.answered:
                    self.failures[_key(record)] = str(record.get("reason"))
        if self._answers.repaired_bytes:
            torn = f"a torn last line of {self._answers.repaired_bytes} bytes is removed"
            self.notes.append(f"{self.path}: {torn}; its question is asked again")
        if self.answered:
            self.notes.append(f"{self.path}: continuing after {len(self.answered)} of {len(self.keys)} answers")

    def _check_head(self, head: Mapping[str, Any]) -> None:
        found = head.get("provenance")
        location = f"{self.path}, line 1"
        if not isinstance(found, Mapping):
            raise InputError(Problem(location, "the provenance of a run", "none", _OTHER_RUN))
        names = sorted({*found, *self.provenance})
        problems = [
            Problem(f"{location}, {name}", preview(self.provenance.get(name)), preview(found.get(name)), _OTHER_RUN)
            for name in names
            if found.get(name) != self.provenance.get(name)
        ]
        if problems:
            raise InputError(problems)
        before = head.get("versions")
        if isinstance(before, Mapping) and dict(before) != self.versions:
            names = sorted({*before, *self.versions})
            changed = [f"{name} {before.get(name)} -> {self.versions.get(name)}" for name in names]
            self.notes.append(f"versions changed since the run began: {', '.join(changed)}")
            self.versions = dict(before)


def failures_path(path: Path) -> Path:
    """Returns the path of the file of questions without an answer."""
    return path.with_name(f"{path.name}.failures.jsonl")


def _key(record: Mapping[str, Any]) -> RequestKey:
    rotation = record.get("rotation")
    return str(record.get("id")), rotation if isinstance(rotation, int) else None


def _remove_if_empty(journal: Journal) -> None:
    """Removes the file that opening a journal created, where nothing was written to it."""
    if not journal.records and not journal.repaired_bytes:
        journal.path.unlink(missing_ok=True)
