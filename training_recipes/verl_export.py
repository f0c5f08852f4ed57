"""Writes rows in verl's Parquet layout, for those who train there: the authors have not released theirs.

    python training_recipes/verl_export.py --data scale-vqa --split train --out verl/

Columns: ``data_source``, ``prompt`` (role and content, ``<image>`` in place of an image), ``images`` (bytes, or paths
with ``--image-files``), ``ability``, ``reward_model`` (``style``, ``ground_truth``), ``extra_info``. Each shard is
written completely or not at all; an interrupted export writes the missing ones. Memory holds a few rows.
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
from scale_vqa_eval.files import atomic_path, atomic_write, write_json
from scale_vqa_eval.predict.images import OPTION_IMAGES, embedded_bytes
from scale_vqa_eval.schema import VIEWS
from scale_vqa_eval.scoring.score import questions_digest
from training_recipes.rows import (
    NUMBER,
    PromptFormat,
    dimension_names,
    images_of,
    load_rows,
    messages_of,
    prompt_format,
    question_of,
    questions_of,
)
from training_recipes.verl_reward import SOURCE

_IMAGE: Final = "<image>"
_PLACEHOLDERS: Final = (_IMAGE, "<video>", "<audio>")
"""What verl replaces in a text; a question must not hold one."""
_GROUP: Final = 32
"""Rows of a row group: what memory holds."""


@dataclass(frozen=True)
class VerlExport:
    """What is exported.

    Attributes:
        rows: what ``load_rows`` gave.
        shape: how they are asked; images stay as they are, with the bounds beside them for verl to apply.
        split: name that goes into ``extra_info``.
        out: folder.
        shard: rows per file.
        image_files: write images as files below ``out/images`` and their absolute paths into the rows.
    """

    rows: Any
    shape: PromptFormat
    split: str
    out: Path
    shard: int
    image_files: bool

    def write(self) -> list[Path]:
        """Writes the shards that do not exist yet; returns all of them.

        Raises:
            InputError: if rows have no images, a text holds ``<image>``, or ``out`` holds another export of the split.
        """
        self._check()
        count = math.ceil(len(self.rows) / self.shard)
        paths = [self.out / f"{self.split}-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
        for number, path in enumerate(paths):
            if not path.is_file():
                stop = min((number + 1) * self.shard, len(self.rows))
                self._write(path, range(number * self.shard, stop))
                print(f"{path}: {stop - number * self.shard} rows", file=sys.stderr)
        return paths

    def _check(self) -> None:
        """Checks the rows, and that an export begun in the folder is this one."""
        import pyarrow.compute as pc

        bare, sizes = [], dict.fromkeys((*VIEWS, OPTION_IMAGES), 0)
        columns = [name for name in ("id", *sizes) if name in self.rows.column_names]
        for table in self.rows.select_columns(columns).with_format("arrow").iter(batch_size=_GROUP):
            for name in columns[1:]:
                cells = pc.list_flatten(table[name]) if name == OPTION_IMAGES else table[name]
                sizes[name] += pc.sum(pc.binary_length(pc.struct_field(cells, "bytes"))).as_py() or 0
            for number in range(len(table)):
                row = {name: cell for name in columns if (cell := table[name][number]).is_valid}
                bare += [] if images_of(row, self.shape) else [row["id"].as_py()]
        if bare:
            found = f"{len(bare)} without, the first {preview(bare[0])}"
            hint = "choose other views, or a config with images"
            raise InputError(Problem(self.split, "rows with images", found, hint))
        note = {
            "questions": questions_digest(questions_of(self.rows)),
            "images": sizes,
            "prompt": self.shape.prompt.digest,
            "views": list(self.shape.views),
            "bounds": self._bounds(),
            "shard": self.shard,
            "image_files": self.image_files,
        }
        path = self.out / f".{self.split}.json"
        begun = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else note
        if differing := [name for name, value in note.items() if begun.get(name) != value]:
            found = f"one with another {differing[0]}"
            raise InputError(Problem(str(self.out), f"this export of {self.split}", found, "name another --out"))
        write_json(path, note, "name another --out")

    def _write(self, path: Path, numbers: range) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema, names = self._schema(), dimension_names(self.rows)
        with atomic_path(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for start in range(numbers.start, numbers.stop, _GROUP):
                group = range(start, min(start + _GROUP, numbers.stop))
                writer.write_table(pa.Table.from_pylist([self._row(self.rows[row], names) for row in group], schema))

    def _row(self, row: Mapping[str, Any], names: list[str] | None) -> dict[str, Any]:
        question, images = question_of(row, names), images_of(row, self.shape)
        messages = messages_of(question, images, self.shape)
        return {
            "data_source": SOURCE,
            "prompt": [{"role": turn["role"], "content": _content(turn, question.id)} for turn in messages],
            "images": [self._image(embedded_bytes(row[image.column], image, self.split)) for image in images],
            "ability": "pathology_vqa",
            "reward_model": {"style": "rule", "ground_truth": question.letter},
            "extra_info": {
                "split": self.split,
                "index": int(row[NUMBER]),
                "id": question.id,
                "question": question.question,
                "options": list(question.options),
                "dimension": question.dimension,
                "views": [image.column for image in images if image.option is None],
                "option_images": sum(image.option is not None for image in images),
                "wsi_name": question.slide,
                "patient_id": question.patient,
                "group": question.group,
                "prompt_id": self.shape.prompt.id,
            },
        }

    def _image(self, content: bytes) -> dict[str, Any]:
        if not self.image_files:
            return {"bytes": content, "path": None, **self._bounds()}
        path = self.out / "images" / hashlib.sha256(content).hexdigest()[:32]
        if not path.is_file():
            atomic_write(path, content)
        return {"image": str(path.absolute()), **self._bounds()}

    def _bounds(self) -> dict[str, int]:
        """Returns the bounds given, under the names by which verl reads them beside an image."""
        bounds = {"min_pixels": self.shape.bounds.minimum, "max_pixels": self.shape.bounds.maximum}
        return {name: value for name, value in bounds.items() if value is not None}

    def _schema(self) -> Any:
        import pyarrow as pa

        text, number, texts = pa.string(), pa.int64(), pa.list_(pa.string())
        image = {"image": text} if self.image_files else {"bytes": pa.binary(), "path": text}
        extra = dict.fromkeys(("split", "id", "question", "dimension", "wsi_name", "patient_id", "group"), text)
        extra |= {"prompt_id": text, "index": number, "option_images": number, "options": texts, "views": texts}
        columns = {
            "data_source": text,
            "prompt": pa.list_(pa.struct({"role": text, "content": text})),
            "images": pa.list_(pa.struct(image | dict.fromkeys(self._bounds(), number))),
            "ability": text,
            "reward_model": pa.struct({"style": text, "ground_truth": text}),
            "extra_info": pa.struct(extra),
        }
        return pa.schema(columns)


def _content(message: Mapping[str, Any], name: str) -> str:
    """Joins the parts of a message; verl puts an image in place of ``<image>``."""
    texts = [part["text"] for part in message["content"] if part["type"] == "text"]
    if any(placeholder in text for text in texts for placeholder in _PLACEHOLDERS):
        expected = f"a text without {', '.join(_PLACEHOLDERS)}"
        raise InputError(Problem(f"row {name}", expected, "one with", "fix the text"))
    return "".join(part["text"] if part["type"] == "text" else _IMAGE for part in message["content"])


@click.command()
@click.option("--data", required=True, help="Release folder, Hub id, or the bare name.")
@click.option("--config", default=None, help="Config of the data.  [default: its default]")
@click.option("--split", default="train", show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--views", multiple=True, type=click.Choice(VIEWS), default=VIEWS, show_default=True)
@click.option("--dimension", "dimensions", multiple=True, help="Keep this dimension; may be given again.")
@click.option("--prompt", default="published", show_default=True, help="Prompt id, or a YAML file of your own.")
@click.option("--min-pixels", type=click.IntRange(min=1), default=None, help="Minimum pixels of an image, for verl.")
@click.option("--max-pixels", type=click.IntRange(min=1), default=None, help="Maximum pixels of an image, for verl.")
@click.option("--shard", type=click.IntRange(min=1), default=512, show_default=True, help="Rows per file.")
@click.option("--image-files", is_flag=True, help="Write images as files and their paths into the rows.")
def main(
    data: str,
    config: str | None,
    split: str,
    out: Path,
    dimensions: tuple[str, ...],
    shard: int,
    image_files: bool,
    **shape: Any,
) -> None:
    """Write a split in verl's Parquet layout."""
    rows = load_rows(data, config, split, dimensions)
    job = VerlExport(rows, prompt_format(**shape), split, out, shard, image_files)
    for path in job.write():
        click.echo(path)


if __name__ == "__main__":
    from training_recipes.run import report_errors

    report_errors(main)
