"""The screened control: questions are removed until no probe of the battery knows the answers of the rest.

Adversarial filtering (AFLite; Le Bras et al. 2020, arXiv:2002.04108) drops what a probe predicts and refits. Dropping
alone leaves the questions on which the probe is *wrong*: it ends below chance, and its reverse above. Here a question
stays with a probability that undoes what the text says of its answer (rejection sampling; compare the resampling of
Li and Vasconcelos 2019, arXiv:1904.07911): min_j p_j / p_gold, with p from a calibrated stack of all probes. What
stays is at chance for that stack in both directions; the probes are then refitted, with new folds, and so on.

Two kinds of probes read the questions that stay: those fitted to *all* questions (as a reader who has the whole file
would be), and those refitted to the ones that stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
from scipy.special import stdtr

from scale_vqa_eval.audit.battery import FAMILIES, MEMBERS, TRAIN_CAP, read_features, run_battery
from scale_vqa_eval.audit.clusters import IntArray, clusters_of, make_folds
from scale_vqa_eval.audit.fitted_probes import fit_listwise
from scale_vqa_eval.audit.probe import FloatArray, OptionLayout, ProbeAccuracy, ProbeScores, evaluate_probe
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.clustered import cluster_codes, clustered_standard_error, holm

TEMPERATURES: Final = tuple(np.linspace(0.0, 1.5, 16).tolist())
GUESS_SHARES: Final = (0.0, 0.01, 0.02, 0.04, 0.06, 0.09, 0.12, 0.16, 0.2, 0.3, 0.4)
"""Shares of an even guess that are mixed in: a confident reader is wrong more often than it thinks."""
FOLDS: Final = 5
RIDGE: Final = 1.0
"""Inverse of the ridge penalty on the weights of columns that are scaled to unit variance."""
MIN_VOTE: Final = 0.03
"""Votes below this are raised to it before the logarithm: a forest's zero proves nothing."""
ROWS_PER_DIMENSION: Final = 40
"""From this mean number of questions per dimension, each dimension has its own weight for the mean vote."""
LEVEL: Final = 0.05
ROUNDS: Final = 8
MIN_QUESTIONS: Final = 20
MIN_UNITS: Final = 5
"""With fewer questions, or fewer patients, nothing can be said of chance, and the pruning ends."""
_MIRRORED: Final = frozenset({"shortest", "anti-medoid", "least negated"})
FIRST: Final = 100
FRESH: Final = 900
"""Numbers of the folds of the first pruning round and of the audits: what is audited was not pruned by them."""


@dataclass(frozen=True)
class PruningRound:
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
class ScreenedRows:
    """What a pruning ended with.

    Attributes:
        rows: row numbers that stay, ascending.
        rounds: the rounds.
        at_chance: whether the last round, with folds of its own, was calm.
    """

    rows: IntArray
    rounds: tuple[PruningRound, ...]
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
        self.texts = read_features(questions, families) if len(questions) <= TRAIN_CAP else None
        self._whole: dict[int, list[ProbeScores]] = {}

    def whole(self, number: int, rows: IntArray, families: Sequence[str]) -> list[ProbeScores]:
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

    def refitted(self, number: int, rows: IntArray, families: Sequence[str]) -> list[ProbeScores]:
        """Returns what probes fitted to these rows alone (cross-fitted) say of them; the trained ones only."""
        questions = [self.questions[row] for row in rows]
        texts = None if self.texts is None else self.texts.take(rows)
        found = run_battery(questions, self._seed(number), 1, list(families), texts)
        self.tick("refit")
        return [replace(result, name=f"{result.name}, refitted") for result in found if result.trained]

    def _seed(self, number: int) -> int:
        return self.seed * 10_007 + number


def prune(
    readers: Readers, rows: IntArray, families: Sequence[str] | None = None, rounds: int = ROUNDS
) -> ScreenedRows:
    """Takes questions out until a round with new folds finds nothing.

    Args:
        readers: the battery on all questions of the file.
        rows: which of them are to be screened.
        families: families of probes to prune against; None takes all that the readers have.
        rounds: how many rounds at most.
    """
    history: list[PruningRound] = []
    for number in range(FIRST, FIRST + rounds):
        if too_few([readers.questions[row] for row in rows]):
            break
        found, kept = _round(readers, rows, families or readers.families, number)
        history.append(found)
        if found.calm and len(history) > 1:
            return ScreenedRows(rows, tuple(history), True)
        rows = kept
    return ScreenedRows(rows, tuple(history), False)


