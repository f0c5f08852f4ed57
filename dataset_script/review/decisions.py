"""Decisions of reviewers: their validation, and the review status of each item."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from scale_vqa_eval.audit.defects import named_right, named_wrong, normalised
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import LETTERS

VERDICTS: Final = ("accept", "reject", "edit")
ARMS: Final = ("seeing", "blind")
"""Stages of answer-first reading: a reader answers, with or without images, before seeing the gold answer."""
STAGES: Final = ("review", "adjudication", *ARMS)
MAX_NAME: Final = 80
MAX_TEXT: Final = 20_000
EDITABLE: Final = ("question", "options", "answer", "rationale")

Key = tuple[str, str]
"""Split and row id; ids are unique only within a split."""


@dataclass(frozen=True)
class Decision:
    """A person's decision on an item.

    Attributes:
        key: split and row id.
        stage: ``review`` (made without seeing another verdict), ``adjudication``, or one of ``ARMS``.
        reviewer: name as entered.
        verdict: ``accept``, ``reject`` or ``edit``; in a stage of ``ARMS`` the chosen letter.
        reason: required for reject and edit.
        edit: field of ``EDITABLE`` -> new value, for the fields that an edit changes.
        at: time in UTC, ISO 8601.
        seconds: time from showing the item to the answer, in a stage of ``ARMS``.
    """

    key: Key
    stage: str
    reviewer: str
    verdict: str
    reason: str = ""
    edit: Mapping[str, Any] = field(default_factory=dict)
    at: str = ""
    seconds: float | None = None

    @property
    def person(self) -> str:
        """The reviewer's name in the form in which names are compared."""
        return person_of(self.reviewer)

    @property
    def outcome(self) -> tuple[str, str]:
        """The part on which two reviewers must agree: the verdict and the new text of an edit."""
        return self.verdict, repr(sorted(self.edit.items()))

    def as_record(self) -> dict[str, Any]:
        """Returns the record of the log."""
        record = {"kind": self.stage, "split": self.key[0], "id": self.key[1], "reviewer": self.reviewer}
        record |= {"verdict": self.verdict, "reason": self.reason, "at": self.at}
        record |= {"edit": dict(self.edit)} if self.edit else {}
        return record | ({} if self.seconds is None else {"seconds": self.seconds})


