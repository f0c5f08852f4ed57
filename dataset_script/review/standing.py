"""Where each item stands: two independent reviews, agreement or disagreement, and what was decided in the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from dataset_script.review.decisions import Decision, Key
from scale_vqa_eval.errors import InputError, Problem

REVIEWS: Final = 2
"""Independent reviews that an item gets."""

STATUSES: Final = ("not reviewed", "one review", "agreed", "disagreed", "adjudicated")
OUTCOMES: Final = ("accept", "edit", "reject", "undecided")


@dataclass
class Standing:
    """What is known of one item.

    Attributes:
        reviews: person -> the review that counts, at most ``REVIEWS``.
        adjudications: person -> the last adjudication by them.
        settled: the decision that ended a disagreement; None while there is none.
    """

    reviews: dict[str, Decision] = field(default_factory=dict)
    adjudications: dict[str, Decision] = field(default_factory=dict)
    settled: Decision | None = None

    @property
    def closed(self) -> bool:
        """Whether the independent reviews are all in, and none can change."""
        return len(self.reviews) == REVIEWS

    @property
    def status(self) -> str:
        """One of ``STATUSES``."""
        if not self.closed:
            return STATUSES[len(self.reviews)]
        if self.settled is not None:
            return "adjudicated"
        return "agreed" if len({one.outcome for one in self.reviews.values()}) == 1 else "disagreed"

    @property
    def final(self) -> Decision | None:
        """The decision that holds; None while there is none."""
        if self.settled is not None:
            return self.settled
        return next(iter(self.reviews.values())) if self.status == "agreed" else None

    @property
    def outcome(self) -> str:
        """One of ``OUTCOMES``."""
        return self.final.verdict if self.final is not None else "undecided"

    def take(self, decision: Decision) -> None:
        """Takes in a decision that ``refusal`` lets pass."""
        if decision.stage == "review":
            self.reviews[decision.person] = decision
            return
        self.adjudications[decision.person] = decision
        if decision.person not in self.reviews:
            self.settled = decision
            return
        # the two may settle it between them: both saw the other's verdict and now say the same
        both = [self.adjudications.get(person) for person in self.reviews]
        if all(one is not None and one.outcome == decision.outcome for one in both):
            self.settled = decision

    def refusal(self, decision: Decision) -> str | None:
        """Says why a decision cannot be taken any more, None where it can."""
        if decision.stage == "review":
            if self.closed:
                return f"{REVIEWS} reviews, which stand"
            return None
        return None if self.status == "disagreed" else f"an item that is {self.status}"


class Board:
    """The standing of every item, kept up to date from the log.

    Args:
        keys: the items in the order of the data.
    """

    def __init__(self, keys: Iterable[Key]) -> None:
        self.items: dict[Key, Standing] = {key: Standing() for key in keys}
        self._taken = 0

    def update(self, decisions: Sequence[Decision]) -> None:
        """Takes in the decisions that were appended since the last call.

        Raises:
            InputError: where one is on an item that the data has not, or comes after the item was closed.
        """
        for decision in decisions[self._taken :]:
            self.admit(decision)
            self.items[decision.key].take(decision)
            self._taken += 1

    def admit(self, decision: Decision) -> None:
        """Refuses a decision that cannot be taken.

        Raises:
            InputError: saying what stands against it.
        """
        standing = self.items.get(decision.key)
        location = f"{decision.key[1]} (split {decision.key[0]})"
        if standing is None:
            raise InputError(
                Problem(location, "an item of this data", "none of that id", "review the data of this log")
            )
        refusal = standing.refusal(decision)
        if refusal is not None:
            expected = "an item that waits for a review" if decision.stage == "review" else "an open disagreement"
            raise InputError(Problem(location, expected, refusal, "go on to the next item"))

    def waiting(self, person: str, stage: str, among: Iterable[Key] | None = None) -> list[Key]:
        """Returns what a person has to do, in the order of the data.

        Args:
            person: who, as ``person_of`` compares names.
            stage: ``review``: items that the person has not reviewed and that lack a review; ``adjudication``: open
                disagreements, but for those on which the person is one of the two and the other has yet to speak.
            among: the items to look at; None for all.
        """
        keys = self.items if among is None else among
        if stage == "review":
            return [key for key in keys if not self.items[key].closed and person not in self.items[key].reviews]
        return [key for key in keys if self.items[key].status == "disagreed" and not _spoken(self.items[key], person)]


def _spoken(standing: Standing, person: str) -> bool:
    """Says whether it is the other one's turn to speak in adjudication."""
    return person in standing.adjudications and standing.adjudications.keys() != standing.reviews.keys()


def pairs_of(standings: Mapping[Key, Standing]) -> dict[tuple[str, str], list[Key]]:
    """Returns pair of people -> the items that these two reviewed, the pairs sorted."""
    pairs: dict[tuple[str, str], list[Key]] = {}
    for key, standing in standings.items():
        if standing.closed:
            first, second = sorted(standing.reviews)
            pairs.setdefault((first, second), []).append(key)
    return dict(sorted(pairs.items()))