def keep_weights(readers: Readers, rows: IntArray) -> tuple[FloatArray, str]:
    """Returns a weight for each question, and what reader it undoes: the first round's keep probabilities, unsampled.

    Weighted by min_j p_j / p_gold, a question counts as much as it would on average over all subsets that the first
    round could keep: every option is as likely to be right, for that reader, in the weighted set as in those.
    """
    questions = [readers.questions[row] for row in rows]
    results = _stacked(readers.whole(FIRST, rows, readers.families))
    probe = stack_probes(questions, results, readers.seed + FIRST)
    names = ", ".join(sorted(result.name for result in results))
    return probe.acceptance(), f"calibrated stack, cross-fitted by patient, of the probes {names}"


def too_few(questions: Sequence[Question]) -> bool:
    """Tells whether there are too few questions or units to say anything of chance."""
    return len(questions) < MIN_QUESTIONS or len(np.unique(clusters_of(questions).ids)) < MIN_UNITS


def _round(readers: Readers, rows: IntArray, families: Sequence[str], number: int) -> tuple[PruningRound, IntArray]:
    questions = [readers.questions[row] for row in rows]
    results = readers.whole(number, rows, families)
    if len(rows) < len(readers.questions):
        results += readers.refitted(number, rows, families)
    reading = stack_probes(questions, _stacked(results), readers.seed + number)
    tested = both_ways(results, questions)
    calm = reading.p_value > LEVEL and min(holm([probe.p_value for probe in tested])) > LEVEL
    kept = rows if calm else rows[_drawn(reading, readers.seed, number)]
    best = max(tested, key=lambda probe: probe.accuracy)
    found = PruningRound(len(rows), reading.information, reading.p_value, best.name, best.accuracy, calm, len(kept))
    return found, kept


def fresh_audit(readers: Readers, rows: IntArray) -> list[ProbeAccuracy]:
    """Audits questions with folds that no pruning has used: probes fitted to all, and refitted ones, both ways."""
    questions = [readers.questions[row] for row in rows]
    families = readers.families
    results = readers.whole(FRESH, rows, families) + readers.refitted(FRESH, rows, families)
    return both_ways(results, questions)


def both_ways(results: Sequence[ProbeScores], questions: Sequence[Question]) -> list[ProbeAccuracy]:
    """Evaluates each probe and its reverse: a reader who knows that a probe is below chance picks what it does not."""
    reverse = [
        _reversed(result)
        for result in results
        if result.trained or result.family == "overlap"  # the other untrained ones have their mirror in the battery
    ]
    return [evaluate_probe(result, questions) for result in (*results, *reverse)]


def _stacked(results: Sequence[ProbeScores]) -> list[ProbeScores]:
    """The probes that the reader stacks: no sums of others, no mirrors, and letters by their fitted share."""
    return [
        result
        for result in results
        if result.family != "ensemble"
        and result.name not in _MIRRORED
        and (result.trained or result.family != "position")
    ]


def _drawn(reading: StackedProbe, seed: int, number: int) -> IntArray:
    chance = reading.acceptance()
    return np.flatnonzero(np.random.default_rng([seed, number]).random(len(chance)) < chance)


def _sum_of(members: Sequence[ProbeScores]) -> ProbeScores:
    """The ensemble of some members: the mean of their votes."""
    scores = np.mean([member.scores for member in members], axis=0)
    sequential = [member.sequential for member in members if member.sequential is not None]
    return ProbeScores(
        "ensemble",
        "ensemble",
        True,
        scores,
        sequential=np.mean(sequential, axis=0) if len(sequential) == len(members) else None,
        votes=True,
    )


def _taken(result: ProbeScores, rows: IntArray) -> ProbeScores:
    return _each_array(result, lambda values: values[rows])


def _reversed(result: ProbeScores) -> ProbeScores:
    turned = _each_array(result, lambda values: np.where(np.isfinite(values), -values, -np.inf))
    return replace(turned, name=f"{result.name}, reversed", votes=False)


def _each_array(result: ProbeScores, change: Callable[[FloatArray], FloatArray]) -> ProbeScores:
    """Applies a function to every per-question array of a probe's result."""
    arrays = {field.name: getattr(result, field.name) for field in fields(result)}
    changed: dict[str, Any] = {
        name: change(values) for name, values in arrays.items() if isinstance(values, np.ndarray)
    }
    return replace(result, **changed)


