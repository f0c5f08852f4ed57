"""``scale-vqa export`` for trainers: rows in the layouts of ms-swift, LLaMA-Factory, verl and EasyR1.

Rows have the prompt and the order of images of ``scale-vqa predict``. Parquet is written in shards, atomically; an
interrupted export continues with the missing shards. A few rows at a time are in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

import click

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import atomic_path, atomic_write, exclusive_output, parse_json, write_json
from scale_vqa_eval.predict import DEFAULT_PROMPT, PROMPT_HELP
from scale_vqa_eval.predict.images import OPTION_IMAGES, ImageFolder, embedded_bytes
from scale_vqa_eval.schema import DATASET_NAME, VIEWS
from scale_vqa_eval.scoring.score import questions_digest
from training_recipes.rows import (
    NUMBER,
    TARGET,
    PromptFormat,
    dimension_names,
    images_of,
    load_rows,
    messages_of,
    prompt_format,
    question_of,
    questions_of,
)
from training_recipes.sft_data import with_targets

_IMAGE: Final = "<image>"
_PLACEHOLDERS: Final = (_IMAGE, "<video>", "<audio>")
"""Placeholders that trainers replace in a text; a question must not contain one."""
_GROUP: Final = 32
"""Rows per row group, which are in memory together."""


@dataclass(frozen=True)
class VerlExport:
    """Export of rows as Parquet for verl or EasyR1.

    Attributes:
        rows: rows from ``load_rows``.
        shape: prompt format. Images are not resized; verl applies the bounds, which are written with each image.
        split: name of the split, for ``extra_info``.
        out: output folder.
        shard: rows per file.
        image_files: whether to write images as files below ``out/images``, and their absolute paths into the rows.
        layout: columns of verl, or of EasyR1 (a text instead of messages, no bounds).
    """

    rows: Any
    shape: PromptFormat
    split: str
    out: Path
    shard: int
    image_files: bool = False
    layout: Literal["verl", "easyr1"] = "verl"

    def write(self) -> list[Path]:
        """Writes the missing shards; returns the paths of all shards.

        Raises:
            InputError: if rows have no images, a text contains ``<image>``, or ``out`` has another export.
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
        """Checks the rows, and that an earlier export in the folder had the same settings."""
        sizes = image_sizes(self.rows, self.shape, self.split)
        settings = {
            "questions": questions_digest(questions_of(self.rows)),
            "images": sizes,
            "prompt": self.shape.prompt.digest,
            "views": list(self.shape.views),
            "bounds": self._bounds(),
            "shard": self.shard,
            "image_files": self.image_files,
            "layout": self.layout,
        }
        path = self.out / f".{self.split}.json"
        earlier = {"layout": "verl"} | json.loads(path.read_text(encoding="utf-8")) if path.is_file() else settings
        if differing := [name for name, value in settings.items() if earlier.get(name) != value]:
            found = f"one with another {differing[0]}"
            raise InputError(Problem(str(self.out), f"this export of {self.split}", found, "name another --out"))
        write_json(path, settings, "name another --out")

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
        turns = turns_of(question, images, self.shape)
        stated = question.as_row(DATASET_NAME)
        fields = ("id", "question", "options", "dimension", "wsi_name", "patient_id", "group")
        extra = {name: stated[name] for name in fields} | {
            "split": self.split,
            "index": int(row[NUMBER]),
            "views": [image.column for image in images if image.option is None],
            "option_images": sum(image.option is not None for image in images),
            "prompt_id": self.shape.prompt.id,
        }
        shown = [self._image(embedded_bytes(row[image.column], image, self.split)) for image in images]
        if self.layout == "easyr1":
            problem = "\n\n".join(turn["content"] for turn in turns)
            return {"images": shown, "problem": problem, "answer": question.letter, "extra_info": extra}
        return {
            "data_source": DATASET_NAME,
            "prompt": turns,
            "images": shown,
            "ability": "pathology_vqa",
            "reward_model": {"style": "rule", "ground_truth": question.letter},
            "extra_info": extra,
        }

    def _image(self, content: bytes) -> dict[str, Any]:
        if not self.image_files:
            return {"bytes": content, "path": None, **self._bounds()}
        path = self.out / "images" / hashlib.sha256(content).hexdigest()[:32]
        if not path.is_file():
            atomic_write(path, content)
        return {"image": str(path.absolute()), **self._bounds()}

    def _bounds(self) -> dict[str, int]:
        """Returns the bounds that are set, under verl's names."""
        bounds = {"min_pixels": self.shape.bounds.minimum, "max_pixels": self.shape.bounds.maximum}
        return {name: value for name, value in bounds.items() if value is not None}

    def _schema(self) -> Any:
        import pyarrow as pa

        text, number, texts = pa.string(), pa.int64(), pa.list_(pa.string())
        image = {"image": text} if self.image_files else {"bytes": pa.binary(), "path": text}
        images = pa.list_(pa.struct(image | dict.fromkeys(self._bounds(), number)))
        extra = dict.fromkeys(("split", "id", "question", "dimension", "wsi_name", "patient_id", "group"), text)
        extra |= {"prompt_id": text, "index": number, "option_images": number, "options": texts, "views": texts}
        if self.layout == "easyr1":
            return pa.schema({"images": images, "problem": text, "answer": text, "extra_info": pa.struct(extra)})
        columns = {
            "data_source": text,
            "prompt": pa.list_(pa.struct({"role": text, "content": text})),
            "images": images,
            "ability": text,
            "reward_model": pa.struct({"style": text, "ground_truth": text}),
            "extra_info": pa.struct(extra),
        }
        return pa.schema(columns)


