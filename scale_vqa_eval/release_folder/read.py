"""Finds release folders, and reads rows of folders, Parquet, JSON, JSONL and CSV files, and Hub ids."""

from __future__ import annotations

import csv
import json
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, did_you_mean, preview
from scale_vqa_eval.files import parse_json
from scale_vqa_eval.release_folder.card import head
from scale_vqa_eval.schema import DATASET_NAME, VIEWS

FOLDER_VARIABLE: Final = "SCALE_VQA_PATH"
HUB_VARIABLE: Final = "SCALE_VQA_HUB_ID"
HOW_TO_MAKE_ONE: Final = (
    "run `scale-vqa prepare --data ORG/NAME` (a dataset on the Hub, such as the authors'), or `scale-vqa build "
    "release --json test=FILE --out scale-vqa` (the authors' files) or `scale-vqa build phantom --slides 24 --out "
    "scale-vqa` (synthetic slides) and then `scale-vqa prepare --data scale-vqa`; or set "
    f"${FOLDER_VARIABLE} to a release folder or ${HUB_VARIABLE} to a Hub id"
)
IMAGE_COLUMNS: Final = frozenset({"low_mag", "mid_mag", "high_mag", "option_images", "composite"})
USUAL_SPLITS: Final = ("train", "val", "validation", "dev", "test")
FIELD_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "id": ("id", "question_id", "qid"),
    "question": ("question", "prompt", "query", "stem"),
    "options": ("options", "choices"),
    "answer": ("answer", "answer_index", "correct_answer", "label", "gold", "target"),
    "rationale": ("rationale", "explanation"),
    "dimension": ("dimension", "question_type", "category", "subject", "type"),
    "slide": ("wsi_name", "slide", "slide_id", "file_id", "image_path", "image"),
    "patient": ("patient_id", "patient", "case_id", "case"),
    "path_id": ("path_id",),
    "source": ("source",),
    "group": ("group",),
    "split": ("split",),
}
"""Field -> possible names in a file, in order of preference; ``extra_info`` is searched as well."""
_TEXT_COLUMNS: Final = frozenset(name for names in FIELD_NAMES.values() for name in names) - {"image"}
_REPEATED: Final = "an object that repeats the key"
HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file.

    Attributes:
        row: the row's fields, without the image columns of a Parquet file or Hub id.
        location: file and row number for messages; rows are numbered from 1 (a CSV header is row 0).
        number: the row number.
        split: split of a release folder or Hub id, or stated in the row, or None.
    """

    row: Mapping[str, Any]
    location: str
    number: int
    split: str | None = None


def named_folder() -> Path | None:
    """Returns the folder of ``$SCALE_VQA_PATH``, else ``./scale-vqa`` if that is a release folder, else None.

    Raises:
        InputError: if the variable is not the path of a release folder.
    """
    value = os.environ.get(FOLDER_VARIABLE)
    if not value:
        return _folder_here()
    folder = Path(value).expanduser()
    try:
        release_configs(folder)
    except InputError as error:
        problems = [replace(one, location=f"${FOLDER_VARIABLE}: {one.location}") for one in error.problems]
        raise InputError(problems) from error
    return folder


def _folder_here() -> Path | None:
    """Returns ``./scale-vqa`` if its README.md is a card with configs; a checkout of the code may have that name."""
    card = Path(DATASET_NAME, "README.md")
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8-sig", errors="replace")
    return card.parent if text.startswith("---") and "\nconfigs:" in text else None


def resolve_data(data: str | Path) -> str:
    """Resolves the name ``scale-vqa`` to an argument for ``load_dataset``; returns all other names unchanged.

    The name refers to the first of these that exists: the release folder ``./scale-vqa``, the folder of
    ``$SCALE_VQA_PATH``, the data prepared by ``scale-vqa prepare``, the Hub id of ``$SCALE_VQA_HUB_ID``.

    Raises:
        InputError: if none of them exists.
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
    """Returns config -> split -> Parquet files of a release folder, as stated in its card, the default config first.

    Raises:
        InputError: if the folder has no card, or the card names files that do not exist.
    """
    card = folder / "README.md"
    hint = "name a folder that `scale-vqa build` made"
    if not card.is_file():
        if (folder / "zoom.jsonl").is_file():
            hint = f"name the question file of `scale-vqa build zoom`, {folder / 'zoom.jsonl'}"
        raise InputError(Problem(str(folder), "a release folder with a README.md", "no README.md", hint))
    try:
        configs = head(card.read_text(encoding="utf-8-sig")).get("configs") or []
        found = {
            str(entry["config_name"]): {
                str(files["split"]): _matches(folder, files["path"]) for files in entry["data_files"]
            }
            for entry in sorted(configs, key=lambda entry: not entry.get("default", False))
        }
    except InputError as error:
        raise InputError([replace(one, location=str(card), hint=hint) for one in error.problems]) from error
    except (KeyError, TypeError, AttributeError, ValueError, NotImplementedError, OSError) as error:
        raise InputError(Problem(str(card), "YAML with configs and data_files", preview(error), hint)) from error
    if not found:
        raise InputError(Problem(str(card), "configs in the YAML metadata of the card", "none", hint))
    missing = [f"{name}/{split}" for name, splits in found.items() for split, files in splits.items() if not files]
    if missing:
        raise InputError(Problem(str(card), "the Parquet files it names", f"none for {', '.join(missing)}", hint))
    return found


