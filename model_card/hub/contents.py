"""Extracts the texts of a file for the scan, decoded.

JSON, notebooks, YAML, Python strings, Parquet (names, metadata, all string and binary values), safetensors headers
and the metadata of PNG and JPEG files are parsed. All other files are read as UTF-8 or UTF-16 text.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import html
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.files import parse_json, parse_yaml
from scale_vqa_eval.release_folder.card import head

VOCABULARIES: Final = {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "vocab.txt"}
"""Vocabulary files, which are scanned only for secrets, because their words can look like parts of paths."""
_PICTURES: Final = (".png", ".jpg", ".jpeg")
_BINARY: Final = (".model", ".tiktoken")
_MAX_PARSED: Final = 200_000_000
_MAX_INFLATED: Final = 10_000_000
_EDGE: Final = 1_000_000
_RUNS: Final = re.compile(rb"[\x20-\x7e\t\r\n]{8,}|(?:[\x20-\x7e]\x00){8,}|(?:\x00[\x20-\x7e]){8,}")
_IMAGE_URI: Final = re.compile(r"data:image/[a-z]+;base64,")
_ESCAPES: Final = re.compile(r"\\(?:[ntrbf]|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2})")


@dataclass(frozen=True, slots=True)
class TextPart:
    """A text in a file, its location, and the name of its field."""

    place: str
    text: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts that are searched together, and bytes (such as pixels) that are searched for prefixes of secrets."""

    parts: Sequence[TextPart] = ()
    raw: Sequence[tuple[str, bytes]] = ()


@dataclass
class ScanReport:
    """How the files were read.

    Attributes:
        read: format -> number of files.
        notes: files that could not be parsed, or of which a part was not read.
    """

    read: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Returns the report as JSON fields."""
        return {"read": dict(self.read), "notes": self.notes}

    def lines(self, accepted: str) -> list[str]:
        """Returns the lines to print; ``accepted`` is added to the result."""
        ways = ", ".join(f"{count} {way}" for way, count in sorted(self.read.items()))
        return [
            f"scan: {self.read.total()} files, no secret, no local path, nothing from outside the release{accepted}",
            f"scan: read as {ways}",
            *(f"scan: {note}" for note in self.notes),
            "scan: not searched: text in pixels, values of weights, encrypted, compressed or base64 texts, "
            "secrets without a known format, names of patients",
        ]


def read_contents(name: str, path: Path, report: ScanReport) -> Iterator[Batch]:
    """Yields the texts of a file in batches that fit into memory.

    Raises:
        OSError, pyarrow.ArrowInvalid: if the file is not in the format of its suffix.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        report.read["Parquet (names, metadata, texts, metadata of images)"] += 1
        yield from _parquet(name, path, report)
    elif suffix == ".safetensors":
        report.read["safetensors (header)"] += 1
        yield Batch(list(json_parts(_safetensors_header(path))))
    elif suffix in _PICTURES or suffix in _BINARY:
        report.read["pictures (metadata)" if suffix in _PICTURES else "binary (runs of text)"] += 1
        yield _binary([("", path.read_bytes())])
    else:
        yield Batch(list(_text_file(name, path, suffix, report)))


def json_parts(text: str, place: str = "") -> Iterator[TextPart]:
    """Yields every key and string of a JSON text, decoded; raises InputError if it is not JSON."""
    # as pairs, because an object would lose the first value of a duplicate key
    content = parse_json(text, place or "JSON", object_pairs_hook=lambda pairs: tuple(("pair", *one) for one in pairs))
    yield from _leaves(content, place, "")


def text_parts(text: str, place: str = "", key: str = "") -> Iterator[TextPart]:
    """Yields a text and, if it is JSON, its strings."""
    yield TextPart(place, text, key)
    if text[:1] in ("{", "[") and text[-1:] in ("}", "]"):
        try:
            yield from json_parts(text, place)
        except InputError:
            return


def without_escapes(text: str) -> str:
    r"""Replaces escapes (``\n``, ``\u00e9``) by as many blanks, so that the word after an escape is found.

    >>> without_escapes(r"a\nb")
    'a  b'
    """
    return _ESCAPES.sub(lambda match: " " * len(match[0]), text)


