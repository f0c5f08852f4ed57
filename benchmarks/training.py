"""Compares the token preflight with the processor itself, and measures trainer rows per second, in one process.

python benchmarks/training.py [--paths 40] [--side 768]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from predict_release import make_release
from transformers import AutoProcessor

from training_recipes.rows import load_rows, prompt_format
from training_recipes.selection import candidates_of, count_tokens
from training_recipes.tiny_model import make_tiny_model
from training_recipes.trainer import encoded


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--paths", type=int, default=40, help="five questions each, three images per question")
    parser.add_argument("--side", type=int, default=768, help="pixels")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        release = make_release(Path(folder, "scale-vqa"), given.paths, given.side)
        model = make_tiny_model(Path(folder, "tiny"), context=32768, max_pixels=12_845_056)
        processor = AutoProcessor.from_pretrained(model, padding_side="left")
        rows = load_rows(str(release), None, "test")
        started = time.perf_counter()
        given = candidates_of(rows, prompt_format())
        lengths = count_tokens(given, processor)
        ours = time.perf_counter() - started

        made, sample = rows.with_transform(given.transform), range(0, len(rows), max(1, len(rows) // 20))
        started = time.perf_counter()
        read = [made[place] for place in sample]
        decoded = (time.perf_counter() - started) / len(read)
        started = time.perf_counter()
        real = [encoded(processor, [row])["input_ids"].shape[1] for row in read]
        processed = (time.perf_counter() - started) / len(read)
    assert lengths.prompt[list(sample)].tolist() == real
    theirs = (decoded + processed) * len(rows)
    print(f"{len(rows)} questions of 2 or 3 images of {given.side} px, {int(lengths.prompt.max())} tokens at most")
    print(f"preflight {ours:.2f} s; decoding and the processor {theirs:.1f} s (from {len(read)} rows)")
    print(f"ratio {theirs / ours:.0f}")
    print(f"trainer rows read and decoded: {1 / decoded:.0f} per second")


if __name__ == "__main__":
    main()
