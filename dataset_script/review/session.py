"""A review session: the items and images under review, and the actions of a reviewer, independent of the page."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_script.review.decisions import ARMS, Decision, ItemStatus, Key, ReviewState, checked_decision, person_of
from dataset_script.review.log import ReviewLog
from dataset_script.review.registration import BoundingBox, place_by_matching, place_by_name
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict.images import ImageRef, ImageSource
from scale_vqa_eval.predict.requests import VisualQuestion, read_visual_questions
from scale_vqa_eval.release_folder.read import release_files
from scale_vqa_eval.release_folder.verify import content_hash, release_shards
from scale_vqa_eval.schema import VIEWS

CURATION_REPORT: Final = "curation_report.json"
CONTROL_REPORT: Final = "control.json"
T = TypeVar("T")


@dataclass(frozen=True)
class ReviewData:
    """The data under review.

    Attributes:
        folder: the release folder.
        config: its config.
        items: split and row id -> question and images, in the order of the data.
        chosen: the items of the requested split, in the order of review.
        data_hash: SHA-256 over the config's files, by which a log of other data is refused.
        store: the images.
        flags: row id -> warnings of the curation report.
    """

    folder: Path
    config: str
    items: Mapping[Key, VisualQuestion]
    chosen: tuple[Key, ...]
    data_hash: str
    store: ImageSource
    flags: Mapping[str, tuple[str, ...]]

    @property
    def subject(self) -> dict[str, str]:
        """The description of the data in a log."""
        return {"name": self.folder.name, "config": self.config, "data_hash": self.data_hash}


def read_review_data(folder: Path, config: str | None = None, split: str | None = None) -> ReviewData:
    """Reads the questions of one config; images are read later, when they are shown.

    Args:
        folder: a release folder.
        config: its config, or None for the one that loads without a name.
        split: the split to review, or None for all. The log covers all splits in any case.

    Raises:
        InputError: if there is no such folder, config or split, a row breaks the contract, or no row has an image.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing there"
        raise InputError(Problem(str(folder), "a release folder", found, "name a folder that `scale-vqa build` made"))
    configs = release_shards(folder)
    if config is None:
        config = "default" if "default" in configs else next(iter(configs))
    splits = release_files(folder, config)
    if split is not None and split not in splits:
        expected = f"a split of {config} ({', '.join(splits)})"
        raise InputError(Problem(str(folder), expected, preview(split), "name one of those"))
    items, store = read_visual_questions(str(folder), None, config, None, blind=False)
    by_key = {(item.question.split or "", item.question.id): item for item in items}
    ambiguity = _read_report(folder / config / CONTROL_REPORT, "a control report", _ambiguity_of)
    chosen = [key for key in by_key if split in (None, key[0])]
    chosen.sort(key=lambda key: -ambiguity.get(by_key[key].question.group or "", 0.0))  # the most ambiguous first
    flags = _read_report(folder / CURATION_REPORT, "a curation report with its contradictions", _flags_of)
    return ReviewData(folder, config, by_key, tuple(chosen), content_hash(config, configs[config]), store, flags)