@dataclass(frozen=True)
class StackedProbe:
    """A calibrated text-only reader of n questions, made by stacking probes.

    Attributes:
        probability: (n, width) calibrated probability of each option; 0 where a question has no such option.
        gold: (n,) probability of the gold option.
        information: mean over questions of ln(probability of gold * number of options), in nats; 0 is no knowledge.
        p_value: one-sided clustered p-value of information > 0.
    """

    probability: FloatArray
    gold: FloatArray
    information: float
    p_value: float

    def acceptance(self) -> FloatArray:
        """Returns (n,): min_j p_j / p_gold, the probability of keeping each question.

        Among the questions kept, every option is then equally likely to be the right one whatever the text, for a
        reader whose probabilities p are right (rejection sampling).
        """
        least = np.where(self.probability > 0, self.probability, np.inf).min(axis=1)
        return np.asarray(least / self.gold, dtype=np.float64)


def stack_probes(questions: Sequence[Question], results: Sequence[ProbeScores], seed: int) -> StackedProbe:
    """Stacks probes into one calibrated reader, cross-fitted by unit.

    Args:
        questions: n questions.
        results: scores of the probes on these very questions; of probes that mirror each other one is enough.
        seed: of the folds.
    """
    layout = OptionLayout.of_questions(questions)
    gold = np.array([question.answer for question in questions], dtype=np.int64)
    units = clusters_of(questions).ids
    folds = make_folds(units, seed, 1, FOLDS)[0]
    columns = _columns(questions, results, layout)
    linear = np.zeros(len(layout.owner))
    for fold in range(int(folds.max()) + 1):
        other, own = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if len(other):
            weights = fit_listwise(columns[layout.rows_of(other)], layout.take(other), gold[other], RIDGE)
            linear[layout.rows_of(own)] = columns[layout.rows_of(own)] @ weights
    settings = [(heat, guess) for heat in TEMPERATURES for guess in GUESS_SHARES]
    softened = {heat: layout.softmax(heat * linear) for heat in TEMPERATURES}
    at = layout.starts + gold
    gains = np.array([np.log((1 - guess) * softened[heat][at] * layout.counts + guess) for heat, guess in settings])
    probability = np.empty_like(linear)
    for fold in range(int(folds.max()) + 1):
        heat, guess = settings[int(gains[:, folds != fold].sum(axis=1).argmax())]
        own = (folds == fold)[layout.owner]
        probability[own] = ((1 - guess) * softened[heat] + guess / layout.counts[layout.owner])[own]
    gain = np.log(probability[at] * layout.counts)
    padded = np.zeros((len(questions), int(layout.counts.max())))
    padded[np.arange(padded.shape[1]) < layout.counts[:, None]] = probability
    return StackedProbe(padded, probability[at], float(gain.mean()), _p_above_zero(gain, units))


def _columns(questions: Sequence[Question], results: Sequence[ProbeScores], layout: OptionLayout) -> FloatArray:
    """Returns (N, f) columns of unit variance, centred within each question: two shapes of each probe's scores.

    Trained probes give logarithm and value of their votes, untrained ones score and rank; where dimensions are large
    enough, the mean log vote has a weight of its own in each.
    """
    there = np.arange(int(layout.counts.max())) < layout.counts[:, None]
    shaped, votes = [], []
    for result in results:
        scores = np.asarray(result.scores[there], dtype=np.float64)
        if result.trained:
            shaped += [np.log(np.maximum(scores, MIN_VOTE)), scores]
            votes.append(shaped[-2])
        else:
            shaped += [scores, layout.ranks(scores[:, None])[:, 0]]
    names = sorted({question.dimension or "" for question in questions})
    if votes and len(names) > 1 and len(questions) >= ROWS_PER_DIMENSION * len(names):
        mean = np.mean(votes, axis=0)
        kind = np.array([names.index(question.dimension or "") for question in questions])[layout.owner]
        shaped += [np.where(kind == number, mean, 0.0) for number in range(len(names))]
    columns = layout.centred(np.column_stack(shaped).astype(np.float64))
    spread = columns.std(axis=0)
    return np.asarray(columns / np.where(spread > 1e-12, spread, 1.0), dtype=np.float64)


def _p_above_zero(gain: FloatArray, units: IntArray) -> float:
    codes, clusters = cluster_codes(units if len(np.unique(units)) > 1 else np.arange(len(units)))
    error = clustered_standard_error(gain, codes, clusters)
    if not error > 1e-12:
        return 1.0 if gain.mean() <= 1e-12 or math.isnan(error) else 0.0
    return float(stdtr(clusters - 1, -float(gain.mean()) / error))
