"""Readers without images: the adversaries behind chat endpoints, and the audit's probes on the pool so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from dataset_script.curate.asking.settings import RoleSettings
from dataset_script.curate.screening.rule import FloatArray, Reading
from scale_vqa_eval.audit.battery import FAMILIES, TRAIN_CAP, prepare, run_battery
from scale_vqa_eval.audit.chat import chat_probe
from scale_vqa_eval.audit.prepared import Prepared
from scale_vqa_eval.audit.probe import credit, gold_probability, option_counts, sequential_credit
from scale_vqa_eval.chat.cache import Spending
from scale_vqa_eval.errors import Fault, InputError
from scale_vqa_eval.questions import Question

SURE: float = 1 - 1e-9


@dataclass(frozen=True)
class Heard:
    """What an adversary made of one question: right (a share where it wavers), how sure, and what it said."""

    right: float
    sure: float
    said: tuple[str | None, ...]


@dataclass
class Adversary:
    """A text-only model; each version of a question is asked once, ``repeats`` times with rotated options.

    Attributes:
        settings: the endpoint.
        answers: folder of the journals of its answers, a file a shard.
        progress: show a bar on standard error.
        spent: what its answers have cost, in this run and before.
        heard: (row id, version) -> what it made of it.
        unread: reason -> answers that named no option, or calls that failed.
    """

    settings: RoleSettings
    answers: Path
    progress: bool = True
    spent: Spending = field(default_factory=Spending)
    heard: dict[tuple[str, int], Heard] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)

    def listen(self, questions: Sequence[tuple[Question, int]], shard: int) -> None:
        """Asks the versions of questions that were not asked yet.

        Raises:
            InputError: where a limit, or the endpoint itself, stopped the asking.
        """
        new = [(question, version) for question, version in questions if (question.id, version) not in self.heard]
        if not new:
            return
        limits = self.settings.chat
        left = replace(
            limits,
            budget=None if limits.budget is None else max(0.0, limits.budget - self.spent.cost),
            max_calls=None if limits.max_calls is None else max(0, limits.max_calls - self.spent.calls),
        )
        asked = [question for question, _ in new]
        file = self.answers / f"{shard:05d}.jsonl"
        audit = chat_probe(
            asked, self.settings.base_url, self.settings.model, file, left, self.settings.repeats, self.progress
        )
        for name, value in audit.report["spending"].items():
            setattr(self.spent, name, getattr(self.spent, name) + value)
        if audit.result is None:
            mend = f"raise the limit of adversary {self.settings.name}, or bring its endpoint back, and run it again"
            where = f"role adversary, {self.settings.name}"
            raise InputError(Fault(where, "its answers", audit.report["stopped"], f"{mend} to go on"))
        for table in ("unparsed", "failed"):
            for reason, count in audit.report[table].items():
                self.unread[reason] = self.unread.get(reason, 0) + count
        right, sure = credit(audit.result, asked), gold_probability(audit.result, asked)
        for place, (question, version) in enumerate(new):
            said = audit.responses[place]
            self.heard[question.id, version] = Heard(float(right[place]), float(sure[place]), said)

    def reading(self, questions: Sequence[tuple[Question, int]]) -> Reading:
        """Returns what it made of questions that it was asked."""
        heard = [self.heard[question.id, version] for question, version in questions]
        return Reading(
            self.settings.name,
            "adversary",
            np.array([one.right for one in heard]),
            np.array([one.sure for one in heard]),
            chance_of([question for question, _ in questions]),
        )

    def account(self) -> dict[str, object]:
        """Returns what it cost, and what could not be read, for the report."""
        return {"name": self.settings.name, "unread": dict(sorted(self.unread.items())), **asdict(self.spent)}


def chance_of(questions: Sequence[Question]) -> FloatArray:
    """Returns (n,): what a guess gives."""
    return np.asarray(1.0 / option_counts(questions), dtype=np.float64)


def together(readings: Sequence[Reading]) -> list[Reading]:
    """Returns the reading "all adversaries are right", which a guess of each gives with the product of the chances."""
    if len(readings) < 2:
        return []
    right = np.min([reading.right for reading in readings], axis=0)
    sure = np.min([reading.sure for reading in readings], axis=0)
    chance = np.prod([reading.chance for reading in readings], axis=0)
    return [Reading("all adversaries", "adversaries", np.where(right >= SURE, 1.0, 0.0), sure, chance)]


def probe_readings(
    questions: Sequence[Question], judged: Sequence[int], seed: int
) -> tuple[list[Reading], Prepared | None]:
    """Runs the audit's battery on the pool and returns its readings of the judged rows.

    Args:
        questions: the whole pool: fitted probes learn from all of it, exchange sets included.
        judged: rows that the readings are wanted for.
        seed: of folds and forests.
    """
    if len(questions) < 2:
        return [], None
    prepared = prepare(questions) if len(questions) <= TRAIN_CAP else None
    at = np.array(judged, dtype=np.int64)
    chance = chance_of(questions)
    readings = [
        Reading(
            result.name,
            "probe",
            credit(result, questions)[at],
            gold_probability(result, questions)[at],
            chance[at],
            sequential_credit(result, questions)[at],
        )
        for result in run_battery(questions, seed, partitions=1, families=FAMILIES, prepared=prepared)
    ]
    return readings, prepared
