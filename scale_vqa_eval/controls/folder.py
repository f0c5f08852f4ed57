"""Adds a control to a release folder: rows are taken over from another config, image bytes untouched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scale_vqa_eval.controls.rows import Change
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.question_files import release_files
from scale_vqa_eval.release_folder.shards import ROWS_PER_GROUP, write_shards
from scale_vqa_eval.release_folder.staging import staged_release
from scale_vqa_eval.schema import LETTERS, VIEWS

Kept = Mapping[int, Change | None]
"""Row number within its split, from 0 -> what changes in it, None where nothing does."""


def add_config(
    data: Path, source: str | None, out: Path, config: str, kept: Mapping[str, Kept], note: str, report: str
) -> bool:
    """Writes a config with some rows of another one, in their order, their images as they are.

    Args:
        data: the release folder that the rows are read from.
        source: its config; None takes the one that loads without a name.
        out: the release folder that gets the config; may be ``data``, or not be there yet.
        config: name of the new config; one of that name is replaced.
        kept: split -> rows; a split without rows is left out.
        note: the card's Markdown on the config.
        report: JSON that is put beside the Parquet files as ``control.json``.

    Returns:
        Whether the config has images.

    Raises:
        InputError: where ``data`` has not the columns of a release folder, or ``out`` is something else.
    """
    files = release_files(data, source)
    schemas = [pq.read_schema(shards[0]) for shards in files.values()]
    for shards, schema in zip(files.values(), schemas, strict=True):
        missing = [name for name in _COLUMNS if name not in schema.names]
        if missing:
            expected = f"the columns {', '.join(_COLUMNS)}"
            raise InputError(Problem(str(shards[0]), expected, f"no {', '.join(missing)}", "build the folder again"))
    with staged_release(out, {config}, {config: note}) as staging:
        for (split, shards), schema in zip(files.items(), schemas, strict=True):
            if kept.get(split):
                write_shards(staging / config, split, schema, _chosen(shards, schema, kept[split]))
        (staging / config / "control.json").write_text(report, encoding="utf-8", newline="\n")
    return any(view in schema.names for view in VIEWS for schema in schemas)


_COLUMNS = ("question", "options", "answer", "rationale", "source", "group")


def _chosen(shards: list[Path], schema: Any, kept: Kept) -> Iterator[Any]:
    """Yields tables of at most ``ROWS_PER_GROUP`` chosen rows; memory holds one of them and one batch read."""
    waiting = schema.empty_table()
    for number, batch in _batches(shards, kept):
        at = [row for row in range(len(batch)) if number + row in kept]
        changes = [kept[number + row] for row in at]
        chosen = _changed(pa.Table.from_batches([batch]).take(at), schema, changes)
        waiting = pa.concat_tables([waiting, chosen])
        if len(waiting) >= ROWS_PER_GROUP:
            yield waiting.slice(0, ROWS_PER_GROUP).combine_chunks()
            waiting = waiting.slice(ROWS_PER_GROUP)
    if len(waiting):
        yield waiting.combine_chunks()


def _batches(shards: list[Path], kept: Kept) -> Iterator[tuple[int, Any]]:
    """Yields the number of the first row and a batch of rows, for the row groups that hold a chosen row."""
    start = 0
    for shard in shards:
        file = pq.ParquetFile(shard)
        for group in range(file.num_row_groups):
            length = file.metadata.row_group(group).num_rows
            if any(start + row in kept for row in range(length)):
                number = start
                for batch in file.iter_batches(batch_size=ROWS_PER_GROUP, row_groups=[group]):
                    yield number, batch
                    number += len(batch)
            start += length


def _changed(table: Any, schema: Any, changes: list[Change | None]) -> Any:
    """Puts the changes of some rows into their columns; a row without a change keeps every value."""
    old = {name: table.column(name).to_pylist() for name in _COLUMNS}
    new: dict[str, list[Any]] = {name: list(values) for name, values in old.items()}
    as_number = pa.types.is_integer(schema.field("answer").type)
    for row, change in enumerate(changes):
        if change is None:
            continue
        donors = ", ".join(f"{letter} {name}" for letter, name in zip(LETTERS, change.sources, strict=False))
        new["question"][row] = change.question
        new["options"][row] = list(change.options)
        new["answer"][row] = change.answer if as_number else LETTERS[change.answer]
        new["rationale"][row] = change.rationale
        new["group"][row] = change.group
        made = f"options are the right answers of {donors}"
        new["source"][row] = f"{old['source'][row]}; {made}" if old["source"][row] else made
    for name, values in new.items():
        place = schema.get_field_index(name)
        table = table.set_column(place, schema.field(name), pa.array(values, type=schema.field(name).type))
    return table.cast(schema)
