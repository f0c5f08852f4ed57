"""A small release folder for the tests of loading: nested views, nulls, option images, several shards."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from loading_checks import digest
from PIL import Image

from scale_vqa_eval.release_folder import write as release_shards
from scale_vqa_eval.release_folder.write import write_release
from scale_vqa_eval.schema import ALL_DIMENSIONS, VIEWS, row_id

HEAD = f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from loading_checks import *\n"
"""First line of code that a fresh process runs: the checks of ``loading_checks`` are there."""
SIZES = {
    "default": {"validation": 70, "test": 140},
    "exchange": {"test": 8},
    "grounding": {"test": 70},
    "text": {"validation": 70, "test": 140},
}


def jpeg(number: int, size: int = 32) -> dict[str, Any]:
    """A JPEG of its own for each number, as an image column takes it."""
    pixels = random.Random(number).randbytes(size * size * 3)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (size, size), pixels).save(buffer, "JPEG", quality=60)
    return {"bytes": buffer.getvalue(), "path": f"{number}.jpg"}


def rows(config: str, split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of one split; every seventh has no high view, those of ``grounding`` have four option images."""
    for index in range(count):
        number = seed * 100_000 + index * 10
        slide = f"{split}-{index // 5}"
        dimension = "origin" if config == "grounding" else "Correspondence"
        row: dict[str, Any] = {
            "id": row_id(slide, f"p{index}", dimension),
            "question": f"{config}/{split}: which finding of {index} holds, by seed {seed}?",
            "options": [f"finding {index}{letter} \u00b5" for letter in "abcd"],
            "answer": "ABCD"[(index + seed) % 4],
            "dimension": dimension,
            "wsi_name": slide,
            "patient_id": slide,
            "path_id": f"p{index}",
            "source": "generated",
            "group": f"g{index // 4}" if config == "exchange" else None,
        }
        if config != "text":
            row |= {view: jpeg(number + place) for place, view in enumerate(VIEWS)}
            row["high_mag"] = None if index % 7 == 0 else row["high_mag"]
            row["option_images"] = [jpeg(number + 4 + place) for place in range(4)] if config == "grounding" else []
        yield row


def write_folder(out: Path, seed: int = 0, sizes: dict[str, dict[str, int]] | None = None) -> dict[str, Any]:
    """Writes a release folder with a shard for every row group; returns config -> split -> digest of its rows."""
    tables = {
        config: {split: list(rows(config, split, count, seed)) for split, count in splits.items()}
        for config, splits in (sizes or SIZES).items()
    }
    with mock.patch.multiple(release_shards, SHARD_BYTES=1, GROUP_BYTES=(200_000, 10**7)):
        write_release(out, tables, {config: "Generated for a test." for config in tables})
    return {
        config: {split: digest(map(_labelled, made)) for split, made in splits.items()}
        for config, splits in tables.items()
    }


def _labelled(row: dict[str, Any]) -> dict[str, Any]:
    """The row as ``datasets`` gives it back: classes as numbers."""
    return {**row, "answer": "ABCD".index(row["answer"]), "dimension": ALL_DIMENSIONS.index(row["dimension"])}


def result(done: Any) -> Any:
    """The last line that a process printed, as JSON."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_uses(found: dict[str, Any], digest: str, count: int = SIZES["default"]["test"]) -> None:
    """What ``loading_checks.uses`` gives for the ``test`` split of ``default``, whatever the way of loading."""
    assert found["sizes"] == [[32, 32]]
    assert found["pickled"] == found["pickled stream"] == digest
    assert found["mapped"] is True
    assert found["loader"] == found["stream loader"] == count
    assert found["features"].count("Image") == 3
    assert found["features"].count("ClassLabel") == 2
    assert found["same features"] is True
