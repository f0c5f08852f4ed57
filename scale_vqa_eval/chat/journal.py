"""An append-only JSONL file that survives a kill at any moment: what makes slow or paid work resumable."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from scale_vqa_eval.errors import Fault, InputError, shown


class Journal:
    """One JSON object a line; each is on disk (fsync) before ``append`` returns.

    A last line that a kill has torn is cut off on opening, so its work is done again. A malformed line further up is
    damage, not a kill, and is refused by line number. One process at a time: a second is refused, not interleaved.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "work.jsonl"
    >>> with Journal(path) as journal:
    ...     journal.append({"key": "a", "score": 1.5})
    >>> with Journal(path) as journal:
    ...     journal.records
    [{'key': 'a', 'score': 1.5}]
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.records: list[dict[str, Any]] = []
        self.repaired_bytes = 0
        self._lock = FileLock(f"{self.path}.lock")
        self._file: BufferedRandom | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            mend = "wait until it ends, or name another file"
            raise InputError(Fault(str(self.path), "a file that no one writes", "another process", mend)) from error
        try:
            self._file = self.path.open("a+b")
            self._read()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one record and waits until it is on disk.

        Raises:
            ValueError: where the journal is not open, or the record is no plain JSON (NaN included).
        """
        if self._file is None:
            raise ValueError(f"{self.path} is not open")
        line = json.dumps(record, ensure_ascii=False, sort_keys=True, allow_nan=False)
        self._file.write(line.encode("utf-8", "surrogatepass") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records.append(dict(record))

    def _read(self) -> None:
        """Reads every record and cuts off a torn last line."""
        assert self._file is not None
        self._file.seek(0)
        kept = 0
        for number, line in enumerate(self._file, 1):
            record = _parsed(line)
            if record is None:
                if line.endswith(b"\n"):
                    found = shown(line.decode("utf-8", "replace").rstrip("\n"))
                    mend = "remove the line (its work is done again) or bring back a whole copy of the file"
                    raise InputError(Fault(f"{self.path}, line {number}", "one JSON object", found, mend))
                self.repaired_bytes = len(line)
                break
            self.records.append(record)
            kept += len(line)
        if self.repaired_bytes:
            self._file.truncate(kept)
            lost = f"a last line that was torn ({self.repaired_bytes} bytes); its work is done again"
            print(f"{self.path}: cut off {lost}", file=sys.stderr)
        elif kept and not line.endswith(b"\n"):
            self._file.write(b"\n")
        self._file.flush()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
