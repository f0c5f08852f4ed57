"""The gate of the review page: other origins, long bodies and missing tokens get no further."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from dataset_script.review.server import MAX_BODY, require_token

TOKEN = "a-token-of-more-than-16"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


async def echo(request: Request) -> PlainTextResponse:
    size = len(await request.body())
    return PlainTextResponse(str(size), headers={"Access-Control-Allow-Origin": "*"})


@pytest.fixture
def client() -> TestClient:
    app = Starlette(routes=[Route("/", echo, methods=["GET", "POST"])])
    return TestClient(require_token(app, TOKEN, 80), base_url="http://127.0.0.1:80", raise_server_exceptions=False)


def test_only_its_own_origin_is_answered(client: TestClient) -> None:
    own = client.get("/", headers={**BEARER, "Origin": "http://127.0.0.1:80", "Host": "127.0.0.1:80"})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
    for origin in ("http://evil.example", "http://127.0.0.1:81", "null"):
        answer = client.get("/", headers={**BEARER, "Origin": origin, "Host": "127.0.0.1:80"})
        assert answer.status_code == 403, origin
        assert "access-control-allow-origin" not in answer.headers


def test_a_long_body_is_refused_by_its_stated_length(client: TestClient) -> None:
    assert client.post("/", headers=BEARER, content=b"x" * MAX_BODY).text == str(MAX_BODY)
    assert client.post("/", headers=BEARER, content=b"x" * (MAX_BODY + 1)).status_code == 413
    for length in ("9" * 5000, "-1", "one"):
        assert client.post("/", headers={**BEARER, "Content-Length": length}, content=b"").status_code == 413


def test_a_body_without_a_length_is_not_read_to_its_end(client: TestClient) -> None:
    sent = 0

    def stream() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b"x" * (MAX_BODY // 10)

    answer = client.post("/", headers=BEARER, content=stream())
    assert answer.status_code != 200


def test_no_token_no_answer(client: TestClient) -> None:
    assert client.get("/").status_code == 403
    assert client.get("/", headers={"Authorization": "Bearer wrong"}).status_code == 403
