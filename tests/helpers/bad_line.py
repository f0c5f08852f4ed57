"""A proxy on loopback that drops, delays, cuts and garbles answers between a client and a real server."""

from __future__ import annotations

import contextlib
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("drop before", "drop after", "cut", "garble", "delay")


@contextmanager
def bad_line(url: str, late: float) -> Iterator[tuple[str, Counter[str]]]:
    """Forwards to the API at ``url``; yields the proxy's own address and what went wrong, counted by kind.

    Args:
        url: base address of the server behind it. Every second answer goes wrong, in each way in turn; lists of models
            (GET) pass untouched.
        late: seconds of a delay.
    """
    lock, done = threading.Lock(), Counter[str]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def forward(self, body: bytes | None) -> tuple[int, bytes]:
            kind = {"Content-Type": "application/json"}
            request = urllib.request.Request(url + self.path.removeprefix("/v1"), body, kind)
            try:
                with urllib.request.urlopen(request, timeout=120) as reply:
                    return reply.status, reply.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()

        def send(self, status: int, content: bytes, length: int) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            status, content = self.forward(None)
            self.send(status, content, len(content))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                count = done.total()
                problem = FAULTS[count // 2 % len(FAULTS)] if count % 2 else "none"
                done[problem] += 1
            if problem == "drop before":
                self.close_connection = True
                return
            status, content = self.forward(body)
            if problem == "delay":
                time.sleep(late)
            if problem == "garble":
                content = content.replace(b'"', b"\xff", 7)
            if problem != "drop after":
                self.send(status, content[: len(content) // 2] if problem == "cut" else content, len(content))
            self.close_connection = problem in ("drop after", "cut")

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # the client gave up waiting
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", done
    finally:
        server.shutdown()
        server.server_close()