def image_sizes(rows: Any, shape: PromptFormat, split: str) -> dict[str, int]:
    """Returns the bytes of each image column; raises InputError if a row has no image in the chosen views."""
    import pyarrow.compute as pc

    bare, sizes = [], dict.fromkeys((*VIEWS, OPTION_IMAGES), 0)
    columns = [name for name in ("id", *sizes) if name in rows.column_names]
    for table in rows.select_columns(columns).with_format("arrow").iter(batch_size=_GROUP):
        for name in columns[1:]:
            cells = pc.list_flatten(table[name]) if name == OPTION_IMAGES else table[name]
            sizes[name] += pc.sum(pc.binary_length(pc.struct_field(cells, "bytes"))).as_py() or 0
        for number in range(len(table)):
            row = {name: cell for name in columns if (cell := table[name][number]).is_valid}
            bare += [] if images_of(row, shape) else [row["id"].as_py()]
    if bare:
        found = f"{len(bare)} without images, the first {preview(bare[0])}"
        hint = "choose other views, or a config with images"
        raise InputError(Problem(split, "rows with images", found, hint))
    return sizes


def turns_of(question: Any, images: Any, shape: PromptFormat) -> list[dict[str, str]]:
    """Returns the messages of a question as texts, with ``<image>`` for each image."""
    turns = messages_of(question, images, shape)
    return [{"role": turn["role"], "content": _content(turn, question.id)} for turn in turns]


def _content(message: Mapping[str, Any], name: str) -> str:
    """Joins the parts of a message, with ``<image>`` for each image."""
    texts = [part["text"] for part in message["content"] if part["type"] == "text"]
    if any(placeholder in text for text in texts for placeholder in _PLACEHOLDERS):
        expected = f"a text without {', '.join(_PLACEHOLDERS)}"
        raise InputError(Problem(f"row {name}", expected, "one with", "fix the text"))
    return "".join(part["text"] if part["type"] == "text" else _IMAGE for part in message["content"])


def _row_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        (
            click.option("--data", required=True, help="Release folder, Hub id, or scale-vqa."),
            click.option("--config", default=None, help="Config of the data.  [default: its default]"),
            click.option("--split", default="train", show_default=True),
            click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder."),
            click.option("--views", multiple=True, type=click.Choice(VIEWS), default=VIEWS, show_default=True),
            click.option("--dimension", "dimensions", multiple=True, help="Dimension to export; repeatable."),
            click.option("--prompt", default=DEFAULT_PROMPT, show_default=True, help=PROMPT_HELP),
            click.option("--min-pixels", type=click.IntRange(min=1), default=None, help="Minimum pixels of an image."),
            click.option("--max-pixels", type=click.IntRange(min=1), default=None, help="Maximum pixels of an image."),
        )
    ):
        command = option(command)
    return command


_SHARD = click.option("--shard", type=click.IntRange(min=1), default=512, show_default=True, help="Rows per file.")
_RATIONALES = click.option(
    "--rationales",
    type=click.Choice(["checked", "repaired", "none"]),
    default="repaired",
    show_default=True,
    help="Rationales to learn: those with the right letters, also those that can be repaired, or none.",
)


@click.command()
@_row_options
@_SHARD
@click.option("--image-files", is_flag=True, help="Write images as files and their paths into the rows.")
def verl(**given: Any) -> None:
    """Write a split as Parquet for verl, with --min-pixels and --max-pixels in each image."""
    _write_parquet("verl", **given)


@click.command()
@_row_options
@_SHARD
def easyr1(**given: Any) -> None:
    """Write a split as Parquet for EasyR1: images, problem (starting with the system prompt), answer.

    Set bounds of pixels in EasyR1's own configuration.
    """
    if given["min_pixels"] or given["max_pixels"]:
        raise click.UsageError("set the pixel bounds in EasyR1's configuration: data.min_pixels and data.max_pixels")
    _write_parquet("easyr1", image_files=False, **given)


