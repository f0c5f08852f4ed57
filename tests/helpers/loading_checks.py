"""What every way of loading must give, measured inside the process that loads; it imports nothing of this project."""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
from collections.abc import Iterable
from typing import Any

VIEWS = ("low_mag", "mid_mag", "high_mag")


def digest(rows: Iterable[dict[str, Any]]) -> str:
    """Hash over ids, texts, classes and the embedded bytes of every image, in order."""
    total = hashlib.sha256()
    for row in rows:
        images = [_image(row.get(view)) for view in VIEWS]
        options = [_image(image) for image in row.get("option_images") or []]
        texts = [row[key] for key in ("id", "question", "options", "answer", "dimension", "patient_id", "group")]
        total.update(json.dumps([texts, images, options]).encode())
    return total.hexdigest()


def plain(name: str, configs: Iterable[str], **options: Any) -> dict[str, dict[str, str]]:
    """config -> split -> digest, by ``load_dataset(name, config)``; the config None is asked for without a name."""
    from datasets import load_dataset

    return {
        str(config): {split: digest(raw(rows)) for split, rows in load_dataset(name, config, **options).items()}
        for config in configs
    }


def uses(name: str, config: str = "default", split: str = "test") -> dict[str, Any]:
    """What a user does next: decode, pickle, map in two processes, a torch loader with workers, streaming too."""
    from datasets import load_dataset
    from torch.utils.data import DataLoader

    rows = load_dataset(name, config, split=split)
    stream = load_dataset(name, config, split=split, streaming=True)
    mapped = rows.map(_width, num_proc=2)
    texts = rows.select_columns(["id", "question"])
    ids = stream.select_columns(["id"]).with_format("torch")
    return {
        "sizes": sorted({tuple(row["low_mag"].size) for row in rows.select(range(3))}),
        "pickled": digest(raw(pickle.loads(pickle.dumps(rows)))),
        "pickled stream": digest(raw(pickle.loads(pickle.dumps(stream)))),
        "mapped": mapped["width"] == [32] * len(rows),
        "loader": sum(len(batch["id"]) for batch in DataLoader(texts, batch_size=16, num_workers=2)),
        "stream loader": len({row["id"] for row in DataLoader(ids, batch_size=None, num_workers=2)}),
        "features": [feature.__class__.__name__ for feature in rows.features.values()],
        "same features": rows.features == stream.features,
    }


def raw(rows: Any) -> Any:
    """The same rows with the images as they lie in the file, not decoded."""
    from datasets import Image, List

    for name in rows.features:
        if name in VIEWS:
            rows = rows.cast_column(name, Image(decode=False))
        elif name == "option_images":
            rows = rows.cast_column(name, List(Image(decode=False)))
    return rows


def ours() -> list[str]:
    """Modules of this project that the process has imported."""
    rooms = {"scale_vqa_eval", "dataset_script", "model_card", "training_recipes"}
    return sorted(name for name in sys.modules if name.split(".")[0] in rooms)


def _width(row: dict[str, Any]) -> dict[str, int]:
    return {"width": row["low_mag"].size[0]}


def _image(value: dict[str, Any] | None) -> str | None:
    return None if value is None else hashlib.sha256(value["bytes"]).hexdigest()
