"""Whether what a card says about a data set is true of the files that would be there."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scale_vqa_eval.errors import InputError, Problem, preview

from .card_merge import card_metadata, dataset_info_of


def check_dataset_info(card: str, local: Mapping[str, Path], on_hub: frozenset[str], kept: frozenset[str]) -> None:
    """Refuses a merged card whose ``dataset_info``, the folder's or the remote's, is false of the files with it.

    A ``dataset_info`` that is true is kept, word for word; a false one would make ``load_dataset`` fail, and is
    neither overwritten nor published.

    Args:
        card: the merged card.
        local: path in the repository -> file, of all local files.
        on_hub: paths of the files that only the remote has.
        kept: names of the card's parts that are the remote's.

    Raises:
        InputError: naming config and split, and how to replace the part.
    """
    metadata = card_metadata(card)
    infos = dataset_info_of(metadata)
    problems = []
    for config in metadata.get("configs") or []:
        name = str(config.get("config_name", "default"))
        if name not in infos:
            continue
        claimed = {str(split.get("name")): split.get("num_examples") for split in infos[name].get("splits") or []}
        columns = [str(feature.get("name")) for feature in infos[name].get("features") or []]
        for split, patterns in _splits(config):
            files = [path for path in sorted(local) if _matches(path, patterns)]
            if not files or any(_matches(path, patterns) for path in on_hub):
                continue  # data of the remote alone, or a mixture, which is refused as such
            rows, found = _rows_and_columns([local[path] for path in files])
            if claimed.get(split) != rows:
                problems.append(
                    _false(name, f"{rows} rows of {split}, as in the files", f"{claimed.get(split)}", kept)
                )
            elif sorted(columns) != sorted(found):
                problems.append(_false(name, f"the columns {', '.join(found)}", preview(", ".join(columns)), kept))
    if problems:
        raise InputError(problems)


def check_croissant_hashes(croissant: str, hashes: Mapping[str, str]) -> None:
    """Refuses Croissant metadata that names other Parquet files, or other bytes, than go with it.

    Args:
        croissant: the content of ``croissant.json``.
        hashes: path -> SHA-256 of the Parquet files.

    Raises:
        InputError: naming the files.
    """
    try:
        listed = json.loads(croissant)["distribution"]
        named = {one["contentUrl"]: one["sha256"] for one in listed if "sha256" in one}
    except (ValueError, KeyError, TypeError, RecursionError):
        named = {}
    wrong = sorted(path for path in named.keys() | hashes.keys() if named.get(path) != hashes.get(path))
    if wrong:
        hint = "write it again: scale-vqa card dataset --croissant --repo ORG/NAME, or remove it"
        found = f"others of {', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}"
        raise InputError(Problem("croissant.json", "the SHA-256 of the folder's Parquet files", found, hint))


def mixed_files(card: str, local: Mapping[str, Path], on_hub: frozenset[str]) -> list[str]:
    """Returns files that only the remote has and that the card's configs would load together with local ones."""
    found = set()
    for config in card_metadata(card).get("configs") or []:
        for _, patterns in _splits(config):
            if any(_matches(path, patterns) for path in local):
                found |= {path for path in on_hub if _matches(path, patterns)}
    return sorted(found)


def _splits(config: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    files = config.get("data_files") or []
    if isinstance(files, str):
        files = [{"split": "train", "path": files}]
    listed = []
    for entry in files if isinstance(files, list) else []:
        if isinstance(entry, Mapping):
            path = entry.get("path", [])
            listed.append((str(entry.get("split", "train")), [path] if isinstance(path, str) else list(path)))
    return listed


def _matches(path: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern.removeprefix("./")) for pattern in patterns)


def _rows_and_columns(files: list[Path]) -> tuple[int, list[str]]:
    import pyarrow.parquet as pq

    rows, columns = 0, []
    for path in files:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                rows += file.metadata.num_rows
                columns = file.schema_arrow.names
    return rows, columns


def _false(config: str, expected: str, found: str, kept: frozenset[str]) -> Problem:
    if f"dataset_info:{config}" in kept:
        hint = f"--replace dataset_info:{config} takes the folder's; or fix it on the Hub"
        return Problem(f"README.md on the Hub, dataset_info of {config}", expected, found, hint)
    hint = "build the config again: its files are not those that its card was written for"
    return Problem(f"README.md, dataset_info of {config}", expected, found, hint)
