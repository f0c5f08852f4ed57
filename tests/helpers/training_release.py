"""A small release folder and a tiny model for the tests of training; paths with three views and with two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from predict_release import grounding_rows, rows

from scale_vqa_eval.release_folder.write import write_release

RATIONALES = (
    "Glands nest at 10x, and at 200x the nuclei vary.",
    "Option {gold} pairs the findings of both scales.",
    "Option {other} pairs the findings of both scales.",
    "Only {gold} is in the feature list.",
    None,
)
CPU = ("--use_cpu", "true", "--bf16", "false", "--gradient_checkpointing", "false", "--report_to", "none")


def trained_rows(paths: int = 6, side: int = 56) -> Iterator[dict[str, Any]]:
    """Yields the rows of ``predict_release`` with rationales: plain, right, of another letter, of a list, none."""
    for number, row in enumerate(rows(paths, side)):
        text = RATIONALES[number % len(RATIONALES)]
        other = "BCDA"["ABCD".index(row["answer"])]
        yield {**row, "rationale": None if text is None else text.format(gold=row["answer"], other=other)}


def text_rows(paths: int = 2) -> Iterator[dict[str, Any]]:
    """Yields rows without images."""
    for row in trained_rows(paths):
        yield {name: value for name, value in row.items() if not name.endswith("_mag")}


def make_training_release(folder: Path) -> Path:
    """Writes the configs ``default`` (train, val), ``grounding`` and ``text``."""
    tables = {
        "default": {"train": trained_rows(), "val": trained_rows(2)},
        "grounding": {"train": grounding_rows()},
        "text": {"train": text_rows()},
    }
    return write_release(folder, tables, {name: "made for a test" for name in tables})
