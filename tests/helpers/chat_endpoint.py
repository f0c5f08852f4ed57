"""An OpenAI-compatible chat server on loopback that answers, fails and remembers as a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Problem = Callable[[BaseHTTPRequestHandler], None]


class ChatEndpoint:
    """The server's memory: ``keys`` counts the requests that reached it by Idempotency-Key, in ``bodies`` they lie.

    Attributes:
        answer: turns a request body into the completion's text.
        problems: number of a request (from 0, in order of arrival) -> what happens instead of an answer.
        delay: seconds that an answer takes.
    """

    def __init__(self, answer: Callable[[Mapping[str, Any]], str]) -> None:
        self.answer = answer
        self.problems: dict[int, Problem] = {}
        self.delay = 0.0
        self.keys: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.authorisations: set[str] = set()
        self.times: list[float] = []
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()
        self.url = ""

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.times.append(time.monotonic())
            self.keys[handler.headers["Idempotency-Key"]] += 1
            self.authorisations.add(handler.headers["Authorization"])
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            time.sleep(self.delay)
            problem = self.problems.get(number)
            if problem is not None:
                problem(handler)
            else:
                send_json(handler, 200, completion(self.answer(body), body))
        finally:
            with self.lock:
                self.busy -= 1


def completion(text: str | None, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of the chat completions API, its usage counted in words."""
    words = sum(len(message["content"].split()) for message in body["messages"])
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": words, "completion_tokens": 10, "total_tokens": words + 10},
    }


def send_json(handler: BaseHTTPRequestHandler, status: int, body: Any, **headers: str) -> None:
    send(handler, status, json.dumps(body).encode(), **headers)


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def refuse(status: int, message: str = "no", **headers: str) -> Problem:
    """A fault: an error status with a message."""
    return lambda handler: send_json(handler, status, {"error": {"message": message}}, **headers)


def malformed(handler: BaseHTTPRequestHandler) -> None:
    """A fault: status 200 and half a JSON document."""
    send(handler, 200, b'{"choices": [{"mess')


def drop(handler: BaseHTTPRequestHandler) -> None:
    """A fault: the connection is closed without a word."""
    handler.close_connection = True
    handler.connection.close()


@contextmanager
def serving(endpoint: ChatEndpoint) -> Iterator[ChatEndpoint]:
    """Serves on a free port of loopback while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            endpoint.handle(self)

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            pass  # a client that was killed, a connection that a fault closed

    server = Server(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
