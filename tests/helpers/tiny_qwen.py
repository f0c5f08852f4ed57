"""The tiny Qwen2.5-VL for tests of inference: its answers mean nothing, but depend on text and images."""

from __future__ import annotations

import sys
from pathlib import Path

from training_recipes.tiny_model import CORPUS, make_tiny_model

__all__ = ["CORPUS", "make_tiny_qwen"]


def make_tiny_qwen(folder: Path, seed: int = 0, context: int = 4096, most_pixels: int = 112 * 112) -> Path:
    """Writes model, tokenizer and processor into ``folder``; the same seed gives the same weights."""
    return make_tiny_model(folder, seed, context=context, max_pixels=most_pixels, gain=2.0)


if __name__ == "__main__":
    print(make_tiny_qwen(Path(sys.argv[1])))
