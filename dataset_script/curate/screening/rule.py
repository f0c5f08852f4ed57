"""When a question is made again: "right more often than chance allows", as a test and not as an impression.

One reader who is right on one question says nothing: an empty guess is right one time in four, and a model that
repeats its guess is no further evidence. Made again on that ground alone, the questions that stay would be those on
which the reader is *wrong*, and its opposite would win. So the test is on many questions at once: over all of them and
in each dimension, is a reader right more often than 1/k of the time, questions of one patient (of one path, where
patients are few) going together (``audit.probe.p_above_chance``; Holm over all readers and dimensions)? Where it is,
the *excess* is made again: of the questions that it got right, the surest ones, until what is left is what guessing
gives.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
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
class Reading:
    """What one reader without images made of n questions.

    Attributes:
        name: name of the reader.
        kind: ``adversary``, ``adversaries`` (all of them at once) or ``probe``.
        right: (n,) 1 where it picked the right option, a share where options tie.
        sure: (n,) how sure it was of the right option, 0 to 1.
        chance: (n,) what a guess gives.
        tested: (n,) what the test is made on, nan where a fitted reader has none; None for ``right``.
        pick: (n,) index of the option picked, -1 for none; None where it is not known.
    """

    name: str
    kind: str
    right: FloatArray
    sure: FloatArray
    chance: FloatArray
    tested: FloatArray | None = None
    pick: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Judgement:
    """What a round of readers says.

    Attributes:
        made_again: row id -> names of the readers for which it is part of the excess, with the dimension or ``all``.
        tests: every test: reader, dimension, n, accuracy, interval, chance, p, corrected p, and the excess.
    """

    made_again: dict[str, list[tuple[str, str]]]
    tests: list[dict[str, Any]] = field(default_factory=list)


def judge(questions: Sequence[Question], readings: Sequence[Reading], alpha: float) -> Judgement:
    """Finds the readers that are above chance, and the questions that their excess is made of.

    Args:
        questions: n questions.
        readings: what the readers made of these very questions.
        alpha: chance that any question is made again though no reader knows anything, at most.
    """
    rows: dict[str, list[int]] = {"all": list(range(len(questions)))}
    for row, question in enumerate(questions):
        rows.setdefault(question.dimension or "none", []).append(row)
    units = _units(questions)
    tests: list[dict[str, Any]] = []
    places: list[tuple[Reading, npt.NDArray[np.int64]]] = []
    for reading in readings:
        tested = reading.right if reading.tested is None else reading.tested
        for name, members in rows.items():
            at = np.array(members, dtype=np.int64)
            found = accuracy_of(reading.right[at], reading.chance[at], units.take(at), tested[at])
            places.append((reading, at))
            tests.append(
                {
                    "reader": reading.name,
                    "kind": reading.kind,
                    "dimension": name,
                    "n": found.n,
                    "accuracy": found.accuracy,
                    "ci_low": found.ci_low,
                    "ci_high": found.ci_high,
                    "chance": found.chance,
                    "p": found.p_value,
                }
            )
    again: dict[str, list[tuple[str, str]]] = defaultdict(list)
    corrected = holm([test["p"] for test in tests])
    surest = np.sum([reading.sure for reading in readings], axis=0) if readings else np.zeros(0)
    for test, (reading, at), p in zip(tests, places, corrected, strict=True):
        excess = _excess(reading, at, surest, questions) if p <= alpha else []
        test |= {"p_holm": p, "above_chance": bool(p <= alpha), "excess": len(excess)}
        for row in excess:
            again[questions[row].id].append((reading.name, test["dimension"]))
    return Judgement(dict(sorted(again.items())), tests)


def _units(questions: Sequence[Question]) -> Clusters:
    """Returns what goes together: the patient's questions; with few patients, whose spread is not known, the path's.

    A finding is right in several questions of its path, so that one taste of a reader is right in all of them.
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
    reading: Reading, at: npt.NDArray[np.int64], surest: FloatArray, questions: Sequence[Question]
) -> list[int]:
    """Returns the surest of the questions that a reader got right, as many as lie above what guessing gives.

    Of questions with H right and the chances c_i, x of chance c are to go so that what is left is what guessing gives:
    H - x = sum(c_i) - c x, x = (H - sum(c_i)) / (1 - c).
    """
    right = [row for row in at.tolist() if reading.right[row] > reading.chance[row] + 1e-9]
    chance = float(reading.chance[right].mean()) if right else 0.0
    over = float(reading.right[at].sum()) - float(reading.chance[at].sum())
    wanted = math.ceil(over / (1 - chance) - 1e-9)
    order = sorted(right, key=lambda row: (-reading.sure[row], -surest[row], questions[row].id))
    return order[: max(0, wanted)]
