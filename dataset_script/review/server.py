"""The server of the review page and its images, on one address behind the token that the command prints."""

from __future__ import annotations

import asyncio
import hmac
import io
import ipaddress
import logging
import secrets
import socket
from collections.abc import Callable
from importlib.resources import files
from typing import Final
from urllib.parse import urlencode, urlsplit

import gradio as gr
import uvicorn
from fastapi import FastAPI
from PIL import Image
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dataset_script.image_files import FORMATS, opened_image
from dataset_script.review.page import build_page
from dataset_script.review.session import ReviewSession
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict.images import OPTION_IMAGES, SENT_UNCHANGED, ImageRef
from scale_vqa_eval.schema import VIEWS

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


def browser_image(content: bytes, location: str) -> tuple[bytes, str]:
    """Returns bytes and media type of an image that a browser shows.

    Args:
        content: the image file; its format is taken from the bytes, never from a name.
        location: what a message calls it.

    Raises:
        InputError: where it is no image, is broken, or claims too many pixels.
    """
    try:
        with opened_image(io.BytesIO(content)) as image:
            kind = SENT_UNCHANGED.get(image.format or "")
            if kind is not None:
                return content, kind
            out = io.BytesIO()
            image.convert("RGB").save(out, "PNG")
            return out.getvalue(), "image/png"
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        problem = Problem(
            location, f"an image in {', '.join(FORMATS)}", preview(str(error)), "fix the row, or reject the item"
        )
        raise InputError(problem) from error


def _asset(name: str) -> str:
    return files("dataset_script.review").joinpath("templates", name).read_text(encoding="utf-8")


MAX_UPLOAD: Final = "1kb"
GRACE_SECONDS: Final = 2
MAX_CONNECTIONS: Final = 256
"""Connections at a time; more are answered 503, so that a flood does not grow memory."""


def application(session: ReviewSession, token: str, port: int, answer_first: bool = False) -> ASGIApp:
    """Returns the web application: the page, and ``image/<row>/<column or option>`` with the release's own bytes."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    pictures = {
        (one.row, one.column, one.option): one
        for item in session.data.items.values()
        for one in (*item.views, *item.option_images)
    }

    def image(picture: ImageRef | None) -> Response:
        if picture is None:
            return PlainTextResponse("No such image in this release.\n", status_code=404)
        try:
            content, kind = browser_image(session.images.read(picture), picture.name)
        except InputError as error:
            return PlainTextResponse(f"{error}\n", status_code=422)
        return Response(content, media_type=kind, headers={"Content-Security-Policy": "sandbox"})

    @app.get("/image/{row}/option_images/{option}")
    def option(row: int, option: int) -> Response:
        return image(pictures.get((row, OPTION_IMAGES, option)))

    @app.get("/image/{row}/{column}")
    def view(row: int, column: str) -> Response:
        return image(pictures.get((row, column, None)) if column in VIEWS else None)

    gr.mount_gradio_app(
        app,
        build_page(session, answer_first),
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        mcp_server=False,
        # fonts of the machine: the page fetches nothing
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=_asset("page.css"),
        head=f'<meta name="referrer" content="no-referrer"><script>{_asset("page.js")}</script>',
    )
    return require_token(app, token, port)


def serve(
    session: ReviewSession, host: str, port: int, token: str, tell: Callable[[str], None], answer_first: bool = False
) -> None:
    """Serves until interrupted.

    Args:
        session: what is reviewed.
        host: address to bind.
        port: 0 for any that is free.
        token: what a browser has to bring.
        tell: takes the address to open, once, when it can be opened.
        answer_first: offer the answer-first stages alone.

    Raises:
        InputError: where the address cannot be bound.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.create_server((host, port), family=family)
    except OSError as error:
        found = error.strerror or str(error)
        raise InputError(Problem(f"{host}:{port}", "an address to serve on", found, "name another --port")) from error
    number = bound.getsockname()[1]
    app = application(session, token, number, answer_first)
    tell(entry(f"http://{f'[{host}]' if ':' in host else host}:{number}", token))
    # no access log: it would repeat the token; an open page holds a connection that would never end by itself
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        limit_concurrency=MAX_CONNECTIONS,
    )
    logging.getLogger("uvicorn.error").addFilter(_no_cut_connection)
    uvicorn.Server(config).run(sockets=[bound])


def _no_cut_connection(record: logging.LogRecord) -> bool:
    """Lets every log record pass but that of a connection which stopping has cut."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, asyncio.CancelledError) and "graceful shutdown" not in record.getMessage()


def is_loopback(host: str) -> bool:
    """Says whether an address can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_any(host: str) -> bool:
    """Says whether an address stands for all addresses of this machine, and so for none that a browser can open."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
