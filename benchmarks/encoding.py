"""Measures what it saves that ``predict`` encodes each image once for the questions of its path.

The same questions (five a path, three JPEG views of 1,024 px a path, reduced by ``--max-pixels``, so that each is
decoded, resized and written as PNG) go to a server on loopback that answers at once: with the images of the path kept,
as ``predict`` does it, and encoded anew for every question. Printed: processor time and wall time a question. No model
and no GPU is needed; what is measured is what a fast server would wait for.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from scale_vqa_eval.predict.backend import InferenceConfig, ModelAnswer, Sampling
from scale_vqa_eval.predict.images import Bounds, EncodedImages
from scale_vqa_eval.predict.openai_backend import OpenAIBackend
from scale_vqa_eval.predict.prompts import load_prompt
from scale_vqa_eval.predict.requests import Request, read_visual_questions, requests_by_path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from chat_server import MODEL, chat_server
from predict_release import make_release


class Gathered:
    """A sink that holds the answers."""

    def __init__(self) -> None:
        self.answers: dict[object, tuple[str, ...]] = {}

    def keep(self, ask: Request, answer: ModelAnswer) -> None:
        self.answers[ask.key] = answer.responses

    def fail(self, ask: Request, reason: str) -> None:
        raise RuntimeError(f"{ask.key}: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, default=12)
    parser.add_argument("--max-pixels", type=int, default=602_112)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, chat_server() as server:
        release = make_release(Path(place) / "scale-vqa", paths=given.paths, side=1024)
        items, store = read_visual_questions(str(release), "test", None, None, blind=False)
        paths = requests_by_path(items, circular=False)
        found = []
        for name, kept in (("once a path", EncodedImages()), ("for every question", EncodedImages(limit=0))):
            bounds = Bounds(maximum=given.max_pixels)
            job = InferenceConfig(MODEL, load_prompt("think-answer"), Sampling(64), bounds, store, _encoded=kept)
            sink, start, busy = Gathered(), time.perf_counter(), time.process_time()
            OpenAIBackend(server.url).run(job, paths, sink)
            busy, seconds = time.process_time() - busy, time.perf_counter() - start
            found.append(sink.answers)
            each = len(items)
            print(f"{name:<20} {1000 * busy / each:7.1f} ms of processor, {1000 * seconds / each:7.1f} ms a question")
        assert found[0] == found[1], "the same answers"


if __name__ == "__main__":
    main()
