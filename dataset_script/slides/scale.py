"""The physical scale of a slide: um per pixel of level 0, from what the file states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from scale_vqa_eval.errors import InputError, Problem, preview

UM_AT_1X: Final = 10.0
"""By convention an objective of power P scans at 10/P um per pixel: 40x at 0.25, 20x at 0.5."""
ANISOTROPY_LIMIT: Final = 1.01
"""Most that the two directions may differ in scale; their mean is then taken, an error of half a percent at most."""


def slide_mpp(properties: Mapping[str, str], path: Path, given: float | None = None) -> float:
    """Returns um per pixel of level 0: as stated, else by the objective's power, else as given.

    Args:
        properties: OpenSlide's properties of the slide.
        path: the slide, for messages.
        given: what the user says of slides that state nothing usable.

    Raises:
        InputError: where nothing is known, or pixels are not square.
    """
    stated_x, stated_y = (_positive(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    if stated_x and stated_y:
        if max(stated_x, stated_y) <= min(stated_x, stated_y) * ANISOTROPY_LIMIT:
            return (stated_x + stated_y) / 2
        if given:
            return given
        found = f"{stated_x:g} across and {stated_y:g} down"
        raise InputError(Problem(str(path), "square pixels", f"{found} um/px", "resample the slide, or give --mpp"))
    if stated_x or stated_y:
        return stated_x or stated_y or math.nan
    power = _positive(properties.get("openslide.objective-power"))
    if power:
        return UM_AT_1X / power
    if given:
        return given
    stated = {key: properties[key] for key in sorted(properties) if key.startswith(("openslide.mpp", "openslide.obj"))}
    expected = "a scale: openslide.mpp-x and -y, or openslide.objective-power"
    raise InputError(Problem(str(path), expected, preview(stated or "neither"), "give it with --mpp UM_PER_PIXEL"))


def _positive(text: str | None) -> float | None:
    """Returns a stated number, None where it is absent, no number, or cannot be a scale."""
    try:
        value = float((text or "").replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
