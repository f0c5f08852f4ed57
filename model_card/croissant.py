"""Croissant metadata of a release folder (https://docs.mlcommons.org/croissant, by ``mlcroissant``).

Every Parquet file is named with its SHA-256, every split is a record set whose fields come from the Parquet schema.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from model_card.licence import Licence
from scale_vqa_eval import __version__
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.release_folder.read import release_configs

NAME: Final = "croissant.json"
_PARQUET: Final = "application/x-parquet"
_DESCRIPTION: Final = (
    "Four-option questions about nested fields of one pathology slide at three magnifications. For research only, not "
    "for diagnosis."
)
_CITE: Final = "Phan et al., Enhancing Pathological VLMs with Cross-scale Reasoning, MICCAI 2026, arXiv:2606.17412"


def croissant(folder: Path, repo: str, licence: Licence) -> str:
    """Returns the Croissant JSON-LD of a release folder; the same folder gives the same text.

    Args:
        folder: the release folder.
        repo: Hub id under which it is published.
        licence: as its card states it.

    Raises:
        InputError: where ``mlcroissant`` finds a fault in what was made.
    """
    import mlcroissant as mlc

    configs = release_configs(folder)
    shards = [file for splits in configs.values() for files in splits.values() for file in files]
    distribution: list[Any] = [
        mlc.FileObject(
            id=place,
            name=place,
            content_url=place,
            content_size=f"{file.stat().st_size} B",
            encoding_formats=[_PARQUET],
            sha256=_sha256(file),
        )
        for place, file in ((file.relative_to(folder).as_posix(), file) for file in shards)
    ]
    records = []
    for config, splits in configs.items():
        for split, files in splits.items():
            name = f"{config}/{split}"
            pattern = f"{config}/{split}-*.parquet"
            distribution.append(
                mlc.FileSet(id=f"{name}-files", name=f"{name}-files", encoding_formats=[_PARQUET], includes=[pattern])
            )
            records.append(mlc.RecordSet(id=name, name=name, fields=list(_fields(mlc, name, files[0]))))
    metadata = mlc.Metadata(
        name=repo.split("/")[-1],
        description=_DESCRIPTION,
        url=f"https://huggingface.co/datasets/{repo}",
        license=[licence.link or licence.id],
        version=__version__,
        cite_as=_CITE,
        distribution=distribution,
        record_sets=records,
    )
    if metadata.issues.errors:
        found = preview(" ".join(sorted(map(str, metadata.issues.errors))), 300)
        raise InputError(Problem(str(folder), "rows that Croissant can describe", found, "report this folder"))
    return json.dumps(metadata.to_json(), indent=2, ensure_ascii=False, default=str) + "\n"


def check_croissant(path: Path) -> list[Problem]:
    """Returns what is wrong with a Croissant file: what ``mlcroissant`` says, and files that are not as it says."""
    import mlcroissant as mlc

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        dataset = mlc.Dataset(jsonld=str(path))
    except (OSError, ValueError, mlc.ValidationError) as error:
        return [
            Problem(
                str(path), "valid Croissant metadata", preview(str(error), 300), "scale-vqa card dataset --croissant"
            )
        ]
    problems = [
        Problem(str(path), "valid Croissant metadata", preview(str(issue), 200), "write it again")
        for issue in sorted(dataset.metadata.issues.errors)
    ]
    named = {one["contentUrl"]: one["sha256"] for one in content["distribution"] if "sha256" in one}
    there = {file.relative_to(path.parent).as_posix() for file in path.parent.rglob("*.parquet")}
    hint = "write it again: scale-vqa card dataset --croissant"
    problems += [
        Problem(str(path), f"the hash of {name}", "no such file", hint) for name in sorted(named.keys() - there)
    ]
    problems += [Problem(str(path), f"the hash of {name}", "none", hint) for name in sorted(there - named.keys())]
    problems += [
        Problem(str(path), f"the hash of {name}", "that of other bytes", hint)
        for name in sorted(named.keys() & there)
        if _sha256(path.parent / name) != named[name]
    ]
    return problems


def _fields(mlc: Any, name: str, file: Path) -> Iterator[Any]:
    """Yields a field for each column that can be read."""
    schema = pq.read_schema(file)
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    files = f"{name}-files"
    for column, feature in features.items():
        kind = feature.get("_type") if isinstance(feature, Mapping) else None
        transforms, array, about = [], {}, None
        if kind == "Image":
            data_type = mlc.DataType.IMAGE_OBJECT
            transforms = [mlc.Transform(json_path="bytes")]
        elif kind == "ClassLabel":
            data_type = mlc.DataType.INTEGER
            about = ", ".join(f"{place} = {label}" for place, label in enumerate(feature["names"]))
        elif kind == "Value":
            data_type = mlc.DataType.TEXT
        elif kind == "List" and feature["feature"].get("_type") == "Value":
            data_type, array = mlc.DataType.TEXT, {"is_array": True, "array_shape": "-1"}
        elif kind == "List" and feature["feature"].get("_type") == "Image":
            # `repeated`, the older spelling: mlcroissant decodes each image of it, and fails on an array of images
            data_type, array = mlc.DataType.IMAGE_OBJECT, {"repeated": True}
            transforms = [mlc.Transform(json_path="bytes")]
        else:
            continue
        yield mlc.Field(
            id=f"{name}/{column}",
            name=column,
            description=about,
            data_types=[data_type],
            source=mlc.Source(file_set=files, extract=mlc.Extract(column=column), transforms=transforms),
            **array,
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
