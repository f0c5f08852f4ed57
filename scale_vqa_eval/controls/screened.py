"""The screened control: questions are taken out until no probe of the battery knows the answers of the rest.

Adversarial filtering (AFLite; Le Bras et al. 2020, arXiv:2002.04108) drops what a probe predicts and refits. Dropping
alone leaves the questions on which the probe is *wrong*: it ends below chance, and its reverse above. Here a question
stays with a probability that undoes what the text says of its answer (rejection sampling; compare the resampling of
Li and Vasconcelos 2019, arXiv:1904.07911): min_j p_j / p_gold, with p from a calibrated reader that stacks all probes.
What stays is at chance for that reader in both directions; the probes are then refitted, with new folds, and so on.

Two kinds of probes read the questions that stay: those fitted to *all* questions (as a reader who has the whole file
would be), and those refitted to the ones that stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np

from scale_vqa_eval.audit.battery import FAMILIES, MEMBERS, TRAIN_CAP, prepare, run_battery
from scale_vqa_eval.audit.layout import FloatArray, IntArray
from scale_vqa_eval.audit.probe import ProbeAccuracy, ProbeResult, evaluate_probe
from scale_vqa_eval.audit.units import units_of
from scale_vqa_eval.controls.blind_reader import Reading, read_blind
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import holm

LEVEL: Final = 0.05
ROUNDS: Final = 8
FEWEST: Final = 20
MIN_UNITS: Final = 5
"""With fewer questions, or fewer patients, nothing can be said of chance, and the pruning ends."""
_MIRRORED: Final = frozenset({"shortest", "anti-medoid", "least negated"})
FIRST: Final = 100
FRESH: Final = 900
"""Numbers of the folds of the first pruning round and of the audits: what is audited was not pruned by them."""


@dataclass(frozen=True)
class Round:
    """One round of pruning.

    Attributes:
        n: questions at its start.
        information: what the stacked reader knew of their answers, in nats a question.
        p_value: of that.
        strongest: the probe with the highest accuracy.
        accuracy: of that probe.
        calm: whether neither the reader nor any probe was off chance; then nothing is taken out.
        kept: questions at its end.
    """

    n: int
    information: float
    p_value: float
    strongest: str
    accuracy: float
    calm: bool
    kept: int


@dataclass(frozen=True)
class Screened:
    """What a pruning ended with.

    Attributes:
        rows: row numbers that stay, ascending.
        rounds: the rounds.
        at_chance: whether the last round, with folds of its own, was calm.
    """

    rows: IntArray
    rounds: tuple[Round, ...]
    at_chance: bool


class Readers:
    """The battery, or some families of it, fitted to all questions of a file and refitted to some of them."""

    def __init__(
        self,
        questions: Sequence[Question],
        seed: int,
        tick: Callable[[str], object] = lambda what: None,
        families: Sequence[str] = FAMILIES,
    ) -> None:
        self.questions, self.seed, self.tick, self.families = questions, seed, tick, tuple(families)
        self.texts = prepare(questions, families) if len(questions) <= TRAIN_CAP else None
        self._whole: dict[int, list[ProbeResult]] = {}

    def whole(self, number: int, rows: IntArray, families: Sequence[str]) -> list[ProbeResult]:
        """Returns what probes fitted to all questions (cross-fitted; partitions by ``number``) say of some rows."""
        if number not in self._whole:
            partitions = 3 if number in (FIRST, FRESH) else 1
            self._whole[number] = run_battery(
                self.questions, self._seed(number), partitions, self.families, self.texts
            )
            self.tick("all")
        wanted = [
            result for result in self._whole[number] if result.family in families and result.family != "ensemble"
        ]
        members = [result for result in wanted if result.family in MEMBERS]
        if "ensemble" in families and members:
            wanted.append(_sum_of(members))
        return [_taken(result, rows) for result in wanted]

    def refitted(self, number: int, rows: IntArray, families: Sequence[str]) -> list[ProbeResult]:
        """Returns what probes fitted to these rows alone (cross-fitted) say of them; the trained ones only."""
        questions = [self.questions[row] for row in rows]
        texts = None if self.texts is None else self.texts.take(rows)
        found = run_battery(questions, self._seed(number), 1, list(families), texts)
        self.tick("refit")
        return [replace(result, name=f"{result.name}, refitted") for result in found if result.trained]

    def _seed(self, number: int) -> int:
        return self.seed * 10_007 + number


def prune(readers: Readers, rows: IntArray, families: Sequence[str] | None = None, rounds: int = ROUNDS) -> Screened:
    """Takes questions out until a round with new folds finds nothing.

    Args:
        readers: the battery on all questions of the file.
        rows: which of them are to be screened.
        families: families of probes to prune against; None takes all that the readers have.
        rounds: how many rounds at most.
    """
    history: list[Round] = []
    for number in range(FIRST, FIRST + rounds):
        if too_few([readers.questions[row] for row in rows]):
            break
        found, kept = _round(readers, rows, families or readers.families, number)
        history.append(found)
        if found.calm and len(history) > 1:
            return Screened(rows, tuple(history), True)
        rows = kept
    return Screened(rows, tuple(history), False)


def too_few(questions: Sequence[Question]) -> bool:
    """Tells whether there are too few questions or units to say anything of chance."""
    return len(questions) < FEWEST or len(np.unique(units_of(questions).ids)) < MIN_UNITS


def _round(readers: Readers, rows: IntArray, families: Sequence[str], number: int) -> tuple[Round, IntArray]:
    questions = [readers.questions[row] for row in rows]
    results = readers.whole(number, rows, families)
    if len(rows) < len(readers.questions):
        results += readers.refitted(number, rows, families)
    reading = read_blind(questions, _stacked(results), readers.seed + number)
    tested = both_ways(results, questions)
    calm = reading.p_value > LEVEL and min(holm([probe.p_value for probe in tested])) > LEVEL
    kept = rows if calm else rows[_drawn(reading, readers.seed, number)]
    best = max(tested, key=lambda probe: probe.accuracy)
    found = Round(len(rows), reading.information, reading.p_value, best.name, best.accuracy, calm, len(kept))
    return found, kept


def fresh_audit(readers: Readers, rows: IntArray) -> list[ProbeAccuracy]:
    """Audits questions with folds that no pruning has used: probes fitted to all, and refitted ones, both ways."""
    questions = [readers.questions[row] for row in rows]
    families = readers.families
    results = readers.whole(FRESH, rows, families) + readers.refitted(FRESH, rows, families)
    return both_ways(results, questions)


def both_ways(results: Sequence[ProbeResult], questions: Sequence[Question]) -> list[ProbeAccuracy]:
    """Evaluates each probe and its reverse: a reader who knows that a probe is below chance picks what it does not."""
    reverse = [
        _reversed(result)
        for result in results
        if result.trained or result.family == "overlap"  # the other untrained ones have their mirror in the battery
    ]
    return [evaluate_probe(result, questions) for result in (*results, *reverse)]


def _stacked(results: Sequence[ProbeResult]) -> list[ProbeResult]:
    """The probes that the reader stacks: no sums of others, no mirrors, and letters by their fitted share."""
    return [
        result
        for result in results
        if result.family != "ensemble"
        and result.name not in _MIRRORED
        and (result.trained or result.family != "position")
    ]


def _drawn(reading: Reading, seed: int, number: int) -> IntArray:
    chance = reading.acceptance()
    return np.flatnonzero(np.random.default_rng([seed, number]).random(len(chance)) < chance)


def _sum_of(members: Sequence[ProbeResult]) -> ProbeResult:
    """The ensemble of some members: the mean of their votes."""
    scores = np.mean([member.scores for member in members], axis=0)
    sequential = [member.sequential for member in members if member.sequential is not None]
    return ProbeResult(
        "ensemble",
        "ensemble",
        True,
        scores,
        probability=np.where(np.isfinite(scores), scores, 0.0),
        sequential=np.mean(sequential, axis=0) if len(sequential) == len(members) else None,
    )


def _taken(result: ProbeResult, rows: IntArray) -> ProbeResult:
    return _each_array(result, lambda values: values[rows])


def _reversed(result: ProbeResult) -> ProbeResult:
    turned = _each_array(result, lambda values: np.where(np.isfinite(values), -values, -np.inf))
    return replace(turned, name=f"{result.name}, reversed", probability=None)


def _each_array(result: ProbeResult, change: Callable[[FloatArray], FloatArray]) -> ProbeResult:
    """Applies a function to every per-question array of a probe's result."""
    arrays = {field.name: getattr(result, field.name) for field in fields(result)}
    changed: dict[str, Any] = {
        name: change(values) for name, values in arrays.items() if isinstance(values, np.ndarray)
    }
    return replace(result, **changed)
