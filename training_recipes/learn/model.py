"""The model of ``make learn``: Qwen2.5-VL's architecture, a million weights, a tokenizer made of the questions."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from training_recipes.learn.folders import CONFIG
from training_recipes.rows import load_rows
from training_recipes.tiny_model import TinyShape, make_tiny_model

SIDE: Final = 112
"""Pixels a side of a view: 8 x 8 patches of 14, 16 image tokens."""
SHAPE: Final = TinyShape(
    hidden=128,
    layers=2,
    heads=4,
    key_value_heads=4,
    intermediate=384,
    vision_hidden=96,
    vision_layers=3,
    vision_heads=3,
    full_attention=(0, 1, 2),
    vocabulary=800,
    context=512,
    gain=1.0,
    most_pixels=SIDE * SIDE,
)


def learn_model(data: str, folder: Path, seed: int) -> Path:
    """Makes the untrained model; every word of the training questions becomes one token.

    Args:
        data: folder with the questions.
        folder: where to.
        seed: of the weights.
    """
    rows = load_rows(data, CONFIG, "train").select_columns(["question", "options", "rationale"])
    texts = [f"{row['question']} {' '.join(row['options'])} {row['rationale']}" for row in rows]
    frame = "<|im_start|>user\n<|im_start|>assistant\n<think> </think> <answer>A</answer>  - A - B - C - D"
    return make_tiny_model(folder, SHAPE, seed=seed, corpus=[*texts, *[frame] * len(texts)])


@click.command()
@click.argument("data")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True)
def main(data: str, folder: Path, seed: int) -> None:
    """Write the untrained model to FOLDER, its words those of the questions in DATA."""
    learn_model(data, folder, seed)


if __name__ == "__main__":
    main()
