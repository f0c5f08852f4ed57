"""Questions whose evidence is known by its boxes, and the slides on which it lies."""

from __future__ import annotations

import hashlib
import io
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Annotated, Any, Final, Literal

from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from scale_vqa_eval.errors import InputError, Problem, preview, validated
from scale_vqa_eval.files import inside_root, sha256_json
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.release_folder.read import read_records
from scale_vqa_eval.schema import MPP
from scale_vqa_eval.wsi import MAGNIFY_LIMIT, OpenSlideSource, SlideSource

BoxUm = tuple[float, float, float, float]
"""left, top, right, bottom in um from the top left corner of the slide."""
SHARE_IN_VIEW: Final = 0.5
"""Evidence is in view where a field shares this part of the smaller of the two, the field and the evidence's box."""
QUALITY: Final = 90
TILE_BYTES: Final = 2**23
"""Decoded tiles that are kept of an open slide: looks seldom share one, and many slides are open."""


@dataclass(frozen=True, slots=True)
class VisibleEvidence:
    """Something that a question needs: it is in view once a field at ``view`` or finer shows any of ``boxes``."""

    view: str
    boxes: tuple[BoxUm, ...]

    def in_view(self, box: BoxUm, mpp: float) -> bool:
        """Returns whether a field shows the evidence.

        >>> nuclei = VisibleEvidence("high_mag", ((0, 0, 256, 256),))
        >>> nuclei.in_view((100, 100, 356, 356), 0.5), nuclei.in_view((0, 0, 250, 250), 0.5)
        (False, True)
        >>> nuclei.in_view((0, 0, 250, 250), 2.5)
        False
        """
        if mpp > MPP[self.view] * MAGNIFY_LIMIT:
            return False
        return any(_shared(box, one) >= SHARE_IN_VIEW * min(_area(box), _area(one)) for one in self.boxes)


@dataclass(frozen=True, slots=True)
class ZoomQuestion:
    """A question about a slide.

    Attributes:
        question: id, text, options, gold option.
        slide: path of the slide file below the folder of slides.
        evidence: what has to be in view, all of it.
        query: path of an image that belongs to the question, below the folder of the questions; or None.
        mpp: um per pixel of the slide's level 0 in place of what the file states, or None.
    """

    question: Question
    slide: str
    evidence: tuple[VisibleEvidence, ...]
    query: Path | None = None
    mpp: float | None = None


def _box_problem(box: BoxUm) -> BoxUm:
    if not (all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]):
        raise InputError(Problem("box", "left < right and top < bottom, in um", preview(box), "correct the box"))
    return box


class _EvidenceRow(BaseModel):
    model_config = ConfigDict(extra="forbid")
    view: Literal["low_mag", "mid_mag", "high_mag"]
    boxes: list[Annotated[BoxUm, AfterValidator(_box_problem)]] = Field(min_length=1)


class _ZoomRow(BaseModel):
    """The field ``zoom`` of a row."""

    model_config = ConfigDict(extra="forbid")
    slide: str = Field(min_length=1)
    evidence: list[_EvidenceRow] = Field(min_length=1)
    query: str | None = None
    mpp: float | None = Field(default=None, gt=0)


def read_zoom_questions(data: str, split: str | None, slides: Path | None = None) -> tuple[list[ZoomQuestion], Path]:
    """Reads questions with evidence, as ``scale-vqa build zoom`` writes them.

    Args:
        data: a question file (JSONL or JSON) whose rows have a field ``zoom``.
        split: the split to keep, None for all.
        slides: folder of the slide files; None for the folder ``slides`` beside the question file.

    Returns:
        The questions, and the folder of their slides.

    Raises:
        InputError: with every row that breaks the contract, every slide and image that is missing.
    """
    path = Path(data)
    if path.is_dir():
        path = path / "zoom.jsonl"
    questions = read_questions(path, split)
    root = slides or path.parent / "slides"
    found: list[ZoomQuestion] = []
    problems: list[Problem] = []
    for question, record in zip(questions, read_records(path, split), strict=True):
        location = f"{record.location}, zoom"
        try:
            if not isinstance(record.row.get("zoom"), Mapping):
                hint = "name a file that `scale-vqa build zoom` wrote"
                raise InputError(Problem(location, "slide and evidence", preview(record.row.get("zoom")), hint))
            row = validated(_ZoomRow, record.row["zoom"], location)
        except InputError as error:
            problems += error.problems
            continue
        query = inside_root(path.parent, row.query) if row.query else None
        if row.query and (query is None or not query.is_file()):
            expected = f"an image file below {path.parent}"
            problems.append(Problem(f"{location}.query", expected, preview(row.query), "restore the file"))
        evidence = tuple(VisibleEvidence(one.view, tuple(one.boxes)) for one in row.evidence)
        found.append(ZoomQuestion(question, row.slide, evidence, query, row.mpp))
    for name in sorted({item.slide for item in found}):
        file = inside_root(root, name)
        if file is None or not file.is_file():
            hint = "name the folder of the slide files by --slides"
            problems.append(Problem(str(path), f"a slide file below {root}", preview(name), hint))
    if problems:
        raise InputError(problems)
    return found, root


