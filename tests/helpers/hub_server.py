"""A test double of the Hugging Face Hub that is written to and read from, on the loopback, with faults on demand.

It stands in for the Hub where there is no network. It speaks what the Hub's client says when it creates a repository,
uploads a folder, opens a pull request, tags, lists and downloads: repositories, commits with a parent, large files.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_faults import HubFault
from hub_repositories import Hub, Repository, large_blob, preupload_of, text_blob, tree_of, without_large

TOKEN = "hf_" + "RecognisableTokenOfThisTest0123456"
READ_ONLY = "hf_" + "ReadOnlyTokenOfThisTestXXXXXXXXXX1"
_API = re.compile(r"/api/(datasets|spaces|models)/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.+))?)?$")
_FILE = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)$")
_BATCH = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch$")


class HubServer(ThreadingHTTPServer):
    """The double; ``requests`` holds method and path of every request, ``problems`` what is to go wrong.

    ``sparse`` makes it list neither references nor what is large, under ids that are no git ids: a mirror may.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        root.mkdir(parents=True, exist_ok=True)
        self.hub = Hub(root)
        self.requests: list[str] = []
        self.sparse = False
        self.problems: list[HubFault] = []
        self.hanging = threading.Event()
        self.hung_on = ""
        self.closing = threading.Event()
        self.lock = threading.RLock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, token: str = TOKEN) -> dict[str, str]:
        """What a process needs in its environment to take this server for the Hub."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": token}

    def repository(self, kind: str, name: str) -> Repository:
        return self.hub.repositories[kind, name]

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in self.requests)

    def take(self, line: str) -> HubFault | None:
        with self.lock:
            for problem in self.problems:
                if problem.times > 0 and re.search(problem.pattern, line):
                    problem.times -= 1
                    return problem
        return None


@contextlib.contextmanager
def hub_server(root: Path) -> Iterator[HubServer]:
    """Runs the server in a thread for as long as the context lasts."""
    server = HubServer(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Drop(Exception):
    """The connection ends here, without an answer."""


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    problem: HubFault | None = None

    def _handle(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        line = f"{self.command} {path}"
        self.server.requests.append(f"{line}?{url.query}" if url.query else line)
        self.problem = self.server.take(line)
        try:
            self._before()
            if self.problem is not None and self.problem.action == "status":
                self._body()
                self._send(self.problem.status, b'{"error": "asked for by a test"}', dict(self.problem.headers))
            else:
                with contextlib.nullcontext() if path.startswith("/lfs/") else self.server.lock:
                    answer = self._route(path, parse_qs(url.query))
                self._after()
                self._send(*answer)
        except (_Drop, BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _before(self) -> None:
        action = self.problem.action if self.problem else ""
        if action == "drop":
            raise _Drop
        if action == "call" and self.problem and self.problem.do:
            self.problem.do()
        if action == "hang":
            self._hang()

    def _after(self) -> None:
        action = self.problem.action if self.problem else ""
        if action == "drop after":
            raise _Drop
        if action == "hang after":
            self._hang()

    def _hang(self) -> None:
        self.server.hung_on = f"{self.command} {unquote(urlsplit(self.path).path)}"
        self.server.hanging.set()
        self.server.closing.wait(300)
        raise _Drop

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _route(self, path: str, query: dict[str, list[str]]) -> tuple[int, bytes | Path, dict[str, str]]:
        if path.startswith("/lfs/"):
            return self._large(path.removeprefix("/lfs/"))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", TOKEN, READ_ONLY):
            return _error(401, "", "Invalid credentials in Authorization header")
        body = self._body()
        reads = self.command in ("GET", "HEAD") or "/paths-info/" in path or path == "/api/validate-yaml"
        if not reads and token != TOKEN:
            return _error(403 if token else 401, "", "You have no right to write here")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        found = _API.match(path) or _FILE.match(path) or _BATCH.match(path)
        key = (found.group(1) or "models", found.group(2)) if found else ("", "")
        repository = self.server.hub.repositories.get(key)
        if found is None or repository is None or (repository.private and not token):
            return _error(404 if token else 401, "RepoNotFound", "Repository not found")
        if found.re is _BATCH:
            return self._batch(json.loads(body))
        if found.re is _FILE:
            return self._file(repository, found.group(3), found.group(4))
        return self._api(repository, found.group(3) or "revision", found.group(4), query, body)

    def _create(self, asked: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        kind = {"dataset": "datasets", "space": "spaces"}.get(asked.get("type", "model"), "models")
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.url}/{'' if kind == 'models' else kind + '/'}{name}"
        if (kind, name) in self.server.hub.repositories:
            return 409, json.dumps({"error": "You already created this repo", "url": url}).encode(), {}
        self.server.hub.create(kind, name, asked.get("visibility") == "private", asked.get("sdk"))
        return _json({"url": url, "name": name})

    def _api(
        self, repository: Repository, what: str, rest: str | None, query: dict[str, list[str]], body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        if what == "refs" and not self.server.sparse:
            return _json(
                {
                    "branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": repository.refs["main"]}],
                    "converts": [],
                    "tags": [
                        {"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha}
                        for name, sha in repository.tags.items()
                    ],
                }
            )
        if what == "discussions":
            return self._discussions(repository, rest, body)
        revision = _revision(rest or "main")
        sha = repository.resolve(revision)
        if sha is None:
            return _error(404, "RevisionNotFound", "Revision not found")
        files = repository.commits[sha]
        if what == "revision":
            siblings = [{"rfilename": path} for path in sorted(files)]
            info = {"id": repository.name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []}
            return _json(info)
        if what == "tree":
            under = (rest or "")[len(revision) :].strip("/")
            tree = [without_large(entry) for entry in tree_of(files)] if self.server.sparse else tree_of(files)
            return _json([entry for entry in tree if not under or entry["path"].startswith(f"{under}/")])
        if what == "paths-info":
            wanted = parse_qs(body.decode()).get("paths", [])
            return _json([entry for entry in tree_of(files) if entry["path"] in wanted])
        if what == "preupload":
            asked = [file["path"] for file in json.loads(body)["files"]]
            return _json({"files": [preupload_of(path, files.get(path)) for path in asked]})
        if what == "tag":
            tag = json.loads(body)["tag"]
            if tag in repository.tags:
                return _error(409, "", "Tag reference exists already")
            repository.tags[tag] = sha
            return _json({})
        if what == "commit":
            return self._commit(repository, revision, sha, "create_pr" in query, body)
        return _error(404, "", f"the double does not know {what}")

    def _commit(
        self, repository: Repository, ref: str, head: str, create_pr: bool, body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        lines = [json.loads(line) for line in body.splitlines() if line]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, head):
            return _error(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[head])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = text_blob(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if not self.server.hub.large(value["oid"]).is_file():
                    return _error(400, "", f"no large file {value['oid']}")
                files[value["path"]] = large_blob(value["oid"], value["size"])
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        if create_pr:
            number = len(repository.pulls) + 1
            ref = f"refs/pr/{number}"
            repository.pulls.append({"num": number, "title": header["summary"], "status": "open"})
        sha = repository.commit(ref, files, header["summary"])
        answer = {"commitUrl": f"{self.server.url}/{repository.name}/commit/{sha}", "commitOid": sha}
        if create_pr:
            place = "" if repository.kind == "models" else f"{repository.kind}/"
            answer["pullRequestUrl"] = f"{self.server.url}/{place}{repository.name}/discussions/{number}"
        return _json(answer)

    def _discussions(self, repository: Repository, rest: str | None, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        asked = json.loads(body) if body else {}
        if self.command == "GET":
            return _json(repository.discussion(int(rest)) if rest else repository.discussions())
        if rest is None:
            return _json({"num": repository.open_draft(asked["title"])})
        return _json(repository.set_status(int(rest.split("/")[0]), asked["status"]))

    def _batch(self, asked: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        objects = []
        for one in asked["objects"]:
            entry: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
            stored = self.server.hub.large(one["oid"])
            if not stored.is_file() or stored.stat().st_size != one["size"]:
                entry["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}
            objects.append(entry)
        return _json({"transfer": "basic", "objects": objects})

    def _large(self, oid: str) -> tuple[int, bytes, dict[str, str]]:
        length = int(self.headers["Content-Length"])
        action = self.problem.action if self.problem else ""
        partial = self.server.hub.root / f"{oid}.{threading.get_ident()}.{time.monotonic_ns()}.partial"
        with partial.open("wb") as file:
            left = length // 2 if action == "cut" else length
            kept = length // 2 if action == "truncate" else length
            while left:
                chunk = self.rfile.read(min(left, 1 << 20))
                left -= len(chunk)
                file.write(chunk[: max(kept, 0)])
                kept -= len(chunk)
        if action == "cut":
            partial.unlink()
            raise _Drop
        partial.rename(self.server.hub.large(oid))
        return 200, b"", {}

    def _file(self, repository: Repository, revision: str, path: str) -> tuple[int, bytes | Path, dict[str, str]]:
        sha = repository.resolve(revision)
        blob = repository.commits[sha].get(path) if sha else None
        if sha is None or blob is None:
            return _error(404, "EntryNotFound" if sha else "RevisionNotFound", "not found")
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        etag = blob.sha256 if blob.content is None else blob.oid
        headers |= {"ETag": f'"{etag}"', "X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{etag}"'}
        return 200, blob.content if blob.content is not None else self.server.hub.large(blob.sha256), headers

    def _send(self, status: int, content: bytes | Path, headers: dict[str, str]) -> None:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        start, end = 0, size
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part and status == 200:
            start, end = int(part.group(1)), min(int(part.group(2) or size - 1) + 1, size)
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(content, bytes):
            self.wfile.write(self._spoiled(content[start:end]))
            return
        with content.open("rb") as file:
            file.seek(start)
            while start < end:
                chunk = file.read(min(1 << 20, end - start))
                start += len(chunk)
                self.wfile.write(self._spoiled(chunk))

    def _spoiled(self, chunk: bytes) -> bytes:
        if self.problem is None or self.problem.action != "corrupt" or not chunk:
            return chunk
        middle = len(chunk) // 2
        return chunk[:middle] + bytes([chunk[middle] ^ 1]) + chunk[middle + 1 :]

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the requests out of the test's output; they are in ``requests``."""


def _revision(rest: str) -> str:
    return re.match(r"refs/pr/\d+|[^/]+", rest).group()  # type: ignore[union-attr]


def _json(value: Any) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


def _error(status: int, code: str, message: str) -> tuple[int, bytes, dict[str, str]]:
    headers = {"X-Error-Message": message, "Content-Type": "application/json"}
    return status, json.dumps({"error": message}).encode(), {**headers, **({"X-Error-Code": code} if code else {})}
