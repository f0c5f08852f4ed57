"""Puts trainer rows through a model's processor, with their images or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def with_images(row: Mapping[str, Any], blind: bool = False) -> list[dict[str, Any]]:
    """Returns a trainer row's messages, each place filled with its image; ``blind``, without the places."""
    images = iter(row["images"])
    return [
        {
            "role": message["role"],
            "content": [
                part if part["type"] == "text" else {"type": "image", "image": next(images)}
                for part in message["content"]
                if part["type"] == "text" or not blind
            ],
        }
        for message in row["prompt"]
    ]


def encoded(processor: Any, rows: Sequence[Mapping[str, Any]], blind: bool = False) -> Any:
    """Returns what the processor makes of some trainer rows' prompts, padded on the left."""
    return processor.apply_chat_template(
        [with_images(row, blind) for row in rows],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        processor_kwargs={"padding": True, "padding_side": "left", "return_tensors": "pt"},
    )


def as_text(conversation: Any) -> str:
    """Returns a conversation as a table shows it: contents one after the other, ``[image]`` for an image.

    >>> as_text([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}])
    '[image]Which?'
    """
    if isinstance(conversation, str):
        return conversation
    contents = [
        message["content"]
        if isinstance(message["content"], str)
        else "".join(part["text"] if part["type"] == "text" else "[image]" for part in message["content"])
        for message in conversation
    ]
    return "\n\n".join(contents)
