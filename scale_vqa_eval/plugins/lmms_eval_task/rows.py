"""What lmms-eval calls with a row of the release folder: its images, its words, and how its answer is read."""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from scale_vqa_eval.predict.images import to_rgb
from scale_vqa_eval.predict.prompts import Prompt, filled, load_prompt
from scale_vqa_eval.scale_vqa_acc.parsing import parse_response
from scale_vqa_eval.schema import ALL_DIMENSIONS, LETTERS, VIEWS

Row = dict[str, Any]


@cache
def _prompt() -> Prompt:
    return load_prompt("published")


def doc_to_visual(doc: Row) -> list[Any]:
    """Returns the images in the order in which they are shown: views low to high, then option images."""
    views = [doc[view] for view in VIEWS if doc.get(view) is not None]
    return [to_rgb(image, str(doc["id"])) for image in (*views, *(doc.get("option_images") or []))]


def doc_to_text(doc: Row, lmms_eval_specific_kwargs: Row | None = None) -> str:
    """Returns the text of the user turn."""
    return _prompt().text(doc["question"], doc["options"])


def doc_to_messages(doc: Row, lmms_eval_specific_kwargs: Row | None = None) -> list[Row]:
    """Returns the messages that ``predict`` would send: images, each option image after its letter, text last."""
    prompt, images = _prompt(), doc_to_visual(doc)
    first_option = len(images) - len(doc.get("option_images") or [])
    parts: list[Row] = []
    for place, image in enumerate(images):
        if place >= first_option:
            parts.append({"type": "text", "text": filled(prompt.option_label, letter=LETTERS[place - first_option])})
        parts.append({"type": "image", "url": image})
    parts.append({"type": "text", "text": doc_to_text(doc)})
    return _turns(prompt, parts)


def no_visual(doc: Row) -> list[Any]:
    """Returns no image, for the blind control."""
    return []


def blind_messages(doc: Row, lmms_eval_specific_kwargs: Row | None = None) -> list[Row]:
    """Returns the messages of the blind control: the same text to the byte, and no image."""
    return _turns(_prompt(), [{"type": "text", "text": doc_to_text(doc)}])


def _turns(prompt: Prompt, parts: list[Row]) -> list[Row]:
    user = {"role": "user", "content": parts}
    system = {"role": "system", "content": [{"type": "text", "text": prompt.system}]}
    return [system, user] if prompt.system else [user]


def doc_to_target(doc: Row) -> str:
    """Returns the gold letter."""
    return LETTERS[doc["answer"]]


def process_results(doc: Row, results: Sequence[str]) -> Row:
    """Reads the answer of one response by the published rule."""
    parsed = parse_response(results[0], "reference", len(doc["options"]))
    row = {
        "id": doc["id"],
        "patient": doc["patient_id"] or doc["wsi_name"] or doc["id"],
        "dimension": ALL_DIMENSIONS[doc["dimension"]] if doc["dimension"] is not None else None,
        "score": float(parsed.letter == doc_to_target(doc)),
        "reason": parsed.reason,
        "response": results[0],
    }
    return {"scale_vqa_acc": row}


def accuracy(results: Sequence[Row]) -> float:
    """Returns the share of right answers."""
    return float(sum(row["score"] for row in results) / len(results))
