"""Finds release folders and reads rows: one reader for folders, Parquet, JSON, JSONL, CSV and Hub ids."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import parse_json
from scale_vqa_eval.release_folder.card import head
from scale_vqa_eval.schema import DATASET_NAME

FOLDER_VARIABLE: Final = "SCALE_VQA_PATH"
HUB_VARIABLE: Final = "SCALE_VQA_HUB_ID"
HOW_TO_MAKE_ONE: Final = (
    "run `scale-vqa build release --json test=FILE --out scale-vqa` (the authors' files) or `scale-vqa build phantom "
    "--slides 24 --out scale-vqa` (synthetic slides), then `scale-vqa prepare --data scale-vqa`; or name a release "
    f"folder in ${FOLDER_VARIABLE} or a Hub id in ${HUB_VARIABLE}"
)
IMAGE_COLUMNS: Final = frozenset({"low_mag", "mid_mag", "high_mag", "option_images"})
HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Record:
    """One row as the file has it.

    Attributes:
        row: the row's fields; image columns of a Parquet file are left out.
        location: file and row number for messages, rows counted from 1 (a CSV header is row 0).
        number: the row number.
        split: split of a release folder or Hub id, else None.
    """

    row: Mapping[str, Any]
    location: str
    number: int
    split: str | None = None


def named_folder() -> Path | None:
    """Returns the folder of ``$SCALE_VQA_PATH``, else ``./scale-vqa`` if that is a release folder, else None.

    Raises:
        InputError: if the variable names something that is not a release folder.
    """
    value = os.environ.get(FOLDER_VARIABLE)
    if value:
        folder = Path(value).expanduser()
        try:
            release_configs(folder)
        except InputError as error:
            raise InputError(
                [
                    Problem(f"${FOLDER_VARIABLE}: {one.location}", one.expected, one.found, one.hint)
                    for one in error.problems
                ]
            ) from error
        return folder
    return _folder_here()


def _folder_here() -> Path | None:
    """Returns ``./scale-vqa`` if its README.md is a card with configs: a checkout of the code has the same name."""
    card = Path(DATASET_NAME, "README.md")
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8-sig", errors="replace")
    return card.parent if text.startswith("---") and "\nconfigs:" in text else None


def resolve_data(data: str | Path) -> str:
    """Returns what ``load_dataset`` takes for DATA: all names but ``scale-vqa`` as they are.

    The bare name is the first of: the release folder ``./scale-vqa``, the folder of ``$SCALE_VQA_PATH``, what
    ``scale-vqa prepare`` has put into the cache of ``datasets``, the Hub id of ``$SCALE_VQA_HUB_ID``.

    Raises:
        InputError: if the bare name is given and none of those is there.
    """
    if str(data) != DATASET_NAME:
        return str(data)
    folder = _folder_here() or named_folder()
    if folder is not None:
        return str(folder)
    from datasets.config import HF_DATASETS_CACHE

    found = f"no folder of that name, no ${FOLDER_VARIABLE}, nothing prepared, no ${HUB_VARIABLE}"
    if any((Path(HF_DATASETS_CACHE).expanduser() / DATASET_NAME).glob("*/*/*/dataset_info.json")):
        if not Path(DATASET_NAME).exists():
            return DATASET_NAME
        found = f"./{DATASET_NAME}, which is not a release folder and hides what is prepared"
    elif hub_id := os.environ.get(HUB_VARIABLE):
        return hub_id
    raise InputError(Problem(DATASET_NAME, "a release folder or prepared data", found, HOW_TO_MAKE_ONE))


def release_configs(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Returns config -> split -> Parquet files of a release folder, read from the YAML of its README.md.

    The config that loads without a name comes first.

    Raises:
        InputError: if the folder has no card, or the card names files that are not there.
    """
    card = folder / "README.md"
    hint = "name a folder that `scale-vqa build` made"
    if not card.is_file():
        raise InputError(Problem(str(folder), "a release folder with a README.md", "no README.md", hint))
    try:
        configs = head(card.read_text(encoding="utf-8-sig")).get("configs") or []
        found = {
            entry["config_name"]: {item["split"]: _matches(folder, item["path"]) for item in entry["data_files"]}
            for entry in sorted(configs, key=lambda entry: not entry.get("default", False))
        }
    except InputError as error:
        raise InputError([Problem(str(card), one.expected, one.found, hint) for one in error.problems]) from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(Problem(str(card), "YAML with configs and data_files", preview(error), hint)) from error
    if not found:
        raise InputError(Problem(str(card), "YAML configs in the head of the card", "none", hint))
    missing = [f"{name}/{split}" for name, splits in found.items() for split, files in splits.items() if not files]
    if missing:
        raise InputError(Problem(str(card), "the Parquet files it names", f"none for {', '.join(missing)}", hint))
    return found


def _matches(folder: Path, pattern: str) -> list[Path]:
    """Returns the files of a folder that match a pattern of its card; a pattern that leaves the folder is refused."""
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        hint = "do not use this folder: it names files outside of itself"
        raise InputError(Problem(str(folder / "README.md"), "paths inside of the folder", preview(pattern), hint))
    return sorted(folder.glob(pattern))


