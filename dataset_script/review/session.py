"""A review session: the items and images under review, and what a reviewer can do. It does not know the page."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

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


@dataclass(frozen=True)
class ReviewData:
    """What is reviewed.

    Attributes:
        folder: the release folder.
        config: its config.
        items: split and row id -> question and images, in the order of the data.
        chosen: the items of the split that was asked for.
        data_hash: SHA-256 over the config's files: a log of other data is refused by it.
        flags: row id -> what the curation flagged in it, in words.
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
        """What a log says of its data."""
        return {"name": self.folder.name, "config": self.config, "data_hash": self.data_hash}


def read_review_data(folder: Path, config: str | None = None, split: str | None = None) -> ReviewData:
    """Reads the questions of one config; images stay where they are until they are asked for.

    Args:
        folder: a release folder.
        config: its config; None for that which loads without a name.
        split: the split to work on; None for all. The log covers all splits whichever is named.

    Raises:
        InputError: where there is no such folder, config or split, a row breaks the contract, or none has an image.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing there"
        raise InputError(Problem(str(folder), "a release folder", found, "name a folder that `scale-vqa build` made"))
    configs = release_shards(folder)
    if config is None:
        config = "default" if "default" in configs else next(iter(configs))
    splits = release_files(folder, config)
    if split is not None and split not in splits:
        found = preview(split)
        raise InputError(
            Problem(str(folder), f"a split of {config} ({', '.join(splits)})", found, "name one of those")
        )
    items, store = read_visual_questions(str(folder), None, config, None, blind=False)
    by_key = {(item.question.split or "", item.question.id): item for item in items}
    doubt = _ambiguity(folder / config / CONTROL_REPORT)
    chosen = [key for key in by_key if split in (None, key[0])]
    chosen.sort(key=lambda key: -doubt.get(by_key[key].question.group or "", 0.0))
    flags = read_flags(folder / CURATION_REPORT)
    return ReviewData(folder, config, by_key, tuple(chosen), content_hash(config, configs[config]), store, flags)


def _ambiguity(report: Path) -> dict[str, float]:
    """Returns exchange group -> estimated ambiguity, as the control's report has it: the most doubtful come first.

    Raises:
        InputError: where the file is not such a report.
    """
    if not report.exists():
        return {}
    try:
        groups = json.loads(report.read_text(encoding="utf-8")).get("ambiguity", {}).get("groups", {})
        return {str(name): float(estimate) for name, estimate in groups.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        expected, hint = "a control report", "restore the report, or remove the file"
        raise InputError(Problem(str(report), expected, preview(str(error)), hint)) from error


def read_flags(report: Path) -> dict[str, tuple[str, ...]]:
    """Returns row id -> what ``scale-vqa curate`` flagged as contradicted by the row's own captions.

    Options are named by their text: letters differ between configs.

    Args:
        report: the curation report beside the data; nothing is flagged where there is none.

    Raises:
        InputError: where the file is no curation report.
    """
    if not report.exists():
        return {}
    flags: dict[str, tuple[str, ...]] = {}
    try:
        for one in json.loads(report.read_text(encoding="utf-8"))["contradictions"]:
            row, said = str(one["id"]), f"{preview(str(one['finding']))} {one['why']}"
            flags[row] = (*flags.get(row, ()), said)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        expected = "a curation report with its contradictions"
        problem = Problem(str(report), expected, preview(str(error)), "bring back the report, or take the file away")
        raise InputError(problem) from error
    return flags


class ReviewImages:
    """Hands out images one by one, one thread at a time: the store reads row groups into a small cache.

    Args:
        data: what is reviewed.
    """

    def __init__(self, data: ReviewData) -> None:
        self._store = data.store
        self._lock = threading.Lock()
        files = [file for shards in release_files(data.folder, data.config).values() for file in shards]
        leaves = [f"{view}.path" for view in VIEWS]
        self._names = pa.concat_tables([pq.ParquetFile(file).read(columns=leaves) for file in files])

    def read(self, picture: ImageRef) -> bytes:
        """Returns an image's original bytes.

        Raises:
            InputError: where the row has none in the data itself.
        """
        with self._lock:
            return self._store.read(picture)

    def name(self, picture: ImageRef) -> str | None:
        """Returns the file name that the data gives a view; None where it gives none."""
        cell = self._names.column(picture.column)[picture.row].as_py()
        return cell["path"] if cell else None


PLACES_KEPT: Final = 4096


@dataclass(frozen=True)
class ReviewerState:
    """One reviewer in one browser window.

    Attributes:
        reviewer: name.
        stage: one of ``decisions.STAGES``; ``seeing`` is an answer with images and then the review.
        at: the item in view, or None where no item is waiting.
        seen: the items that were in view before it, in order.
        later: postponed items, which come again at the end.
        since: monotonic time at which the item came into view.
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
        self._places: OrderedDict[tuple[str, ...], BoundingBox | None] = OrderedDict()
        self.refresh()

    def refresh(self) -> ReviewState:
        """Reads what other processes appended and returns the state of the review."""
        with self._lock:
            self._state.update(self._log.refresh())
            return self._state

    def advance(self, viewer: ReviewerState) -> ReviewerState:
        """Returns the viewer at the next item that waits for the reviewer."""
        with self._lock:
            waiting = self.refresh().waiting(viewer.person, viewer.stage, self.data.chosen)
        still = set(waiting)
        later = [key for key in viewer.later if key in still]
        # the item in view comes last: where it is put off or waits for another, the others come first
        order = [key for key in [*(key for key in waiting if key not in set(later)), *later] if key != viewer.at]
        at = order[0] if order else viewer.at if viewer.at in still else None
        seen = (*viewer.seen, viewer.at) if viewer.at is not None and viewer.at != at else viewer.seen
        later = [key for key in later if key != at]
        return replace(viewer, at=at, seen=seen, later=tuple(later), since=time.monotonic())

    def postpone(self, viewer: ReviewerState) -> ReviewerState:
        """Returns the viewer at the next item; the item in view comes again at the end."""
        if viewer.at is None:
            return self.advance(viewer)
        return self.advance(replace(viewer, later=(*(key for key in viewer.later if key != viewer.at), viewer.at)))

    def back(self, viewer: ReviewerState) -> ReviewerState:
        """Returns the viewer at the item that was in view before."""
        if not viewer.seen or viewer.stage == "blind":  # an answer is given once
            return viewer
        return replace(viewer, at=viewer.seen[-1], seen=viewer.seen[:-1], since=time.monotonic())

    def decide(
        self, viewer: ReviewerState, verdict: str, reason: str, edit: Mapping[str, Any] | None = None
    ) -> ReviewerState:
        """Appends a decision on the item in view and returns the viewer at the next one.

        Raises:
            InputError: where the decision is incomplete or the item is closed; nothing is written then.
        """
        if viewer.at is None:
            return self.advance(viewer)
        if self.answering(viewer):
            raise InputError(Problem(viewer.at[1], "an answer before the verdict", verdict, "choose an option first"))
        stage = "review" if viewer.stage == "seeing" else viewer.stage
        self._append(Decision(viewer.at, stage, viewer.reviewer, verdict, reason, dict(edit or {})))
        return self.advance(viewer)

    def answering(self, viewer: ReviewerState) -> bool:
        """Returns whether the reader has yet to answer the item in view, so that its gold answer stays hidden."""
        if viewer.at is None or viewer.stage not in ARMS:
            return False
        return viewer.stage == "blind" or viewer.person not in self.status_of(viewer.at).answers

    def answer(self, viewer: ReviewerState, letter: str) -> ReviewerState:
        """Appends the reader's answer, with its time; returns the viewer at the item's review or at the next item.

        Raises:
            InputError: where no option is chosen or the item was answered; nothing is written then.
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
        """Returns the reviewer's own last decision on the item in view, or None."""
        if viewer.at is None:
            return None
        return _own_stage(self.status_of(viewer.at), viewer.stage).get(viewer.person)

    def progress(self, viewer: ReviewerState) -> tuple[int, int]:
        """Returns how many of the chosen items the reviewer has decided at this stage, and how many wait."""
        review_state = self.refresh()
        done = [_own_stage(review_state.items[key], viewer.stage) for key in self.data.chosen]
        waiting = review_state.waiting(viewer.person, viewer.stage, self.data.chosen)
        return sum(viewer.person in one for one in done), len(waiting)

    def outlines(self, item: VisualQuestion) -> dict[str, list[tuple[str, BoundingBox]]]:
        """Returns outer view -> (inner view, its box), for the fields whose position is certain."""
        views = item.views
        found: dict[tuple[str, str], BoundingBox | None] = {
            (outer.column, inner.column): self._place(outer, inner) for outer, inner in itertools.pairwise(views)
        }
        if len(views) == 3:
            between = (found[VIEWS[0], VIEWS[1]], found[VIEWS[1], VIEWS[2]])
            if between[0] is not None and between[1] is not None:
                found[VIEWS[0], VIEWS[2]] = between[1].within(between[0])
            else:
                found[VIEWS[0], VIEWS[2]] = self._place(views[0], views[2])
        outlines: dict[str, list[tuple[str, BoundingBox]]] = {}
        for (outer_column, inner_column), place in found.items():
            if place is not None:
                outlines.setdefault(outer_column, []).append((inner_column, place))
        return outlines

    def _place(self, outer: ImageRef, inner: ImageRef) -> BoundingBox | None:
        named = place_by_name(self.images.name(outer), self.images.name(inner))
        if named is not None:
            return named
        try:
            whole, part = self.images.read(outer), self.images.read(inner)
        except InputError:  # the image cannot be read: the page says so in its place
            return None
        # the questions of a path repeat the same images in their own rows
        key = (outer.column, inner.column, *(hashlib.sha256(content).hexdigest() for content in (whole, part)))
        if key not in self._places:
            self._places[key] = place_by_matching(whole, part, outer.column, inner.column)
            while len(self._places) > PLACES_KEPT:
                self._places.popitem(last=False)
        return self._places[key]


def _own_stage(item_status: ItemStatus, stage: str) -> Mapping[str, Decision]:
    """Returns person -> decision of the stage that a viewer works on."""
    if stage == "blind":
        return item_status.answers
    return item_status.adjudications if stage == "adjudication" else item_status.reviews
