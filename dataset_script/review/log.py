"""The log of decisions: one JSON object per line, appended under a file lock and synced to disk.

Lines are never changed. Each line has the hash of the previous line, so that a manual change is detected. A line that
is incomplete because a process was killed stays in the file, and the next line records its number.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from dataset_script.review.decisions import ARMS, STAGES, VERDICTS, Decision
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.schema import LETTERS
from scale_vqa_eval.store import decode_record, encode_record, write_durably

KIND: Final = "review-log"
TORN: Final = "torn"
VERSION: Final = 1
LOCK_SECONDS: Final = 30.0
_TEXTS: Final = ("split", "id", "reviewer", "verdict", "reason", "at")

Check = Callable[[list[Decision]], Decision]
"""Receives all decisions so far and returns the decision to append, or raises if it is not allowed."""


class ReviewLog:
    """An append-only log for several processes and threads.

    Args:
        path: the file; the first decision creates it.
        subject: ``config`` and ``data_hash`` of the data, and a ``name`` for messages. A log of other data is refused.

    Attributes:
        decisions: all decisions so far, in order.
        torn: numbers of incomplete lines, left by killed processes; their decisions were never confirmed.
    """

    def __init__(self, path: str | Path, subject: Mapping[str, str]) -> None:
        self.path = Path(path)
        self.decisions: list[Decision] = []
        self.torn: list[int] = []
        self._subject = dict(subject)
        self._lock = FileLock(f"{self.path}.lock")
        self._here = threading.RLock()
        self._read_to = self._lines = 0
        self._last = ""
        self._headed = self._open_end = False
        self._broken: tuple[int, bytes] | None = None

    def check_writable(self) -> None:
        """Preflight check that decisions can be written; does not create the log.

        Raises:
            InputError: if the log is not a regular file, or it or its folder cannot be written.
        """
        with self._here:
            if self.path.exists() and not self.path.is_file():
                raise self._problem("", "a log that is a regular file", "something else", "name another --log")
            self._acquire()
            try:
                if self.path.exists():
                    self._write(b"")
            finally:
                self._lock.release()

    def append(self, check: Check) -> Decision:
        """Appends the decision that ``check`` returns; ``check`` sees all decisions, also those of other processes.

        Raises:
            InputError: as raised by ``check``, or if the log is damaged or of other data; nothing is written.
        """
        with self._here:
            self._acquire()
            try:
                self.refresh()
                if self._open_end:
                    self._write(b"\n")
                    self.refresh()
                self._write(self._lines_of(check(self.decisions)))
                self.refresh()
                return self.decisions[-1]
            finally:
                self._lock.release()

    def refresh(self) -> list[Decision]:
        """Reads the lines appended since the last call and returns all decisions.

        Raises:
            InputError: if the log is of other data, or a line was changed or is malformed.
        """
        with self._here:
            *lines, rest = self._unread().split(b"\n")
            for line in lines:
                self._take(line + b"\n")
            self._open_end = bool(rest)
            return self.decisions

    def _acquire(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=LOCK_SECONDS)
        except (Timeout, OSError) as error:
            found = "a lock that another process holds" if isinstance(error, Timeout) else str(error.strerror)
            hint = "wait until the other process ends, or name another --log"
            raise self._problem("", "a log that can be written", found, hint) from error

    def _unread(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._read_to:
                    raise self._problem("", "a log that only grows", "a shorter one than before")
                file.seek(self._read_to)
                return file.read()
        except FileNotFoundError:
            if self._read_to:
                raise self._problem("", "the log that was there", "nothing") from None
            return b""
        except OSError as error:
            raise self._problem("", "a log that can be read", str(error.strerror), "name another --log") from error

    def _take(self, line: bytes) -> None:
        """Reads one line; a malformed line is accepted as torn only at the end or if the next line records it."""
        number = self._lines + 1
        record = decode_record(line)
        if record is None:
            self._broken = (number, line)
            self.torn.append(number)
        else:
            if self._broken is not None and record.get("kind") != TORN:
                torn, content = self._broken
                raise self._problem(f", line {torn}", "one JSON object", preview(content.decode("utf-8", "replace")))
            self._broken = None
            self._take_record(record, number)
        self._last = _chained(line)
        self._read_to += len(line)
        self._lines = number

    def _take_record(self, record: dict[str, Any], number: int) -> None:
        location = f", line {number}"
        if record.pop("prev", None) != self._last:
            found = "a changed or missing line"
            raise self._problem(location, "the line that was written after the previous one", found)
        if record.get("kind") == TORN:
            return
        if not self._headed:
            self._check_subject(record)
            self._headed = True
        else:
            self.decisions.append(self._decision(record, location))

    def _lines_of(self, decision: Decision) -> bytes:
        """Returns the lines to append for a decision, including a record of a torn line and the head of a new log."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        records: list[dict[str, Any]] = []
        if self._broken is not None:
            records.append({"kind": TORN, "line": self._broken[0], "bytes": len(self._broken[1])})
        if not self._headed:
            records.append({"kind": KIND, "version": VERSION, **self._subject})
        lines, last = [], self._last
        for record in [*records, decision.as_record()]:
            lines.append(encode_record({**record, "at": at, "prev": last}, sort_keys=False))
            last = _chained(lines[-1])
        return b"".join(lines)

    def _write(self, content: bytes) -> None:
        """Appends in one write and syncs to disk."""
        try:
            with self.path.open("ab") as file:
                write_durably(file, content)
        except OSError as error:
            raise self._problem("", "a log that can be written", str(error.strerror), "name another --log") from error

    def _check_subject(self, record: Mapping[str, Any]) -> None:
        if record.get("kind") != KIND or record.get("version") != VERSION:
            raise self._problem(", line 1", f"the head of a review log, version {VERSION}", preview(dict(record)))
        for name in ("config", "data_hash"):
            if record.get(name) != self._subject[name]:
                expected = f"decisions on {self._subject['name']} ({name} {self._subject[name][:16]})"
                found = f"decisions on {preview(record.get('name'))} ({name} {str(record.get(name))[:16]})"
                hint = "name the log of this data with --log, or review the data of this log"
                raise self._problem(", line 1", expected, found, hint)

    def _decision(self, record: Mapping[str, Any], location: str) -> Decision:
        edit, seconds = record.get("edit", {}), record.get("seconds")
        valid = all(isinstance(record.get(name), str) for name in _TEXTS) and isinstance(edit, dict)
        valid = valid and (seconds is None or isinstance(seconds, int | float))
        allowed = LETTERS if record.get("kind") in ARMS else VERDICTS
        if not valid or record.get("kind") not in STAGES or record["verdict"] not in allowed:
            raise self._problem(location, "a decision", preview(dict(record)))
        texts = {name: record[name] for name in ("reviewer", "verdict", "reason", "at")}
        return Decision((record["split"], record["id"]), record["kind"], edit=edit, seconds=seconds, **texts)

    def _problem(self, location: str, expected: str, found: str, hint: str = "restore the log") -> InputError:
        return InputError(Problem(f"{self.path}{location}", expected, found, hint))


def _chained(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:16]