def _matches(folder: Path, pattern: str) -> list[Path]:
    """Returns the files that match a pattern of a card; raises InputError if the pattern leaves the folder."""
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        hint = "do not use this folder: its card names files outside the folder"
        raise InputError(Problem(str(folder / "README.md"), "paths inside the folder", preview(pattern), hint))
    return sorted(folder.glob(pattern))


def release_files(folder: Path, config: str | None = None) -> dict[str, list[Path]]:
    """Returns split -> Parquet files of a config; None is ``default``, or the first config if there is no ``default``.

    Raises:
        InputError: if it is not a release folder, or has no such config.
    """
    configs = release_configs(folder)
    if config is None:
        config = "default" if "default" in configs else next(iter(configs))
    if config not in configs:
        expected = f"a config that it has ({', '.join(configs)})"
        raise InputError(Problem(str(folder), expected, preview(config), did_you_mean(config, configs)))
    return configs[config]


def read_records(data: str | Path, split: str | None = None, config: str | None = None) -> Iterator[Record]:
    """Yields the rows of ``data``; see ``questions.read_questions`` for the kinds of input.

    Args:
        data: as for ``read_questions``.
        split: split to read, or None for all. A file without stated splits is accepted as any of ``USUAL_SPLITS``.
        config: config of a release folder or Hub id, or None for its default.

    Raises:
        InputError: if the input is not of these kinds, cannot be read (with line and column of a text), or does not
            have the split.
    """
    data = resolve_data(data)
    path = Path(data)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # also a name with a NUL byte, or one that is too long
        mode = 0
    if stat.S_ISDIR(mode):
        files = release_files(path, config)
        for name in _chosen(data, split, files):
            for file in files[name]:
                yield from _parquet(file, name)
    elif stat.S_ISREG(mode):
        records = _file(path)
        yield from records if split is None else _of_split(data, split, list(records))
    elif data == DATASET_NAME or (HUB_ID.fullmatch(data) and not path.suffix):
        yield from _hub(data, split, config)
    else:
        found = "a pipe, socket or device" if mode else "nothing there"
        raise InputError(Problem(data[:400], "a file, a release folder or a Hub id", found, "check the name"))


def _chosen(data: str, split: str | None, names: Iterable[str]) -> list[str]:
    """Returns the names of the splits to read; raises InputError if ``split`` does not exist."""
    names = list(names)
    if split is not None and split not in names:
        expected = f"a split that it has ({', '.join(names)})"
        raise InputError(Problem(data, expected, preview(split), did_you_mean(split, names)))
    return names if split is None else [split]


def _of_split(data: str, split: str, records: list[Record]) -> Iterator[Record]:
    """Yields the rows of a split."""
    stated = Counter(record.split for record in records)
    if set(stated) <= {None}:
        if split not in USUAL_SPLITS:
            expected = f"rows with a split field, or one of {', '.join(USUAL_SPLITS)}"
            hint = f"omit --split, or {did_you_mean(split, USUAL_SPLITS)}"
            raise InputError(Problem(data, expected, f"no split in the rows, and --split {preview(split)}", hint))
        yield from records
        return
    if None in stated:
        found, hint = f"{stated[None]} of {len(records)} rows without one", "add the field, or omit --split"
        raise InputError(Problem(data, "a split in every row or in none", found, hint))
    _chosen(data, split, [name for name in stated if name is not None])
    yield from (record for record in records if record.split == split)


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
    except OSError as error:
        found = error.strerror or preview(str(error))
        raise InputError(Problem(str(path), "a file that can be read", found, "check the file")) from error


