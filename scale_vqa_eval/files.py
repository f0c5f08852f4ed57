"""File helpers: atomic writes, JSON and YAML, hashes, paths below a root, and a lock for outputs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview

MAX_YAML_VALUES: Final = 1_000_000
MAX_YAML_DEPTH: Final = 500


@contextlib.contextmanager
def atomic_path(path: str | Path, hint: str = "name another file") -> Iterator[Path]:
    """Yields a hidden path beside ``path`` to write to; renames it to ``path`` on exit.

    If the process is killed, ``path`` is the old file or the new one. After an error the hidden file is removed.

    Raises:
        InputError: if the file cannot be written; ``hint`` says how to fix it.
    """
    path = Path(path)
    # processes on two machines that share storage may have the same id
    partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.partial")
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
    """Writes a file atomically; text as UTF-8 with ``\\n`` line ends and lone surrogates escaped.

    Raises:
        InputError: if the file cannot be written.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    with atomic_path(path, hint) as partial:
        partial.write_bytes(data)


def write_json(path: str | Path, content: Any, hint: str = "name another file") -> None:
    """Writes a value as indented ASCII JSON, atomically; the same content gives the same bytes.

    Raises:
        InputError: if the file cannot be written.
        ValueError: if a number is NaN or infinite.
    """
    atomic_write(path, json.dumps(content, indent=2, ensure_ascii=True, allow_nan=False) + "\n", hint)


def parse_json(text: str, location: str, **options: Any) -> Any:
    """Parses a JSON text; ``options`` are passed to ``json.loads``.

    Raises:
        InputError: if it is not JSON (with line and column), nested too deeply, or has a number of over 4,300 digits.
    """
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError as error:
        where = f"{location}, line {error.lineno}, column {error.colno}"
        raise InputError(Problem(where, "JSON", error.msg, "fix the file")) from error
    except RecursionError as error:
        found = "lists or objects nested too deeply"
        raise InputError(Problem(location, "JSON", found, "fix the file")) from error
    except ValueError as error:
        raise InputError(Problem(location, "JSON", preview(str(error), 160), "fix the file")) from error


def parse_yaml(text: str, location: str) -> Any:
    """Parses a YAML text with the safe loader.

    Raises:
        InputError: if it is not YAML, is nested too deeply, or its aliases expand to more than a million values.
    """
    import yaml

    depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):  # the loader takes quadratic time for nested brackets
        depth = depth + 1 if bracket in "[{" else max(depth - 1, 0)
        if depth > MAX_YAML_DEPTH:
            expected, found = f"YAML of at most {MAX_YAML_DEPTH} levels", "values nested too deeply"
            raise InputError(Problem(location, expected, found, "fix the file"))
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        size = _expanded_size(root, {}) if root is not None else 0
        if size > MAX_YAML_VALUES:
            found = f"aliases that expand to {size:.1e} values"
            raise InputError(Problem(location, f"YAML of at most {MAX_YAML_VALUES:,} values", found, "avoid aliases"))
        return loader.construct_document(root) if root is not None else None
    except RecursionError as error:
        found = "values nested too deeply, or inside themselves"
        raise InputError(Problem(location, "YAML", found, "fix the file")) from error
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        found = preview(" ".join(str(error).split()), 160)
        raise InputError(Problem(location, "YAML", found, "fix the file")) from error


def _expanded_size(node: Any, sizes: dict[int, int]) -> int:
    """Returns the number of values in a YAML node with its aliases expanded; a cycle raises RecursionError."""
    if id(node) not in sizes:
        children = node.value if isinstance(node.value, list) else []
        nodes = [child for pair in children for child in (pair if isinstance(pair, tuple) else (pair,))]
        sizes[id(node)] = 1 + sum(_expanded_size(child, sizes) for child in nodes)
    return sizes[id(node)]


def not_writable(path: str | Path, error: OSError, hint: str) -> Problem:
    """Returns the problem that describes an error while writing a file or folder."""
    found = error.strerror or type(error).__name__
    if isinstance(error, FileExistsError | NotADirectoryError):
        found = "a file in place of a folder"
    return Problem(str(path), "a file that can be written", found, hint)


def sha256_file(path: str | Path) -> str:
    """Returns the SHA-256 of a file's bytes, read in blocks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Returns the SHA-256 of a value's ASCII JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def inside_root(root: str | Path, name: str) -> Path | None:
    """Returns the real path of ``name`` below ``root``, or None if it is absolute or leads out by ``..`` or symlinks.

    The file need not exist.
    """
    if not name or "\0" in name or Path(name).is_absolute():
        return None
    real = Path(os.path.realpath(Path(root) / name))
    return real if real.is_relative_to(os.path.realpath(root)) else None


_HELD: dict[Path, int] = {}
"""Output -> id of the thread in this process that holds its lock."""


@contextlib.contextmanager
def exclusive_output(path: str | Path, flag: str = "--out") -> Iterator[Path]:
    """Locks an output file or folder against other processes and threads; yields its real path.

    The thread that holds the lock can take it again. The lock file lies beside the real output; the operating system
    releases the lock when the process ends. The file is removed while the lock is held: a process that waits for it
    notices that it was deleted and opens a new one (filelock checks this since version 4).

    Raises:
        InputError: if another process writes to the same output, or its parent folder cannot be written.
    """
    from filelock import FileLock, Timeout

    real = Path(os.path.realpath(path))
    if real.is_symlink():
        found = "a symlink to itself"
        raise InputError(Problem(str(path), "an output file or folder", found, f"name another {flag}"))
    if _HELD.get(real) == threading.get_ident():
        yield real
        return
    lock = FileLock(real.with_name(f".{real.name}.lock"))
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:  # also raised where no file can be created, such as in /proc
            tempfile.TemporaryFile(dir=real.parent).close()
            raise
    except Timeout as error:
        hint = f"wait until it ends, or name another {flag}"
        found = "another process that is writing to it"
        raise InputError(Problem(str(path), "an output that no other process writes to", found, hint)) from error
    except OSError as error:
        raise InputError(not_writable(path, error, f"name another {flag}")) from error
    _HELD[real] = threading.get_ident()
    try:
        yield real
    finally:
        _HELD.pop(real, None)
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
