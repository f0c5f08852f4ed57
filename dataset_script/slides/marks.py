"""Draws the four lettered boxes of an origin question on a 10x view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from dataset_script.slides.fields import Field
from scale_vqa_eval.schema import LETTERS

LINE_PX: Final = 2
CLEAR_PX: Final = 1
"""Pixels left free around the field, so that no line lies on the tissue that is asked about."""
TAG_PX: Final = 14

Rectangle = tuple[float, float, float, float]


def mark_boxes(view: Image.Image, frame: Field, inner: Sequence[Field]) -> Image.Image:
    """Returns a copy of a 10x view with a lettered box around each of some fields, all drawn alike.

    Args:
        view: pixels of ``frame``.
        frame: the 10x field.
        inner: fields that lie in it; the first is lettered A.
    """
    marked = view.copy()
    draw = ImageDraw.Draw(marked)
    boxes = [box_in(frame, field) for field in inner]
    rims = [_grown(box, CLEAR_PX + LINE_PX + 1) for box in boxes]
    taken = list(rims)
    font = ImageFont.load_default(TAG_PX)
    for letter, box, rim in zip(LETTERS, boxes, rims, strict=False):
        # a dark line in a light one: seen on pale stroma and on dense nuclei alike
        draw.rectangle(rim, outline="white", width=LINE_PX + 2)
        draw.rectangle(_grown(box, CLEAR_PX + LINE_PX), outline="black", width=LINE_PX)
        tag = _tag_place(rim, taken, view.size)
        taken.append(tag)
        draw.rectangle(tag, fill="black", outline="white")
        centre = ((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2)
        draw.text(centre, letter, fill="white", font=font, anchor="mm")
    return marked


def box_in(frame: Field, field: Field) -> Rectangle:
    """Returns the (left, top, right, bottom) pixels of a field in the view of the field that holds it."""
    left = (field.x - field.side / 2 - frame.x + frame.side / 2) / frame.mpp
    top = (field.y - field.side / 2 - frame.y + frame.side / 2) / frame.mpp
    return round(left), round(top), round(left + field.side / frame.mpp), round(top + field.side / frame.mpp)


def _tag_place(rim: Rectangle, taken: Sequence[Rectangle], size: tuple[int, int]) -> Rectangle:
    """Returns where a box's letter stands: on the first of its corners that is in the view and covers no other box."""
    left, top, right, bottom = rim
    places = [
        (x, y, x + TAG_PX, y + TAG_PX + 1) for y in (top - TAG_PX - 1, bottom) for x in (left, right - TAG_PX)
    ] + [(x, y, x + TAG_PX, y + TAG_PX + 1) for x in (left - TAG_PX, right) for y in (top, bottom - TAG_PX - 1)]
    inside = [place for place in places if min(place) >= 0 and place[2] < size[0] and place[3] < size[1]]
    free = [place for place in inside if not any(_meet(place, other) for other in taken if other != rim)]
    return (free or inside or [(left, top, left + TAG_PX, top + TAG_PX + 1)])[0]


def _meet(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _grown(box: Rectangle, by: float) -> Rectangle:
    return box[0] - by, box[1] - by, box[2] + by - 1, box[3] + by - 1
