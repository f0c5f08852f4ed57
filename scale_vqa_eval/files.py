"""File helpers that every package shares: atomic writes, hashes, paths below a root, one writer for an output."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scale_vqa_eval.errors import InputError, Problem


@contextlib.contextmanager
def atomic_path(path: str | Path, hint: str = "name another file") -> Iterator[Path]:
    """Yields a hidden path beside ``path`` to write to; on leaving, moves it to ``path`` in one rename.

    A process killed at any moment leaves the old file or the new one. After an error the hidden file is removed.

    Raises:
        InputError: where the file cannot be written; ``hint`` says how to fix it.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except OSError as error:
        raise InputError(not_writable(path, error, hint)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def atomic_write(path: str | Path, content: str | bytes, hint: str = "name another file") -> None:
    """Writes a file in one rename; text as UTF-8 with ``\\n`` line ends, lone surrogates escaped.

    Raises:
        InputError: where the file cannot be written.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    with atomic_path(path, hint) as partial:
        partial.write_bytes(data)


def write_json(path: str | Path, content: Any, hint: str = "name another file") -> None:
    """Writes a value as indented ASCII JSON in one rename: the same content gives the same bytes.

    Raises:
        InputError: where the file cannot be written.
        ValueError: where a number is NaN or infinite.
    """
    atomic_write(path, json.dumps(content, indent=2, ensure_ascii=True, allow_nan=False) + "\n", hint)


def not_writable(path: str | Path, error: OSError, hint: str) -> Problem:
    """Returns the problem of a file or folder that cannot be written."""
    return Problem(str(path), "a file that can be written", error.strerror or type(error).__name__, hint)


def sha256_file(path: str | Path) -> str:
    """Returns the SHA-256 of a file's bytes, read in blocks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Returns the SHA-256 of a value's JSON with sorted keys, ASCII only."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def inside_root(root: str | Path, name: str) -> Path | None:
    """Returns the real path of ``name`` below ``root``, or None where it leaves the root, links followed.

    The file need not exist. Absolute names, ``..`` and symlinks that lead out are refused.
    """
    if not name or "\0" in name or Path(name).is_absolute():
        return None
    real = Path(os.path.realpath(Path(root) / name))
    return real if real.is_relative_to(os.path.realpath(root)) else None


@contextlib.contextmanager
def exclusive_output(path: str | Path, flag: str = "--out") -> Iterator[Path]:
    """Holds the one lock of an output file or folder; yields its path, a symlink replaced by what it points to.

    Two processes, or two names of one output, exclude each other. The lock lies beside the output and is released by
    the operating system when its process ends.

    Raises:
        InputError: where another process writes to the same output, or its parent folder cannot be written.
    """
    from filelock import FileLock, Timeout

    real = Path(os.path.realpath(path))
    lock = FileLock(real.with_name(f".{real.name}.lock"))
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        hint = f"wait until it ends, or name another {flag}"
        found = "another process that is writing to it"
        raise InputError(Problem(str(path), "an output that no other process writes to", found, hint)) from error
    except OSError as error:
        raise InputError(not_writable(path, error, f"name another {flag}")) from error
    try:
        yield real
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
