"""Append-only JSONL store for slow or paid work; a process may be killed at any moment without losing records.

Predictions, paid calls and likelihoods use ``Journal``, which has one writer. The review log, to which several
processes append, uses the same record format and durable write.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from io import BufferedRandom
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from filelock import FileLock, Timeout

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import not_writable

_RECORD_START: Final = b'{"'


def encode_record(record: Mapping[str, Any], sort_keys: bool = True) -> bytes:
    """Returns a record as a line of UTF-8 JSON, including the line end.

    Raises:
        ValueError: if the record cannot be written as JSON, or contains NaN.
    """
    text = json.dumps(record, ensure_ascii=False, sort_keys=sort_keys, allow_nan=False)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def decode_record(line: bytes) -> dict[str, Any] | None:
    """Returns the record of a line, or None if the line is not a JSON object."""
    try:
        record = json.loads(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def write_durably(file: BinaryIO | BufferedRandom, content: bytes) -> None:
    """Writes bytes and returns once they are on disk."""
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


class Journal:
    """A JSONL file with one writer; each record is on disk (fsync) before ``append`` returns.

    An incomplete last line, left by a killed process, is ignored on opening and removed by the first ``append``; until
    then the file is not changed. Any other malformed line is an error. So is a file with a single incomplete line that
    is not the beginning of a record: it belongs to another program. A second process is refused.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "work.jsonl"
    >>> with Journal(path) as journal:
    ...     journal.append({"key": "a", "score": 1.5})
    >>> with Journal(path) as journal:
    ...     journal.records
    [{'key': 'a', 'score': 1.5}]

    Attributes:
        records: every record of the file, including those appended since it was opened.
        repaired_bytes: size of an incomplete last line, or 0.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.records: list[dict[str, Any]] = []
        self.repaired_bytes = 0
        self._lock = FileLock(f"{self.path}.lock")
        self._file: BufferedRandom | None = None
        self._complete_bytes = 0
        self._tail_checked = False
        self._line_end_missing = False

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
            self._lock.acquire(timeout=0)
            self._read()
        except BaseException as error:
            self.__exit__()
            hint = "wait until it ends, or name another file"
            if isinstance(error, Timeout):
                problem = Problem(str(self.path), "a file that no process writes to", "another process", hint)
                raise InputError(problem) from error
            if isinstance(error, OSError):
                raise InputError(not_writable(self.path, error, "name another file")) from error
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # ``append`` has reported a full disk already
                self._file.close()
            self._file = None
        self._lock.release()

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one record and returns once it is on disk.

        Raises:
            ValueError: if the journal is not open, or the record cannot be written as JSON.
            InputError: if it cannot be written to disk.
        """
        if self._file is None:
            raise ValueError(f"{self.path} is not open")
        line = encode_record(record)
        try:
            self._repair_tail()
            write_durably(self._file, line)
        except OSError as error:
            hint = "free disk space, then run the same command again"
            raise InputError(not_writable(self.path, error, hint)) from error
        self.records.append(dict(record))

    def _repair_tail(self) -> None:
        """Removes an incomplete last line, or adds a missing line end to a complete one."""
        assert self._file is not None
        if self._tail_checked:
            return
        if self.repaired_bytes:
            self._file.truncate(self._complete_bytes)
            torn = f"a last line that was torn ({self.repaired_bytes} bytes)"
            print(f"{self.path}: removed {torn}; its work is done again", file=sys.stderr)
        elif self._line_end_missing:
            self._file.write(b"\n")
        self._tail_checked = True

    def _read(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        line = b""
        for number, line in enumerate(self._file, 1):
            record = decode_record(line)
            if record is not None:
                self.records.append(record)
                self._complete_bytes += len(line)
                continue
            complete = line.endswith(b"\n")
            if complete or (number == 1 and not line.startswith(_RECORD_START[: len(line)])):
                found = preview(line.decode("utf-8", "replace").rstrip("\n"))
                hint = "remove the line (its work is done again) or restore the file from a copy"
                hint = hint if complete else "it is another program's file: name another one"
                raise InputError(Problem(f"{self.path}, line {number}", "one JSON object", found, hint))
            self.repaired_bytes = len(line)
            return
        self._line_end_missing = bool(line) and not line.endswith(b"\n")
