"""Locates an inner field in the outer view, by the coordinates in file names or by template matching.

A release folder has no coordinates, except in the file names of the grounding builder. For other views, the inner
image is scaled to the outer one and correlated with it. A position is returned only if the match is certain, because a
wrong box is worse than none.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from dataset_script.image_files import opened_image
from scale_vqa_eval.schema import MPP

BY_NAME: Final = "located by the coordinates in the file names"
BY_MATCHING: Final = "located by matching"
WORKING_PX: Final = 512
MIN_TEMPLATE_PX: Final = 16
SCALES: Final = (1.0, 0.94, 1.06, 0.88, 1.13)
"""Factors of the nominal scale, in the order tried: the true um per pixel of a scan differ by a few per cent."""
MIN_CONTRAST: Final = 0.3
"""Minimum standard deviation of a matching region, relative to that of the inner field."""
_NAME: Final = re.compile(r"(?s)(.+)_(10x|40x|200x)_x(-?\d+\.\d)_y(-?\d+\.\d)_(\d{1,6})px\.jpg")
_VIEW_OF: Final = {"10x": "low_mag", "40x": "mid_mag", "200x": "high_mag"}
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BoundingBox:
    """The position of an inner field in the outer view.

    Attributes:
        left, top, width, height: as shares of the outer view's width and height, 0 to 1.
        how: ``BY_NAME`` or ``BY_MATCHING``.
        score: correlation at the position; 1 for coordinates.
    """

    left: float
    top: float
    width: float
    height: float
    how: str
    score: float = 1.0

    def within(self, outer: BoundingBox) -> BoundingBox:
        """Returns the position in the view that contains ``outer``; this box is relative to ``outer``."""
        return BoundingBox(
            outer.left + self.left * outer.width,
            outer.top + self.top * outer.height,
            self.width * outer.width,
            self.height * outer.height,
            BY_MATCHING if BY_MATCHING in (self.how, outer.how) else BY_NAME,
            min(self.score, outer.score),
        )


def min_match(pixels: float, share: float) -> tuple[float, float]:
    """Returns the minimum correlation, and minimum lead over the second-best position, of a certain match.

    The thresholds are higher if the field has few pixels (a 200x field in a 10x view has about 25 across) or fills
    much of the view, so that there is little else to compare with.

    Args:
        pixels: width of the field in the view, in pixels.
        share: width of the field as a share of the view's width.
    """
    return (0.8, 0.2) if pixels < 40 or share > 0.4 else (0.7, 0.1)


def place_by_name(outer: str | None, inner: str | None) -> BoundingBox | None:
    """Returns the position of a field by the file names of ``scale-vqa build slides``, or None for other names.

    >>> place_by_name("s_10x_x1000.0_y1000.0_200px.jpg", "s_40x_x1250.0_y750.0_200px.jpg").left
    0.5
    """
    found = [_NAME.fullmatch(name or "") for name in (outer, inner)]
    if found[0] is None or found[1] is None or found[0][1] != found[1][1]:
        return None
    (x, y, side), (u, v, small) = (_square(match) for match in found if match)
    if not side or not 0 < small < side or max(abs(u - x), abs(v - y)) > (side - small) / 2 + 0.2:
        return None
    share = small / side
    return BoundingBox((u - x) / side + 0.5 - share / 2, (v - y) / side + 0.5 - share / 2, share, share, BY_NAME)


def place_by_matching(outer: bytes, inner: bytes, outer_view: str, inner_view: str) -> BoundingBox | None:
    """Returns the position of a field by normalised cross-correlation of grey values, or None if it is not certain.

    ``outer`` and ``inner`` are image files, and the views are their columns, which give the nominal scale. Source:
    Lewis, Fast Normalized Cross-Correlation, 1995 (as in ``skimage.feature.match_template``).
    """
    whole, part = _grey(outer), _grey(inner)
    if whole is None or part is None:
        return None
    ratio = MPP[outer_view] / MPP[inner_view]
    shrink = min(1.0, WORKING_PX / max(whole.size))
    view = _values(whole, whole.width * shrink, whole.height * shrink)
    for scale in SCALES:
        width, height = (scale * shrink * pixels / ratio for pixels in part.size)
        if min(width, height) < MIN_TEMPLATE_PX or height > 0.9 * view.shape[0] or width > 0.9 * view.shape[1]:
            continue
        template = _values(part, width, height)
        score, lead, row, column = _best(view, template)
        min_score, min_lead = min_match(width, width / view.shape[1])
        if score >= min_score and lead >= min_lead:
            down, across = view.shape
            tall, wide = template.shape
            return BoundingBox(column / across, row / down, wide / across, tall / down, BY_MATCHING, score)
    return None


def _square(match: re.Match[str]) -> tuple[float, float, float]:
    return float(match[3]), float(match[4]), int(match[5]) * MPP[_VIEW_OF[match[2]]]


def _grey(content: bytes) -> Image.Image | None:
    """Returns the image in grey, or None if it cannot be decoded or is too large."""
    try:
        with opened_image(io.BytesIO(content)) as image:
            image.draft("L", (2 * WORKING_PX, 2 * WORKING_PX))
            return image.convert("L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _values(image: Image.Image, width: float, height: float) -> Values:
    size = (max(1, round(width)), max(1, round(height)))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0), dtype=np.float64)


def _best(view: Values, template: Values) -> tuple[float, float, int, int]:
    """Returns the best correlation, its lead over the best distant position, and its row and column (top left)."""
    from scipy.ndimage import uniform_filter
    from skimage.feature import match_template

    contrast = float(template.std())
    if contrast < 1.0:  # grey levels: a uniform field matches anywhere
        return 0.0, 0.0, 0, 0
    found: Any = match_template(view, template)
    tall, wide = template.shape
    corner = (slice(tall // 2, tall // 2 + found.shape[0]), slice(wide // 2, wide // 2 + found.shape[1]))
    mean, square = (uniform_filter(values, (tall, wide))[corner] for values in (view, view**2))
    # in flat regions of the view the correlation consists of rounding errors
    found[(square - mean**2) < (MIN_CONTRAST * contrast) ** 2] = -1.0
    row, column = (int(index) for index in np.unravel_index(found.argmax(), found.shape))
    best = float(found[row, column])
    around = (
        slice(max(0, row - tall // 4), row + tall // 4 + 1),
        slice(max(0, column - wide // 4), column + wide // 4 + 1),
    )
    found[around] = -1.0
    return best, best - float(found.max()), row, column
