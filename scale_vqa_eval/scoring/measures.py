"""The figures of a report: one row for each model and set of questions, each figure with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.scale_vqa_acc.parsing import Mode
from scale_vqa_eval.scoring.comparison import compare_answers
from scale_vqa_eval.scoring.results import NO_CLUSTERS
from scale_vqa_eval.scoring.runs import Place, QuestionSets, Run, System, run_doubts
from scale_vqa_eval.scoring.score import Answers, dimension_order, join, score_answers

TAKEN_AWAY: Final = ("no-low", "no-mid", "no-high", "shuffled")
"""Ablations whose accuracy is subtracted from that of the run with all images."""
NO_BLIND: Final = "no blind control"
_WHOLE: Final = "default"
_PLACES: Final = (_WHOLE, "screened", "exchange")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share or a difference of shares (0 to 1) with its 95% interval, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of a report: a model on a set of questions.

    Attributes:
        name: what the model is called.
        figures: measure, or ``measure/dimension``, -> its estimate. What was not run is not there.
        published: the figures are what others reported.
    """

    name: str
    figures: Mapping[str, Estimate]
    published: bool = False

    @property
    def control(self) -> str:
        """``blind control``, or that there is none."""
        return "blind control" if "blind" in self.figures else NO_BLIND

    @property
    def label(self) -> str:
        """The name with what has to stand beside it."""
        marks = ["published"] * self.published + [NO_BLIND] * ("blind" not in self.figures)
        return f"{self.name} ({', '.join(marks)})" if marks else self.name


@dataclass(frozen=True)
class Block:
    """The rows of one set of questions.

    Attributes:
        place: config and split.
        n: questions; 0 where there are published figures only.
        clusters: patients.
        chance: accuracy of an even guess; None where there are published figures only.
        dimensions: names in the paper's order.
        rows: runs in the order of the command line, then published figures.
        notes: what a reader has to know.
    """

    place: Place
    n: int
    clusters: int
    chance: float | None
    dimensions: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def size(self) -> str:
        """Questions and patients in words."""
        return f"{self.n} questions of {self.clusters} {'patient' if self.clusters == 1 else 'patients'}"


def report_blocks(
    runs: Sequence[Run], sets: QuestionSets, names: Mapping[System, str], mode: Mode = "reference"
) -> list[Block]:
    """Scores every run and joins them by set of questions and system.

    Raises:
        InputError: naming every question without a response and every response without a question.
    """
    answers: dict[tuple[Place, System], dict[str | None, Answers]] = {}
    notes: dict[Place, list[str]] = {}
    taken: dict[Place, dict[str, list[str]]] = {}
    problems: list[Problem] = []
    for run in runs:
        said = notes.setdefault(run.place, [])
        try:
            questions = sets[run.place]
            joined = join(run.predictions, questions, mode)
        except InputError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        answers.setdefault((run.place, run.system), {})[run.ablation] = joined
        said += run_doubts(run, questions)
        if run.taken_from:
            taken.setdefault(run.place, {}).setdefault(names[run.system], []).append(run.ablation or "with images")
    if problems:
        raise InputError(problems)
    for place, whose in taken.items():
        listed = "; ".join(f"{name}: {', '.join(which)}" for name, which in whose.items())
        notes[place].append(
            f"On {place.config} from the answers to all of {_WHOLE}, which has these questions: {listed}."
        )
    return [_block(place, sets[place], answers, names, notes[place]) for place in sorted(notes, key=_place_order)]


def with_published(blocks: Sequence[Block], published: Mapping[str, Any]) -> list[Block]:
    """Puts published accuracies beside the runs on ``default``; into a block of their own where there is none."""
    rows = tuple(
        Row(
            model,
            {"accuracy" if part == "all" else f"accuracy/{part}": Estimate(value) for part, value in row.items()},
            True,
        )
        for model, row in published["models"].items()
    )
    said = "; ".join(str(published[key]) for key in ("data", "source") if published.get(key)) or "no source is given"
    note = f"Published figures were not measured here, and come without intervals: {said}."
    beside = [block for block in blocks if block.place.config == _WHOLE]
    if not beside:
        names = {part for row in published["models"].values() for part in row} - {"all"}
        dimensions = tuple(sorted(names, key=dimension_order))
        return [Block(Place("published", ""), 0, 0, None, dimensions, rows, (note,)), *blocks]
    return [
        Block(one.place, one.n, one.clusters, one.chance, _union(one, rows), one.rows + rows, (*one.notes, note))
        if one in beside
        else one
        for one in blocks
    ]