def _leaves(value: Any, place: str, key: str) -> Iterator[TextPart]:
    """Yields the strings of a value; its objects are tuples of ("pair", key, value) or dicts."""
    waiting = [(value, place, key)]
    while waiting:
        one, where, name = waiting.pop()
        if isinstance(one, str):
            if where == place and not name:
                yield TextPart(where, one, name)
            else:
                yield from text_parts(one, where, name)
        elif isinstance(one, dict):
            waiting.append((tuple(("pair", str(inner), below) for inner, below in one.items()), where, name))
        elif isinstance(one, tuple):
            for _, inner, below in one:
                yield TextPart(where, inner)
                waiting.append((below, f"{where}.{inner[:40]}" if where else inner[:40], inner))
        elif isinstance(one, list):
            texts = [item for item in one if isinstance(item, str)]
            if len(texts) > 1 and len(texts) == len(one):  # such as the lines of a notebook's cell
                yield TextPart(where, "".join(texts), name)
            waiting += [(item, f"{where}[{index}]", name) for index, item in enumerate(one)]


def _text_file(name: str, path: Path, suffix: str, report: ScanReport) -> Iterator[TextPart]:
    text = _decoded(path.read_bytes())
    way = "text"
    try:
        if path.stat().st_size > _MAX_PARSED and suffix != ".txt":
            report.notes.append(f"{name} was read as text: it is too large to be parsed")
        elif suffix in (".json", ".ipynb"):
            way = "JSON"
            yield from json_parts(text)
        elif suffix == ".jsonl":
            way = "JSON"
            for number, line in enumerate(text.splitlines(), 1):
                if line.strip():
                    yield from json_parts(line, f"line {number}")
        elif suffix in (".yaml", ".yml", ".cff"):
            way = "YAML"
            yield from _leaves(parse_yaml(text, name), "", "")
        elif suffix == ".md":
            yield from _leaves(head(text), "head", "")
        elif suffix == ".py":
            way = "Python"
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield TextPart(f"line {node.lineno}", node.value)
    except (InputError, SyntaxError, ValueError, RecursionError):
        report.notes.append(f"{name} was read as text: it is not {way if way != 'text' else 'a card with YAML'}")
        way = "text"
    report.read[way] += 1
    if way != "JSON":
        yield TextPart("", text)
        if "&" in text and suffix in (".html", ".svg", ".md"):
            yield TextPart("", html.unescape(text))


def _decoded(content: bytes) -> str:
    """Decodes bytes as UTF-16 (with a byte order mark, or if every second byte is zero) or UTF-8."""
    start = content[:2000]
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace")
    if len(start) >= 8 and start.count(0) > len(start) // 3:
        return content.decode("utf-16-le" if start[1::2].count(0) > start[::2].count(0) else "utf-16-be", "replace")
    return content.decode("utf-8-sig", "replace")


def _safetensors_header(path: Path) -> str:
    """Returns the JSON header of a safetensors file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size, 100_000_000):
            return "{}"
        return file.read(length).decode("utf-8", "replace")


def _binary(values: Sequence[tuple[str, bytes]]) -> Batch:
    """Returns the metadata of images and the text runs of other binary values."""
    parts = []
    for place, content in values:
        runs = [_decoded(run) for run in _RUNS.findall(b"\0\0".join(_metadata(content)))]
        parts += [part for run in runs for part in text_parts(run.strip(), place)]
    return Batch(parts, values)


def _metadata(content: bytes) -> Iterator[bytes]:
    """Yields the parts of a binary value that may contain text: all of PNG and JPEG except the pixels."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        at = 8
        while at + 8 <= len(content):
            length, kind = struct.unpack(">I4s", content[at : at + 8])
            data = content[at + 8 : at + 8 + length]
            at += 12 + length
            if kind in (b"zTXt", b"iTXt") and (found := re.match(rb"[^\0]*\0(?:\0|\x01\0[^\0]*\0[^\0]*\0)", data)):
                yield data
                with contextlib.suppress(zlib.error):
                    yield zlib.decompressobj().decompress(data[found.end() :], _MAX_INFLATED)
            elif kind not in (b"IDAT", b"PLTE"):
                yield data
        yield content[at:]
    elif content.startswith(b"\xff\xd8"):
        at = 2
        while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
            length = int.from_bytes(content[at + 2 : at + 4], "big")
            if content[at + 1] >= 0xE0:
                yield content[at + 4 : at + 2 + length]
            at += 2 + max(length, 2)
        yield content[content.rfind(b"\xff\xd9") :]
    elif len(content) > 2 * _EDGE:
        yield content[:_EDGE]
        yield content[-_EDGE:]
    else:
        yield content


