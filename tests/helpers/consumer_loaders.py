"""Reads exports with the loaders of the tools themselves; run by the Python of ``make exports``.

``consumer_loaders.py TOOL PATH`` prints a JSON list: for each row its texts, the sizes of its images, and its answer.
"""

from __future__ import annotations

import importlib.machinery
import io
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

from PIL import Image


def size(image: Any) -> list[int]:
    if isinstance(image, dict):
        image = io.BytesIO(image["bytes"]) if image.get("bytes") else image["path"]
    return list((image if isinstance(image, Image.Image) else Image.open(image)).size)


def ms_swift(path: str) -> list[dict[str, Any]]:
    from swift.dataset import load_dataset

    data, _ = load_dataset(path, load_from_cache_file=False, remove_unused_columns=False, strict=True)
    return [
        {
            "id": row["id"],
            "texts": [message["content"] for message in row["messages"]],
            "images": [size(image) for image in row["images"]],
            "answer": row.get("solution") or row["messages"][-1]["content"][-10],
        }
        for row in data
    ]


def llama_factory(path: str) -> list[dict[str, Any]]:
    sound = types.ModuleType("torchaudio")  # imported for sound alone
    sound.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = sound
    from llamafactory.data.loader import _load_single_dataset
    from llamafactory.data.mm_plugin import get_mm_plugin
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.hparams import DataArguments

    (attributes,) = get_dataset_list(["scale_vqa_train"], path)
    arguments = DataArguments(dataset_dir=path, media_dir=path, overwrite_cache=True)
    model = types.SimpleNamespace(cache_dir=None, hf_hub_token=None)
    data = _load_single_dataset(attributes, model, arguments, types.SimpleNamespace(local_process_index=0))
    plugin, rows = get_mm_plugin("qwen2_vl", image_token="<|image_pad|>"), []
    for row in data:
        messages = row["_prompt"] + row["_response"]
        plugin._validate_messages(messages, row["_images"], [], [])
        texts = [row["_system"], *(message["content"] for message in messages)]
        images = [size(Image.open(image)) for image in row["_images"]]
        rows.append({"id": None, "texts": texts, "images": images, "answer": texts[-1][-10]})
    return rows


def verl(path: str) -> list[dict[str, Any]]:
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    files = sorted(str(file) for file in Path(path).glob("*.parquet"))
    config = OmegaConf.create({"filter_overlong_prompts": False})
    data, rows = RLHFDataset(files, tokenizer=None, config=config, processor=types.SimpleNamespace()), []
    for number in range(len(data)):
        row = data[number]
        parts = [part for message in row["raw_prompt"] for part in message["content"]]
        rows.append(
            {
                "id": row["extra_info"]["id"],
                "texts": ["".join(part.get("text", "<image>") for part in parts)],
                "images": [size(part["image"]) for part in parts if part["type"] == "image"],
                "answer": row["reward_model"]["ground_truth"],
            }
        )
    return rows


def vlmevalkit(path: str) -> list[dict[str, Any]]:
    """Builds the prompt of each row, and has VLMEvalKit score the gold letters: all have to be right."""
    file = Path(path)
    os.environ["LMUData"] = str(file.parent)  # noqa: SIM112 (its own spelling)
    from vlmeval.dataset import build_dataset

    data, rows = build_dataset(file.stem), []
    for number in range(len(data)):
        parts = data.build_prompt(number)
        images = [size(part["value"]) for part in parts if part["type"] == "image"]
        texts = [part["value"] for part in parts if part["type"] == "text"]
        rows.append({"id": data.data["id"].iloc[number], "texts": texts, "images": images})
        rows[-1]["answer"] = data.data["answer"].iloc[number]
    answered = data.data.drop(columns=["image"], errors="ignore").copy()
    answered["prediction"] = answered["answer"]
    predictions = file.parent / f"gold_{file.stem}.xlsx"
    answered.to_excel(predictions, index=False)
    accuracy = data.evaluate(str(predictions), model="exact_matching", nproc=1)
    assert set(accuracy["Overall"]) == {1.0}, accuracy
    return rows


def vlmevalkit_plugin(path: str) -> list[dict[str, Any]]:
    """Asks with our plug-in, and scores answers of every kind; the table of predictions lies beside ``path``."""
    file = Path(path)
    os.environ["LMUData"] = str(file.parent)  # noqa: SIM112 (its own spelling)
    from vlmeval.dataset import build_dataset

    import scale_vqa_eval.plugins.vlmevalkit  # noqa: F401 (adds its data sets)

    data, rows = build_dataset(file.stem), []
    assert type(data).__module__ == "scale_vqa_eval.plugins.vlmevalkit", type(data)
    texts = (
        "<think>x</think> <answer>{}</answer>",
        "<answer>{}</answer> <answer>D</answer>",
        "no idea",
        "<answer>{}.</answer>",
    )
    for number in range(len(data)):
        parts = data.build_prompt(number)
        shown = [part["value"] if part["type"] == "text" else "<image>" for part in parts]
        images = [size(part["value"]) for part in parts if part["type"] == "image"]
        row = {"id": data.data["id"].iloc[number], "texts": shown, "images": images}
        rows.append(row | {"answer": data.data["answer"].iloc[number]})
    answered = data.data.drop(columns=["image"], errors="ignore").copy()
    answered["prediction"] = [texts[n // 3 % 4].format("ABCD"[n % 4]) for n in range(len(answered))]
    predictions = file.parent / f"answered_{file.stem}.xlsx"
    answered.to_excel(predictions, index=False)
    accuracy = data.evaluate(str(predictions))
    rows[0]["accuracy"] = float(accuracy["Overall"].iloc[0])
    return rows


if __name__ == "__main__":
    os.environ["DISABLE_VERSION_CHECK"] = "1"  # LLaMA-Factory's bounds are older than those of the others
    read = {
        "ms-swift": ms_swift,
        "llama-factory": llama_factory,
        "verl": verl,
        "vlmevalkit": vlmevalkit,
        "plugin": vlmevalkit_plugin,
    }
    found = read[sys.argv[1]](sys.argv[2])
    Path(sys.argv[3]).write_text(json.dumps(found), encoding="utf-8")