def _read_report(report: Path, expected: str, read: Callable[[Any], dict[str, T]]) -> dict[str, T]:
    """Applies ``read`` to the content of a JSON file; returns an empty dict if there is no file."""
    if not report.exists():
        return {}
    try:
        return read(json.loads(report.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        hint = "restore the report, or remove the file"
        raise InputError(Problem(str(report), expected, preview(str(error)), hint)) from error


def _ambiguity_of(report: Any) -> dict[str, float]:
    """Returns exchange group -> estimated ambiguity."""
    groups = report.get("ambiguity", {}).get("groups", {})
    return {str(name): float(estimate) for name, estimate in groups.items()}


def _flags_of(report: Any) -> dict[str, tuple[str, ...]]:
    """Returns row id -> options that contradict the row's captions, by their text: letters differ between configs."""
    flags: dict[str, tuple[str, ...]] = {}
    for one in report["contradictions"]:
        row = str(one["id"])
        flags[row] = (*flags.get(row, ()), f"{preview(str(one['finding']))} {one['why']}")
    return flags


class ReviewImages:
    """Reads images, one thread at a time, because the store caches row groups."""

    def __init__(self, data: ReviewData) -> None:
        self._store = data.store
        self._lock = threading.Lock()
        files = [file for shards in release_files(data.folder, data.config).values() for file in shards]
        leaves = [f"{view}.path" for view in VIEWS]
        self._names = pa.concat_tables([pq.ParquetFile(file).read(columns=leaves) for file in files])

    def read(self, picture: ImageRef) -> bytes:
        """Returns an image's original bytes; raises InputError if the row does not contain the image."""
        with self._lock:
            return self._store.read(picture)

    def name(self, picture: ImageRef) -> str | None:
        """Returns the file name of a view, or None."""
        cell = self._names.column(picture.column)[picture.row].as_py()
        return cell["path"] if cell else None


MAX_POSITIONS: Final = 4096
"""Number of positions in the cache."""


@dataclass(frozen=True)
class ReviewerState:
    """One reviewer in one browser window.

    Attributes:
        reviewer: name of the reviewer.
        stage: one of ``decisions.STAGES``; ``seeing`` is an answer with images, followed by the review.
        at: the item in view, or None if no item is waiting.
        seen: the items shown before, in order.
        later: postponed items, which are shown again at the end.
        since: monotonic time at which the item was shown.
    """

    reviewer: str
    stage: str
    at: Key | None = None
    seen: tuple[Key, ...] = ()
    later: tuple[Key, ...] = ()
    since: float = 0.0

    @property
    def person(self) -> str:
        """The reviewer's name in the form in which names are compared."""
        return person_of(self.reviewer)


class ReviewSession:
    """The items, the log and the status of each item, for all reviewers of one process."""

    def __init__(self, data: ReviewData, log: ReviewLog) -> None:
        self.data = data
        self.images = ReviewImages(data)
        self._log = log
        self._state = ReviewState(data.items)
        self._lock = threading.RLock()
        self._positions: OrderedDict[tuple[str, ...], BoundingBox | None] = OrderedDict()
        self.refresh()

    def refresh(self) -> ReviewState:
        """Reads the decisions of other processes and returns the state of the review."""
        with self._lock:
            self._state.update(self._log.refresh())
            return self._state

    def advance(self, viewer: ReviewerState) -> ReviewerState:
        """Moves to the next item that waits for the reviewer."""
        with self._lock:
            waiting = dict.fromkeys(self.refresh().waiting(viewer.person, viewer.stage, self.data.chosen))
        later = dict.fromkeys(key for key in viewer.later if key in waiting)
        # the item in view comes last, after the postponed ones
        order = [key for key in [*(key for key in waiting if key not in later), *later] if key != viewer.at]
        at = order[0] if order else viewer.at if viewer.at in waiting else None
        seen = (*viewer.seen, viewer.at) if viewer.at is not None and viewer.at != at else viewer.seen
        remaining = tuple(key for key in later if key != at)
        return replace(viewer, at=at, seen=seen, later=remaining, since=time.monotonic())

    def postpone(self, viewer: ReviewerState) -> ReviewerState:
        """Moves to the next item; the item in view is shown again at the end."""
        if viewer.at is None:
            return self.advance(viewer)
        return self.advance(replace(viewer, later=(*(key for key in viewer.later if key != viewer.at), viewer.at)))

    def back(self, viewer: ReviewerState) -> ReviewerState:
        """Moves back to the previous item."""
        if not viewer.seen or viewer.stage == "blind":  # an answer cannot be changed
            return viewer
        return replace(viewer, at=viewer.seen[-1], seen=viewer.seen[:-1], since=time.monotonic())

    def decide(
        self, viewer: ReviewerState, verdict: str, reason: str, edit: Mapping[str, Any] | None = None
    ) -> ReviewerState:
        """Appends a decision on the item in view and moves to the next item.

        Raises:
            InputError: if the decision is incomplete or the item is closed; nothing is written.
        """
        if viewer.at is None:
            return self.advance(viewer)
        if self.answering(viewer):
            raise InputError(Problem(viewer.at[1], "an answer before the verdict", verdict, "choose an option first"))
        stage = "review" if viewer.stage == "seeing" else viewer.stage
        self._append(Decision(viewer.at, stage, viewer.reviewer, verdict, reason, dict(edit or {})))
        return self.advance(viewer)

    def answering(self, viewer: ReviewerState) -> bool:
        """Returns whether the reader has not answered the item in view yet, so that its gold answer is hidden."""
        if viewer.at is None or viewer.stage not in ARMS:
            return False
        return viewer.stage == "blind" or viewer.person not in self.status_of(viewer.at).answers

    def answer(self, viewer: ReviewerState, letter: str) -> ReviewerState:
        """Appends the reader's answer, with its time, and moves to the item's review or to the next item.

        Raises:
            InputError: if no option is chosen or the item was answered already; nothing is written.
        """
        if viewer.at is None or not self.answering(viewer):
            return self.advance(viewer)
        seconds = round(time.monotonic() - viewer.since, 1)
        self._append(Decision(viewer.at, viewer.stage, viewer.reviewer, letter, seconds=seconds))
        return self.advance(viewer) if viewer.stage == "blind" else viewer

    def _append(self, decision: Decision) -> None:
        checked = checked_decision(decision, self.data.items[decision.key].question)

        def check(decisions: list[Decision]) -> Decision:
            self._state.update(decisions)
            self._state.admit(checked)
            return checked

        with self._lock:
            self._log.append(check)

    def status_of(self, key: Key) -> ItemStatus:
        """Returns the review status of an item."""
        with self._lock:
            return self.refresh().items[key]

    def own(self, viewer: ReviewerState) -> Decision | None:
        """Returns the reviewer's last decision on the item in view, or None."""
        if viewer.at is None:
            return None
        return _decisions_of(self.status_of(viewer.at), viewer.stage).get(viewer.person)

    def progress(self, viewer: ReviewerState) -> tuple[int, int]:
        """Returns the numbers of chosen items that the reviewer has decided at this stage, and that wait."""
        review_state = self.refresh()
        done = [_decisions_of(review_state.items[key], viewer.stage) for key in self.data.chosen]
        waiting = review_state.waiting(viewer.person, viewer.stage, self.data.chosen)
        return sum(viewer.person in one for one in done), len(waiting)

    def outlines(self, item: VisualQuestion) -> dict[str, list[tuple[str, BoundingBox]]]:
        """Returns outer view -> (inner view, its box) pairs, for the fields whose position is certain."""
        views = item.views
        found: dict[tuple[str, str], BoundingBox | None] = {
            (outer.column, inner.column): self._position(outer, inner) for outer, inner in itertools.pairwise(views)
        }
        if len(views) == 3:
            mid, high = found[VIEWS[0], VIEWS[1]], found[VIEWS[1], VIEWS[2]]
            through_mid = high.within(mid) if mid is not None and high is not None else None
            found[VIEWS[0], VIEWS[2]] = through_mid or self._position(views[0], views[2])
        outlines: dict[str, list[tuple[str, BoundingBox]]] = {}
        for (outer_column, inner_column), box in found.items():
            if box is not None:
                outlines.setdefault(outer_column, []).append((inner_column, box))
        return outlines

    def _position(self, outer: ImageRef, inner: ImageRef) -> BoundingBox | None:
        named = place_by_name(self.images.name(outer), self.images.name(inner))
        if named is not None:
            return named
        try:
            whole, part = self.images.read(outer), self.images.read(inner)
        except InputError:  # the page reports an unreadable image
            return None
        # the questions of a path repeat the same images in their own rows
        key = (outer.column, inner.column, *(hashlib.sha256(content).hexdigest() for content in (whole, part)))
        if key not in self._positions:
            self._positions[key] = place_by_matching(whole, part, outer.column, inner.column)
            while len(self._positions) > MAX_POSITIONS:
                self._positions.popitem(last=False)
        return self._positions[key]


def _decisions_of(item_status: ItemStatus, stage: str) -> Mapping[str, Decision]:
    """Returns person -> decision of a stage."""
    if stage == "blind":
        return item_status.answers
    return item_status.adjudications if stage == "adjudication" else item_status.reviews