def _json(path: Path) -> Iterator[Record]:
    rows = parse_json(path.read_text(encoding="utf-8-sig"), str(path), object_pairs_hook=_unique_keys)
    if not isinstance(rows, list):
        raise InputError(Problem(str(path), "a JSON list of rows", type(rows).__name__, "wrap the rows in a list"))
    for number, row in enumerate(rows, 1):
        yield _record(row, f"{path}, row {number}", number)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object; raises ValueError for a repeated key, of which ``json`` would keep only the last value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f"{_REPEATED} {preview(repeated[0])}")
    return found


def _jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.rstrip("\r\n"), object_pairs_hook=_unique_keys)
            except (ValueError, RecursionError) as error:
                location = f"{path}, line {number}, column {getattr(error, 'colno', 1)}"
                found = str(error) if str(error).startswith(_REPEATED) else preview(line)
                raise InputError(Problem(location, "one JSON object per line", found, "fix it")) from error
            yield _record(row, f"{path}, line {number}", number)


def _csv(path: Path) -> Iterator[Record]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", newline="") as lines:
        # strict, because an unclosed quote would take the rows below it into its cell
        reader = csv.DictReader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        header = list(reader.fieldnames or [])
        if len(header) == 1 and re.search(r"[;\t|]", header[0]):
            hint = "save the file with commas between the cells, or with tabs and the ending .tsv"
            raise InputError(Problem(f"{path}, row 0", "columns with commas between them", preview(header[0]), hint))
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            hint = "rename or remove one of them"
            raise InputError(Problem(f"{path}, row 0", "each column once", f"twice: {', '.join(twice)}", hint))
        number = 0
        try:
            for number, row in enumerate(reader, 1):
                if None in row:
                    expected, found = f"{len(header)} cells", f"{len(row[None])} more"
                    raise InputError(Problem(f"{path}, row {number}", expected, found, "quote the commas"))
                yield _record(row, f"{path}, row {number}", number)
        except csv.Error as error:
            hint = 'quote cells that hold commas or line breaks, and double the quotes in them ("")'
            raise InputError(Problem(f"{path}, row {number + 1}", "CSV", str(error), hint)) from error


def _record(row: object, location: str, number: int) -> Record:
    if not isinstance(row, Mapping):
        raise InputError(Problem(location, "an object with fields", preview(row), "fix the row"))
    extra = row.get("extra_info")
    stated = row.get("split") or (extra.get("split") if isinstance(extra, Mapping) else None)
    return Record(row, location, number, str(stated) if isinstance(stated, str | int) else None)


