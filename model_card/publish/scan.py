"""Reads everything that would go out and names what must not: secrets, and paths of this machine.

Text is read whole; of Parquet every string value and the bytes of every image; of safetensors the header (the rest is
numbers); of pictures their bytes. What it cannot see: a secret that has no known format (a password in prose), one
that is encoded or split, words inside of an image, and what a file type that it does not know says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .findings import OWN_SECRET, Finding, finding, masked
from .patterns import (
    ANCHORED,
    ANCHORED_PATH,
    ANCHORS,
    LOCAL_PATH,
    PATH_ANCHORS,
    QUOTED_PATH,
    WHOLE_PATH,
    keyword_detector,
    own_places,
    own_secrets,
    secret_patterns,
)

_VOCABULARIES: Final = {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "vocab.txt"}
"""Files of words: any of them may look like a piece of a path."""
_BINARY: Final = {".png", ".jpg", ".jpeg", ".model", ".tiktoken"}
_KEYWORD_LIMIT: Final = 1_000_000
_BLOCK: Final = 1 << 22
_OVERLAP: Final = 512
_SECRET_MEND: Final = "remove it and revoke it: what was once in a file may have been copied"
_PATH_MEND: Final = "write a relative path or a name in its place"


@dataclass(frozen=True)
class Own:
    """What is private about this machine and its user: secrets and folders, as they would stand in a file."""

    secrets: tuple[str, ...]
    places: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path, token: str | None) -> Own:
        return cls(own_secrets(token), own_places(folder))


def scan_file(name: str, path: Path, own: Own, progress: Any = None) -> list[Finding]:
    """Returns what must not go out of one file, each value once, the worst first.

    Raises:
        OSError, pyarrow.ArrowInvalid: where the file cannot be read as what its name says.
    """
    ending = path.suffix.lower()
    if ending == ".parquet":
        found = _parquet(name, path, own)
    elif ending == ".safetensors":
        found = _text(name, safetensors_header(path), own, quoted=True)
    elif ending in _BINARY:
        found = (one for block in _blocks(path) for one in _bytes(name, "", block, own))
    else:
        found = _text(name, path.read_text(encoding="utf-8", errors="replace"), own, ending in (".json", ".yaml"))
    unique = {one.mark: one for one in found}
    if progress is not None:
        progress.update(path.stat().st_size)
    return sorted(unique.values(), key=lambda one: (one.kind != OWN_SECRET, one.kind != "secret"))


def scan_text(name: str, text: str, own: Own) -> list[Finding]:
    """Returns what must not go out of a text that is at hand, such as a merged card."""
    return sorted({one.mark: one for one in _text(name, text, own, name.endswith(".json"))}.values())


def safetensors_header(path: Path) -> str:
    """Returns the JSON header of a safetensors file, where its only text is; empty where there is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size, 100_000_000):
            return ""
        return file.read(length).decode("utf-8", "replace")


def _text(name: str, text: str, own: Own, quoted: bool) -> Iterator[Finding]:
    lines = _Lines(text)
    vocabulary = Path(name).name in _VOCABULARIES
    for kind, value, start in _in_text(text, own, paths=not vocabulary):
        yield _found(name, lines.place(start), kind, value)
    if quoted and not vocabulary:
        for match in QUOTED_PATH.finditer(text):
            yield _found(name, lines.place(match.start()), "local path", match.group(1))
    if len(text) <= _KEYWORD_LIMIT and not vocabulary:
        for number, line in enumerate(text.splitlines(), 1):
            for value in _keyword_values(name, line):
                yield _found(name, f"line {number}", "secret", value)


def _in_text(text: str, own: Own, paths: bool = True) -> Iterator[tuple[str, str, int]]:
    """Yields (kind, value, place in the text)."""
    for secret in own.secrets:
        if (start := text.find(secret)) >= 0:
            yield OWN_SECRET, secret, start
    for _, pattern in secret_patterns():
        for match in pattern.finditer(text):
            yield "secret", match.group(), match.start()
    if paths:
        for match in LOCAL_PATH.finditer(text):
            yield "local path", match.group(), match.start()
        for place in own.places:
            for match in re.finditer(re.escape(place) + r"(?![\w-])", text):
                yield "local path", place, match.start()