@click.command("ms-swift")
@_row_options
@click.option("--rl", is_flag=True, help="Rows for RL: without answers, with `solution` for the reward.")
@_RATIONALES
def ms_swift(
    data: str,
    config: str | None,
    split: str,
    out: Path,
    dimensions: tuple[str, ...],
    rl: bool,
    rationales: Literal["checked", "repaired", "none"],
    **shape: Any,
) -> None:
    """Write a split as JSONL for ms-swift (SFT, or GRPO with --rl), and the images as files."""
    rows = load_rows(data, config, split, dimensions)
    rows = rows if rl else _with_targets(rows, rationales, split)
    path = out / f"{'-'.join([*filter(None, (config, split)), *(['rl'] if rl else [])])}.jsonl"
    with exclusive_output(out), _text_file(path) as file:
        for row in _conversations(rows, prompt_format(**shape), split, out):
            row["images"] = [str((out / name).absolute()) for name in row["images"]]
            row |= {"solution": row.pop("answer")} if rl else {}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    click.echo(f"{path}: {len(rows)} rows")


@click.command("llama-factory")
@_row_options
@_RATIONALES
@click.option("--name", default=None, help="Name in dataset_info.json.  [default: scale_vqa_<config>_<split>]")
def llama_factory(
    data: str,
    config: str | None,
    split: str,
    out: Path,
    dimensions: tuple[str, ...],
    rationales: Literal["checked", "repaired", "none"],
    name: str | None,
    **shape: Any,
) -> None:
    """Write a split as ShareGPT conversations for LLaMA-Factory, with image files and dataset_info.json.

    Stage sft learns the last turn; stage ppo uses the turns before it as the prompt.
    """
    name = name or re.sub(r"[^A-Za-z0-9_]+", "_", "_".join(filter(None, ("scale_vqa", config, split))))
    rows = _with_targets(load_rows(data, config, split, dimensions), rationales, split)
    path, info = out / f"{name}.json", out / "dataset_info.json"
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {
        "file_name": path.name,
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": tags | {"system_tag": "system"},
    }
    with exclusive_output(out):
        known = parse_json(info.read_text(encoding="utf-8"), str(info)) if info.is_file() else {}
        if not isinstance(known, dict):
            raise InputError(Problem(str(info), "a JSON object of datasets", preview(known), "name another --out"))
        with _text_file(path) as file:
            for number, row in enumerate(_conversations(rows, prompt_format(**shape), split, out)):
                file.write((",\n" if number else "[\n") + json.dumps(row, ensure_ascii=False))
            file.write("\n]\n")
        write_json(info, known | {name: entry}, "name another --out")
    click.echo(f"{path}: {len(rows)} rows, in {info.name} as {name}")


@contextmanager
def _text_file(path: Path) -> Iterator[IO[str]]:
    """Yields a text file that is renamed to ``path`` once it is complete."""
    with (
        atomic_path(path, "name another --out") as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        yield file


def _with_targets(rows: Any, policy: Literal["checked", "repaired", "none"], split: str) -> Any:
    """Returns the rows that have a text to learn; reports the others by reason."""
    kept, left_out = with_targets(rows, policy)
    for reason in sorted({reason for _, reason in left_out}):
        ids = [name for name, why in left_out if why == reason]
        click.echo(f"left out: {len(ids)} of {len(rows)} rows, {reason}; the first {preview(ids[0])}", err=True)
    if not len(kept):
        hint = "choose other --rationales"
        raise InputError(Problem(split, "rows with a text to learn", f"none of {len(rows)}", hint))
    return kept


def _conversations(rows: Any, shape: PromptFormat, split: str, out: Path) -> Iterator[dict[str, Any]]:
    """Yields one conversation per row; ``images`` are paths relative to ``out``."""
    image_sizes(rows, shape, split)
    folder, names = ImageFolder(out, shape.bounds), dimension_names(rows)
    for row in rows:
        question, images = question_of(row, names), images_of(row, shape)
        turns = turns_of(question, images, shape)
        if row.get(TARGET) is not None:
            if any(placeholder in row[TARGET] for placeholder in _PLACEHOLDERS):
                expected = f"a rationale without {', '.join(_PLACEHOLDERS)}"
                raise InputError(Problem(f"row {question.id}", expected, "one with", "fix the text"))
            turns.append({"role": "assistant", "content": row[TARGET]})
        yield {
            "messages": turns,
            "images": [folder.add(embedded_bytes(row[image.column], image, split), question.id) for image in images],
            "id": question.id,
            "answer": question.letter,
            "dimension": question.dimension or "",
            "wsi_name": question.slide or "",
            "patient_id": question.patient or "",
            "prompt_id": shape.prompt.id,
        }


def _write_parquet(
    layout: Literal["verl", "easyr1"],
    data: str,
    config: str | None,
    split: str,
    out: Path,
    dimensions: tuple[str, ...],
    shard: int,
    image_files: bool,
    **shape: Any,
) -> None:
    rows = load_rows(data, config, split, dimensions)
    job = VerlExport(rows, prompt_format(**shape), split, out, shard, image_files, layout)
    with exclusive_output(out):
        for path in job.write():
            click.echo(path)