def _parquet(path: Path, split: str | None = None) -> Iterator[Record]:
    """Yields the rows of a Parquet file, with the names of images as ``image_path``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        schema = file.schema_arrow
        labels = _class_names(path, schema)
        columns = [field.name for field in schema if not _holds_images(field)]
        leaves = {file.schema.column(index).path for index in range(len(file.schema.names))}
        views = [view for view in VIEWS if f"{view}.path" in leaves and "image_path" not in columns]
        columns += [f"{view}.path" for view in views]
        number = 0
        for batch in file.iter_batches(columns=columns, batch_size=2048):
            for row in batch.to_pylist():
                number += 1
                location = f"{path}, row {number}"
                record = _record(_plain(_with_image_names(row, views, location), labels, location), location, number)
                yield record if split is None else replace(record, split=split)
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        found, hint = preview(" ".join(str(error).split()), 160), "build or download it again"
        raise InputError(Problem(str(path), "a Parquet file", found, hint)) from error


def _with_image_names(row: dict[str, Any], views: Iterable[str], location: str) -> dict[str, Any]:
    """Returns a row with ``image_path`` (view -> name, or None without an image) in place of its image columns."""
    # an image may exist without a name
    names = {view: image and (image["path"] or f"{view} of {location}") for view in views for image in [row.pop(view)]}
    return {**row, "image_path": names} if names else row


def _holds_images(field: Any) -> bool:
    """Returns whether an Arrow field is an image column, and not text stored as bytes."""
    import pyarrow as pa

    if field.name in IMAGE_COLUMNS:
        return True
    kind, depth = field.type, 0
    while hasattr(kind, "value_type"):
        kind, depth = kind.value_type, depth + 1
    if pa.types.is_struct(kind):
        return any(_holds_images(inner) for inner in kind)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in tests) and (field.name not in _TEXT_COLUMNS or depth > 1)


def _class_names(path: Path, schema: Any) -> dict[str, list[str]]:
    """Returns column -> class names from the metadata that ``datasets`` writes to a Parquet file."""
    content = (schema.metadata or {}).get(b"huggingface")
    if content is None:
        return {}
    info = parse_json(content.decode("utf-8", "replace"), f"{path}, metadata of `datasets`")
    features = info.get("info", {}).get("features", {}) if isinstance(info, Mapping) else {}
    return {
        name: feature["names"]
        for name, feature in (features.items() if isinstance(features, Mapping) else ())
        if isinstance(feature, Mapping) and isinstance(feature.get("names"), list)
    }


def _plain(row: Mapping[str, Any], labels: Mapping[str, list[str]], location: str) -> dict[str, Any]:
    """Returns a row with class indices replaced by class names, and bytes by text."""
    result = {name: _decoded(value) for name, value in row.items()}
    for name, names in labels.items():
        index = result.get(name)
        if index is None or isinstance(index, str):
            continue
        if not isinstance(index, int) or not 0 <= index < len(names):
            expected, hint = f"a class index from 0 to {len(names) - 1}", "correct the row"
            raise InputError(Problem(f"{location}, {name}", expected, preview(index), hint))
        if name != "answer" or _names_an_option(names[index], result):
            result[name] = names[index]
    return result


def _names_an_option(name: object, row: Mapping[str, Any]) -> bool:
    """Returns whether a class name of the answer is a letter or an option; else its index is the option's position.

    ``class_encode_column`` numbers only the letters that occur: without a C among the answers, D is class 2.
    """
    options = [row[key] for key in FIELD_NAMES["options"] if isinstance(row.get(key), list)]
    return isinstance(name, str) and ((len(name) == 1 and name.isalpha()) or any(name in texts for texts in options))


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return [_decoded(one) for one in value] if isinstance(value, list) else value


def _hub(name: str, split: str | None, config: str | None) -> Iterator[Record]:
    from datasets import Image, load_dataset

    try:
        data = load_dataset(name, config, streaming=True)
        for part in _chosen(name, split, data):
            rows = data[part]
            features = rows.features or {}
            labels = {key: one.names for key, one in features.items() if hasattr(one, "names")}
            images = [key for key, one in features.items() if key in IMAGE_COLUMNS or _is_media(one)]
            views = [view for view in VIEWS if isinstance(features.get(view), Image) and "image_path" not in features]
            for view in views:  # before other columns are removed: later, the names of the images would be lost
                rows = rows.cast_column(view, Image(decode=False))
            for number, row in enumerate(rows.remove_columns([key for key in images if key not in views]), 1):
                location = f"{name} {part}, row {number}"
                row = _plain(_with_image_names(row, views, location), labels, location)
                yield Record(row, location, number, str(part))
    except InputError:
        raise
    except Exception as error:  # many libraries raise their own errors for network, names, configs and files
        expected = "a file or folder here, or a dataset on the Hub" + (f" with a config {config!r}" if config else "")
        found = preview(str(error) or type(error).__name__, 800)
        raise InputError(Problem(name, expected, found, "check the name, and the network for a Hub id")) from error


def _is_media(feature: Any) -> bool:
    """Returns whether a feature of ``datasets``, or one inside its lists and structs, is decoded from bytes."""
    if isinstance(feature, Mapping):
        return any(_is_media(one) for one in feature.values())
    inner = getattr(feature, "feature", None)
    if inner is not None:
        return _is_media(inner)
    return hasattr(feature, "decode_example") or getattr(feature, "dtype", None) in ("binary", "large_binary")
