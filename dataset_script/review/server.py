"""Serves the page and the images of a review on one address, behind the token."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable
from typing import Final

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from dataset_script.review.access import entry, gated
from dataset_script.review.desk import Desk
from dataset_script.review.page import build_page, page_head, page_style, page_theme
from dataset_script.review.pictures import browser_image
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.predict.pictures import OPTION_IMAGES, Picture
from scale_vqa_eval.schema import VIEWS

MAX_UPLOAD: Final = "1kb"
GRACE_SECONDS: Final = 2


def application(desk: Desk, token: str, port: int) -> ASGIApp:
    """Returns the web application: the page, and ``image/<row>/<column or option>`` with the release's own bytes."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    pictures = {
        (one.row, one.column, one.option): one
        for item in desk.data.items.values()
        for one in (*item.views, *item.option_pictures)
    }

    def image(picture: Picture | None) -> Response:
        if picture is None:
            return PlainTextResponse("No such image in this release.\n", status_code=404)
        try:
            content, kind = browser_image(desk.images.read(picture), picture.name)
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
        build_page(desk),
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        mcp_server=False,
        theme=page_theme(),
        css=page_style(),
        head=page_head(),
    )
    return gated(app, token, port)


def serve(desk: Desk, host: str, port: int, token: str, tell: Callable[[str], None]) -> None:
    """Serves until interrupted.

    Args:
        desk: what is reviewed.
        host: address to bind.
        port: 0 for any that is free.
        token: what a browser has to bring.
        tell: takes the address to open, once, when it can be opened.

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
    app = application(desk, token, number)
    tell(entry(f"http://{f'[{host}]' if ':' in host else host}:{number}", token))
    # no access log: it would repeat the token; an open page holds a connection that would never end by itself
    config = uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, timeout_graceful_shutdown=GRACE_SECONDS
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
