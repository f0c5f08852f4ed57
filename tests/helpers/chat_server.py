"""An OpenAI-compatible server for tests: its answer follows from what was asked, and it fails as it is told to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "test-model"


def expected_response(messages: list[dict[str, Any]]) -> str:
    """Returns the answer to a request: it depends on every byte of text and images."""
    digest = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
    return f"<think>{digest}</think> <answer>{'ABCD'[int(digest, 16) % 4]}</answer>"


@dataclass
class Trouble:
    """Shares of requests that go wrong; ``most_images`` and ``context`` are limits that get status 400."""

    drop: float = 0.0
    garble: float = 0.0
    cut: float = 0.0
    refuse: float = 0.0
    delay: float = 0.0
    seed: int = 0
    most_images: int = 99
    images: bool = True
    context: int | None = None
    refuse_text: str | None = None
    dead: bool = False
    latency: float = 0.0
    key: str | None = None
    models: tuple[str, ...] = (MODEL,)
    script: Callable[[dict[str, Any], str], tuple[int, Any] | None] | None = None
    """Body and path of a request -> status and reply (JSON, or bytes as they are), None for the usual answer."""
    hosted: bool = False
    """Takes ``max_completion_tokens`` and temperature 1 alone, and refuses to be cut short: a model that reasons."""


@dataclass
class Server:
    """A running server: its address, what it was asked in order, and how it fails."""

    url: str
    trouble: Trouble
    asked: list[dict[str, Any]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0


@contextmanager
def chat_server(trouble: Trouble | None = None) -> Iterator[Server]:
    """Runs a server on a free loopback port."""
    state = Server("", trouble or Trouble())
    dice, lock = random.Random(state.trouble.seed), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def send(self, status: int, content: bytes, length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            if state.trouble.script and (scripted := state.trouble.script({}, self.path)):
                self.send_any(*scripted)
                return
            cards = [
                {"id": name, "object": "model", "owned_by": "t", "max_model_len": state.trouble.context}
                for name in state.trouble.models
            ]
            self.send(200, json.dumps({"object": "list", "data": cards}).encode())

        def send_any(self, status: int, reply: Any) -> None:
            self.send(status, reply if isinstance(reply, bytes) else json.dumps(reply).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.asked.append(body)
                state.in_flight += 1
                state.most_in_flight = max(state.most_in_flight, state.in_flight)
                roll = dice.random()
            try:
                self.answer(body, roll)
            finally:
                with lock:
                    state.in_flight -= 1

        def answer(self, body: dict[str, Any], roll: float) -> None:
            trouble = state.trouble
            time.sleep(trouble.latency)
            if trouble.script and (scripted := trouble.script(body, self.path)):
                self.send_any(*scripted)
                return
            parts = body["messages"][-1]["content"]
            parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
            images = sum(part["type"] == "image_url" for part in parts)
            problem = None
            if images and not trouble.images:
                problem = f"{MODEL} is not a multimodal model"
            elif images > trouble.most_images:
                problem = f"At most {trouble.most_images} image(s) may be provided in one prompt."
            elif trouble.refuse_text and trouble.refuse_text in parts[-1]["text"]:
                problem = "This model's maximum context length is 10 tokens."
            if trouble.hosted and "max_tokens" in body:
                problem = (
                    "Unsupported parameter: 'max_tokens' is not supported with this model. "
                    "Use 'max_completion_tokens' instead."
                )
            elif trouble.hosted and body["temperature"] != 1:
                problem = "Unsupported value: 'temperature' does not support 0.0 with this model."
            elif trouble.hosted and body["max_completion_tokens"] < 50:
                problem = "Could not finish the message because max_tokens or model output limit was reached."
            if trouble.key and self.headers["Authorization"] != f"Bearer {trouble.key}":
                self.send(401, b'{"error": {"message": "Incorrect API key provided."}}')
                return
            if problem:
                self.send(400, json.dumps({"error": {"message": problem, "type": "BadRequestError"}}).encode())
                return

            def late() -> None:
                time.sleep(1.2)

            for share, act in (
                (trouble.drop + trouble.dead, lambda: self.connection.close()),
                (trouble.refuse, lambda: self.send(503, b'{"error": {"message": "overloaded"}}')),
                (trouble.garble, lambda: self.send(200, b'<html>{"choices": [\xff')),
                (trouble.cut, lambda: (self.send(200, b'{"choices": [{"mess', 4000), self.connection.close())),
                (trouble.delay, late),
            ):
                if roll < share:
                    act()
                    if act is not late:
                        self.close_connection = True
                        return
                    break
                roll -= share
            message = {"role": "assistant", "content": expected_response(body["messages"])}
            reply = {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": MODEL,
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 7 + 100 * images, "completion_tokens": 9, "total_tokens": 16},
            }
            self.send(200, json.dumps(reply).encode())

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # the client gave up waiting, or this server closed the connection
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
