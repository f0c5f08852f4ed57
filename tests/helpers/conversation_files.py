"""Conversation files in the layout of the released ones, for the tests of SFT."""

from __future__ import annotations

import json


def conversation(*images, user="<image>Which?", answer="<think>x</think> <answer>A</answer>"):
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": list(images)}


def written(folder, *rows):
    path = folder / "sft.json"
    path.write_text(json.dumps(list(rows)))
    return path
