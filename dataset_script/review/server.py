"""The review page (Gradio), its HTML, and the web server of the page and of its images; each request needs the token.

jinja2 escapes all texts of data and reviewers.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import itertools
import logging
import os
import secrets
import socket
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import click
import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dataset_script.image_files import browser_image
from dataset_script.review.decisions import Key, checked_name, letter_problems
from dataset_script.review.log import ReviewLog
from dataset_script.review.registration import BoundingBox
from dataset_script.review.session import ReviewData, ReviewerState, ReviewSession
from scale_vqa_eval.audit.defects import normalised
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.predict.images import OPTION_IMAGES, ImageRef
from scale_vqa_eval.predict.requests import VisualQuestion
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import GROUNDING_KINDS, LETTERS, MAGNIFICATION, VIEWS
from scale_vqa_eval.text import html_environment

MIN_TOKEN: Final = 16
MAX_BODY: Final = 1_000_000
"""Maximum size of a request in bytes; edits are much smaller."""
MAX_UPLOAD: Final = "1kb"
GRACE_SECONDS: Final = 2
MAX_CONNECTIONS: Final = 256
"""Maximum number of connections; further ones get status 503, which bounds the memory."""
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

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

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

    templates = files("dataset_script.review") / "templates"
    script = (templates / "page.js").read_text(encoding="utf-8")
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
        css=(templates / "page.css").read_text(encoding="utf-8"),
        head=f'<meta name="referrer" content="no-referrer"><script>{script}</script>',
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


def build_page(session: ReviewSession, answer_first: bool = False) -> gr.Blocks:
    """Builds the page of a session; with ``answer_first`` it has no stage that shows the gold answer first."""
    stages = ANSWER_STAGES if answer_first else STAGES
    turns = itertools.count(1)
    max_options = max(len(item.question.options) for item in session.data.items.values())
    # gr.Markdown, toasts and gr.Error interpret markup, so that they must not contain texts of the data
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
                choice = gr.Radio(list(LETTERS[:max_options]), label="Your answer", elem_id="choice")
                send = gr.Button("Answer", variant="primary", elem_id="answer")
            reason = gr.Textbox(label="Reason (needed for reject and edit)", lines=2, elem_id="reason")
            with gr.Row(elem_id="verdicts") as verdicts:
                keys = {"accept": "a", "reject": "r", "edit": "e", "later": "n", "back": "p"}
                variants = {"accept": "primary", "reject": "stop"}
                buttons = {
                    name: gr.Button(
                        f"{name.capitalize()} ({key})",
                        elem_id=name,
                        variant=variants.get(name, "secondary"),
                        size="md",
                        min_width=90,
                    )
                    for name, key in keys.items()
                }
            with gr.Column(visible=False, elem_id="editor") as editor:
                texts = [gr.Textbox(label="Question", lines=2, elem_id="edit-question")]
                for pair in (LETTERS[:max_options][first : first + 2] for first in range(0, max_options, 2)):
                    with gr.Row():
                        texts += [gr.Textbox(label=f"Option {one}", elem_id=f"edit-{one}") for one in pair]
                answer = gr.Radio(list(LETTERS[:max_options]), label="Answer", elem_id="edit-answer")
                texts.append(gr.Textbox(label="Rationale", lines=3, elem_id="edit-rationale"))
                with gr.Row():
                    save = gr.Button("Accept with this text (Ctrl+Enter)", variant="primary", elem_id="save")
                    cancel = gr.Button("Cancel (Esc)", elem_id="cancel")
            gr.HTML(KEYS, elem_id="keys", apply_default_css=False)
        fields = [*texts, answer]
        outputs = [viewer, entrance, work, panel, message, reason, verdicts, editor, answers, choice, *fields]
        visible, hidden = gr.update(visible=True), gr.update(visible=False)

        # an action returns the components that change
        def show(now: ReviewerState, note: str = "") -> Updates:
            asked = session.answering(now)
            count = len(session.data.items[now.at].question.options) if now.at is not None else max_options
            letters = gr.update(choices=list(LETTERS[:count]), value=None)
            return {
                **{answers: visible if asked else hidden, choice: letters},
                **{viewer: now, entrance: hidden, work: visible, panel: render_item(session, now)},
                **{message: render_note(note, next(turns), done=True), reason: "", editor: hidden},
                **{verdicts: hidden if asked or now.stage == "blind" else visible},
                **({} if asked else dict(zip(fields, _field_values(session, now, max_options), strict=False))),
            }

        def guarded(action: Callable[..., Updates]) -> Callable[..., Updates]:
            def run(now: ReviewerState | None, *values: Any) -> Updates:
                if now is None and action is not enter:  # the state of a disconnected browser expires
                    note = "Not saved: this page was away for too long. Enter your name again; the log has the rest."
                    asked = render_note(note, next(turns), needs="reviewer")
                    return {entrance: visible, work: hidden, panel: "", message: asked}
                try:
                    return action(now, *values)
                except InputError as error:
                    problems = [f"expected {one.expected}, found {one.found}: {one.hint}" for one in error.problems]
                    note = "; ".join(problems)
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
            # the verdict buttons are hidden, because they would discard the new text
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


def _field_values(session: ReviewSession, now: ReviewerState, max_options: int) -> list[Any]:
    """Returns the values of the editor's fields: the question's texts, or in adjudication a reviewer's edit."""
    if now.at is None:
        return []
    question = session.data.items[now.at].question
    edit: dict[str, Any] = {}
    if now.stage == "adjudication":
        item_status = session.status_of(now.at)
        decisions = [*item_status.adjudications.values(), *item_status.reviews.values()]
        edit = dict(next((one.edit for one in decisions if one.edit), {}))
    count = len(question.options)
    options = [*edit.get("options", question.options), *[""] * (max_options - count)]
    return [
        edit.get("question", question.question),
        *(gr.update(value=text, visible=index < count) for index, text in enumerate(options)),
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


def render_item(session: ReviewSession, viewer: ReviewerState) -> str:
    """Returns the HTML of the item in view; in review, it does not depend on the other reviewer's decision."""
    done, waiting = session.progress(viewer)
    if viewer.at is None:
        return _template("done.html.j2").render(viewer=viewer, done=done)
    item = session.data.items[viewer.at]
    question = item.question
    item_status = session.status_of(viewer.at)
    hidden, blind = session.answering(viewer), viewer.stage == "blind"
    return _template("panel.html.j2").render(
        viewer=viewer,
        done=done,
        waiting=waiting,
        item=question,
        row=next((one.row for one in (*item.views, *item.option_images)), 0),
        views=[] if blind else _views(session, item),
        # grounding questions have only the views that their kind asks about
        missing=[_view_name(view) for view in VIEWS if view not in {one.column for one in item.views}]
        if not blind and question.dimension not in GROUNDING_KINDS
        else [],
        options=[
            {
                "letter": letter,
                "text": text,
                "gold": index == question.answer and not hidden,
                "picture": item.option_images[index].option if item.option_images and not blind else None,
            }
            for index, (letter, text) in enumerate(zip(LETTERS, question.options, strict=False))
        ],
        pictures=bool(item.option_images) and not blind,
        hidden=hidden,
        answer=item_status.answers.get(viewer.person),
        warnings=[] if hidden else _warnings(session, question),
        own=None if hidden else session.own(viewer),
        closed=viewer.stage != "adjudication" and item_status.closed,
        others=_others(session, viewer.at) if viewer.stage == "adjudication" else [],
    )


def render_note(text: str, turn: int, done: bool = False, needs: str | None = None) -> str:
    """Returns the message after an action.

    Args:
        text: the message.
        turn: number of the action, by which the page recognises the response.
        done: whether the action succeeded.
        needs: id of a field that must be filled, or None.
    """
    return _template("note.html.j2").render(text=text, turn=turn, done=done, needs=needs)


def _views(session: ReviewSession, item: VisualQuestion) -> list[dict[str, Any]]:
    outlines = session.outlines(item)
    columns = [view.column for view in item.views]
    views = []
    for index, view in enumerate(item.views):
        boxes = outlines.get(view.column, [])
        # report only the next finer view, which contains the one after it
        unsure = [_view_name(name) for name in columns[index + 1 : index + 2] if name not in dict(boxes)]
        name, drawn = _view_name(view.column), [_box(inner, box) for inner, box in boxes]
        views.append({"row": view.row, "column": view.column, "name": name, "boxes": drawn, "unsure": unsure})
    return views


def _box(view: str, box: BoundingBox) -> dict[str, Any]:
    shares = {name: round(100 * getattr(box, name), 3) for name in ("left", "top", "width", "height")}
    return {"column": view, "name": _view_name(view), "how": box.how, **shares}


def _view_name(view: str) -> str:
    return f"{view.removesuffix('_mag')} view, {MAGNIFICATION[view]}"


def _warnings(session: ReviewSession, question: Question) -> list[str]:
    found = [f"Known defect: expected {one.expected}, found {one.found}" for one in letter_problems(question)]
    if len({normalised(text) or text for text in question.options}) < len(question.options):
        found.append("Known defect: two options have the same text")
    return found + [f"Flagged in curation: {one}" for one in session.data.flags.get(question.id, ())]


def _others(session: ReviewSession, key: Key) -> list[dict[str, Any]]:
    item_status = session.status_of(key)
    return [
        {
            "reviewer": one.reviewer,
            "verdict": one.verdict,
            "reason": one.reason,
            "edit": [(name, _plain(value)) for name, value in one.edit.items()],
            "now": now.verdict if now else None,
            "now_reason": now.reason if now else "",
        }
        for person, one in item_status.reviews.items()
        for now in (item_status.adjudications.get(person),)
    ]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " | ".join(f"{letter} {text}" for letter, text in zip(LETTERS, value, strict=False))
    return str(value)


_template = html_environment("dataset_script.review").get_template
