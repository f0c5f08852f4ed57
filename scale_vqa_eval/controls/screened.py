"""The screened control: removes questions until no probe of the battery predicts the answers of the rest.

Adversarial filtering (AFLite; Le Bras et al. 2020, arXiv:2002.04108) drops the questions that a probe predicts, and
refits. This leaves the questions on which the probe is *wrong*, so that its reverse is above chance. Here a question
is kept with probability min_j p_j / p_gold, with p from a calibrated stack of all probes. This rejection sampling
(compare the resampling of Li and Vasconcelos 2019, arXiv:1904.07911) leaves the stack at chance in both directions.
Then the probes are refitted with new folds, and so on.

The remaining questions are tested with probes fitted to *all* questions (as a reader of the whole file would be), and
with probes refitted to the remaining ones.
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
"""Weights of a uniform guess in the mixture with the stack, because confident predictions are often wrong."""
FOLDS: Final = 5
RIDGE: Final = 1.0
"""Inverse of the ridge penalty on the weights of columns with unit variance."""
MIN_VOTE: Final = 0.03
"""Lower limit of votes before the logarithm, because a forest's vote of zero is no certainty."""
ROWS_PER_DIMENSION: Final = 40
"""Mean number of questions per dimension from which each dimension has its own weight for the mean vote."""
LEVEL: Final = 0.05
ROUNDS: Final = 8
MIN_QUESTIONS: Final = 20
MIN_UNITS: Final = 5
"""With fewer questions or patients, a test against chance is not possible, and the pruning ends."""
_MIRRORED: Final = frozenset({"shortest", "anti-medoid", "least negated"})
FIRST: Final = 100
FRESH: Final = 900
"""Fold numbers of the first pruning round and of the audits, which use other folds than the pruning."""


@dataclass(frozen=True)
class PruningRound:
    """One round of pruning.

    Attributes:
        n: number of questions at its start.
        information: information of the stacked probe about their answers, in nats per question.
        p_value: p-value of the information.
        strongest: name of the probe with the highest accuracy.
        accuracy: accuracy of that probe.
        calm: whether neither the stack nor any probe was off chance; then no question is removed.
        kept: number of questions at its end.
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
    """Result of a pruning.

    Attributes:
        rows: remaining row numbers, ascending.
        rounds: the rounds.
        at_chance: whether the last round, with its own folds, was calm.
    """

    rows: IntArray
    rounds: tuple[PruningRound, ...]
    at_chance: bool


class Readers:
    """The battery, or some of its families, fitted to all questions of a file or refitted to some."""

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
        """Returns the scores on some rows of probes that are cross-fitted to all questions; folds by ``number``."""
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
        """Returns the scores of trained probes that are cross-fitted only to these rows."""
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
    """Removes questions until a round with new folds is calm.

    Args:
        readers: the battery on all questions of the file.
        rows: rows to screen.
        families: families of probes to prune against; by default all of the readers.
        rounds: maximum number of rounds.
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
    """Returns the keep probabilities of the first round as weights, and a description of their stacked probe.

    The weights min_j p_j / p_gold give each question its average share in the subsets that the first round can keep.
    In the weighted set, the stacked probe is at chance as in these subsets.
    """
    questions = [readers.questions[row] for row in rows]
    results = _stacked(readers.whole(FIRST, rows, readers.families))
    probe = stack_probes(questions, results, readers.seed + FIRST)
    names = ", ".join(sorted(result.name for result in results))
    return probe.acceptance(), f"calibrated stack, cross-fitted by patient, of the probes {names}"


def too_few(questions: Sequence[Question]) -> bool:
    """Whether there are too few questions or units for a test against chance."""
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
    """Audits rows with folds that no pruning used, with probes fitted to all questions and refitted ones."""
    questions = [readers.questions[row] for row in rows]
    families = readers.families
    results = readers.whole(FRESH, rows, families) + readers.refitted(FRESH, rows, families)
    return both_ways(results, questions)


def both_ways(results: Sequence[ProbeScores], questions: Sequence[Question]) -> list[ProbeAccuracy]:
    """Evaluates each probe and its reverse, because a probe below chance also reveals the answers."""
    reverse = [
        _reversed(result)
        for result in results
        if result.trained or result.family == "overlap"  # the battery has the reverse of the other untrained ones
    ]
    return [evaluate_probe(result, questions) for result in (*results, *reverse)]


def _stacked(results: Sequence[ProbeScores]) -> list[ProbeScores]:
    """Returns the probes to stack: no ensembles, no reverses, and of the letter probes the fitted one."""
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
    """Returns the ensemble of some members, with the mean of their votes."""
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
    """Applies a function to all per-question arrays of a probe's result."""
    arrays = {field.name: getattr(result, field.name) for field in fields(result)}
    changed: dict[str, Any] = {
        name: change(values) for name, values in arrays.items() if isinstance(values, np.ndarray)
    }
    return replace(result, **changed)


@dataclass(frozen=True)
class StackedProbe:
    """Calibrated stack of probes on n questions.

    Attributes:
        probability: (n, width) calibrated probability of each option; 0 for options that a question does not have.
        gold: (n,) probability of the gold option.
        information: mean over questions of ln(probability of gold * number of options), in nats; 0 for guessing.
        p_value: one-sided clustered p-value of information > 0.
    """

    probability: FloatArray
    gold: FloatArray
    information: float
    p_value: float

    def acceptance(self) -> FloatArray:
        """Returns (n,): the probability min_j p_j / p_gold of keeping each question.

        If the probabilities p are right, all options of the kept questions are equally likely to be right, whatever
        the text (rejection sampling).
        """
        least = np.where(self.probability > 0, self.probability, np.inf).min(axis=1)
        return np.asarray(least / self.gold, dtype=np.float64)


def stack_probes(questions: Sequence[Question], results: Sequence[ProbeScores], seed: int) -> StackedProbe:
    """Stacks probes into one calibrated probe, cross-fitted by unit.

    Args:
        questions: n questions.
        results: scores of the probes on these questions; reversed probes are not needed.
        seed: seed of the folds.
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
    """Returns (N, f) features of unit variance, centred within each question, from the probes' scores.

    Trained probes give log votes and votes, untrained ones scores and ranks; large dimensions also get their own
    column of mean log votes.
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


def held_out_figures(
    readers: Readers, rows: IntArray, done: Callable[[], object] = lambda: None
) -> dict[str, dict[str, Any]]:
    """Prunes without each family in turn, then tests that family on the remaining questions with new folds.

    Returns:
        Family -> number of questions kept, the family's strongest probe on them, whether its interval is above chance,
        and the probes off chance after Holm's correction over the probes of all families.
    """
    found: dict[str, dict[str, Any]] = {}
    tested: list[tuple[str, ProbeAccuracy]] = []
    for family in readers.families:
        pruned = prune(readers, rows, [other for other in readers.families if other != family])
        found[family] = {"kept": len(pruned.rows), "at_chance": pruned.at_chance, "off_chance": []}
        if pruned.at_chance:
            own = [probe for probe in fresh_audit(readers, pruned.rows) if probe.family == family]
            best = max(own, key=lambda probe: probe.accuracy)
            interval = {key: getattr(best, key) for key in ("accuracy", "ci_low", "ci_high")}
            found[family]["strongest"] = {"name": best.name, **interval}
            found[family]["above_chance"] = best.ci_low > best.chance
            tested += [(family, probe) for probe in own]
        done()
    for (family, probe), p in zip(tested, holm([probe.p_value for _, probe in tested]), strict=True):
        if p <= 0.05:
            found[family]["off_chance"].append(probe.name)
    return found
