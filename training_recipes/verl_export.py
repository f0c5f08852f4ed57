"""Writes rows in verl's Parquet layout, for those who train there: the authors never released theirs.

    python training_recipes/verl_export.py --data scale-vqa --split train --out verl/

Columns: ``data_source``, ``prompt`` (role and content, an ``<image>`` where an image stands), ``images`` (bytes, or
paths with ``--image-files``), ``ability``, ``reward_model`` (``style``, ``ground_truth``), ``extra_info``. One file a
shard, whole or not there; a run that was interrupted writes the shards that are missing. Memory holds a few rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict.images import OPTION_IMAGES, embedded_bytes
from scale_vqa_eval.schema import VIEWS
from scale_vqa_eval.scoring.score import questions_digest
from training_recipes.rows import (
    NUMBER,
    Shape,
    conversation,
    labels,
    load_rows,
    make_shape,
    of_dimensions,
    question_of,
    shown_images,
    texts,
)
from training_recipes.verl_reward import SOURCE

ABILITY: Final = "pathology_vqa"
_PLACE: Final = "<image>"
_PLACES: Final = (_PLACE, "<video>", "<audio>")
"""Where verl puts what a row shows; a text must not hold one."""
_GROUP: Final = 32
"""Rows of a row group: what memory holds."""


@dataclass(frozen=True)
class Export:
    """What is exported.

    Attributes:
        rows: what ``load_rows`` gave, filtered.
        shape: how they are asked; images go as they are, bounds of pixels beside them for verl to keep.
        split: name that goes into ``extra_info``.
        out: folder.
        shard: rows a file.
        image_files: write images as files below ``out/images`` and their absolute paths into the rows.
    """

    rows: Any
    shape: Shape
    split: str
    out: Path
    shard: int
    image_files: bool


def export(job: Export) -> list[Path]:
    """Writes the shards that are not there yet; returns all of them.

    Raises:
        InputError: where rows have no images, a text holds ``<image>``, or ``out`` holds another export of the split.
    """
    pictures = shown_images(job.rows, job.shape)
    if not all(pictures):
        bare = [job.rows[place]["id"] for place, row in enumerate(pictures) if not row]
        found = f"{len(bare)} without, the first {preview(bare[0])}"
        raise InputError(Problem(job.split, "rows with images", found, "choose other views, or a config with images"))
    job.out.mkdir(parents=True, exist_ok=True)
    _check_same(job)
    count = math.ceil(len(job.rows) / job.shard)
    paths = [job.out / f"{job.split}-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
    for number, path in enumerate(paths):
        if path.is_file():
            continue
        start = number * job.shard
        _write(path, job, range(start, min(start + job.shard, len(job.rows))))
        print(f"{path}: {min(job.shard, len(job.rows) - start)} rows", file=sys.stderr)
    return paths


def _check_same(job: Export) -> None:
    """Compares the export with the one that the folder was begun with, or notes it."""
    note = {
        "questions": questions_digest(question_of(row) for row in texts(job.rows)),
        "images": _bytes_of_images(job.rows),
        "prompt": job.shape.prompt.digest,
        "views": list(job.shape.views),
        "bounds": _bounds(job.shape),
        "shard": job.shard,
        "image_files": job.image_files,
    }
    path = job.out / f".{job.split}.json"
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name, value in note.items() if there.get(name) != value]
        if differing:
            found = f"one with another {differing[0]}"
            raise InputError(Problem(str(job.out), f"this export of {job.split}", found, "name another --out"))
    path.write_text(json.dumps(note) + "\n", encoding="utf-8")


def _bytes_of_images(rows: Any) -> dict[str, int]:
    """Returns the bytes of each image column; their lengths are looked at, no image is read."""
    import pyarrow.compute as pc

    rows = rows.flatten_indices() if rows._indices is not None else rows
    found = {}
    for name in (*VIEWS, OPTION_IMAGES):
        if name in rows.column_names:
            column = rows.data.column(name)
            cells = pc.list_flatten(column) if name == OPTION_IMAGES else column
            found[name] = pc.sum(pc.binary_length(pc.struct_field(cells, "bytes"))).as_py() or 0
    return found


def _write(path: Path, job: Export, places: range) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(job.image_files, job.shape)
    partial = path.with_name(f".{path.name}.partial")
    with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for start in range(places.start, places.stop, _GROUP):
            group = [_row(job, place) for place in range(start, min(start + _GROUP, places.stop))]
            writer.write_table(pa.Table.from_pylist(group, schema))
    partial.rename(path)


def _row(job: Export, place: int) -> dict[str, Any]:
    """Returns the row of verl that a row of ours makes."""
    row = job.rows[place]
    names = labels(job.rows, "dimension") if "dimension" in job.rows.column_names else None
    question = question_of(row, names)
    messages, cells = conversation(row, question, job.shape)
    contents = [embedded_bytes(cell, picture, job.split) for cell, picture in cells]
    return {
        "data_source": SOURCE,
        "prompt": [{"role": message["role"], "content": _content(message, question.id)} for message in messages],
        "images": [_image(job, content) for content in contents],
        "ability": ABILITY,
        "reward_model": {"style": "rule", "ground_truth": question.letter},
        "extra_info": {
            "split": job.split,
            "index": int(row[NUMBER]),
            "id": question.id,
            "question": question.question,
            "options": list(question.options),
            "dimension": question.dimension,
            "views": [picture.column for _, picture in cells if picture.column in VIEWS],
            "option_images": sum(picture.column == OPTION_IMAGES for _, picture in cells),
            "wsi_name": question.slide,
            "patient_id": question.patient,
            "group": question.group,
            "prompt_id": job.shape.prompt.id,
        },
    }


def _content(message: Mapping[str, Any], identity: str) -> str:
    """Joins the parts of a message; verl puts an image where ``<image>`` stands."""
    texts = [part["text"] for part in message["content"] if part["type"] == "text"]
    if any(place in text for text in texts for place in _PLACES):
        expected = f"a text without {', '.join(_PLACES)}"
        raise InputError(Problem(f"row {identity}", expected, "one with", "fix the text"))
    return "".join(part["text"] if part["type"] == "text" else _PLACE for part in message["content"])


def _image(job: Export, content: bytes) -> dict[str, Any]:
    if not job.image_files:
        return {"bytes": content, "path": None, **_bounds(job.shape)}
    path = job.out / "images" / f"{hashlib.sha256(content).hexdigest()[:32]}"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(content)
        partial.rename(path)
    return {"image": str(path.absolute()), **_bounds(job.shape)}


def _bounds(shape: Shape) -> dict[str, int]:
    """Returns the bounds that were asked for, under the names by which verl reads them beside an image."""
    given = {"min_pixels": shape.bounds.minimum, "max_pixels": shape.bounds.maximum}
    return {name: value for name, value in given.items() if value is not None}


def _schema(image_files: bool, shape: Shape) -> Any:
    import pyarrow as pa

    text = pa.string()
    image = [("image", text)] if image_files else [("bytes", pa.binary()), ("path", text)]
    image += [(name, pa.int64()) for name in _bounds(shape)]
    extra = [("split", text), ("index", pa.int64()), ("id", text), ("question", text), ("options", pa.list_(text))]
    extra += [("dimension", text), ("views", pa.list_(text)), ("option_images", pa.int64()), ("wsi_name", text)]
    extra += [("patient_id", text), ("group", text), ("prompt_id", text)]
    return pa.schema(
        [
            ("data_source", text),
            ("prompt", pa.list_(pa.struct([("role", text), ("content", text)]))),
            ("images", pa.list_(pa.struct(image))),
            ("ability", text),
            ("reward_model", pa.struct([("style", text), ("ground_truth", text)])),
            ("extra_info", pa.struct(extra)),
        ]
    )


@click.command()
@click.option("--data", required=True, help="Release folder, Hub id, or the bare name.")
@click.option("--config", default=None, help="Config of the data.  [default: its default]")
@click.option("--split", default="train", show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--views", multiple=True, type=click.Choice(VIEWS), default=VIEWS, show_default=True)
@click.option("--dimension", "dimensions", multiple=True, help="Keep this dimension; may be given again.")
@click.option("--prompt", default="published", show_default=True, help="Prompt id, or a YAML file of one's own.")
@click.option("--min-pixels", type=click.IntRange(min=1), default=None, help="Least pixels of an image, for verl.")
@click.option("--max-pixels", type=click.IntRange(min=1), default=None, help="Most pixels of an image, for verl.")
@click.option("--shard", type=click.IntRange(min=1), default=512, show_default=True, help="Rows a file.")
@click.option("--image-files", is_flag=True, help="Write images as files and their paths into the rows.")
def main(
    data: str,
    config: str | None,
    split: str,
    out: Path,
    views: tuple[str, ...],
    dimensions: tuple[str, ...],
    prompt: str,
    min_pixels: int | None,
    max_pixels: int | None,
    shard: int,
    image_files: bool,
) -> None:
    """Write a split in verl's Parquet layout."""
    rows = of_dimensions(load_rows(data, config, split), dimensions)
    shape = make_shape(prompt, views, min_pixels, max_pixels)
    for path in export(Export(rows, shape, split, out, shard, image_files)):
        click.echo(path)


if __name__ == "__main__":
    from training_recipes.launch import reported

    reported(main)
