"""Text-only readers: the adversaries behind chat endpoints, and the audit's probes on the questions so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from dataset_script.curate.leakage_test import BlindAnswers, FloatArray
from dataset_script.curate.roles import add_spending, remaining
from dataset_script.curate.work import RoleSettings, add_reports
from scale_vqa_eval.audit.battery import FAMILIES, TRAIN_CAP, read_features, run_battery
from scale_vqa_eval.audit.chat import chat_probe
from scale_vqa_eval.audit.joint_reader import joint_probes
from scale_vqa_eval.audit.probe import credit, gold_probability, option_counts, sequential_credit
from scale_vqa_eval.audit.text_features import TextFeatures
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.llm import Spending
from scale_vqa_eval.questions import Question

SURE: Final = 1 - 1e-9
MAX_TEXT: Final = 600
"""Characters of an answer that are kept for the analysis; the file of answers has all of it."""
VersionedQuestion = tuple[Question, int]


@dataclass(frozen=True, slots=True)
class AdversaryAnswer:
    """An adversary's answer to a question.

    Attributes:
        right: 1 if it chose the right option, a share if its repeats differ.
        sure: its confidence in the right option.
        pick: index of the option that it chose, -1 if its repeats differ.
        text: its words if it was right, else None.
    """

    right: float
    sure: float
    pick: int
    text: str | None


@dataclass
class Adversary:
    """A text-only model; each version of a question is asked once, ``repeats`` times with rotated options.

    Attributes:
        settings: the endpoint.
        folder: folder of the files that keep its answers, one per shard.
        progress: show a bar on standard error.
        spent: cost of its answers, in this run and before.
        unread: reason -> number of answers that named no option, or of failed calls.
    """

    settings: RoleSettings
    folder: Path
    progress: bool = True
    spent: Spending = field(default_factory=Spending)
    unread: dict[str, int] = field(default_factory=dict)
    _answers: dict[tuple[str, int], AdversaryAnswer] = field(default_factory=dict)

    def answer(self, question: str, version: int) -> AdversaryAnswer:
        """Returns its answer to a version of a question, by row id."""
        return self._answers[question, version]

    def ask(self, questions: Mapping[int, Sequence[VersionedQuestion]]) -> None:
        """Asks the versions of questions that were not asked yet, shard by shard.

        Raises:
            InputError: if a limit or the endpoint itself stopped the calls.
        """
        for shard, versions in sorted(questions.items()):
            new = [one for one in versions if (one[0].id, one[1]) not in self._answers]
            if new:
                self._ask_shard(self.folder / f"{shard:05d}.jsonl", new)

    def _ask_shard(self, file: Path, new: Sequence[VersionedQuestion]) -> None:
        role, asked = self.settings, [question for question, _ in new]
        limits = remaining(role.chat, self.spent)
        audit = chat_probe(asked, role.base_url, role.model, file, limits, role.repeats, self.progress)
        if audit.result is None:
            hint = f"raise the limit of adversary {role.name}, or bring its endpoint back, and run it again to go on"
            raise InputError(Problem(f"role adversary, {role.name}", "its answers", audit.report["stopped"], hint))
        add_spending(self.spent, audit.report["spending"])
        self.unread = add_reports([self.unread, audit.report["unparsed"], audit.report["failed"]])
        shares = audit.result.shares()
        picks = np.where(shares.max(axis=1) >= SURE, shares.argmax(axis=1), -1).tolist()
        right, sure = credit(audit.result, asked).tolist(), gold_probability(audit.result, asked).tolist()
        for (question, version), *figures, texts in zip(new, right, sure, picks, audit.responses, strict=True):
            text = texts[0][:MAX_TEXT] if figures[0] > 0 and texts[0] else None
            self._answers[question.id, version] = AdversaryAnswer(*figures, text or None)

    def answers(self, questions: Sequence[VersionedQuestion]) -> BlindAnswers:
        """Returns its answers to questions that it was asked."""
        answers = [self._answers[question.id, version] for question, version in questions]
        return BlindAnswers(
            self.settings.name,
            "adversary",
            np.array([one.right for one in answers]),
            np.array([one.sure for one in answers]),
            chance_of([question for question, _ in questions]),
            pick=np.array([one.pick for one in answers], dtype=np.int64),
        )

    def report(self) -> dict[str, object]:
        """Returns its cost and its unread answers."""
        return {"name": self.settings.name, "unread": dict(sorted(self.unread.items())), **asdict(self.spent)}


def chance_of(questions: Sequence[Question]) -> FloatArray:
    """Returns (n,): accuracy of a guess."""
    return np.asarray(1.0 / option_counts(questions), dtype=np.float64)


def all_agree(readers: Sequence[BlindAnswers]) -> list[BlindAnswers]:
    """Returns the reader "all adversaries are right", to whom a guess gives the chance of one where they agree.

    Models have preferences in common: that they choose the same option is no knowledge, and the product of the chances
    would take two that guess alike for readers. Where they agree, they are right as often as one that guesses.
    """
    picks = [reader.pick for reader in readers if reader.pick is not None]
    if len(picks) < 2:
        return []
    agree = np.logical_and.reduce([(picks[0] >= 0) & (pick == picks[0]) for pick in picks])
    right = np.min([reader.right for reader in readers], axis=0)
    sure = np.min([reader.sure for reader in readers], axis=0)
    chance = np.where(agree, readers[0].chance, 0.0)
    return [BlindAnswers("all adversaries", "adversaries", np.where(agree & (right >= SURE), 1.0, 0.0), sure, chance)]


def probe_answers(
    questions: Sequence[Question], judged: Sequence[int], seed: int
) -> tuple[list[BlindAnswers], TextFeatures | None]:
    """Runs the audit's battery and joint reader on all questions and returns their answers to the judged rows.

    Args:
        questions: all questions: fitted probes learn from all of them, exchange groups included.
        judged: row numbers that the answers are needed for.
        seed: of folds and forests.
    """
    if len(questions) < 2:
        return [], None
    features = read_features(questions) if len(questions) <= TRAIN_CAP else None
    results = run_battery(questions, seed, partitions=1, families=FAMILIES, features=features)
    results += joint_probes(questions, seed, 1) if features is not None else []
    at = np.array(judged, dtype=np.int64)
    chance = chance_of(questions)
    answers = [
        BlindAnswers(
            result.name,
            "probe",
            credit(result, questions)[at],
            gold_probability(result, questions)[at],
            chance[at],
            sequential_credit(result, questions)[at],
        )
        for result in results
    ]
    return answers, features
