"""An append-only JSONL file that survives a kill at any moment: what makes slow or paid work resumable."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from scale_vqa_eval.errors import InputError, Problem, preview


class Journal:
    """One JSON object a line; each is on disk (fsync) before ``append`` returns.

    A last line that a kill has torn is left out on opening and cut off by the first ``append``, so its work is done
    again; until then the file is as it was found. A malformed line further up is damage, not a kill, and is refused by
    line number, and so is a torn line that stands alone and is no beginning of a record: another program's file. One
    process at a time: a second is refused, not interleaved.

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
        self._kept: int | None = 0
        self._unended = False

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
            self._lock.acquire(timeout=0)
            self._read()
        except Timeout as error:
            self.__exit__(None, None, None)
            hint = "wait until it ends, or name another file"
            raise InputError(Problem(str(self.path), "a file that no one writes", "another process", hint)) from error
        except OSError as error:
            self.__exit__(None, None, None)
            raise InputError(_unwritable(self.path, error, "name another file")) from error
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk was told by ``append``; what it wrote of a line is torn
                self._file.close()
            self._file = None
        self._lock.release()

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one record and waits until it is on disk.

        Raises:
            ValueError: where the journal is not open, or the record is no plain JSON (NaN included).
            InputError: where the disk does not take it.
        """
        if self._file is None:
            raise ValueError(f"{self.path} is not open")
        line = json.dumps(record, ensure_ascii=False, sort_keys=True, allow_nan=False)
        try:
            self._hint_end()
            self._file.write(line.encode("utf-8", "surrogatepass") + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(_unwritable(self.path, error, "make room, then run the same command again")) from error
        self.records.append(dict(record))

    def _hint_end(self) -> None:
        """Cuts off a torn last line, or ends one that lacks its line break alone."""
        assert self._file is not None
        if self.repaired_bytes and self._kept is not None:
            self._file.truncate(self._kept)
            lost = f"a last line that was torn ({self.repaired_bytes} bytes); its work is done again"
            print(f"{self.path}: cut off {lost}", file=sys.stderr)
        elif self._unended:
            self._file.write(b"\n")
        self._kept, self._unended = None, False

    def _read(self) -> None:
        """Reads every record, and how much of the file they are."""
        assert self._file is not None
        self._file.seek(0)
        kept, line = 0, b""
        for number, line in enumerate(self._file, 1):
            record = _parsed(line)
            if record is None:
                whole = line.endswith(b"\n")
                if whole or (number == 1 and not line.startswith(_OPENING[: len(line)])):
                    found = preview(line.decode("utf-8", "replace").rstrip("\n"))
                    hint = "remove the line (its work is done again) or bring back a whole copy of the file"
                    hint = hint if whole else "it is another program's file: name another one"
                    raise InputError(Problem(f"{self.path}, line {number}", "one JSON object", found, hint))
                self.repaired_bytes = len(line)
                break
            self.records.append(record)
            kept += len(line)
        self._kept, self._unended = kept, bool(kept) and not line.endswith(b"\n")


_OPENING = b'{"'


def _unwritable(path: Path, error: OSError, hint: str) -> Problem:
    return Problem(str(path), "a file that can be written", error.strerror or type(error).__name__, hint)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
