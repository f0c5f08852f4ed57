"""Croissant metadata of a release folder (https://docs.mlcommons.org/croissant, by ``mlcroissant``).

Every Parquet file is listed with its SHA-256; every split is a record set whose fields come from the Parquet schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from model_card.cards.text import Licence
from scale_vqa_eval import __version__
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import parse_json, sha256_file
from scale_vqa_eval.release_folder.card import data_origin
from scale_vqa_eval.release_folder.read import release_configs

NAME: Final = "croissant.json"
_PARQUET: Final = "application/x-parquet"
_DESCRIPTION: Final = (
    "Four-option questions about nested fields of one pathology slide at three magnifications. For research only, not "
    "for diagnosis."
)
_CITE: Final = "Phan et al., Enhancing Pathological VLMs with Cross-scale Reasoning, MICCAI 2026, arXiv:2606.17412"
_HINT: Final = "write it again: scale-vqa card dataset --croissant --repo ORG/NAME, or remove it"


def croissant(folder: Path, repo: str, licence: Licence, doi: str | None = None) -> str:
    """Returns the Croissant JSON-LD of a release folder; the same folder gives the same text.

    Args:
        folder: the release folder.
        repo: Hub id under which it is published.
        licence: as its card states it.
        doi: of the data set.

    Raises:
        InputError: if ``mlcroissant`` reports an error in the result.
    """
    import mlcroissant as mlc

    configs, origin = release_configs(folder), data_origin(folder)
    shards = [file for splits in configs.values() for files in splits.values() for file in files]
    distribution: list[Any] = [
        mlc.FileObject(
            id=name,
            name=name,
            content_url=name,
            content_size=f"{file.stat().st_size} B",
            encoding_formats=[_PARQUET],
            sha256=sha256_file(file),
        )
        for file in shards
        for name in [file.relative_to(folder).as_posix()]
    ]
    cite = _CITE if origin.of_paper else f"{origin.title}, made with scale-vqa {__version__}. Format: {_CITE}"
    cite += f". Data: https://doi.org/{doi}" if doi else ""
    records = []
    for config, splits in configs.items():
        for split, files in splits.items():
            name, parquet = f"{config}/{split}", f"{config}/{split}-files"
            pattern = f"{config}/{split}-*.parquet"
            distribution.append(mlc.FileSet(id=parquet, name=parquet, encoding_formats=[_PARQUET], includes=[pattern]))
            records.append(mlc.RecordSet(id=name, name=name, fields=list(_fields(mlc, name, files[0]))))
    metadata = mlc.Metadata(
        name=repo.split("/")[-1],
        description=f"{origin.title}. {_DESCRIPTION}",
        url=f"https://huggingface.co/datasets/{repo}",
        license=[licence.link or licence.id],
        version=__version__,
        cite_as=cite,
        distribution=distribution,
        record_sets=records,
    )
    if metadata.issues.errors:
        found = preview(" ".join(sorted(map(str, metadata.issues.errors))), 300)
        raise InputError(Problem(str(folder), "rows that Croissant can describe", found, "report this folder"))
    return json.dumps(metadata.to_json(), indent=2, ensure_ascii=False, default=str) + "\n"


def check_croissant(path: Path) -> list[Problem]:
    """Returns what is wrong with a Croissant file: errors of ``mlcroissant``, files that differ from their hash."""
    import mlcroissant as mlc

    try:
        dataset = mlc.Dataset(jsonld=str(path))
    except (OSError, ValueError, mlc.ValidationError) as error:
        return [Problem(str(path), "valid Croissant metadata", preview(str(error), 300), _HINT)]
    issues = sorted(dataset.metadata.issues.errors)
    problems = [Problem(str(path), "valid Croissant metadata", preview(str(issue), 200), _HINT) for issue in issues]
    files = {file.relative_to(path.parent).as_posix(): sha256_file(file) for file in path.parent.rglob("*.parquet")}
    return problems + hash_problems(str(path), path.read_text(encoding="utf-8"), files)


def hash_problems(location: str, content: str, hashes: Mapping[str, str]) -> list[Problem]:
    """Returns a problem if Croissant metadata names other Parquet files, or other bytes, than are there.

    Args:
        location: location that the problem names.
        content: text of ``croissant.json``.
        hashes: path -> SHA-256 of the Parquet files.
    """
    try:
        listed = parse_json(content, location)["distribution"]
        named = {one["contentUrl"]: one["sha256"] for one in listed if "sha256" in one}
    except (InputError, KeyError, TypeError):
        named = {}
    wrong = sorted(path for path in named.keys() | hashes.keys() if named.get(path) != hashes.get(path))
    if not wrong:
        return []
    found = f"others of {', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}"
    return [Problem(location, "the SHA-256 of the folder's Parquet files", found, _HINT)]


def _fields(mlc: Any, name: str, file: Path) -> Iterator[Any]:
    """Yields a field for each column that Croissant can read."""
    schema = pq.read_schema(file)
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    for column, feature in features.items():
        options: dict[str, Any] = {}
        transforms, description = [], None
        listed = isinstance(feature, Mapping) and feature.get("_type") == "List"
        kind = (feature["feature"] if listed else feature).get("_type") if isinstance(feature, Mapping) else None
        if kind == "Image":
            data_type, transforms = mlc.DataType.IMAGE_OBJECT, [mlc.Transform(json_path="bytes")]
            # `repeated`, the older spelling: mlcroissant decodes each image of it, and fails on an array of images
            options = {"repeated": True} if listed else {}
        elif kind == "ClassLabel" and not listed:
            data_type = mlc.DataType.INTEGER
            description = ", ".join(f"{index} = {label}" for index, label in enumerate(feature["names"]))
        elif kind == "Value":
            data_type = mlc.DataType.TEXT
            options = {"is_array": True, "array_shape": "-1"} if listed else {}
        else:
            continue
        extract = mlc.Extract(column=column)
        yield mlc.Field(
            id=f"{name}/{column}",
            name=column,
            description=description,
            data_types=[data_type],
            source=mlc.Source(file_set=f"{name}-files", extract=extract, transforms=transforms),
            **options,
        )
