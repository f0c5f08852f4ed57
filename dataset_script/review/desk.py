"""What a reviewer at the page can do: see an item, decide on it, go on. Nothing here knows how the page looks."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from dataset_script.review.decisions import Decision, Key, checked_decision, person_of
from dataset_script.review.items import Images, ReviewData
from dataset_script.review.locate import Place, place_by_matching, place_by_name
from dataset_script.review.log import ReviewLog
from dataset_script.review.standing import Board, Standing
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.predict.items import Item
from scale_vqa_eval.predict.pictures import Picture
from scale_vqa_eval.schema import VIEWS

PLACES_KEPT: Final = 4096


@dataclass(frozen=True)
class Seat:
    """One reviewer at one browser window.

    Attributes:
        reviewer: name.
        stage: ``review`` or ``adjudication``.
        at: the item in view; None where nothing waits.
        seen: items that were in view before it, the last one last.
        later: items put off, which come again at the end.
    """

    reviewer: str
    stage: str
    at: Key | None = None
    seen: tuple[Key, ...] = ()
    later: tuple[Key, ...] = ()

    @property
    def person(self) -> str:
        """The reviewer as compared."""
        return person_of(self.reviewer)


class Desk:
    """The items, the log and where each item stands, for all seats of one process."""

    def __init__(self, data: ReviewData, log: ReviewLog) -> None:
        self.data = data
        self.images = Images(data)
        self._log = log
        self._board = Board(data.items)
        self._lock = threading.RLock()
        self._places: OrderedDict[tuple[str, ...], Place | None] = OrderedDict()
        self.refresh()

    def refresh(self) -> Board:
        """Takes in what other processes appended and returns where everything stands."""
        with self._lock:
            self._board.update(self._log.refresh())
            return self._board

    def seated(self, seat: Seat) -> Seat:
        """Returns a seat at the next item that waits for its reviewer."""
        with self._lock:
            waiting = self.refresh().waiting(seat.person, seat.stage, self.data.chosen)
        still = set(waiting)
        later = [key for key in seat.later if key in still]
        # the item in view comes last: where it is put off or waits for another, the others come first
        order = [key for key in [*(key for key in waiting if key not in set(later)), *later] if key != seat.at]
        at = order[0] if order else seat.at if seat.at in still else None
        seen = (*seat.seen, seat.at) if seat.at is not None and seat.at != at else seat.seen
        return replace(seat, at=at, seen=seen, later=tuple(key for key in later if key != at))

    def put_off(self, seat: Seat) -> Seat:
        """Returns the seat at the next item; the one in view comes again at the end."""
        if seat.at is None:
            return self.seated(seat)
        return self.seated(replace(seat, later=(*(key for key in seat.later if key != seat.at), seat.at)))

    def back(self, seat: Seat) -> Seat:
        """Returns the seat at the item that was in view before."""
        return replace(seat, at=seat.seen[-1], seen=seat.seen[:-1]) if seat.seen else seat

    def decide(self, seat: Seat, verdict: str, reason: str, edit: Mapping[str, Any] | None = None) -> Seat:
        """Appends a decision on the item in view and returns the seat at the next one.

        Raises:
            InputError: where the decision is not whole, or the item is closed by now; nothing is written then.
        """
        key = seat.at
        if key is None:
            return self.seated(seat)
        made = Decision(key, seat.stage, seat.reviewer, verdict, reason, dict(edit or {}))
        whole = checked_decision(made, self.data.items[key].question)

        def check(decisions: list[Decision]) -> Decision:
            self._board.update(decisions)
            self._board.admit(whole)
            return whole

        with self._lock:
            self._log.append(check)
        return self.seated(seat)

    def standing(self, key: Key) -> Standing:
        """Returns where an item stands."""
        with self._lock:
            return self.refresh().items[key]

    def own(self, seat: Seat) -> Decision | None:
        """Returns what the reviewer has said so far on the item in view, in another window perhaps."""
        if seat.at is None:
            return None
        standing = self.standing(seat.at)
        return (standing.reviews if seat.stage == "review" else standing.adjudications).get(seat.person)

    def progress(self, seat: Seat) -> tuple[int, int]:
        """Returns how many of the chosen items the reviewer has decided at this stage, and how many wait."""
        board = self.refresh()
        places = [board.items[key] for key in self.data.chosen]
        done = [one.reviews if seat.stage == "review" else one.adjudications for one in places]
        waiting = board.waiting(seat.person, seat.stage, self.data.chosen)
        return sum(seat.person in one for one in done), len(waiting)

    def outlines(self, item: Item) -> dict[str, list[tuple[str, Place]]]:
        """Returns outer view -> (inner view, where it lies), for the fields whose place is sure."""
        views = item.views
        found: dict[tuple[str, str], Place | None] = {
            (outer.column, inner.column): self._place(outer, inner) for outer, inner in itertools.pairwise(views)
        }
        if len(views) == 3:
            between = (found[VIEWS[0], VIEWS[1]], found[VIEWS[1], VIEWS[2]])
            if between[0] is not None and between[1] is not None:
                found[VIEWS[0], VIEWS[2]] = between[1].within(between[0])
            else:
                found[VIEWS[0], VIEWS[2]] = self._place(views[0], views[2])
        outlines: dict[str, list[tuple[str, Place]]] = {}
        for (outer_column, inner_column), place in found.items():
            if place is not None:
                outlines.setdefault(outer_column, []).append((inner_column, place))
        return outlines

    def _place(self, outer: Picture, inner: Picture) -> Place | None:
        named = place_by_name(self.images.name(outer), self.images.name(inner))
        if named is not None:
            return named
        try:
            whole, part = self.images.read(outer), self.images.read(inner)
        except InputError:  # the image cannot be had: the page says so where it would stand
            return None
        # the questions of a path show the same images in rows of their own
        key = (outer.column, inner.column, *(hashlib.sha256(content).hexdigest() for content in (whole, part)))
        if key not in self._places:
            self._places[key] = place_by_matching(whole, part, outer.column, inner.column)
            while len(self._places) > PLACES_KEPT:
                self._places.popitem(last=False)
        return self._places[key]
