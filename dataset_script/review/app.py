"""The review page in Gradio, and the server that shows it and the images on one address behind the token."""

from __future__ import annotations

import asyncio
import io
import ipaddress
import itertools
import logging
import os
import socket
import warnings
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Final

import gradio as gr
import uvicorn
from fastapi import FastAPI
from PIL import Image
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from dataset_script.image_files import FORMATS, MAX_PIXELS
from dataset_script.review.auth import entry, require_token
from dataset_script.review.decisions import checked_name
from dataset_script.review.session import ReviewerState, ReviewSession
from dataset_script.review.views import render_item, render_note
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict.images import OPTION_IMAGES, ImageRef
from scale_vqa_eval.schema import LETTERS, VIEWS

_SHOWN_AS_THEY_ARE: Final = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}


def browser_image(content: bytes, location: str) -> tuple[bytes, str]:
    """Returns bytes and media type of an image that a browser shows.

    Args:
        content: the image file; its format is taken from the bytes, never from a name.
        location: what a message calls it.

    Raises:
        InputError: where it is no image, is broken, or claims too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
                kind = _SHOWN_AS_THEY_ARE.get(image.format or "")
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


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before the import: the page calls nobody


Updates = dict[Any, Any]
"""Gradio component -> its new value."""
STAGES: Final = {"Review": "review", "Adjudicate open disagreements": "adjudication"}
ANSWER_STAGES: Final = {"Answer with images, then review": "seeing", "Answer without images": "blind"}
KEYS: Final = (
    "<kbd>a</kbd> accept <kbd>r</kbd> reject <kbd>e</kbd> edit <kbd>n</kbd> later <kbd>p</kbd> back "
    "<kbd>i</kbd> write a reason <kbd>Ctrl+Enter</kbd> send it, save an edit <kbd>Esc</kbd> leave a field "
    "<kbd>Tab</kbd> <kbd>Space</kbd> choose an answer &nbsp; "
    "<kbd>1</kbd><kbd>2</kbd><kbd>3</kbd> enlarge a view <kbd>+</kbd><kbd>-</kbd> or wheel zoom "
    "<kbd>arrows</kbd> or drag move <kbd>0</kbd> whole view <kbd>o</kbd> outlines"
)


def build_page(session: ReviewSession, answer_first: bool = False) -> gr.Blocks:
    """Builds the page of a session; with ``answer_first`` it offers no stage that shows the gold answer first."""
    stages = ANSWER_STAGES if answer_first else STAGES
    turns = itertools.count(1)
    most = max(len(item.question.options) for item in session.data.items.values())
    # gr.Markdown, toasts and gr.Error would read texts of the data as markup: nothing of the data goes into them
    with gr.Blocks(title="scale-vqa review", analytics_enabled=False) as page:
        viewer = gr.State(None)
        with gr.Column(visible=True) as entrance:
            gr.HTML("<h1>Review of Scale-VQA questions</h1>", apply_default_css=False)
            name = gr.Textbox(label="Your name", elem_id="reviewer", max_length=200, autofocus=True)
            stage = gr.Radio(list(stages), value=next(iter(stages)), label="What to do", elem_id="stage")
            start = gr.Button("Start", variant="primary", elem_id="start")
        panel = gr.HTML(elem_id="panel", apply_default_css=False)
        message = gr.HTML(render_note("", 0), elem_id="message", apply_default_css=False)
        with gr.Column(visible=False) as work:
            with gr.Row(visible=False, elem_id="answers") as answers:
                choice = gr.Radio(list(LETTERS[:most]), label="Your answer", elem_id="choice")
                send = gr.Button("Answer", variant="primary", elem_id="answer")
            reason = gr.Textbox(label="Reason (needed for reject and edit)", lines=2, elem_id="reason")
            with gr.Row(elem_id="verdicts") as verdicts:
                buttons = {
                    which: gr.Button(label, elem_id=which, variant=variant, size="md", min_width=90)
                    for which, label, variant in (
                        ("accept", "Accept (a)", "primary"),
                        ("reject", "Reject (r)", "stop"),
                        ("edit", "Edit (e)", "secondary"),
                        ("later", "Later (n)", "secondary"),
                        ("back", "Back (p)", "secondary"),
                    )
                }
            with gr.Column(visible=False, elem_id="editor") as editor:
                texts = [gr.Textbox(label="Question", lines=2, elem_id="edit-question")]
                for pair in (LETTERS[:most][place : place + 2] for place in range(0, most, 2)):
                    with gr.Row():
                        texts += [gr.Textbox(label=f"Option {one}", elem_id=f"edit-{one}") for one in pair]
                answer = gr.Radio(list(LETTERS[:most]), label="Answer", elem_id="edit-answer")
                texts.append(gr.Textbox(label="Rationale", lines=3, elem_id="edit-rationale"))
                with gr.Row():
                    save = gr.Button("Accept with this text (Ctrl+Enter)", variant="primary", elem_id="save")
                    cancel = gr.Button("Cancel (Esc)", elem_id="cancel")
            gr.HTML(KEYS, elem_id="keys", apply_default_css=False)
        fields = [*texts, answer]
        outputs = [viewer, entrance, work, panel, message, reason, verdicts, editor, answers, choice, *fields]
        visible, hidden = gr.update(visible=True), gr.update(visible=False)

        # an action returns the components that change; all others stay as they are
        def show(now: ReviewerState, note: str = "") -> Updates:
            asked = session.answering(now)
            count = len(session.data.items[now.at].question.options) if now.at is not None else most
            letters = gr.update(choices=list(LETTERS[:count]), value=None)
            return {
                **{answers: visible if asked else hidden, choice: letters},
                **{viewer: now, entrance: hidden, work: visible, panel: render_item(session, now)},
                **{message: render_note(note, next(turns), done=True), reason: "", editor: hidden},
                **{verdicts: hidden if asked or now.stage == "blind" else visible},
                **({} if asked else dict(zip(fields, _field_values(session, now, most), strict=False))),
            }

        def guarded(action: Callable[..., Updates]) -> Callable[..., Updates]:
            def run(now: ReviewerState | None, *values: Any) -> Updates:
                if now is None and action is not enter:  # the browser was away so long that its state is gone
                    note = "Not saved: this page was away for too long. Give your name again; the log has the rest."
                    asked = render_note(note, next(turns), needs="reviewer")
                    return {entrance: visible, work: hidden, panel: "", message: asked}
                try:
                    return action(now, *values)
                except InputError as error:
                    note = "; ".join(
                        f"expected {one.expected}, found {one.found}: {one.hint}" for one in error.problems
                    )
                    needs = "reason" if any("a reason" in one.expected for one in error.problems) else None
                    return {message: render_note(note, next(turns), needs=needs)}

            return run

        def enter(now: ReviewerState | None, name: str, stage: str) -> Updates:
            return show(session.advance(ReviewerState(checked_name(name or ""), stages[stage])))

        def decide(verdict: str) -> Callable[..., Updates]:
            def run(now: ReviewerState, reason: str, *values: Any) -> Updates:
                edit = _edit(session, now, values) if verdict == "edit" else None
                own = session.own(now)
                after = session.decide(now, verdict, reason or "", edit)
                instead = f" in place of your {own.verdict}" if own is not None else ""
                return show(after, f"Saved: {verdict}{instead}, {now.at[1]}" if now.at else "")

            return run

        def open_editor(now: ReviewerState) -> Updates:
            note = render_note("Edit, give a reason, save.", next(turns), done=True, needs="edit-question")
            # with the editor open, Accept and the like would lose the new text
            return {message: note, verdicts: hidden, editor: visible} if now.at is not None else {message: note}

        def on(button: gr.Button, action: Callable[..., list[Any]], *inputs: Any) -> None:
            button.click(guarded(action), [viewer, *inputs], outputs, show_progress="hidden", api_visibility="private")

        def answer_item(now: ReviewerState, letter: str | None) -> Updates:
            row = now.at[1] if now.at else ""
            return show(session.answer(now, letter or ""), f"Saved: your answer, {row}")

        on(start, enter, name, stage)
        on(send, answer_item, choice)
        on(buttons["accept"], decide("accept"), reason)
        on(buttons["reject"], decide("reject"), reason)
        on(buttons["edit"], open_editor)
        on(buttons["later"], lambda now: show(session.postpone(now)))
        on(buttons["back"], lambda now: show(session.back(now)))
        on(save, decide("edit"), reason, *fields)
        on(cancel, show)
    return page


def _asset(name: str) -> str:
    return files("dataset_script.review").joinpath("templates", name).read_text(encoding="utf-8")


def _field_values(session: ReviewSession, now: ReviewerState, most: int) -> list[Any]:
    """Returns the values of the editor's fields: the text, or in adjudication a reviewer's edit of it."""
    if now.at is None:
        return []
    question = session.data.items[now.at].question
    edit: dict[str, Any] = {}
    if now.stage == "adjudication":
        item_status = session.status_of(now.at)
        said = [*item_status.adjudications.values(), *item_status.reviews.values()]
        edit = dict(next((one.edit for one in said if one.edit), {}))
    count = len(question.options)
    options = [*edit.get("options", question.options), *[""] * (most - count)]
    return [
        edit.get("question", question.question),
        *(gr.update(value=text, visible=place < count) for place, text in enumerate(options)),
        edit.get("rationale", question.rationale or ""),
        gr.update(choices=list(LETTERS[:count]), value=edit.get("answer", question.letter)),
    ]


def _edit(session: ReviewSession, now: ReviewerState, values: tuple[Any, ...]) -> dict[str, Any]:
    """Returns the editor's fields as an edit."""
    if now.at is None:
        return {}
    question, *options, rationale, answer = values
    count = len(session.data.items[now.at].question.options)
    options = [text or "" for text in options[:count]]
    return {"question": question or "", "options": options, "answer": answer, "rationale": rationale or ""}


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
