"""Safetensors checkpoints as streams: headers, digests, and shards of another size, in memory that does not grow.

The library reads a file whole to write one; here the bytes of a tensor go from file to file in blocks, so that a
checkpoint of any size takes the memory of a block. Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub import split_state_dict_into_shards_factory

from scale_vqa_eval.errors import InputError, Problem, preview

BLOCK: Final = 8 * 2**20
INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
_PATTERN: Final = "model{suffix}.safetensors"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where the bytes of a tensor lie.

    Attributes:
        file: the safetensors file.
        start: first byte in the file.
        size: number of bytes.
        dtype: as the header names it (``BF16``).
        shape: of the tensor.
    """

    file: Path
    start: int
    size: int
    dtype: str
    shape: tuple[int, ...]


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Returns name -> place of every tensor of a checkpoint, in the order of its bytes; no weight is read.

    Raises:
        InputError: naming every file that is missing, broken or cut off, and every tensor that two files hold.
    """
    problems: list[Problem] = []
    found: dict[str, StoredTensor] = {}
    for file in _files(folder):
        try:
            tensors = _header(file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            hint = "copy or save the checkpoint again"
            problems.append(Problem(str(file), "a complete safetensors file", preview(str(error), 160), hint))
            continue
        twice = sorted(found.keys() & tensors.keys())
        problems += [
            Problem(str(file), "each tensor once", f"{name} a second time", "remove stale shards") for name in twice
        ]
        found |= tensors
    if problems:
        raise InputError(problems)
    return found


def tensor_digests(folder: str | Path) -> dict[str, str]:
    """Returns name -> SHA-256 over dtype, shape and bytes of every tensor, however the checkpoint is cut."""
    return {name: _streamed(tensor) for name, tensor in read_tensors(Path(folder)).items()}


def write_shards(
    tensors: dict[str, StoredTensor],
    out: Path,
    max_shard_size: int | str,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, str]:
    """Writes tensors into shards of at most ``max_shard_size`` bytes (a larger tensor gets one to itself).

    Args:
        tensors: name -> place.
        out: an existing folder.
        max_shard_size: bytes, or a text like ``5GB``.
        progress: told the number of bytes after each block.

    Returns:
        The digests of what was read, as ``tensor_digests`` has them.
    """
    plan = split_state_dict_into_shards_factory(
        tensors, get_storage_size=lambda tensor: tensor.size, filename_pattern=_PATTERN, max_shard_size=max_shard_size
    )
    digests: dict[str, str] = {}
    for name, members in plan.filename_to_tensors.items():
        # wide types first, as the library lays them out, so that every tensor is aligned
        ordered = sorted(members, key=lambda member: -_width(tensors[member].dtype))
        digests |= _write_file(out / name, {member: tensors[member] for member in ordered}, progress)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": dict(sorted(plan.tensor_to_filename.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8", newline="\n")
    return digests


def _files(folder: Path) -> list[Path]:
    """Returns the weight files of a checkpoint: those that its index names, or the single one."""
    index, single = folder / INDEX, folder / SINGLE
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            hint = "save the checkpoint again"
            raise InputError(Problem(str(index), "an index with a weight_map", preview(str(error)), hint)) from error
        strange = [name for name in names if not isinstance(name, str) or Path(name).name != name]
        missing = [name for name in names if name not in strange and not (folder / name).is_file()]
        problems = [
            Problem(str(index), "names of files beside it", preview(name), "fix the index") for name in strange
        ]
        problems += [Problem(str(folder), f"the shard {name}", "no such file", "copy it too") for name in missing]
        if problems:
            raise InputError(problems)
        return [folder / name for name in names]
    if single.is_file():
        return [single]
    others = sorted(path.name for path in folder.glob("*.bin")) or ["none"]
    hint = "save it with save_pretrained, which writes safetensors (pickled weights run code when they are read)"
    raise InputError(Problem(str(folder), f"{SINGLE} or {INDEX}", f"weights: {', '.join(others)}", hint))


def _header(file: Path) -> dict[str, StoredTensor]:
    """Reads one header; the library has checked by then that the file is whole and its offsets hold."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    with file.open("rb") as stream:
        length = struct.unpack("<Q", stream.read(8))[0]
        header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        start, end = entry["data_offsets"]
        tensors[name] = StoredTensor(file, 8 + length + start, end - start, entry["dtype"], tuple(entry["shape"]))
    return tensors


def _blocks(tensor: StoredTensor) -> Iterator[bytes]:
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        left = tensor.size
        while left:
            block = stream.read(min(BLOCK, left))
            if not block:
                raise OSError(f"{tensor.file} ends within a tensor")
            left -= len(block)
            yield block


def _streamed(tensor: StoredTensor, sink: Callable[[bytes], object] = lambda block: None) -> str:
    """Passes a tensor's bytes to ``sink`` block by block; returns its digest."""
    digest = hashlib.sha256(f"{tensor.dtype} {tensor.shape}\0".encode())
    for block in _blocks(tensor):
        digest.update(block)
        sink(block)
    return digest.hexdigest()


def _write_file(file: Path, tensors: dict[str, StoredTensor], progress: Callable[[int], object]) -> dict[str, str]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, tensor in tensors.items():
        offsets = [place, place + tensor.size]
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        place += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digests = {}
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)

        def keep(block: bytes) -> None:
            out.write(block)
            progress(len(block))

        for name, tensor in tensors.items():
            digests[name] = _streamed(tensor, keep)
    return digests


def _width(dtype: str) -> int:
    """Returns the bits of a type from its name.

    >>> _width("BF16"), _width("F8_E4M3"), _width("BOOL")
    (16, 8, 8)
    """
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8
