"""The page, in Gradio: components and what their events do. What a reviewer may do is in ``desk``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Final

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before the import: the page calls nobody

import gradio as gr

from dataset_script.review.decisions import checked_name
from dataset_script.review.desk import Desk, Seat
from dataset_script.review.panel import render_item, render_note
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.schema import LETTERS

STAGES: Final = {"Review": "review", "Adjudicate open disagreements": "adjudication"}
KEYS: Final = (
    "<kbd>a</kbd> accept <kbd>r</kbd> reject <kbd>e</kbd> edit <kbd>n</kbd> later <kbd>p</kbd> back "
    "<kbd>i</kbd> write a reason <kbd>Ctrl+Enter</kbd> send it, save an edit <kbd>Esc</kbd> leave a field "
    "<kbd>Tab</kbd> <kbd>Space</kbd> choose an answer &nbsp; "
    "<kbd>1</kbd><kbd>2</kbd><kbd>3</kbd> enlarge a view <kbd>+</kbd><kbd>-</kbd> or wheel zoom "
    "<kbd>arrows</kbd> or drag move <kbd>0</kbd> whole view <kbd>o</kbd> outlines"
)


def build_page(desk: Desk) -> gr.Blocks:
    """Builds the page of a desk."""
    turns = itertools.count(1)
    most = max(len(item.question.options) for item in desk.data.items.values())
    # gr.Markdown, toasts and gr.Error would read texts of the data as markup: nothing of the data goes into them
    with gr.Blocks(title="scale-vqa review", analytics_enabled=False) as page:
        seat = gr.State(None)
        with gr.Column(visible=True) as entrance:
            gr.HTML("<h1>Review of Scale-VQA questions</h1>", apply_default_css=False)
            name = gr.Textbox(label="Your name", elem_id="reviewer", max_length=200, autofocus=True)
            stage = gr.Radio(list(STAGES), value="Review", label="What to do", elem_id="stage")
            start = gr.Button("Start", variant="primary", elem_id="start")
        panel = gr.HTML(elem_id="panel", apply_default_css=False)
        message = gr.HTML(render_note("", 0), elem_id="message", apply_default_css=False)
        with gr.Column(visible=False) as work:
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
        preview = [seat, entrance, work, panel, message, reason, verdicts, editor, *fields]

        def show(now: Seat, note: str = "") -> list[Any]:
            """Returns the values of ``shown`` for a seat."""
            opened, closed = gr.update(visible=True), gr.update(visible=False)
            return [
                *(now, gr.update(visible=False), gr.update(visible=True), render_item(desk, now)),
                *(render_note(note, next(turns), done=True), "", opened, closed, *_field_values(desk, now, most)),
            ]

        def refused(error: InputError, now: Seat | None) -> list[Any]:
            """Returns the values of ``shown`` that leave all as it is and say what was wrong."""
            said = "; ".join(f"expected {one.expected}, found {one.found}: {one.hint}" for one in error.problems)
            needs = "reason" if any("a reason" in one.expected for one in error.problems) else None
            return [
                now,
                *[gr.skip()] * 3,
                render_note(said, next(turns), needs=needs),
                *[gr.skip()] * (3 + len(fields)),
            ]

        def left(note: str) -> list[Any]:
            """Returns the values of ``shown`` that ask for the name again, as a long absence has undone the seat."""
            opened, closed = gr.update(visible=True), gr.update(visible=False)
            return [
                *(None, opened, closed, "", render_note(note, next(turns), needs="reviewer")),
                *[gr.skip()] * (3 + len(fields)),
            ]

        def guarded(action: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
            def run(now: Seat | None, *values: Any) -> list[Any]:
                if now is None and action is not enter:
                    return left(
                        "Not saved: this page was away for too long. Give your name again; the log has the rest."
                    )
                try:
                    return action(now, *values)
                except InputError as error:
                    return refused(error, now)

            return run

        def enter(now: Seat | None, name: str, stage: str) -> list[Any]:
            return show(desk.seated(Seat(checked_name(name or ""), STAGES[stage])))

        def decide(verdict: str) -> Callable[..., list[Any]]:
            def run(now: Seat, reason: str, *values: Any) -> list[Any]:
                edit = _edit(desk, now, values) if verdict == "edit" else None
                key = now.at
                own = desk.own(now)
                after = desk.decide(now, verdict, reason or "", edit)
                instead = f" in place of your {own.verdict}" if own is not None else ""
                return show(after, f"Saved: {verdict}{instead}, {key[1]}" if key else "")

            return run

        def open_editor(now: Seat) -> list[Any]:
            note = render_note("Edit, give a reason, save.", next(turns), done=True, needs="edit-question")
            # with the editor open, Accept and the like would lose the new text
            swapped = [gr.update(visible=now.at is None), gr.update(visible=now.at is not None)]
            return [now, *[gr.skip()] * 3, note, gr.skip(), *swapped, *[gr.skip()] * len(fields)]

        def on(button: gr.Button, action: Callable[..., list[Any]], *inputs: Any) -> None:
            button.click(guarded(action), [seat, *inputs], preview, show_progress="hidden", api_visibility="private")

        on(start, enter, name, stage)
        on(buttons["accept"], decide("accept"), reason)
        on(buttons["reject"], decide("reject"), reason)
        on(buttons["edit"], open_editor)
        on(buttons["later"], lambda now: show(desk.put_off(now)))
        on(buttons["back"], lambda now: show(desk.back(now)))
        on(save, decide("edit"), reason, *fields)
        on(cancel, show)
    return page


def page_style() -> str:
    """Returns the page's CSS."""
    return _asset("page.css")


def page_head() -> str:
    """Returns what goes into the page's head: its script, and that the address goes to nobody."""
    return f'<meta name="referrer" content="no-referrer"><script>{_asset("page.js")}</script>'


def page_theme() -> gr.themes.Base:
    """Returns a theme with fonts of the machine, so that none is fetched."""
    return gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def _asset(name: str) -> str:
    return files("dataset_script.review").joinpath("templates", name).read_text(encoding="utf-8")


def _field_values(desk: Desk, now: Seat, most: int) -> list[Any]:
    """Returns what the editor's fields hold: the text, or, in adjudication, a reviewer's edit of it."""
    if now.at is None:
        return [gr.skip()] * (most + 3)
    question = desk.data.items[now.at].question
    edit: dict[str, Any] = {}
    if now.stage == "adjudication":
        standing = desk.standing(now.at)
        said = [*standing.adjudications.values(), *standing.reviews.values()]
        edit = dict(next((one.edit for one in said if one.edit), {}))
    count = len(question.options)
    options = [*edit.get("options", question.options), *[""] * (most - count)]
    return [
        edit.get("question", question.question),
        *(gr.update(value=text, visible=place < count) for place, text in enumerate(options)),
        edit.get("rationale", question.rationale or ""),
        gr.update(choices=list(LETTERS[:count]), value=edit.get("answer", question.letter)),
    ]


def _edit(desk: Desk, now: Seat, values: tuple[Any, ...]) -> dict[str, Any]:
    """Returns the editor's fields as an edit."""
    if now.at is None:
        return {}
    question, *options, rationale, answer = values
    count = len(desk.data.items[now.at].question.options)
    options = [text or "" for text in options[:count]]
    return {"question": question or "", "options": options, "answer": answer, "rationale": rationale or ""}