def person_of(name: str) -> str:
    """Returns a name in the form in which names are compared: NFKC, case folded, single spaces.

    >>> person_of(" Dr.  Ada ") == person_of("dr. ada")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def checked_name(name: str) -> str:
    """Returns a reviewer's name on one line.

    Raises:
        InputError: if it is empty, too long, or has invisible characters.
    """
    line = " ".join(name.split())
    if line and len(line) <= MAX_NAME and line.isprintable():
        return line
    found = preview(name) if line else "an empty name"
    raise InputError(Problem("reviewer", f"a name of 1 to {MAX_NAME} visible characters", found, "give your name"))


def checked_decision(decision: Decision, question: Question) -> Decision:
    """Returns the decision for the log, with name and reason stripped and the edit reduced to its changes.

    Raises:
        InputError: such as for a missing reason, or an edit that changes nothing or breaks the row.
    """
    problems: list[Problem] = []

    def add(expected: str, found: str, hint: str) -> None:
        problems.append(Problem(question.id, expected, found, hint))

    if decision.stage in ARMS:
        letters = list(LETTERS[: len(question.options)])
        if decision.verdict not in letters:
            expected = f"an answer of A to {letters[-1]}"
            raise InputError(Problem(question.id, expected, preview(decision.verdict), "choose an option"))
        return replace(decision, reviewer=checked_name(decision.reviewer))
    if decision.verdict not in VERDICTS:
        add(f"a verdict of {', '.join(VERDICTS)}", preview(decision.verdict), "choose one")
    reason = decision.reason.strip()
    if decision.verdict != "accept" and not reason:
        add(f"a reason for {decision.verdict}", "none", "write one in the field Reason")
    if len(reason) > MAX_TEXT:
        add(f"a reason of at most {MAX_TEXT} characters", f"{len(reason)}", "shorten it")
    changes = changed_fields(decision.edit, question) if decision.verdict == "edit" else {}
    if decision.verdict == "edit":
        problems += edit_problems(changes, question)
        if not changes:
            add("an edit that changes something", "the unchanged text", "edit it, or accept")
    if problems:
        raise InputError(problems)
    return replace(decision, reviewer=checked_name(decision.reviewer), reason=reason, edit=changes)


def changed_fields(edit: Mapping[str, Any], question: Question) -> dict[str, Any]:
    """Returns the fields of an edit that differ from the question.

    White space at the ends is ignored, and so are line ends, which browsers change.
    """
    unknown = sorted(edit.keys() - set(EDITABLE))
    if unknown:
        found = ", ".join(map(preview, unknown))
        raise InputError(Problem(question.id, f"an edit of {', '.join(EDITABLE)}", found, "edit only these fields"))
    now = {
        "question": question.question,
        "options": list(question.options),
        "answer": question.letter,
        "rationale": question.rationale or "",
    }
    cleaned = {name: _cleaned(value) for name, value in edit.items()}
    changes = {name: value for name, value in cleaned.items() if value != _cleaned(now[name])}
    if isinstance(changes.get("options"), list) and len(changes["options"]) == len(question.options):
        pairs = zip(question.options, changes["options"], strict=True)
        changes["options"] = [old if _cleaned(old) == new else new for old, new in pairs]  # keep unchanged options
    return changes


def edited(question: Question, edit: Mapping[str, Any]) -> Question:
    """Returns the question with the changes of a valid edit."""
    return replace(
        question,
        question=edit.get("question", question.question),
        options=tuple(edit.get("options", question.options)),
        answer=LETTERS.index(edit["answer"]) if "answer" in edit else question.answer,
        rationale=(edit["rationale"] or None) if "rationale" in edit else question.rationale,
    )


def edit_problems(edit: Mapping[str, Any], question: Question) -> list[Problem]:
    """Returns the problems of an edit, such as empty texts, equal options or an invalid letter."""
    location, count = question.id, len(question.options)
    texts = {"question": edit.get("question", "x"), "rationale": edit.get("rationale", "")}
    options = edit.get("options", list(question.options))
    if not isinstance(options, list) or len(options) != count or not all(isinstance(one, str) for one in options):
        return [Problem(location, f"{count} option texts", preview(options), "give every option")]
    if not all(isinstance(text, str) for text in texts.values()):
        return [Problem(location, "texts", preview(edit), "give text")]
    problems = [
        Problem(location, f"option {letter} to be a text", "nothing", "write the option")
        for letter, text in zip(LETTERS, options, strict=False)
        if not text
    ]
    if not texts["question"]:
        problems.append(Problem(location, "a question", "nothing", "write the question"))
    if max(map(len, [*texts.values(), *options])) > MAX_TEXT:
        problems.append(Problem(location, f"texts of at most {MAX_TEXT} characters", "a longer one", "shorten it"))
    if "options" in edit and len({normalised(text) or text for text in options}) < count:
        problems.append(Problem(location, f"{count} different options", "two that are the same", "change one"))
    answer = edit.get("answer", question.letter)
    if answer not in LETTERS[:count]:
        found = preview(answer)
        return [*problems, Problem(location, f"an answer of A to {LETTERS[count - 1]}", found, "choose an option")]
    return problems or letter_problems(edited(question, edit))


def letter_problems(question: Question) -> list[Problem]:
    """Returns the problem of a rationale that names another letter than the answer."""
    text, count = question.rationale or "", len(question.options)
    right, wrong = named_right(text, count), named_wrong(text, count)
    if (right and question.letter not in right) or (not right and question.letter in wrong):
        expected = f"a rationale for the answer {question.letter}"
        found = f"one that names {', '.join(right)}" if right else f"one that calls {question.letter} wrong"
        return [Problem(question.id, expected, found, "correct the rationale or the answer")]
    return []


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("\r", "\n").strip()
    return [_cleaned(one) for one in value] if isinstance(value, list | tuple) else value


REVIEWS: Final = 2
"""Number of independent reviews per item."""

STATUSES: Final = ("not reviewed", "one review", "agreed", "disagreed", "adjudicated")
OUTCOMES: Final = ("accept", "edit", "reject", "undecided")


@dataclass
class ItemStatus:
    """The review status of one item.

    Attributes:
        reviews: person -> last review; at most ``REVIEWS`` people.
        adjudications: person -> last adjudication.
        answers: person -> answer given before the gold answer was shown.
        settled: the decision that settled a disagreement, or None.
    """

    reviews: dict[str, Decision] = field(default_factory=dict)
    adjudications: dict[str, Decision] = field(default_factory=dict)
    answers: dict[str, Decision] = field(default_factory=dict)
    settled: Decision | None = None

    @property
    def closed(self) -> bool:
        """Whether all independent reviews are in, so that none can change."""
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
        """The final decision, or None."""
        if self.settled is not None:
            return self.settled
        return next(iter(self.reviews.values())) if self.status == "agreed" else None

    @property
    def outcome(self) -> str:
        """One of ``OUTCOMES``."""
        return self.final.verdict if self.final is not None else "undecided"

    def take(self, decision: Decision) -> None:
        """Applies a decision that ``refusal`` allows."""
        if decision.stage in ARMS:
            self.answers[decision.person] = decision
            return
        if decision.stage == "review":
            self.reviews[decision.person] = decision
            return
        self.adjudications[decision.person] = decision
        if decision.person not in self.reviews:
            self.settled = decision
            return
        # the two reviewers settle it if, after seeing each other's verdict, both make the same decision
        both = [self.adjudications.get(person) for person in self.reviews]
        if all(one is not None and one.outcome == decision.outcome for one in both):
            self.settled = decision

    def refusal(self, decision: Decision) -> str | None:
        """Returns why a decision is no longer possible, or None."""
        if decision.stage in ARMS:
            seen = decision.person in self.answers or decision.person in self.reviews
            return "an item that this reader has answered or reviewed" if seen else None
        if decision.stage == "review":
            return f"{REVIEWS} reviews, which are final" if self.closed else None
        return None if self.status == "disagreed" else f"an item that is {self.status}"


_EXPECTED: Final = {
    "review": "an item that waits for a review",
    "adjudication": "an open disagreement",
    **dict.fromkeys(ARMS, "an item that waits for an answer"),
}


class ReviewState:
    """The status of every item, updated from the log; ``keys`` are the items in the order of the data."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self.items: dict[Key, ItemStatus] = {key: ItemStatus() for key in keys}
        self._taken = 0

    def update(self, decisions: Sequence[Decision]) -> None:
        """Applies the decisions that were appended since the last call.

        Raises:
            InputError: if a decision concerns an unknown item or one that was closed before.
        """
        for decision in decisions[self._taken :]:
            self.admit(decision)
            self.items[decision.key].take(decision)
            self._taken += 1

    def admit(self, decision: Decision) -> None:
        """Raises InputError if a decision is not possible."""
        item_status = self.items.get(decision.key)
        location = f"{decision.key[1]} (split {decision.key[0]})"
        if item_status is None:
            hint = "review the data of this log"
            raise InputError(Problem(location, "an item of this data", "no item with this id", hint))
        refusal = item_status.refusal(decision)
        if refusal is not None:
            expected = _EXPECTED[decision.stage]
            raise InputError(Problem(location, expected, refusal, "go to the next item"))

    def waiting(self, person: str, stage: str, among: Iterable[Key] | None = None) -> list[Key]:
        """Returns the items that wait for a person, in the given order.

        Args:
            person: name as returned by ``person_of``.
            stage: ``review``: items that lack a review and that the person has not reviewed; ``seeing``: the same,
                because a review follows the answer; ``adjudication``: open disagreements, except those that the person
                has adjudicated while the other reviewer has not; ``blind``: items that the person has neither answered
                nor reviewed.
            among: the items to consider, or None for all.
        """
        keys = self.items if among is None else among
        if stage == "blind":
            return [key for key in keys if not {person} & {*self.items[key].answers, *self.items[key].reviews}]
        if stage in ("review", "seeing"):
            return [key for key in keys if not self.items[key].closed and person not in self.items[key].reviews]
        return [key for key in keys if self.items[key].status == "disagreed" and not _waits(self.items[key], person)]


def _waits(item_status: ItemStatus, person: str) -> bool:
    """Returns whether the person has adjudicated and the other reviewer has not."""
    return person in item_status.adjudications and item_status.adjudications.keys() != item_status.reviews.keys()


def pairs_of(statuses: Mapping[Key, ItemStatus]) -> dict[tuple[str, str], list[Key]]:
    """Returns (sorted) pair of people -> items that both reviewed."""
    pairs: dict[tuple[str, str], list[Key]] = {}
    for key, item_status in statuses.items():
        if item_status.closed:
            first, second = sorted(item_status.reviews)
            pairs.setdefault((first, second), []).append(key)
    return dict(sorted(pairs.items()))
