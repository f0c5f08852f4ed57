"""One decision of a reviewer: what it may hold, and what is wrong with it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from scale_vqa_eval.audit.defects import named_right, named_wrong, normalised
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import LETTERS

VERDICTS: Final = ("accept", "reject", "edit")
STAGES: Final = ("review", "adjudication")
LONGEST_NAME: Final = 80
LONGEST_TEXT: Final = 20_000
EDITABLE: Final = ("question", "options", "answer", "rationale")

Key = tuple[str, str]
"""Split and row id: ids are unique within a split only."""


@dataclass(frozen=True)
class Decision:
    """What one person decided on one item.

    Attributes:
        key: split and row id.
        stage: ``review`` (made without seeing another verdict) or ``adjudication``.
        reviewer: name as given.
        verdict: ``accept``, ``reject`` or ``edit``.
        reason: in words; needed for all but accept.
        edit: field -> new value, of those in ``EDITABLE`` that change; empty for the other verdicts.
        at: UTC, ISO 8601.
    """

    key: Key
    stage: str
    reviewer: str
    verdict: str
    reason: str = ""
    edit: Mapping[str, Any] = field(default_factory=dict)
    at: str = ""

    @property
    def person(self) -> str:
        """The reviewer as compared: one person writes his name in one way or another."""
        return person_of(self.reviewer)

    @property
    def outcome(self) -> tuple[str, str]:
        """What two people have to agree on: the verdict and, for edits, the new text."""
        return self.verdict, repr(sorted(self.edit.items()))

    def as_record(self) -> dict[str, Any]:
        """Returns the fields as the log keeps them."""
        record = {"kind": self.stage, "split": self.key[0], "id": self.key[1], "reviewer": self.reviewer}
        record |= {"verdict": self.verdict, "reason": self.reason, "at": self.at}
        return record | ({"edit": dict(self.edit)} if self.edit else {})


def person_of(name: str) -> str:
    """Returns a name as it is compared: NFKC, case-folded, white space as one space.

    >>> person_of(" Dr.  Ada ") == person_of("dr. ada")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def checked_name(name: str) -> str:
    """Returns a reviewer's name on one line.

    Raises:
        InputError: where it is empty, too long, or holds characters that cannot be seen.
    """
    line = " ".join(name.split())
    if line and len(line) <= LONGEST_NAME and line.isprintable():
        return line
    found = preview(name) if line else "an empty name"
    raise InputError(Problem("reviewer", f"a name of 1 to {LONGEST_NAME} visible characters", found, "give your name"))


def checked_decision(decision: Decision, question: Question) -> Decision:
    """Returns a decision as it may be kept: name and reason on their own, the edit cut down to what it changes.

    Raises:
        InputError: naming what is wrong: no reason, an edit that changes nothing or breaks the row.
    """
    location = question.id
    problems = []
    if decision.verdict not in VERDICTS:
        problems.append(
            Problem(location, f"a verdict of {', '.join(VERDICTS)}", preview(decision.verdict), "choose one")
        )
    reason = decision.reason.strip()
    if decision.verdict != "accept" and not reason:
        problems.append(Problem(location, f"a reason for {decision.verdict}", "none", "write one in the field Reason"))
    if len(reason) > LONGEST_TEXT:
        problems.append(
            Problem(location, f"a reason of at most {LONGEST_TEXT} characters", f"{len(reason)}", "shorten it")
        )
    changes = changed_fields(decision.edit, question) if decision.verdict == "edit" else {}
    if decision.verdict == "edit":
        problems += edit_problems(changes, question)
        if not changes:
            problems.append(
                Problem(location, "an edit that changes something", "the text as it was", "edit it, or accept")
            )
    if problems:
        raise InputError(problems)
    return replace(decision, reviewer=checked_name(decision.reviewer), reason=reason, edit=changes)


def changed_fields(edit: Mapping[str, Any], question: Question) -> dict[str, Any]:
    """Returns the fields of an edit that differ from the question, white space at the ends aside.

    A browser's field gives every line end as a line feed: a text that differs in these alone is no edit.
    """
    unknown = sorted(edit.keys() - set(EDITABLE))
    if unknown:
        found = ", ".join(map(preview, unknown))
        raise InputError(Problem(question.id, f"an edit of {', '.join(EDITABLE)}", found, "leave the rest as it is"))
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
        changes["options"] = [old if _cleaned(old) == new else new for old, new in pairs]  # the others to the byte
    return changes


def edited(question: Question, edit: Mapping[str, Any]) -> Question:
    """Returns the question with the fields of an edit, which has been checked, in place."""
    options = tuple(edit.get("options", question.options))
    return replace(
        question,
        question=edit.get("question", question.question),
        options=options,
        answer=LETTERS.index(edit["answer"]) if "answer" in edit else question.answer,
        rationale=(edit["rationale"] or None) if "rationale" in edit else question.rationale,
    )


def edit_problems(edit: Mapping[str, Any], question: Question) -> list[Problem]:
    """Returns what is wrong with the row that an edit makes: empty texts, equal options, a letter that is none."""
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
    if max(map(len, [*texts.values(), *options])) > LONGEST_TEXT:
        problems.append(Problem(location, f"texts of at most {LONGEST_TEXT} characters", "a longer one", "shorten it"))
    if "options" in edit and len({normalised(text) or text for text in options}) < count:
        problems.append(Problem(location, f"{count} different options", "two that are the same", "change one"))
    answer = edit.get("answer", question.letter)
    if answer not in LETTERS[:count]:
        found = preview(answer)
        return [*problems, Problem(location, f"an answer of A to {LETTERS[count - 1]}", found, "choose an option")]
    return problems if problems else problems + letter_problems(edited(question, edit))


def letter_problems(question: Question) -> list[Problem]:
    """Returns the fault of a rationale that names another letter than the answer, by the rules of ``defects``."""
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
