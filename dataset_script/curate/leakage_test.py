"""The test by which a question is rewritten: text-only readers are right more often than chance allows.

One reader who is right on one question proves nothing: a guess is right one time in four, and a model that repeats its
guess is no further evidence. If questions were rewritten on that ground alone, those that remain would be the ones on
which the reader is *wrong*, and its opposite would win. So the test is on many questions at once: over all of them and
in each dimension, is a reader right more often than 1/k of the time? Questions of one patient (of one path if patients
are few) are one cluster (``audit.probe.accuracy_of``), and Holm's correction covers all readers and dimensions. If a
reader is above chance, its *excess* is rewritten: of the questions that it answered correctly, the surest ones, until
the rest is what guessing gives.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.audit.clusters import Clusters
from scale_vqa_eval.audit.probe import accuracy_of
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import holm

FloatArray = npt.NDArray[np.float64]
FEW_PATIENTS: Final = 10


@dataclass(frozen=True)
class BlindAnswers:
    """The answers of one text-only reader to n questions.

    Attributes:
        name: name of the reader.
        kind: ``adversary``, ``adversaries`` (all of them at once) or ``probe``.
        right: (n,) 1 if it chose the right option, a share if options tie.
        sure: (n,) its confidence in the right option, 0 to 1.
        chance: (n,) accuracy of a guess.
        tested: (n,) what the test is made on, nan where a fitted reader has none; None for ``right``.
        pick: (n,) index of the chosen option, -1 for none; None if unknown.
    """

    name: str
    kind: str
    right: FloatArray
    sure: FloatArray
    chance: FloatArray
    tested: FloatArray | None = None
    pick: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class LeakageResult:
    """The result of a round of readers.

    Attributes:
        flagged: row id -> (reader, dimension or ``all``) of each test of whose excess it is a part.
        tests: every test: reader, dimension, n, accuracy, interval, chance, p, corrected p, and the excess.
    """

    flagged: dict[str, list[tuple[str, str]]]
    tests: list[dict[str, Any]]


def find_leaks(questions: Sequence[Question], readers: Sequence[BlindAnswers], alpha: float) -> LeakageResult:
    """Finds the readers that are above chance, and the questions of their excess.

    Args:
        questions: n questions.
        readers: the answers of the readers to these questions.
        alpha: maximum probability that any question is flagged although no reader knows anything.
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
    """Returns the clusters: the patient's questions; with few patients, whose spread is unknown, the path's.

    A finding is right in several questions of its path, so that one preference of a reader is right in all of them.
    """
    patients = {question.cluster for question in questions}
    names = [
        question.cluster if len(patients) >= FEW_PATIENTS else f"{question.slide}::{question.path_id or question.id}"
        for question in questions
    ]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    ids = np.array([numbers[name] for name in names], dtype=np.int64)
    return Clusters(ids, np.zeros(len(ids), dtype=np.bool_))


def _excess(
    reader: BlindAnswers, at: npt.NDArray[np.int64], surest: FloatArray, questions: Sequence[Question]
) -> list[int]:
    """Returns the surest of the questions that a reader answered correctly, as many as are above what guessing gives.

    Of questions with H right and the chances c_i, x of chance c are to go so that the rest is what guessing gives:
    H - x = sum(c_i) - c x, x = (H - sum(c_i)) / (1 - c).
    """
    right = [row for row in at.tolist() if reader.right[row] > reader.chance[row] + 1e-9]
    chance = float(reader.chance[right].mean()) if right else 0.0
    over = float(reader.right[at].sum()) - float(reader.chance[at].sum())
    wanted = math.ceil(over / (1 - chance) - 1e-9)
    order = sorted(right, key=lambda row: (-reader.sure[row], -surest[row], questions[row].id))
    return order[: max(0, wanted)]