def _parquet(name: str, path: Path, report: ScanReport) -> Iterator[Batch]:
    """Yields the texts of a Parquet file, one column of one row group at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        metadata = [("metadata of the file", schema.metadata), *_fields(schema)]
        yield Batch(
            [
                part
                for place, entries in metadata
                for key, value in (entries or {}).items()
                for part in (
                    TextPart(place, key.decode("utf-8", "replace")),
                    *text_parts(value.decode("utf-8", "replace"), place, key.decode("utf-8", "replace")),
                )
                if key != b"ARROW:schema"
            ]
        )
        row = 0
        for group in range(file.num_row_groups):
            for column in schema.names:
                table = file.read_row_group(group, columns=[column])
                rows = f"rows {row} to {row + table.num_rows - 1}"
                for label, array in _arrays(column, table.column(0).combine_chunks(), name, report):
                    yield _cells(f"column {label}, {rows}", label, array)
            row += file.metadata.row_group(group).num_rows


def _fields(holder: Any) -> Iterator[tuple[str, dict[bytes, bytes] | None]]:
    """Yields names and metadata of all columns and their nested fields."""
    for index in range(len(holder) if hasattr(holder, "names") else holder.num_fields):
        one = holder.field(index)
        yield "column names", {one.name.encode(): b""}
        yield f"metadata of column {one.name}", one.metadata
        if one.type.num_fields:
            yield from _fields(one.type)


def _arrays(label: str, array: Any, name: str, report: ScanReport) -> Iterator[tuple[str, Any]]:
    """Yields the string and binary arrays nested in an Arrow array, with their field names."""
    import pyarrow as pa

    kind, types = array.type, pa.types
    if isinstance(kind, pa.BaseExtensionType):
        yield from _arrays(label, array.storage, name, report)
    elif types.is_struct(kind):
        for index, one in enumerate(kind):
            yield from _arrays(f"{label}.{one.name}", array.field(index), name, report)
    elif types.is_map(kind):
        yield from _arrays(f"{label}.key", array.keys, name, report)
        yield from _arrays(f"{label}.value", array.items, name, report)
    elif (
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    ):
        yield from _arrays(label, array.flatten(), name, report)
    elif types.is_dictionary(kind):
        yield from _arrays(label, array.dictionary, name, report)
    elif types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        yield label, array.cast(pa.large_string()).unique()
    elif types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        yield label, array.cast(pa.large_binary())
    elif types.is_fixed_size_binary(kind):
        yield label, array.cast(pa.binary()).cast(pa.large_binary())
    elif types.is_nested(kind) or types.is_union(kind):
        report.notes.append(f"{name}, column {label} was not read: its type {kind} is not known")


def _embedded_image(text: str) -> bytes | None:
    """Returns the JPEG or PNG of a data URI, or None."""
    if not (found := _IMAGE_URI.match(text)):
        return None
    try:
        content = base64.b64decode(text[found.end() :], validate=True)
    except ValueError:
        return None
    return content if content.startswith((b"\xff\xd8", b"\x89PNG")) else None


def _cells(place: str, label: str, array: Any) -> Batch:
    import pyarrow as pa

    if pa.types.is_large_string(array.type):
        texts = [value for value in array.to_pylist() if value]
        # base64 text of images is decoded first, because random text can look like a key
        images = {text: content for text in texts if (content := _embedded_image(text))}
        parts = [part for text in texts if text not in images for part in text_parts(text, place, label)]
        embedded = _binary([(place, content) for content in images.values()])
        return Batch([*parts, *embedded.parts], embedded.raw)
    unique = {buffer.address: buffer for buffer in (one.as_buffer() for one in array) if buffer is not None}
    return _binary([(place, bytes(buffer)) for buffer in unique.values()])
