"""The figures of a report: one row for each model and set of questions, each figure with its interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.parsing import Mode
from scale_vqa_eval.scoring.results import NO_CLUSTERS
from scale_vqa_eval.scoring.runs import DEFAULT, QuestionSets, QuestionSlice, ReportRun, System
from scale_vqa_eval.scoring.score import (
    Answers,
    compare_answers,
    consistency_warnings,
    dimension_order,
    join,
    score_answers,
)

REMOVED: Final = ("no-low", "no-mid", "no-high", "shuffled")
"""Ablations whose accuracy is subtracted from that of the run with all images."""
NO_BLIND: Final = "no blind control"
_CONFIG_ORDER: Final = (DEFAULT, "screened", "block_exchange", "exchange")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share or a difference of shares (0 to 1) with its 95% interval, or None without one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ReportRow:
    """One line of a report: a model on a set of questions.

    Attributes:
        name: name of the model.
        figures: measure, or ``measure/dimension``, -> its estimate; a measure that was not run is absent.
        published: whether the figures were reported by others.
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
        """The name with its marks."""
        marks = ["published"] * self.published + [NO_BLIND] * ("blind" not in self.figures)
        return f"{self.name} ({', '.join(marks)})" if marks else self.name


@dataclass(frozen=True)
class ReportSection:
    """The rows of one set of questions.

    Attributes:
        slice: config and split.
        n: number of questions; 0 for a section of published figures alone.
        clusters: number of patients.
        chance: accuracy of an even guess; None for a section of published figures alone.
        dimensions: names in the paper's order.
        rows: runs in the order of the command line, then published figures.
        notes: remarks for the reader.
    """

    slice: QuestionSlice
    n: int
    clusters: int
    chance: float | None
    dimensions: tuple[str, ...]
    rows: tuple[ReportRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> str:
        """Questions and patients in words."""
        return f"{self.n} questions of {self.clusters} {'patient' if self.clusters == 1 else 'patients'}"

    def warnings(self) -> Iterator[str]:
        """Yields the notes, every model without a blind control and every ablation without its run."""
        for note in self.notes:
            yield f"{self.slice.title}: {note}"
        for row in self.rows:
            if not row.published and "blind" not in row.figures:
                yield f"{self.slice.title}: {row.name}: {NO_BLIND}"
            if not row.published and "accuracy" not in row.figures:
                yield f"{self.slice.title}: {row.name}: no run with all images; its ablations are shown alone"


def report_sections(
    runs: Sequence[ReportRun], sets: QuestionSets, names: Mapping[System, str], mode: Mode = "reference"
) -> list[ReportSection]:
    """Scores every run and joins them by set of questions and system.

    Raises:
        InputError: naming every question without a response and every response without a question.
    """
    answers: dict[QuestionSlice, dict[System, dict[str | None, Answers]]] = {}
    notes: dict[QuestionSlice, list[str]] = {}
    taken: dict[QuestionSlice, dict[str, list[str]]] = {}
    problems: list[Problem] = []
    for run in runs:
        remarks = notes.setdefault(run.slice, [])
        try:
            questions = sets[run.slice]
            joined = join(run.predictions, questions, mode)
        except InputError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        answers.setdefault(run.slice, {}).setdefault(run.system, {})[run.ablation] = joined
        remarks += run.notes
        if run.taken_from:
            taken.setdefault(run.slice, {}).setdefault(names[run.system], []).append(run.ablation or "with images")
        else:
            remarks += [f"{line}." for line in consistency_warnings(run.predictions, questions)]
    if problems:
        raise InputError(problems)
    for slice_, models in taken.items():
        listed = "; ".join(f"{name}: {', '.join(which)}" for name, which in models.items())
        notes[slice_].append(
            f"On {slice_.config} from the answers to all of {DEFAULT}, which has these questions: {listed}."
        )
    return [
        _section(
            slice_,
            sets[slice_],
            [ReportRow(name, measured(answers[slice_][one])) for one, name in names.items() if one in answers[slice_]],
            notes[slice_],
        )
        for slice_ in sorted(notes, key=_slice_order)
    ]


def with_published(sections: Sequence[ReportSection], published: Mapping[str, Any]) -> list[ReportSection]:
    """Adds published accuracies to the sections on ``default``, or as a section of their own if there is none."""
    rows = tuple(
        ReportRow(
            model,
            {"accuracy" if part == "all" else f"accuracy/{part}": Estimate(value) for part, value in row.items()},
            True,
        )
        for model, row in published["models"].items()
    )
    source = "; ".join(str(published[key]) for key in ("data", "source") if published.get(key)) or "no source is given"
    note = f"Published figures were not measured here, and come without intervals: {source}."
    reported = {part for row in published["models"].values() for part in row} - {"all"}
    if not any(section.slice.config == DEFAULT for section in sections):
        dimensions = tuple(sorted(reported, key=dimension_order))
        return [ReportSection(QuestionSlice("published", ""), 0, 0, None, dimensions, rows, (note,)), *sections]
    return [
        replace(
            section,
            dimensions=tuple(sorted(reported | set(section.dimensions), key=dimension_order)),
            rows=section.rows + rows,
            notes=(*section.notes, note),
        )
        if section.slice.config == DEFAULT
        else section
        for section in sections
    ]


def measured(answers: Mapping[str | None, Answers]) -> dict[str, Estimate]:
    """Returns the figures of one system on one set of questions.

    Args:
        answers: ablation -> joined answers; None is the run with all images. A missing run gives no figure.

    Returns:
        ``accuracy``, ``blind``, ``gain`` (accuracy - blind, paired), the ablations of ``REMOVED`` as the loss without
        the view (accuracy - accuracy without, paired), each also by dimension; ``adjusted``, (accuracy - blind) /
        (1 - blind); ``unparsed``; ``circular``, the share right under every rotation; ``group``.
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
        for ablation in REMOVED:
            if ablation in answers:
                found |= _lost(ablation, full, answers[ablation])
    if blind is not None:
        found |= _scored("blind", score_answers(blind))
        if full is not None:
            found |= _lost("gain", full, blind)
    if "circular" in answers:
        rotations = score_answers(answers["circular"])["circular"]
        found["circular"] = Estimate(rotations["accuracy"], *rotations["interval"])
    return found


def _section(
    slice_: QuestionSlice, questions: Sequence[Question], rows: Sequence[ReportRow], notes: Sequence[str]
) -> ReportSection:
    clustered = any(question.patient or question.slide for question in questions)
    dimensions = {question.dimension or "none" for question in questions}
    return ReportSection(
        slice=slice_,
        n=len(questions),
        clusters=len({question.cluster for question in questions}),
        chance=sum(1 / len(question.options) for question in questions) / len(questions),
        dimensions=() if dimensions == {"none"} else tuple(sorted(dimensions, key=dimension_order)),
        rows=tuple(rows),
        notes=tuple(dict.fromkeys([*notes, *([] if clustered else [NO_CLUSTERS])])),
    )


def _scored(name: str, scores: Mapping[str, Any]) -> dict[str, Estimate]:
    parts = {f"{name}/{part}": figures for part, figures in scores["by_dimension"].items()}
    return {key: Estimate(one["accuracy"], *one["interval"]) for key, one in {name: scores, **parts}.items()}


def _lost(name: str, full: Answers, without: Answers) -> dict[str, Estimate]:
    compared = compare_answers(full, without)
    parts = {f"{name}/{part}": figures for part, figures in compared["by_dimension"].items()}
    return {key: Estimate(one["difference"], *one["interval"]) for key, one in {name: compared, **parts}.items()}


def _slice_order(slice_: QuestionSlice) -> tuple[int, QuestionSlice]:
    known = _CONFIG_ORDER.index(slice_.config) if slice_.config in _CONFIG_ORDER else len(_CONFIG_ORDER)
    return known, slice_
