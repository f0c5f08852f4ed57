"""A small release folder with images for the tests of ``predict``: known paths, patients, missing views."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scale_vqa_eval.release_folder.write import write_release
from scale_vqa_eval.schema import QUESTION_TYPES, VIEWS, row_id

PATHS, SIDE = 6, 112


def picture(seed: int, side: int = SIDE, kind: str = "JPEG") -> bytes:
    """Returns a coloured blocky picture of its own for every seed."""
    blocks = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def rows(paths: int = PATHS, side: int = SIDE) -> Iterator[dict[str, Any]]:
    """Yields five questions a path, two paths a patient; every third path has no high view."""
    for path in range(paths):
        slide = f"TCGA-AA-{path // 2:04d}-01Z-00-DX1"
        views = {
            view: {"bytes": picture(10 * path + place, side), "path": f"{path}_{view}.jpg"}
            for place, view in enumerate(VIEWS)
            if (path, view) not in {(i, "high_mag") for i in range(2, paths, 3)}
        }
        for number, (kind, dimension) in enumerate(QUESTION_TYPES.items()):
            yield {
                "id": row_id(slide, f"p{path}", kind),
                "question": f"What joins the scales of field {path}, question {number}?",
                "options": [f"{word} {(path + number) % 7}" for word in ("glands", "stroma", "nuclei", "necrosis")],
                "answer": "ABCD"[(path + number) % 4],
                **views,
                "dimension": dimension,
                "wsi_name": slide,
                "patient_id": slide[:12],
                "path_id": f"p{path}",
            }


def grounding_rows(count: int = 3) -> Iterator[dict[str, Any]]:
    """Yields questions whose options are images."""
    for number in range(count):
        slide = f"S{number}"
        yield {
            "id": row_id(slide, "p", "zoom-in"),
            "question": "Which of the four fields lies inside of the field above?",
            "options": ["field A", "field B", "field C", "field D"],
            "answer": "ABCD"[number % 4],
            "mid_mag": {"bytes": picture(900 + number), "path": "mid.jpg"},
            "option_images": [{"bytes": picture(1000 + 10 * number + i), "path": f"{i}.jpg"} for i in range(4)],
            "dimension": "zoom-in",
            "wsi_name": slide,
            "patient_id": slide,
            "path_id": "p",
        }


def make_release(folder: Path, paths: int = PATHS, side: int = SIDE) -> Path:
    """Writes the configs ``default`` and ``grounding``, split ``test``."""
    tables = {"default": {"test": rows(paths, side)}, "grounding": {"test": grounding_rows()}}
    return write_release(folder, tables, {name: "made for a test" for name in tables})
