"""The log of decisions: one JSON object per line, appended under a file lock, on disk before it is confirmed.

Lines are never changed. Each line has the hash of the line before, so that a manual change is detected. A line that is
incomplete because a process was killed stays in the file and is named by the next line.
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
"""Takes every decision made so far and returns the one to append; raises where it may not be made."""


class ReviewLog:
    """An append-only log that several processes and threads write to.

    Args:
        path: the file; made with the first decision where it is missing.
        subject: what is reviewed: ``config``, ``data_hash`` and a ``name`` for people. A log of other data is refused.

    Attributes:
        decisions: every decision made so far, in order.
        torn: numbers of the lines that a kill has torn; what stood in them was never confirmed to anybody.
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
        """Makes sure, before anybody works for it, that decisions can be kept; the log itself is not made.

        Raises:
            InputError: where the log is no plain file, or it or its folder cannot be written.
        """
        with self._here:
            if self.path.exists() and not self.path.is_file():
                raise self._problem("", "a log that is a plain file", "something else", "name another --log")
            self._acquire()
            try:
                if self.path.exists():
                    self._write(b"")
            finally:
                self._lock.release()

    def append(self, check: Check) -> Decision:
        """Appends the decision that ``check`` returns, which sees all decisions, those of other processes too.

        Raises:
            InputError: what ``check`` raises; or where the log is damaged or of other data. Nothing is written then.
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
        """Reads what was appended since the last time and returns every decision.

        Raises:
            InputError: where the log is of other data, a line was changed or is malformed.
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
        """Takes in one line; a malformed one counts as torn by a kill where the next line, or none, says so."""
        number = self._lines + 1
        record = decode_record(line)
        if record is None:
            self._broken = (number, line)
            self.torn.append(number)
        else:
            if self._broken is not None and record.get("kind") != TORN:
                place, content = self._broken
                raise self._problem(f", line {place}", "one JSON object", preview(content.decode("utf-8", "replace")))
            self._broken = None
            self._take_record(record, number)
        self._last = _chained(line)
        self._read_to += len(line)
        self._lines = number

    def _take_record(self, record: dict[str, Any], number: int) -> None:
        place = f", line {number}"
        if record.pop("prev", None) != self._last:
            raise self._problem(place, "the line that was written after the one before", "a changed or missing line")
        if record.get("kind") == TORN:
            return
        if not self._headed:
            self._check_subject(record)
            self._headed = True
        else:
            self.decisions.append(self._decision(record, place))

    def _lines_of(self, decision: Decision) -> bytes:
        """Returns a decision as it is to be appended, with what has to stand before it."""
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
        """Appends in one write and waits until it is on disk."""
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
                found = f"those on {preview(record.get('name'))} ({name} {str(record.get(name))[:16]})"
                hint = "name the log of this data by --log, or the data of this log"
                raise self._problem(", line 1", expected, found, hint)

    def _decision(self, record: Mapping[str, Any], place: str) -> Decision:
        edit = record.get("edit", {})
        whole = all(isinstance(record.get(name), str) for name in _TEXTS) and isinstance(edit, dict)
        seconds = record.get("seconds")
        whole = whole and (seconds is None or isinstance(seconds, int | float))
        allowed = LETTERS if record.get("kind") in ARMS else VERDICTS
        if not whole or record.get("kind") not in STAGES or record["verdict"] not in allowed:
            raise self._problem(place, "a decision", preview(dict(record)))
        texts = {name: record[name] for name in ("reviewer", "verdict", "reason", "at")}
        return Decision((record["split"], record["id"]), record["kind"], edit=edit, seconds=seconds, **texts)

    def _problem(
        self, place: str, expected: str, found: str, hint: str = "bring back a whole copy of it"
    ) -> InputError:
        return InputError(Problem(f"{self.path}{place}", expected, found, hint))


def _chained(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:16]
