"""Functions that lmms-eval calls with a row of the release folder: images, text and parsing of the answer."""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from scale_vqa_eval.predict import DEFAULT_PROMPT
from scale_vqa_eval.predict.images import OPTION_IMAGES, ImageRef, to_rgb
from scale_vqa_eval.predict.prompts import Prompt, build_messages, load_prompt
from scale_vqa_eval.predict.requests import Request, VisualQuestion
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.parsing import parse_response
from scale_vqa_eval.schema import ALL_DIMENSIONS, LETTERS, VIEWS

Row = dict[str, Any]


@cache
def _prompt() -> Prompt:
    return load_prompt(DEFAULT_PROMPT)


def doc_to_visual(doc: Row) -> list[Any]:
    """Returns the images in the order in which they are shown: views from low to high, then option images."""
    return [_image(doc, image) for image in _request(doc).item.images]


def doc_to_text(doc: Row, lmms_eval_specific_kwargs: Row | None = None) -> str:
    """Returns the text of the user message."""
    return _prompt().text(doc["question"], doc["options"])


def doc_to_messages(doc: Row, lmms_eval_specific_kwargs: Row | None = None) -> list[Row]:
    """Returns the messages of ``predict``: views, option images each after its letter, and the text."""
    prompt = _prompt()
    parts = _request(doc).content(prompt)
    return build_messages(prompt, parts, lambda image: {"type": "image", "url": _image(doc, image)})


def no_visual(doc: Row) -> list[Any]:
    """Returns an empty list, for the blind control."""
    return []


def blind_messages(doc: Row, lmms_eval_specific_kwargs: Row | None = None) -> list[Row]:
    """Returns the messages of the blind control: the same text without images."""
    return build_messages(_prompt(), [doc_to_text(doc)], dict)


def _request(doc: Row) -> Request:
    question = Question(str(doc["id"]), doc["question"], tuple(doc["options"]), int(doc["answer"]))
    views = tuple(ImageRef(0, view) for view in VIEWS if doc.get(view) is not None)
    options = tuple(ImageRef(0, OPTION_IMAGES, index) for index in range(len(doc.get(OPTION_IMAGES) or [])))
    return Request(VisualQuestion(question, views, options, question.id))


def _image(doc: Row, image: ImageRef) -> Any:
    shown = doc[image.column] if image.option is None else doc[image.column][image.option]
    return to_rgb(shown, str(doc["id"]))


def doc_to_target(doc: Row) -> str:
    """Returns the gold letter."""
    return LETTERS[doc["answer"]]


def process_results(doc: Row, results: Sequence[str]) -> Row:
    """Parses a response by the published rule."""
    parsed = parse_response(results[0], "reference", len(doc["options"]))
    row = {
        "id": doc["id"],
        "patient": doc["patient_id"] or doc["wsi_name"] or doc["id"],
        "dimension": ALL_DIMENSIONS[doc["dimension"]] if doc["dimension"] is not None else None,
        "score": float(parsed.letter == doc_to_target(doc)),
        "reason": parsed.reason,
        "response": results[0],
        "ablation": None,
        "prompt_id": f"{_prompt().id}@{_prompt().version}",
    }
    return {"scale_vqa_acc": row}


def blind_results(doc: Row, results: Sequence[str]) -> Row:
    """Returns ``process_results`` with the ablation ``blind``."""
    return {"scale_vqa_acc": process_results(doc, results)["scale_vqa_acc"] | {"ablation": "blind"}}


def accuracy(results: Sequence[Row]) -> float:
    """Returns the share of correct answers."""
    return float(sum(row["score"] for row in results) / len(results))
