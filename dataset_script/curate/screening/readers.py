"""Readers without images: the adversaries behind chat endpoints, and the audit's probes on the pool so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dataset_script.curate.asking.limits import left_over, shared_out, summed
from dataset_script.curate.asking.settings import RoleSettings
from dataset_script.curate.engine import run_shards
from dataset_script.curate.screening.analysis import SAID
from dataset_script.curate.screening.rule import FloatArray, Reading
from scale_vqa_eval.audit.battery import FAMILIES, TRAIN_CAP, read_features, run_battery
from scale_vqa_eval.audit.chat import chat_probe
from scale_vqa_eval.audit.probe import credit, gold_probability, option_counts, sequential_credit
from scale_vqa_eval.audit.text_features import TextFeatures
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.llm import Spending
from scale_vqa_eval.questions import Question

SURE: float = 1 - 1e-9


@dataclass(frozen=True, slots=True)
class Heard:
    """What an adversary made of a question.

    Attributes:
        right: 1 where it picked the right option, a share where it wavers.
        sure: how sure it was of the right option.
        pick: index of the option that it picked, -1 where it wavers.
        said: what it said, where it was right.
    """

    right: float
    sure: float
    pick: int
    said: str | None


@dataclass(frozen=True)
class ListenTask:
    """The questions of one shard, to be asked of one adversary; ``answers`` is the journal of its answers."""

    settings: RoleSettings
    answers: Path
    questions: tuple[Question, ...]
    progress: bool = True


def listen_shard(task: ListenTask) -> dict[str, Any]:
    """Asks an adversary and returns what it made of each question, in order, in plain columns; what it cost; unread.

    Raises:
        InputError: where a limit, or the endpoint itself, stopped the asking.
    """
    role, asked = task.settings, task.questions
    audit = chat_probe(asked, role.base_url, role.model, task.answers, role.chat, role.repeats, task.progress)
    if audit.result is None:
        hint = f"raise the limit of adversary {role.name}, or bring its endpoint back, and run it again"
        location = f"role adversary, {role.name}"
        raise InputError(Problem(location, "its answers", audit.report["stopped"], f"{hint} to go on"))
    right, shares = credit(audit.result, asked).tolist(), audit.result.shares()
    return {
        "right": right,
        "sure": gold_probability(audit.result, asked).tolist(),
        "pick": np.where(shares.max(axis=1) >= SURE, shares.argmax(axis=1), -1).tolist(),
        # the rest is in the journal: what all adversaries said of all questions would not fit into memory
        "said": [
            said[0][:SAID] if here > 0 and said[0] else "" for here, said in zip(right, audit.responses, strict=True)
        ],
        "spent": audit.report["spending"],
        "unread": summed([audit.report["unparsed"], audit.report["failed"]]),
    }


@dataclass
class Adversary:
    """A text-only model; each version of a question is asked once, ``repeats`` times with rotated options.

    Attributes:
        settings: the endpoint.
        answers: folder of the journals of its answers, a file a shard.
        progress: show a bar on standard error.
        engine: ``local``, or ``ray``: shards are asked side by side.
        workers: tasks that Ray runs at a time: they share the pace.
        spent: what its answers have cost, in this run and before.
        heard: (row id, version) -> what it made of it.
        unread: reason -> answers that named no option, or calls that failed.
    """

    settings: RoleSettings
    answers: Path
    progress: bool = True
    engine: str = "local"
    workers: int = 1
    spent: Spending = field(default_factory=Spending)
    heard: dict[tuple[str, int], Heard] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)

    def listen(self, questions: Mapping[int, Sequence[tuple[Question, int]]]) -> None:
        """Asks the versions of questions that were not asked yet, those of each shard by themselves.

        Raises:
            InputError: where a limit, or the endpoint itself, stopped the asking.
        """
        new = {
            shard: [one for one in some if (one[0].id, one[1]) not in self.heard]
            for shard, some in sorted(questions.items())
        }
        new = {shard: some for shard, some in new.items() if some}
        if self.engine == "local":
            for shard, some in new.items():
                self._keep(some, listen_shard(self._task(shard, some, self._left())))
        elif new:
            total, workers = sum(map(len, new.values())), min(self.workers, len(new))
            left = self._left()
            tasks = [
                self._task(shard, some, shared_out(left, len(some) / total, workers)) for shard, some in new.items()
            ]
            for some, done in zip(new.values(), run_shards(self.engine, listen_shard, tasks), strict=True):
                self._keep(some, done)

    def _left(self) -> RoleSettings:
        return left_over(self.settings, asdict(self.spent))

    def _task(self, shard: int, some: Sequence[tuple[Question, int]], settings: RoleSettings) -> ListenTask:
        file = self.answers / f"{shard:05d}.jsonl"
        return ListenTask(settings, file, tuple(one for one, _ in some), self.progress and self.engine == "local")

    def _keep(self, some: Sequence[tuple[Question, int]], done: Mapping[str, Any]) -> None:
        for name, value in done["spent"].items():
            setattr(self.spent, name, getattr(self.spent, name) + value)
        self.unread = summed([self.unread, done["unread"]])
        columns = zip(done["right"], done["sure"], done["pick"], done["said"], strict=True)
        for (question, version), (right, sure, pick, said) in zip(some, columns, strict=True):
            self.heard[question.id, version] = Heard(right, sure, pick, said or None)

    def reading(self, questions: Sequence[tuple[Question, int]]) -> Reading:
        """Returns what it made of questions that it was asked."""
        heard = [self.heard[question.id, version] for question, version in questions]
        return Reading(
            self.settings.name,
            "adversary",
            np.array([one.right for one in heard]),
            np.array([one.sure for one in heard]),
            chance_of([question for question, _ in questions]),
            pick=np.array([one.pick for one in heard], dtype=np.int64),
        )

    def account(self) -> dict[str, object]:
        """Returns what it cost, and what could not be read, for the report."""
        return {"name": self.settings.name, "unread": dict(sorted(self.unread.items())), **asdict(self.spent)}


def chance_of(questions: Sequence[Question]) -> FloatArray:
    """Returns (n,): what a guess gives."""
    return np.asarray(1.0 / option_counts(questions), dtype=np.float64)


def together(readings: Sequence[Reading]) -> list[Reading]:
    """Returns the reading "all adversaries are right": a guess gives it with the chance of one, where they agree.

    Models share tastes: that they pick the same option is no knowledge, and the product of the chances would take two
    who guess alike for readers. Where they agree, they are right as often as one who guesses.
    """
    picks = [reading.pick for reading in readings if reading.pick is not None]
    if len(picks) < 2:
        return []
    agree = np.logical_and.reduce([(picks[0] >= 0) & (pick == picks[0]) for pick in picks])
    right = np.min([reading.right for reading in readings], axis=0)
    sure = np.min([reading.sure for reading in readings], axis=0)
    chance = np.where(agree, readings[0].chance, 0.0)
    return [Reading("all adversaries", "adversaries", np.where(agree & (right >= SURE), 1.0, 0.0), sure, chance)]


def probe_readings(
    questions: Sequence[Question], judged: Sequence[int], seed: int
) -> tuple[list[Reading], TextFeatures | None]:
    """Runs the audit's battery on the pool and returns its readings of the judged rows.

    Args:
        questions: the whole pool: fitted probes learn from all of it, exchange sets included.
        judged: rows that the readings are wanted for.
        seed: of folds and forests.
    """
    if len(questions) < 2:
        return [], None
    prepared = read_features(questions) if len(questions) <= TRAIN_CAP else None
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
        for result in run_battery(questions, seed, partitions=1, families=FAMILIES, features=prepared)
    ]
    return readings, prepared