class SlideStore:
    """Slides that are open and fields that were read last, as JPEG; both bounded. Picklable, and safe with threads.

    Args:
        open_slide: opens a slide by its name and its given um per pixel, or None.
        cache_bytes: encoded fields that are kept.
        slides: slides that are kept open.
    """

    def __init__(
        self, open_slide: Callable[[str, float | None], SlideSource], cache_bytes: int = 2**28, slides: int = 16
    ) -> None:
        self.open_slide, self.cache_bytes, self.slides = open_slide, cache_bytes, slides
        self._start()

    def _start(self) -> None:
        self._lock = RLock()
        self._open: OrderedDict[str, SlideSource] = OrderedDict()
        self._kept: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._facts: dict[str, tuple[float, tuple[float, float]]] = {}
        self._size = 0

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("open_slide", "cache_bytes", "slides")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._start()

    def facts(self, name: str, given_mpp: float | None = None) -> tuple[float, tuple[float, float]]:
        """Returns um per pixel of level 0 and (width, height) in um."""
        if name not in self._facts:
            with self._lock:
                source = self._source(name, given_mpp)
                self._facts[name] = source.mpp, (source.size[0] * source.mpp, source.size[1] * source.mpp)
        return self._facts[name]

    def overview(self, name: str, given_mpp: float | None, max_px: int) -> bytes:
        """Returns the whole slide as JPEG; raises InputError where it cannot be read."""
        return self._encoded((name, max_px), lambda: self._source(name, given_mpp).thumbnail(max_px))

    def region(self, name: str, given_mpp: float | None, x: float, y: float, mpp: float, px: int) -> bytes:
        """Returns a square field as JPEG; raises InputError where it cannot be read."""
        return self._encoded((name, x, y, mpp, px), lambda: self._source(name, given_mpp).read_region(x, y, mpp, px))

    def _encoded(self, key: tuple[Any, ...], read: Callable[[], Image.Image]) -> bytes:
        with self._lock:  # a slide that another thread reads must not be closed
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            file = io.BytesIO()
            read().save(file, "JPEG", quality=QUALITY, subsampling=0)
            self._kept[key] = content = file.getvalue()
            self._size += len(content)
            while self._size > self.cache_bytes:
                self._size -= len(self._kept.popitem(last=False)[1])
            return content

    def _source(self, name: str, given_mpp: float | None) -> SlideSource:
        if name not in self._open:
            self._open[name] = self.open_slide(name, given_mpp)
            if len(self._open) > self.slides:
                _, closing = self._open.popitem(last=False)
                getattr(closing, "close", lambda: None)()
        self._open.move_to_end(name)
        return self._open[name]


def slide_files(root: Path) -> SlideStore:
    """Returns the slides of a folder, opened by OpenSlide when they are first read."""
    return SlideStore(partial(_open_below, root))


def _open_below(root: Path, name: str, mpp: float | None) -> SlideSource:
    file = inside_root(root, name)
    if file is None:
        raise InputError(Problem(name, f"a slide below {root}", "a path that leaves it", "correct the row"))
    return OpenSlideSource(file, mpp, TILE_BYTES)


def slides_digest(root: Path, questions: Sequence[ZoomQuestion]) -> str:
    """Returns a SHA-256 over names, sizes and given scales of the slides, and what every question needs to see."""
    slides = {item.slide: ((root / item.slide).stat().st_size, item.mpp) for item in questions}
    evidence = [[item.question.id, item.slide, [[one.view, one.boxes] for one in item.evidence]] for item in questions]
    queries = [hashlib.sha256(item.query.read_bytes()).hexdigest() for item in questions if item.query]
    return sha256_json([sorted(slides.items()), evidence, queries])


def _area(box: BoxUm) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shared(left: BoxUm, right: BoxUm) -> float:
    across = min(left[2], right[2]) - max(left[0], right[0])
    down = min(left[3], right[3]) - max(left[1], right[1])
    return max(0.0, across) * max(0.0, down)
