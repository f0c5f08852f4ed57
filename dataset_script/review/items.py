"""The items under review: questions of a release folder with their images, and the hash that a log is tied to."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_script.review.decisions import Key
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict.items import Item, read_items
from scale_vqa_eval.predict.pictures import Picture, PictureStore
from scale_vqa_eval.release_folder.read import release_files
from scale_vqa_eval.release_folder.verify import content_hash, release_shards
from scale_vqa_eval.schema import VIEWS

CURATION_REPORT: Final = "curation_report.json"


@dataclass(frozen=True)
class ReviewData:
    """What is reviewed.

    Attributes:
        folder: the release folder.
        config: its config.
        items: split and row id -> question and images, in the order of the data.
        chosen: the items of the split that was asked for.
        data_hash: SHA-256 over the config's files: a log of other data is refused by it.
        flags: row id -> what the curation flagged in it, in words.
    """

    folder: Path
    config: str
    items: Mapping[Key, Item]
    chosen: tuple[Key, ...]
    data_hash: str
    store: PictureStore
    flags: Mapping[str, tuple[str, ...]]

    @property
    def subject(self) -> dict[str, str]:
        """What a log says of its data."""
        return {"name": self.folder.name, "config": self.config, "data_hash": self.data_hash}


def read_review_data(folder: Path, config: str | None = None, split: str | None = None) -> ReviewData:
    """Reads the questions of one config; images stay where they are until they are asked for.

    Args:
        folder: a release folder.
        config: its config; None for that which loads without a name.
        split: the split to work on; None for all. The log covers all splits whichever is named.

    Raises:
        InputError: where there is no such folder, config or split, a row breaks the contract, or none has an image.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing there"
        raise InputError(Problem(str(folder), "a release folder", found, "name a folder that `scale-vqa build` made"))
    configs = release_shards(folder)
    if config is None:
        config = "default" if "default" in configs else next(iter(configs))
    splits = release_files(folder, config)
    if split is not None and split not in splits:
        found = preview(split)
        raise InputError(
            Problem(str(folder), f"a split of {config} ({', '.join(splits)})", found, "name one of those")
        )
    items, store = read_items(str(folder), None, config, None, blind=False)
    by_key = {(item.question.split or "", item.question.id): item for item in items}
    chosen = tuple(key for key in by_key if split in (None, key[0]))
    flags = read_flags(folder / CURATION_REPORT)
    return ReviewData(folder, config, by_key, chosen, content_hash(config, configs[config]), store, flags)


def read_flags(report: Path) -> dict[str, tuple[str, ...]]:
    """Returns row id -> what ``scale-vqa curate`` flagged as contradicted by the row's own captions.

    Options are named by their text: letters differ between configs.

    Args:
        report: the curation report beside the data; nothing is flagged where there is none.

    Raises:
        InputError: where the file is no curation report.
    """
    if not report.exists():
        return {}
    flags: dict[str, tuple[str, ...]] = {}
    try:
        for one in json.loads(report.read_text(encoding="utf-8"))["contradictions"]:
            row, said = str(one["id"]), f"{preview(str(one['finding']))} {one['why']}"
            flags[row] = (*flags.get(row, ()), said)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        expected = "a curation report with its contradictions"
        problem = Problem(str(report), expected, preview(str(error)), "bring back the report, or take the file away")
        raise InputError(problem) from error
    return flags


class Images:
    """Hands out images one by one, one thread at a time: the store reads row groups into a small cache.

    Args:
        data: what is reviewed.
    """

    def __init__(self, data: ReviewData) -> None:
        self._store = data.store
        self._lock = threading.Lock()
        files = [file for shards in release_files(data.folder, data.config).values() for file in shards]
        leaves = [f"{view}.path" for view in VIEWS]
        self._names = pa.concat_tables([pq.ParquetFile(file).read(columns=leaves) for file in files])

    def read(self, picture: Picture) -> bytes:
        """Returns an image's original bytes.

        Raises:
            InputError: where the row has none in the data itself.
        """
        with self._lock:
            return self._store.read(picture)

    def name(self, picture: Picture) -> str | None:
        """Returns the file name that the data gives a view; None where it gives none."""
        cell = self._names.column(picture.column)[picture.row].as_py()
        return cell["path"] if cell else None
