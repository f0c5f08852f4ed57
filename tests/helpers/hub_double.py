"""A test double of the Hugging Face Hub, the side that is read: repositories are folders, served on the loopback.

It stands in for the Hub where there is no network: it knows revisions, trees, paths and files, with the headers that
the Hub's client reads, and no more. What it is asked for is kept in ``requests``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_API = re.compile(r"/api/(datasets|spaces|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.+))?)?$")
_FILE = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


class HubDouble(ThreadingHTTPServer):
    """Serves ``root/datasets/org/name``, ``root/spaces/org/name`` and ``root/models/org/name``; any revision is main.

    Attributes:
        requests: method and path of every request, in order.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to take this server for the Hub."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "test"}


@contextlib.contextmanager
def hub_double(root: Path) -> Iterator[HubDouble]:
    """Runs the server in a thread for as long as the context lasts."""
    server = HubDouble(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubDouble
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes = b"") -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.server.requests.append(f"{self.command} {path}")
        api, file = _API.match(path), _FILE.match(path)
        kind, name = (api or file).group(1, 2) if api or file else (None, "")
        repository = self.server.root / (kind or "models") / name
        if not name or not repository.is_dir():
            self._missing("RepoNotFound")
        elif api:
            self._api(repository, name, api.group(3), api.group(5), parse_qs(body.decode()) if body else {})
        elif file:
            self._file(repository, repository / file.group(4))

    def _api(self, repository: Path, name: str, what: str | None, under: str | None, form: dict[str, Any]) -> None:
        entries = _entries(repository)
        if what == "tree":
            self._json([entry for entry in entries if entry["path"].startswith(f"{under}/" if under else "")])
        elif what == "paths-info":
            self._json([entry for entry in entries if entry["path"] in form.get("paths", [])])
        else:
            siblings = [{"rfilename": entry["path"]} for entry in entries if entry["type"] == "file"]
            self._json({"id": name, "sha": _commit(repository), "siblings": siblings, "tags": [], "private": False})

    def _file(self, repository: Path, file: Path) -> None:
        if not file.is_file() or not file.resolve().is_relative_to(repository.resolve()):
            self._missing("EntryNotFound", {"X-Repo-Commit": _commit(repository)})
            return
        content = file.read_bytes()
        headers = {
            "X-Repo-Commit": _commit(repository),
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part:
            start, end = int(part.group(1)), min(int(part.group(2) or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content = content[start : end + 1]
        self._send(206 if part else 200, content, headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(404, b"", {"X-Error-Code": code, **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the requests out of the test's output; they are in ``requests``."""


def _entries(repository: Path) -> list[dict[str, Any]]:
    """Returns the tree of a repository as the Hub lists it, folders included."""
    entries = []
    for path in sorted(repository.rglob("*")):
        place = path.relative_to(repository).as_posix()
        if path.is_dir():
            entries.append({"type": "directory", "path": place, "oid": _oid(place.encode()), "size": 0})
        else:
            entries.append(
                {"type": "file", "path": place, "oid": _oid(path.read_bytes()), "size": path.stat().st_size}
            )
    return entries


def _commit(repository: Path) -> str:
    return _oid("".join(f"{entry['path']} {entry['oid']}\n" for entry in _entries(repository)).encode())


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
