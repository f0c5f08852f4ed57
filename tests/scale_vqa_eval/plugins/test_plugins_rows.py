"""The rows that lmms-eval is given become the messages of ``predict``, without lmms-eval itself."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from predict_release import make_release

from scale_vqa_eval.predict.backend import InferenceConfig, Sampling
from scale_vqa_eval.predict.images import Bounds
from scale_vqa_eval.predict.prompts import load_prompt
from scale_vqa_eval.predict.requests import Request, read_visual_questions

rows = import_module("scale_vqa_eval.plugins.lmms_eval_task.rows")  # the folder is not a package: lmms-eval reads it


def seen(messages: list[dict[str, Any]]) -> list[Any]:
    parts = [part for message in messages for part in message["content"]]
    return [part.get("text") or np.asarray(part.get("image", part.get("url"))).tolist() for part in parts]


@pytest.mark.parametrize("config", ["default", "grounding"])
def test_messages_and_images_are_those_of_predict(tmp_path: Path, config: str) -> None:
    release = make_release(tmp_path / "scale-vqa", paths=2)
    items, source = read_visual_questions(str(release), "test", config, None, blind=False)
    inference = InferenceConfig("m", load_prompt("published"), Sampling(4096), Bounds(), source)
    docs = datasets.load_dataset(str(release), config, split="test", cache_dir=str(tmp_path / "cache"))
    for doc, item in zip(docs, items, strict=True):
        wanted = seen(inference.processor_messages(Request(item)))
        assert seen(rows.doc_to_messages(doc)) == wanted
        assert seen(rows.blind_messages(doc)) == [part for part in wanted if isinstance(part, str) and len(part) > 2]
        assert len(rows.doc_to_visual(doc)) == len(item.images) and rows.no_visual(doc) == []
        assert rows.doc_to_target(doc) == item.question.letter