def release_files(folder: Path, config: str | None = None) -> dict[str, list[Path]]:
    """Returns split -> Parquet files of one config of a release folder (``default``, else the first one)."""
    configs = release_configs(folder)
    if config is None:
        config = "default" if "default" in configs else next(iter(configs))
    if config not in configs:
        raise InputError(
            Problem(str(folder), f"a config that it has ({', '.join(configs)})", preview(config), "name one of those")
        )
    return configs[config]


def read_records(data: str | Path, split: str | None = None, config: str | None = None) -> Iterator[Record]:
    """Yields the rows of ``data`` one by one; see ``questions.read_questions`` for the kinds of input.

    Raises:
        InputError: if the input is none of those, or its text cannot be read (with line and column).
    """
    data = resolve_data(data)
    path = Path(data)
    if path.is_dir():
        for name, files in release_files(path, config).items():
            if split in (None, name):
                for file in files:
                    yield from _parquet(file, name)
    elif path.is_file():
        yield from (record for record in _file(path) if split is None or record.row.get("split", split) == split)
    elif data == DATASET_NAME or (HUB_ID.fullmatch(data) and not path.suffix):
        yield from _hub(data, split, config)
    else:
        raise InputError(Problem(data, "a file, a release folder or a Hub id", "nothing there", "check the name"))


def _file(path: Path) -> Iterator[Record]:
    readers = {".parquet": _parquet, ".json": _json, ".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(Problem(str(path), f"a file that ends in {', '.join(readers)}", path.suffix, "convert it"))
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        found = f"{error.reason} at byte {error.start} of a block"
        raise InputError(Problem(str(path), "text in UTF-8", found, "save the file as UTF-8")) from error
    except csv.Error as error:
        hint = "quote cells that hold commas or line breaks"
        raise InputError(Problem(str(path), "CSV", str(error), hint)) from error


def _json(path: Path) -> Iterator[Record]:
    rows = parse_json(path.read_text(encoding="utf-8-sig"), str(path))
    if not isinstance(rows, list):
        raise InputError(Problem(str(path), "a JSON list of rows", type(rows).__name__, "wrap the rows in a list"))
    for number, row in enumerate(rows, 1):
        yield _record(row, path, f"row {number}", number)


def _jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.rstrip("\r\n"))
            except (ValueError, RecursionError) as error:
                location = f"{path}, line {number}, column {getattr(error, 'colno', 1)}"
                raise InputError(Problem(location, "one JSON object a line", preview(line), "fix the line")) from error
            yield _record(row, path, f"line {number}", number)


def _csv(path: Path) -> Iterator[Record]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        for number, row in enumerate(reader, 1):
            if None in row:
                expected, found = f"{len(reader.fieldnames or [])} cells", f"{len(row[None])} more"
                raise InputError(Problem(f"{path}, row {number}", expected, found, "quote the commas"))
            yield _record(row, path, f"row {number}", number)


def _record(row: object, path: Path, place: str, number: int) -> Record:
    if not isinstance(row, Mapping):
        raise InputError(Problem(f"{path}, {place}", "an object with fields", preview(row), "fix the row"))
    return Record(row, f"{path}, {place}", number)


def _parquet(path: Path, split: str | None = None) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        hint = "build or download it again"
        raise InputError(Problem(str(path), "a Parquet file", preview(error, 160), hint)) from error
    features = Features.from_arrow_schema(file.schema_arrow)
    labels = {name: feature.names for name, feature in features.items() if getattr(feature, "names", None)}
    labels.pop("answer", None)  # an answer's class index is its position among the options
    columns = [name for name in file.schema_arrow.names if name not in IMAGE_COLUMNS]
    number = 0
    for batch in file.iter_batches(columns=columns, batch_size=2048):
        for row in batch.to_pylist():
            number += 1
            for name, names in labels.items():
                if row.get(name) is not None:
                    row[name] = names[row[name]]
            yield Record(row, f"{path}, row {number}", number, split)


def _hub(name: str, split: str | None, config: str | None) -> Iterator[Record]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    # OSError: no network, or offline and not in the cache; ValueError: no such config
    try:
        data = load_dataset(name, config, streaming=True)
    except (DatasetsError, OSError, ValueError) as error:
        expected = "a file or folder here, or a data set on the Hub" + (f" with a config {config!r}" if config else "")
        found = preview(str(error) or type(error).__name__, 800)
        raise InputError(Problem(name, expected, found, "check the name, and the network for a Hub id")) from error
    for part, rows in data.items():
        if split not in (None, part):
            continue
        features = rows.features or {}
        labels = {key: value.names for key, value in features.items() if getattr(value, "names", None)}
        labels.pop("answer", None)
        kept = rows.remove_columns([column for column in features if column in IMAGE_COLUMNS or column == "images"])
        for number, row in enumerate(kept, 1):
            named = {
                key: labels[key][value] if key in labels and value is not None else value for key, value in row.items()
            }
            yield Record(named, f"{name} {part}, row {number}", number, str(part))
