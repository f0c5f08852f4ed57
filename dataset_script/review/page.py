"""The review page (Gradio) and the HTML of the item in view; jinja2 escapes all texts of data and reviewers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any, Final

import gradio as gr

from dataset_script.review.decisions import Key, checked_name, letter_problems
from dataset_script.review.registration import BoundingBox
from dataset_script.review.session import ReviewerState, ReviewSession
from scale_vqa_eval.audit.defects import normalised
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.predict.requests import VisualQuestion
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import GROUNDING_KINDS, LETTERS, MAGNIFICATION, VIEWS
from scale_vqa_eval.text import html_environment

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
    found = []
    for person, one in item_status.reviews.items():
        now = item_status.adjudications.get(person)
        found.append(
            {
                "reviewer": one.reviewer,
                "verdict": one.verdict,
                "reason": one.reason,
                "edit": [(name, _plain(value)) for name, value in one.edit.items()],
                "now": now.verdict if now else None,
                "now_reason": now.reason if now else "",
            }
        )
    return found


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " | ".join(f"{letter} {text}" for letter, text in zip(LETTERS, value, strict=False))
    return str(value)


_template = html_environment("dataset_script.review").get_template