def _keyword_values(name: str, line: str) -> Iterator[str]:
    """Yields the values of ``password = "..."`` and the like that could be one: not a word, not a placeholder."""
    if len(line) > 2000:
        return
    for value in keyword_detector().analyze_string(line):
        if len(value) >= 8 and re.search(r"\d", value) and not re.search(r"[<>{}$\s()]", value):
            yield value


def _parquet(name: str, path: Path, own: Own) -> Iterator[Finding]:
    """Row group by row group and column by column, so that memory holds one column of one row group."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for key, value in (file.schema_arrow.metadata or {}).items():
            yield from _text(name, value.decode("utf-8", "replace"), own, key != b"huggingface")
        row = 0
        for group in range(file.num_row_groups):
            for column in file.schema_arrow.names:
                table = file.read_row_group(group, columns=[column])
                for label, array in _leaves(column, table.column(0).combine_chunks()):
                    yield from _column(name, label, array, own, f"rows {row} to {row + table.num_rows - 1}")
            row += file.metadata.row_group(group).num_rows


def _leaves(label: str, array: Any) -> Iterator[tuple[str, Any]]:
    """Yields the string and binary arrays inside of an Arrow array, with the name of the field they are in."""
    import pyarrow as pa

    kind = array.type
    if pa.types.is_struct(kind):
        for index, field in enumerate(kind):
            yield from _leaves(f"{label}.{field.name}", array.field(index))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(label, array.flatten())
    elif pa.types.is_dictionary(kind):
        yield from _leaves(label, array.dictionary)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield label, array.unique()
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        yield label, array


def _column(name: str, label: str, array: Any, own: Own, rows: str) -> Iterator[Finding]:
    import pyarrow as pa

    place = f"column {label}, {rows}"
    if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        seen = set()
        for scalar in array:
            buffer = scalar.as_buffer()
            if buffer is not None and buffer.address not in seen:
                seen.add(buffer.address)
                yield from _bytes(name, place, bytes(buffer), own)
        return
    values = [value for value in array.to_pylist() if value]
    for kind, value, _ in _in_text("\n".join(values), own):
        yield _found(name, place, kind, value)
    for value in values:
        if (value[0] in "/\\f" or value[1:2] == ":") and WHOLE_PATH.fullmatch(value):
            yield _found(name, place, "local path", value)


def _bytes(name: str, place: str, content: bytes, own: Own) -> Iterator[Finding]:
    """Searches for short literals first: they are found at the speed of memory, and are rare by chance."""
    for secret in own.secrets:
        if secret.encode() in content:
            yield _found(name, place, OWN_SECRET, secret)
    for anchors, pattern, kind in ((ANCHORS, ANCHORED, "secret"), (PATH_ANCHORS, ANCHORED_PATH, "local path")):
        if any(anchor in content for anchor in anchors):
            for match in pattern.finditer(content):
                yield _found(name, place, kind, match.group().decode("ascii", "replace"))


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        tail = b""
        while block := file.read(_BLOCK):
            yield tail + block
            tail = block[-_OVERLAP:]


def _found(name: str, place: str, kind: str, value: str) -> Finding:
    if kind == "local path":
        preview = json.dumps(value if len(value) <= 80 else f"{value[:80]}...")
        return finding(name, place, kind, value, f"the path {preview}", _PATH_MEND)
    what = f"{'your own secret' if kind == OWN_SECRET else 'what looks like a secret'}, {masked(value)}"
    return finding(name, place, kind, value, what, _SECRET_MEND)


class _Lines:
    """Line of a place in a text, by bisection."""

    def __init__(self, text: str) -> None:
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def place(self, position: int) -> str:
        from bisect import bisect_right

        return f"line {bisect_right(self._starts, position)}"
