"""Ablations: what is taken away from a question's images, to measure how far an accuracy depends on them.

- ``blind``: no image. The text is byte for byte the text with images: it does not say that they are missing, so the
  images are the one difference between the two runs.
- ``guess``: no image, and the user turn ends with the request to guess (Mirage, arXiv:2603.21687).
- ``blank``: each image is replaced by a uniform grey one of the same size.
- ``no-low``, ``no-mid``, ``no-high``: one context view left out (Phan et al., arXiv:2606.17412, ablate scales).
- ``shuffled``: the context views of another path, of another patient. Option images stay the question's own.
- ``circular``: every rotation of the options (CircularEval; Liu et al. 2023, "MMBench", arXiv:2307.06281).
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from PIL import Image, ImageOps

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.predict.images import UNREADABLE, ImageRef, ImageSource
from scale_vqa_eval.predict.requests import VisualQuestion

WITHOUT_IMAGES: Final = ("blind", "guess")
DROPPED_VIEW: Final = {"no-low": "low_mag", "no-mid": "mid_mag", "no-high": "high_mag"}
ABLATIONS: Final = (*WITHOUT_IMAGES, "blank", *DROPPED_VIEW, "shuffled", "circular")
ZOOM_CONTROLS: Final = ("blind", "wrong-slide", "overview-only", "random-walk", "oracle-path")
"""Controls of a model that chooses where to look (``predict --zoom``). Blind: no image at all, the same texts. Wrong
slide: another patient's slide. Overview only: no look is left. Random walk and oracle path: the looks are made before
the model is asked, at random places or at the evidence."""
BLANK_COLOUR: Final = (128, 128, 128)


def ablated(
    items: Sequence[VisualQuestion], ablation: str | None, seed: int
) -> tuple[list[VisualQuestion], list[str]]:
    """Returns the questions as an ablation asks them, and notes for the user.

    Args:
        items: all questions of the split, so that ``shuffled`` can choose among all paths.
        ablation: one of ``ABLATIONS``, or None.
        seed: of ``shuffled``.

    Raises:
        InputError: where ``shuffled`` finds no other patient.
    """
    if ablation in WITHOUT_IMAGES:
        return [replace(item, views=(), option_images=()) for item in items], []
    if ablation in DROPPED_VIEW:
        return _without(items, DROPPED_VIEW[ablation])
    if ablation == "shuffled":
        return _shuffled(items, seed)
    return list(items), []


class BlankImages(ImageSource):
    """The images of another source, each replaced by a uniform one of the same size as shown.

    An image that cannot be read stays as it is, so that its question fails as it would with images.
    """

    def __init__(self, source: ImageSource) -> None:
        super().__init__()
        self._source = source

    def read(self, image: ImageRef) -> bytes:
        content = self._source.read(image)
        try:
            with Image.open(io.BytesIO(content)) as original:
                size = ImageOps.exif_transpose(original).size
        except UNREADABLE:
            return content
        file = io.BytesIO()
        Image.new("RGB", size, BLANK_COLOUR).save(file, "PNG")
        return file.getvalue()


def _without(items: Sequence[VisualQuestion], view: str) -> tuple[list[VisualQuestion], list[str]]:
    kept = [replace(item, views=tuple(image for image in item.views if image.column != view)) for item in items]
    same = sum(len(before.views) == len(after.views) for before, after in zip(items, kept, strict=True))
    without = sum(not item.images for item in kept)
    notes = [f"{same} of {len(items)} questions have no {view} and are asked as they are"] if same else []
    if without:
        notes.append(f"{without} of {len(items)} questions have no image left: the same as blind")
    return kept, notes


def _shuffled(items: Sequence[VisualQuestion], seed: int) -> tuple[list[VisualQuestion], list[str]]:
    """Gives every path the views of another patient's path, one with the same views where it exists."""
    paths = {item.path: item for item in reversed(items)}  # the first item of each path
    if len({item.patient for item in paths.values()}) < 2:
        expected = "paths of two patients at least, to exchange their images"
        raise InputError(Problem("--ablate shuffled", expected, "one", "name data of several patients"))
    by_views: dict[tuple[str, ...], list[VisualQuestion]] = {}
    for path in sorted(paths):
        by_views.setdefault(tuple(image.column for image in paths[path].views), []).append(paths[path])
    generator = random.Random(seed)
    donors: dict[str, VisualQuestion] = {}
    for views in sorted(by_views):
        donors |= _exchanged(by_views[views], generator)
    left = sorted(set(paths) - set(donors))
    for path in left:
        others = [paths[name] for name in sorted(paths) if paths[name].patient != paths[path].patient]
        donors[path] = generator.choice(others)
    notes = [f"{len(left)} of {len(paths)} paths take images that another path takes too"] if left else []
    return [replace(item, views=donors[item.path].views) for item in items], notes


def _exchanged(paths: Sequence[VisualQuestion], generator: random.Random) -> dict[str, VisualQuestion]:
    """Returns path -> donor, each path a donor once; empty where one patient has more than half of the paths.

    Paths are ordered by patient, and each takes the one as far ahead as the largest patient has paths.
    """
    patients: dict[str, list[VisualQuestion]] = {}
    for item in paths:
        patients.setdefault(item.patient, []).append(item)
    shift = max(map(len, patients.values()))
    if 2 * shift > len(paths):
        return {}
    names = sorted(patients)
    generator.shuffle(names)
    ordered: list[VisualQuestion] = []
    for name in names:
        members = patients[name]
        generator.shuffle(members)
        ordered += members
    return {item.path: ordered[(index + shift) % len(ordered)] for index, item in enumerate(ordered)}
