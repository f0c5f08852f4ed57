"""Small release folders for the tests of ``review``: nested views cut from one picture, hostile texts."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from scale_vqa_eval.release_folder.write import write_release
from scale_vqa_eval.schema import QUESTION_TYPES, row_id

HOSTILE = [
    "<script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=1">',
    "</section></div><svg onload=window.hacked=1>",
    "{{ 7 * 7 }} ${window.hacked=1} {{#each value}}x{{/each}}",
    "[click](javascript:window.hacked=1) **bold** `code` <b>bold</b>",
    "gland \u202eredro\u202c \u200bhidden",
]
PLACE = {"mid": (700, 300), "high": (150, 260)}
"""Left and top of the mid field in the picture, and of the high field in the mid view, in pixels."""


def jpeg(image: Image.Image) -> dict[str, Any]:
    """Returns an image cell."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    return {"bytes": file.getvalue(), "path": "view.jpg"}


@lru_cache
def nested_views(seed: int) -> dict[str, dict[str, Any]]:
    """Returns three views, each cut from the one before at ``PLACE``, of a random blotchy picture."""
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 255, (384, 384, 3), dtype=np.uint8)).resize((2048, 2048))
    picture = noise.filter(ImageFilter.GaussianBlur(3))
    (x, y), (u, v) = PLACE["mid"], PLACE["high"]
    mid = picture.crop((x, y, x + 512, y + 512))
    high = mid.crop((u, v, u + 102, v + 102)).resize((512, 512), Image.Resampling.BICUBIC)
    return {"low_mag": jpeg(picture.resize((512, 512))), "mid_mag": jpeg(mid), "high_mag": jpeg(high)}


def rows(paths: int = 3, hostile: bool = False, grouped: bool = False) -> Iterator[dict[str, Any]]:
    """Yields five questions a path, a patient a path; the last path has no high view."""
    for path in range(paths):
        views: dict[str, Any] = dict(nested_views(path))
        if path == paths - 1:
            views["high_mag"] = None
        slide = f"TCGA-AA-{path:04d}-01Z-00-DX1"
        for number, (kind, dimension) in enumerate(QUESTION_TYPES.items()):
            bad = HOSTILE[(path + number) % len(HOSTILE)] if hostile else ""
            yield {
                "id": row_id(slide, f"p{path}", kind),
                "question": f"What joins the scales of field {'' if grouped else path}, question {number}? {bad}",
                "options": [f"{word} {number} {bad}".strip() for word in ("glands", "stroma", "nuclei", "necrosis")],
                "answer": "ABCD"[(path + number) % 4],
                "rationale": f"Seen at 10x and at 40x. {bad}".strip(),
                **views,
                "dimension": dimension,
                "wsi_name": slide,
                "patient_id": slide[:12],
                "path_id": f"p{path}",
                "group": f"g{number}" if grouped else None,
            }


def make_review_release(folder: Path, **settings: Any) -> Path:
    """Writes the config ``default`` with a split ``test``, and ``text`` beside it."""
    made = list(rows(**settings))
    return write_release(
        folder, {name: {"test": made} for name in ("default", "text")}, {"default": "made for a test"}
    )
