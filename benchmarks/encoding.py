"""Measures the work of ``predict`` beside the model's: encoding of images, and the client against a bare one.

Encoding: the same questions (five a path, three JPEG views of 1,024 px a path, reduced by ``--max-pixels``, so that
each is decoded, resized and written as PNG) go to a server on loopback that answers at once: with the images of a path
kept, as ``predict`` does it, and encoded anew for every question. Printed: processor time and wall time a question. No
model and no GPU is needed; what is measured is what a fast server would wait for.

Client: the run of ``predict`` (preflight check, retries, an answer on disk before the next question, the sorted file)
beside a bare client of asyncio and httpx that sends the same messages, 16 at a time, reads the letters and writes one
file at the end. JPEG views of 512 px are sent unchanged; the server is a process of its own. Printed: processor time.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import multiprocessing
import re
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx

from scale_vqa_eval.predict.backend import InferenceConfig, ModelAnswer, Sampling
from scale_vqa_eval.predict.command import run
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


def encoding(paths: int, max_pixels: int) -> None:
    """Prints what an image costs that is encoded once a path, and one that is encoded for every question."""
    with tempfile.TemporaryDirectory() as place, chat_server() as server:
        release = make_release(Path(place) / "scale-vqa", paths=paths, side=1024)
        items, store = read_visual_questions(str(release), "test", None, None, blind=False)
        requests = requests_by_path(items, circular=False)
        found = []
        for name, kept in (("once a path", EncodedImages()), ("for every question", EncodedImages(limit=0))):
            bounds = Bounds(maximum=max_pixels)
            job = InferenceConfig(MODEL, load_prompt("think-answer"), Sampling(64), bounds, store, _encoded=kept)
            sink, start, busy = Gathered(), time.perf_counter(), time.process_time()
            OpenAIBackend(server.url).run(job, requests, sink)
            busy, seconds = time.process_time() - busy, time.perf_counter() - start
            found.append(sink.answers)
            each = len(items)
            print(f"{name:<20} {1000 * busy / each:7.1f} ms of processor, {1000 * seconds / each:7.1f} ms a question")
        assert found[0] == found[1], "the same answers"


def serve(ready: Connection) -> None:
    """Answers until the other end is closed."""
    with chat_server() as server:
        ready.send(server.url)
        ready.poll(None)


async def bare_client(
    url: str, job: InferenceConfig, requests: list[Request], templates: list[str]
) -> list[dict[str, str]]:
    """Returns id and response of every question; its template has numbers in place of the images."""
    limit = asyncio.Semaphore(16)

    async def ask(session: httpx.AsyncClient, request: Request, template: str) -> dict[str, str]:
        async with limit:
            messages = json.loads(template)
            for part in messages[-1]["content"]:
                if part["type"] == "image_url":
                    number = int(part["image_url"]["url"])
                    content = base64.b64encode(job.source.read(request.item.images[number])).decode()
                    part["image_url"]["url"] = f"data:image/jpeg;base64,{content}"
            body = {"model": MODEL, "messages": messages, "temperature": 0.0, "max_tokens": 64}
            reply = (await session.post(f"{url}/chat/completions", json=body)).json()
            text = reply["choices"][0]["message"]["content"]
            re.search(r"<answer>\s*([A-Za-z])\s*</answer>", text)
            return {"id": request.item.question.id, "response": text}

    async with httpx.AsyncClient(timeout=60) as session:
        return await asyncio.gather(*(ask(session, *one) for one in zip(requests, templates, strict=True)))


def _texts(job: InferenceConfig, request: Request) -> list[dict[str, Any]]:
    """Returns the messages with the number of an image in place of its bytes."""
    messages, count = job.server_messages(request), 0
    for part in messages[-1]["content"]:
        if part["type"] == "image_url":
            part["image_url"]["url"], count = str(count), count + 1
    return messages


def client(paths: int, repeats: int) -> None:
    """Prints the least processor time of each client over some repeats, which take turns."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    url = ours.recv()
    with tempfile.TemporaryDirectory() as place:
        release = make_release(Path(place) / "scale-vqa", paths=paths, side=512)
        items, store = read_visual_questions(str(release), "test", None, None, blind=False)
        asked = requests_by_path(items, circular=False)
        flat = [request for path in asked for request in path]
        spent: dict[str, list[float]] = {"predict": [], "bare client": []}
        for repeat in range(repeats):
            job = InferenceConfig(MODEL, load_prompt("think-answer"), Sampling(64), Bounds(), store)
            file, busy = Path(place, f"{repeat}.jsonl"), time.process_time()
            run(OpenAIBackend(url), job, asked, file, {"repeat": repeat})
            spent["predict"].append(time.process_time() - busy)
            templates = [json.dumps(_texts(job, request)) for request in flat]
            busy = time.process_time()
            lines = asyncio.run(bare_client(url, job, flat, templates))
            Path(place, "bare.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            spent["bare client"].append(time.process_time() - busy)
            kept = [json.loads(line) for line in file.read_text().splitlines()]
            assert [(line["id"], line["response"]) for line in kept] == [
                (line["id"], line["response"]) for line in lines
            ]
        least = {name: min(times) for name, times in spent.items()}
    for name, seconds in least.items():
        each = 1000 * seconds / len(flat)
        ratio = seconds / least["bare client"]
        print(f"{name:<20} {each:7.2f} ms of processor a question, {ratio:.2f} times the bare client")
    server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, default=12)
    parser.add_argument("--max-pixels", type=int, default=602_112)
    parser.add_argument("--client", action="store_true", help="measure the client, on five times as many paths")
    parser.add_argument("--repeats", type=int, default=4, help="of --client")
    given = parser.parse_args()
    if given.client:
        client(5 * given.paths, given.repeats)
    else:
        encoding(given.paths, given.max_pixels)


if __name__ == "__main__":
    main()
