"""Access control of the review page: the token in the address that the command prints."""

from __future__ import annotations

import hmac
import secrets
from typing import Final
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MIN_TOKEN: Final = 16
MAX_BODY: Final = 1_000_000
"""Bytes of a request; the longest texts of an edit are far below."""
_NOT_OFFERED: Final = ("/gradio_api/upload", "/gradio_api/proxy", "/gradio_api/file", "/monitoring")
_HEADERS: Final = {
    # nothing is fetched from elsewhere: neither fonts nor what an image or text of the data might name
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def new_token() -> str:
    """Returns a random token of 256 bits."""
    return secrets.token_urlsafe(32)


def entry(address: str, token: str) -> str:
    """Returns the address with the token."""
    return f"{address}/?{urlencode({'token': token})}"


def require_token(app: ASGIApp, token: str, port: int) -> ASGIApp:
    """Returns the application behind a check of the token.

    The token is sent once in the address, then kept in a cookie and removed from the address; programs may send it as
    ``Authorization: Bearer``. It is compared in constant time. Uploads, proxying and file routes, which the page does
    not need, are always refused.
    """
    cookie = f"scale-vqa-review-{port}"  # cookies do not tell ports apart

    async def gate(scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            # a body without a stated length: the application sees the client leave, and reads no more of it
            return message if received <= MAX_BODY else {"type": "http.disconnect"}

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name in [name for name in headers if name.startswith("access-control-")]:
                    del headers[name]
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] == "lifespan":
            await app(scope, receive, send)
        elif scope["type"] == "http":
            answer = _answer(Request(scope), token, cookie)
            await (answer or app)(scope, bounded, guarded)
        else:  # the page uses no web socket
            await send({"type": "websocket.close", "code": 1008})

    return gate


def _answer(request: Request, token: str, cookie: str) -> Response | None:
    """Returns the response of a request that may not have the page, or None."""
    origin, length = request.headers.get("origin"), request.headers.get("content-length", "0")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        return PlainTextResponse("No access from pages of another origin.\n", status_code=403)
    if not length.isdecimal() or int(length[:20]) > MAX_BODY:
        return PlainTextResponse(f"A request has at most {MAX_BODY:,} bytes.\n", status_code=413)
    given = request.query_params.get("token")
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
    if given is not None and _same(given, token) and request.method == "GET" and request.url.path == "/":
        response = RedirectResponse("./", status_code=303)
        response.set_cookie(cookie, token, httponly=True, samesite="lax", path="/")
        return response
    if not (_same(request.cookies.get(cookie, ""), token) or _same(bearer, token)):
        hint = "Open the address that `scale-vqa review` printed; it holds the token.\n"
        return PlainTextResponse(f"No access. {hint}", status_code=403)
    if request.url.path.startswith(_NOT_OFFERED):
        return PlainTextResponse("Not offered here.\n", status_code=404)
    return None


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), token.encode("utf-8"))
