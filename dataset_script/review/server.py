"""The web server of the review page and its images; each request needs the token."""

from __future__ import annotations

import asyncio
import hmac
import io
import ipaddress
import logging
import secrets
import socket
from importlib.resources import files
from typing import Final
from urllib.parse import urlencode, urlsplit

import click
import gradio as gr
import uvicorn
from fastapi import FastAPI
from PIL import Image
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dataset_script.image_files import FORMATS, opened_image
from dataset_script.review.log import ReviewLog
from dataset_script.review.page import build_page
from dataset_script.review.session import ReviewData, ReviewSession
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict.images import OPTION_IMAGES, SENT_UNCHANGED, ImageRef
from scale_vqa_eval.schema import VIEWS

MIN_TOKEN: Final = 16
MAX_BODY: Final = 1_000_000
"""Maximum size of a request in bytes; edits are much smaller."""
_NOT_OFFERED: Final = ("/gradio_api/upload", "/gradio_api/proxy", "/gradio_api/file", "/monitoring")
_HEADERS: Final = {
    # nothing is loaded from other hosts, such as fonts or addresses in the data
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def require_token(app: ASGIApp, token: str, port: int) -> ASGIApp:
    """Wraps an application in a check of the token.

    The token in the address is moved into a cookie; programs may send it as ``Authorization: Bearer``. It is compared
    in constant time. Uploads, proxying and file routes, which the page does not need, are always refused.
    """
    cookie = f"scale-vqa-review-{port}"  # cookies are shared by all ports of a host

    async def gate(scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            # a body without a stated length: the application stops reading as if the client had disconnected
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
        else:  # the page does not use web sockets
            await send({"type": "websocket.close", "code": 1008})

    return gate


def _answer(request: Request, token: str, cookie: str) -> Response | None:
    """Returns the response to a request that is refused or redirected, or None."""
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
        hint = "Open the address that `scale-vqa review` printed; it contains the token.\n"
        return PlainTextResponse(f"No access. {hint}", status_code=403)
    if request.url.path.startswith(_NOT_OFFERED):
        return PlainTextResponse("Not available.\n", status_code=404)
    return None


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), token.encode("utf-8"))


def browser_image(content: bytes, location: str) -> tuple[bytes, str]:
    """Returns bytes and media type of an image in a format that browsers show.

    Args:
        content: the image file; its format is read from the bytes.
        location: its name in error messages.

    Raises:
        InputError: if it is not an image, is damaged, or has too many pixels.
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
        expected, hint = f"an image in {', '.join(FORMATS)}", "fix the row, or reject the item"
        raise InputError(Problem(location, expected, preview(str(error)), hint)) from error


def _asset(name: str) -> str:
    return files("dataset_script.review").joinpath("templates", name).read_text(encoding="utf-8")


MAX_UPLOAD: Final = "1kb"
GRACE_SECONDS: Final = 2
MAX_CONNECTIONS: Final = 256
"""Maximum number of connections; further ones get status 503, which bounds the memory."""


def application(session: ReviewSession, token: str, port: int, answer_first: bool = False) -> ASGIApp:
    """Returns the web application: the page, and the images of the release at ``image/<row>/<column or option>``."""
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
        # system fonts, because the page loads nothing from other hosts
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=_asset("page.css"),
        head=f'<meta name="referrer" content="no-referrer"><script>{_asset("page.js")}</script>',
    )
    return require_token(app, token, port)


def serve(data: ReviewData, log: ReviewLog, host: str, port: int, token: str | None, answer_first: bool) -> None:
    """Serves the page until interrupted; prints the address to open when it is ready.

    Args:
        data: the items to review.
        log: the log of decisions.
        host: address to bind.
        port: port to bind, 0 for any free one.
        token: access token, or None for a new random one.
        answer_first: offer only the answer-first stages.

    Raises:
        InputError: if the log cannot be written or the address cannot be bound.
        click.BadParameter: if the token is too short or not printable ASCII.
    """
    if token is not None and len(token) < MIN_TOKEN:
        raise click.BadParameter(f"a token has at least {MIN_TOKEN} characters", param_hint="--token")
    if token is not None and not (token.isascii() and token.isprintable()):
        raise click.BadParameter("a token consists of printable ASCII characters", param_hint="--token")
    token = token or secrets.token_urlsafe(32)
    session = ReviewSession(data, log)
    log.check_writable()
    _warn_public(host)
    click.echo(f"log: {log.path}", err=True)
    click.echo("open this address; stop with Ctrl+C", err=True)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.create_server((host, port), family=family)
    except OSError as error:
        found = error.strerror or str(error)
        raise InputError(Problem(f"{host}:{port}", "an address to serve on", found, "name another --port")) from error
    number = bound.getsockname()[1]
    app = application(session, token, number, answer_first)
    print(f"http://{f'[{host}]' if ':' in host else host}:{number}/?{urlencode({'token': token})}", flush=True)
    # no access log, which would contain the token; a limited shutdown, because an open page keeps its connection
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        limit_concurrency=MAX_CONNECTIONS,
    )
    logging.getLogger("uvicorn.error").addFilter(_not_shutdown)
    uvicorn.Server(config).run(sockets=[bound])


def _not_shutdown(record: logging.LogRecord) -> bool:
    """Filters out the log records of connections that the shutdown closed."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, asyncio.CancelledError) and "graceful shutdown" not in record.getMessage()


def _warn_public(host: str) -> None:
    """Warns if the address can be reached from other machines."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        address = None  # a host name
    if address is not None and address.is_loopback:
        return
    note = "anybody on the network can read the token and the images; put an encrypting proxy in front of it"
    click.echo(f"warning: {host} can be reached from other machines, without encryption: {note}", err=True)
    if address is not None and address.is_unspecified:
        click.echo(f"on other machines, replace {host} by this machine's name", err=True)
