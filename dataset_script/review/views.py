"""Renders the item in view as HTML; jinja2 escapes every text of the data and of the reviewers."""

from __future__ import annotations

from typing import Any

from dataset_script.review.decisions import Key, letter_problems
from dataset_script.review.registration import BoundingBox
from dataset_script.review.session import ReviewerState, ReviewSession
from scale_vqa_eval.audit.defects import normalised
from scale_vqa_eval.predict.requests import VisualQuestion
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import GROUNDING_KINDS, LETTERS, MAGNIFICATION, VIEWS
from scale_vqa_eval.text import html_environment


def render_item(session: ReviewSession, viewer: ReviewerState) -> str:
    """Returns the panel of a viewer: the item in view, or that nothing waits.

    In review, no other reviewer's verdict is shown, nor whether there is one.
    """
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
        # a grounding question shows the views that its kind asks about
        missing=[
            _view_name(view)
            for view in VIEWS
            if not blind
            and question.dimension not in GROUNDING_KINDS
            and view not in {one.column for one in item.views}
        ],
        options=[
            {
                "letter": letter,
                "text": text,
                "gold": place == question.answer and not hidden,
                "picture": item.option_images[place].option if item.option_images and not blind else None,
            }
            for place, (letter, text) in enumerate(zip(LETTERS, question.options, strict=False))
        ],
        pictures=bool(item.option_images) and not blind,
        hidden=hidden,
        answer=item_status.answers.get(viewer.person),
        warnings=[]
        if hidden
        else [
            *_warnings(question),
            *(f"Flagged in curation: {one}" for one in session.data.flags.get(question.id, ())),
        ],
        own=None if hidden else session.own(viewer),
        closed=viewer.stage != "adjudication" and item_status.closed,
        others=_others(session, viewer.at) if viewer.stage == "adjudication" else [],
    )


def render_note(text: str, turn: int, done: bool = False, needs: str | None = None) -> str:
    """Returns the line that answers the last action.

    Args:
        text: what to say.
        turn: number of the action, by which the page sees that it was answered.
        done: whether it succeeded.
        needs: the field that has to be filled, if any.
    """
    return _template("note.html.j2").render(text=text, turn=turn, done=done, needs=needs)


def _views(session: ReviewSession, item: VisualQuestion) -> list[dict[str, Any]]:
    outlines = session.outlines(item)
    columns = [view.column for view in item.views]
    views = []
    for place, view in enumerate(item.views):
        boxes = outlines.get(view.column, [])
        # only the next view of the path is missed: the one after it lies in that one
        unsure = [_view_name(name) for name in columns[place + 1 : place + 2] if name not in dict(boxes)]
        preview = [_box(name, box) for name, box in boxes]
        views.append(
            {
                "row": view.row,
                "column": view.column,
                "name": _view_name(view.column),
                "boxes": preview,
                "unsure": unsure,
            }
        )
    return views


def _box(view: str, place: BoundingBox) -> dict[str, Any]:
    shares = {name: round(100 * getattr(place, name), 3) for name in ("left", "top", "width", "height")}
    return {"column": view, "name": _view_name(view), "how": place.how, **shares}


def _view_name(view: str) -> str:
    return f"{view.removesuffix('_mag')} view, {MAGNIFICATION[view]}"


def _warnings(question: Question) -> list[str]:
    found = [
        f"Known defect: expected {problem.expected}, found {problem.found}" for problem in letter_problems(question)
    ]
    if len({normalised(text) or text for text in question.options}) < len(question.options):
        found.append("Known defect: two options have the same text")
    return found


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
    return (
        " | ".join(f"{letter} {text}" for letter, text in zip(LETTERS, value, strict=False))
        if isinstance(value, list)
        else str(value)
    )


def _template(name: str) -> Any:
    return _ENVIRONMENT.get_template(name)


_ENVIRONMENT = html_environment("dataset_script.review")
