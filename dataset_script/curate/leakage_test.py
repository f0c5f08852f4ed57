"""Text-only readers, and the test by which questions are rewritten: is a reader right more often than by chance?

One correct answer proves nothing: a guess is right one time in four, and a model that repeats its guess adds no
evidence. If single questions were rewritten for that reason, those on which the reader is wrong would remain, and its
opposite would win. So the test covers many questions at once: over all of them and in each dimension, is a reader
right more often than 1/k of the time? The questions of a patient (of a path if there are few patients) form one
cluster (``audit.probe.accuracy_of``), and Holm's correction covers all readers and dimensions. If a reader is above
chance, its *excess* is rewritten: of the questions that it answered correctly, those with the highest confidence,
until the rest agrees with guessing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dataset_script.curate.roles import add_spending, remaining
from dataset_script.curate.work import RoleSettings, add_reports
from scale_vqa_eval.audit.battery import FAMILIES, TRAIN_CAP, read_features, run_battery
from scale_vqa_eval.audit.chat import chat_probe
from scale_vqa_eval.audit.clusters import Clusters
from scale_vqa_eval.audit.joint_reader import joint_probes
from scale_vqa_eval.audit.probe import accuracy_of, credit, gold_probability, option_counts, sequential_credit
from scale_vqa_eval.audit.text_features import TextFeatures
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.llm import Spending
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import cluster_codes, holm

FloatArray = npt.NDArray[np.float64]
VersionedQuestion = tuple[Question, int]
SURE: Final = 1 - 1e-9
MAX_TEXT: Final = 600
"""Maximum length of the part of an answer that the analysis gets; the answers file has the complete text."""
FEW_PATIENTS: Final = 10


@dataclass(frozen=True)
class BlindAnswers:
    """The answers of one text-only reader to n questions.

    Attributes:
        name: name of the reader.
        kind: ``adversary``, ``adversaries`` (all of them at once) or ``probe``.
        right: (n,) 1 if the right option was chosen, or a share if options tie.
        sure: (n,) confidence in the right option, 0 to 1.
        chance: (n,) accuracy of a guess.
        tested: (n,) values that are tested, nan if a fitted reader has none; None to test ``right``.
        pick: (n,) index of the chosen option, -1 if there is none; or None if unknown.
    """

    name: str
    kind: str
    right: FloatArray
    sure: FloatArray
    chance: FloatArray
    tested: FloatArray | None = None
    pick: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class AdversaryAnswer:
    """An adversary's answer to a question.

    Attributes:
        right: 1 if it chose the right option, or a share if its repeats differ.
        sure: its confidence in the right option.
        pick: index of the chosen option, -1 if its repeats differ.
        text: the text of a correct answer, else None.
    """

    right: float
    sure: float
    pick: int
    text: str | None


@dataclass
class Adversary:
    """A text-only model. Each version of a question is asked ``repeats`` times with rotated options.

    Attributes:
        settings: the endpoint.
        folder: folder of its answers, one file per shard.
        progress: show a progress bar on standard error.
        spent: cost of its answers, earlier runs included.
        unread: reason -> number of failed calls and of answers that name no option.
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
        """Asks the versions of questions that have no answer yet, shard by shard.

        Raises:
            InputError: if a limit or a failure of the endpoint stopped the calls.
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
            hint = f"raise the limit of adversary {role.name}, or restart its endpoint, then run the command again"
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
            1.0 / option_counts([question for question, _ in questions]),
            pick=np.array([one.pick for one in answers], dtype=np.int64),
        )

    def report(self) -> dict[str, object]:
        """Returns its cost and its unread answers."""
        return {"name": self.settings.name, "unread": dict(sorted(self.unread.items())), **asdict(self.spent)}


def all_agree(readers: Sequence[BlindAnswers]) -> list[BlindAnswers]:
    """Returns the reader "all adversaries are right"; its chance level is that of a guess if the adversaries agree.

    Models share preferences, so agreement is no evidence of knowledge: with the product of the single chance levels,
    two models that guess alike would pass for readers. Where they agree, they are right as often as one that guesses.
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
        questions: all questions, exchange groups included: fitted probes learn from all of them.
        judged: indices of the questions whose answers are returned.
        seed: seed of folds and forests.
    """
    if len(questions) < 2:
        return [], None
    features = read_features(questions) if len(questions) <= TRAIN_CAP else None
    results = run_battery(questions, seed, partitions=1, families=FAMILIES, features=features)
    results += joint_probes(questions, seed, 1) if features is not None else []
    at = np.array(judged, dtype=np.int64)
    chance = (1.0 / option_counts(questions))[at]
    scores = (credit, gold_probability, sequential_credit)
    answers = []
    for result in results:
        right, sure, tested = (score(result, questions)[at] for score in scores)
        answers.append(BlindAnswers(result.name, "probe", right, sure, chance, tested))
    return answers, features


@dataclass(frozen=True)
class LeakageResult:
    """The result of a round of readers.

    Attributes:
        flagged: row id -> (reader, dimension or ``all``) of each test that flags the question.
        tests: every test: reader, dimension, n, accuracy, interval, chance, p, corrected p, and the excess.
    """

    flagged: dict[str, list[tuple[str, str]]]
    tests: list[dict[str, Any]]


def find_leaks(questions: Sequence[Question], readers: Sequence[BlindAnswers], alpha: float) -> LeakageResult:
    """Finds the readers that are above chance, and the questions of their excess.

    Args:
        questions: n questions.
        readers: the answers of the readers to these questions.
        alpha: maximum probability that any question is flagged although no reader is above chance.
    """
    members: dict[str, list[int]] = {"all": list(range(len(questions)))}
    for row, question in enumerate(questions):
        members.setdefault(question.dimension or "none", []).append(row)
    clusters = _clusters(questions)
    tests: list[dict[str, Any]] = []
    tested_on: list[tuple[BlindAnswers, npt.NDArray[np.int64]]] = []
    for reader in readers:
        tested = reader.right if reader.tested is None else reader.tested
        for name, rows in members.items():
            at = np.array(rows, dtype=np.int64)
            found = asdict(accuracy_of(reader.right[at], reader.chance[at], clusters.take(at), tested[at]))
            tested_on.append((reader, at))
            about = {"reader": reader.name, "kind": reader.kind, "dimension": name}
            figures = {key: found[key] for key in ("n", "accuracy", "ci_low", "ci_high", "chance")}
            tests.append({**about, **figures, "p": found["p_value"]})
    flagged: dict[str, list[tuple[str, str]]] = defaultdict(list)
    corrected = holm([test["p"] for test in tests])
    surest = np.sum([reader.sure for reader in readers], axis=0) if readers else np.zeros(0)
    for test, (reader, at), p in zip(tests, tested_on, corrected, strict=True):
        excess = _excess(reader, at, surest, questions) if p <= alpha else []
        test |= {"p_holm": p, "above_chance": bool(p <= alpha), "excess": len(excess)}
        for row in excess:
            flagged[questions[row].id].append((reader.name, test["dimension"]))
    return LeakageResult(dict(sorted(flagged.items())), tests)


def _clusters(questions: Sequence[Question]) -> Clusters:
    """Returns one cluster per patient, or per path if there are too few patients to estimate their spread.

    A finding is right in several questions of its path, so one preference of a reader is right in all of them.
    """
    few = len({question.cluster for question in questions}) < FEW_PATIENTS
    names = [f"{one.slide}::{one.path_id or one.id}" if few else one.cluster for one in questions]
    ids, _ = cluster_codes(names)
    return Clusters(ids, np.zeros(len(ids), dtype=np.bool_))


def _excess(
    reader: BlindAnswers, at: npt.NDArray[np.int64], surest: FloatArray, questions: Sequence[Question]
) -> list[int]:
    """Returns the correct answers with the highest confidence, as many as exceed what guessing gives.

    With H correct answers and chances c_i, removing x questions of chance c leaves what guessing gives if
    H - x = sum(c_i) - c x, so x = (H - sum(c_i)) / (1 - c).
    """
    right = [row for row in at.tolist() if reader.right[row] > reader.chance[row] + 1e-9]
    chance = float(reader.chance[right].mean()) if right else 0.0
    over = float(reader.right[at].sum()) - float(reader.chance[at].sum())
    wanted = math.ceil(over / (1 - chance) - 1e-9)
    order = sorted(right, key=lambda row: (-reader.sure[row], -surest[row], questions[row].id))
    return order[: max(0, wanted)]