def _block(
    place: Place,
    questions: Sequence[Any],
    answers: Mapping[tuple[Place, System], Mapping[str | None, Answers]],
    names: Mapping[System, str],
    notes: Sequence[str],
) -> Block:
    rows = [
        Row(name, measured(answers[place, system])) for system, name in names.items() if (place, system) in answers
    ]
    clustered = any(question.patient or question.slide for question in questions)
    dimensions = {question.dimension or "none" for question in questions}
    return Block(
        place=place,
        n=len(questions),
        clusters=len({question.cluster for question in questions}),
        chance=sum(1 / len(question.options) for question in questions) / len(questions),
        dimensions=() if dimensions == {"none"} else tuple(sorted(dimensions, key=dimension_order)),
        rows=tuple(rows),
        notes=tuple(dict.fromkeys([*notes, *([] if clustered else [NO_CLUSTERS])])),
    )


def measured(answers: Mapping[str | None, Answers]) -> dict[str, Estimate]:
    """Returns the figures of one system on one set of questions.

    Args:
        answers: ablation -> joined answers; None is the run with all images. What is missing gives no figure.

    Returns:
        ``accuracy``, ``blind``, ``gain`` (accuracy - blind, paired), the ablations of ``TAKEN_AWAY`` as what is lost
        without the view (accuracy - accuracy without, paired), each also by dimension; ``adjusted``, (accuracy -
        blind) / (1 - blind); ``unparsed``; ``circular``, the share right under every turn; ``group``.
    """
    full, blind = answers.get(None), answers.get("blind")
    found: dict[str, Estimate] = {}
    if full is not None:
        scores = score_answers(full, blind)
        found |= _scored("accuracy", scores) | {"unparsed": Estimate(scores["unparsed"]["rate"])}
        if scores["groups"] is not None:
            found["group"] = Estimate(scores["group_accuracy"], *scores["groups"]["interval"])
        if scores["leakage_adjusted_accuracy"] is not None:
            found["adjusted"] = Estimate(scores["leakage_adjusted_accuracy"])
        for ablation in TAKEN_AWAY:
            if ablation in answers:
                found |= _lost(ablation, full, answers[ablation])
    if blind is not None:
        found |= _scored("blind", score_answers(blind))
        if full is not None:
            found |= _lost("gain", full, blind)
    if "circular" in answers:
        turns = score_answers(answers["circular"])["circular"]
        found["circular"] = Estimate(turns["accuracy"], *turns["interval"])
    return found


def _scored(name: str, scores: Mapping[str, Any]) -> dict[str, Estimate]:
    parts = {f"{name}/{part}": figures for part, figures in scores["by_dimension"].items()}
    return {key: Estimate(one["accuracy"], *one["interval"]) for key, one in {name: scores, **parts}.items()}


def _lost(name: str, full: Answers, without: Answers) -> dict[str, Estimate]:
    compared = compare_answers(full, without)
    parts = {f"{name}/{part}": figures for part, figures in compared["by_dimension"].items()}
    return {key: Estimate(one["difference"], *one["interval"]) for key, one in {name: compared, **parts}.items()}


def _union(block: Block, rows: Sequence[Row]) -> tuple[str, ...]:
    """Returns the dimensions of a block and of published rows that report other ones."""
    more = {key.partition("/")[2] for row in rows for key in row.figures if "/" in key}
    return tuple(sorted(more | set(block.dimensions), key=dimension_order))


def _place_order(place: Place) -> tuple[int, Place]:
    return (_PLACES.index(place.config) if place.config in _PLACES else len(_PLACES)), place
