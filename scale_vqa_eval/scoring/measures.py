"""Computes the figures of a report, with intervals, for each model and set of questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.predict import WITHOUT_IMAGES
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.parsing import Mode
from scale_vqa_eval.scoring.blind_control import audit_hash, choose_control, flip_rate, text_only_ceiling, truncation
from scale_vqa_eval.scoring.predictions import Answers, join
from scale_vqa_eval.scoring.results import NO_CLUSTERS
from scale_vqa_eval.scoring.runs import QuestionSets, QuestionSlice, ReportRun, System
from scale_vqa_eval.scoring.score import (
    DEFAULT_CONFIG,
    compare_answers,
    consistency_warnings,
    dimension_order,
    questions_digest,
    score_answers,
)
from scale_vqa_eval.text import percent

REMOVED: Final = ("no-low", "no-mid", "no-high", "shuffled")
"""Ablations whose accuracy is subtracted from that of the run with all images."""
NO_BLIND: Final = "no blind control"
_CONFIG_ORDER: Final = (DEFAULT_CONFIG, "screened", "block_exchange", "exchange")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share (0 to 1) or a difference of shares, with its 95% interval if known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ReportRow:
    """A row of a report: a model on a set of questions.

    Attributes:
        name: name of the model.
        figures: measure or ``measure/dimension`` -> estimate; measures that were not run are absent.
        published: whether the figures are published ones.
    """

    name: str
    figures: Mapping[str, Estimate]
    published: bool = False

    @property
    def has_blind(self) -> bool:
        """Whether there are figures of a run without images."""
        return any(name in self.figures for name in WITHOUT_IMAGES)

    @property
    def control(self) -> str:
        """``blind control`` or ``no blind control``."""
        return "blind control" if self.has_blind else NO_BLIND

    @property
    def label(self) -> str:
        """The name, with notes in brackets."""
        marks = ["published"] * self.published + [NO_BLIND] * (not self.has_blind)
        return f"{self.name} ({', '.join(marks)})" if marks else self.name


@dataclass(frozen=True)
class ReportSection:
    """The rows of one set of questions.

    Attributes:
        slice: config and split.
        n: number of questions; 0 for a section with published figures only.
        clusters: number of patients.
        chance: accuracy of random guessing, or None if unknown.
        dimensions: names in the paper's order.
        rows: runs in the order of the command line, then published figures.
        notes: notes for the reader.
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
        """Number of questions and patients as text."""
        return f"{self.n} questions of {self.clusters} {'patient' if self.clusters == 1 else 'patients'}"

    def warnings(self) -> Iterator[str]:
        """Yields the notes, every model without a blind control and every ablation without its run."""
        for note in self.notes:
            yield f"{self.slice.title}: {note}"
        for row in self.rows:
            if not row.published and not row.has_blind:
                yield f"{self.slice.title}: {row.name}: {NO_BLIND}"
            if not row.published and "accuracy" not in row.figures:
                yield f"{self.slice.title}: {row.name}: no run with all images; its ablations are shown alone"


Joined = Mapping[str | None, tuple[ReportRun, Answers]]
"""Ablation (None for the run with all images) -> run and answers."""


def report_sections(
    runs: Sequence[ReportRun],
    sets: QuestionSets,
    names: Mapping[System, str],
    mode: Mode = "reference",
    audits: Sequence[Path] = (),
) -> list[ReportSection]:
    """Scores every run, and groups the figures by set of questions and system.

    Raises:
        InputError: lists every question without a response, response without a question, and audit of other questions.
    """
    answers: dict[QuestionSlice, dict[System, dict[str | None, tuple[ReportRun, Answers]]]] = {}
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
        answers.setdefault(run.slice, {}).setdefault(run.system, {})[run.ablation] = run, joined
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
            f"On {slice_.config} from the answers to all of {DEFAULT_CONFIG}, which has these questions: {listed}."
        )
    ceilings = _ceilings(audits, {slice_: questions_digest(sets[slice_]) for slice_ in notes})
    sections = []
    for slice_ in sorted(notes, key=_slice_order):
        rows = []
        for system, name in names.items():
            if system in answers[slice_]:
                figures, reasons = measured(answers[slice_][system])
                rows.append(ReportRow(name, figures))
                notes[slice_] += [f"{name}: the blind run is not a valid control: {reason}." for reason in reasons]
        sections.append(_section(slice_, sets[slice_], rows, notes[slice_] + ceilings.get(slice_, [])))
    return sections


def _ceilings(audits: Sequence[Path], digests: Mapping[QuestionSlice, str]) -> dict[QuestionSlice, list[str]]:
    """Returns a note on the text-only ceiling for each audited set of questions."""
    notes: dict[QuestionSlice, list[str]] = {}
    for path in audits:
        matches = [slice_ for slice_, digest in digests.items() if digest == audit_hash(path)]
        for slice_ in matches or list(digests)[:1]:
            ceiling = text_only_ceiling(path, digests[slice_])
            low, high = (percent(end) for end in ceiling["interval"])
            found = f"{percent(ceiling['accuracy'])}% [{low} to {high}] ({ceiling['probe']}, from the audit)"
            notes.setdefault(slice_, []).append(f"Text-only ceiling of these questions: {found}.")
    return notes


def with_published(sections: Sequence[ReportSection], published: Mapping[str, Any]) -> list[ReportSection]:
    """Adds published accuracies to the sections on ``default``, or as a separate section if there is none."""
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
    if not any(section.slice.config == DEFAULT_CONFIG for section in sections):
        dimensions = tuple(sorted(reported, key=dimension_order))
        chance = published.get("chance")
        return [ReportSection(QuestionSlice("published", ""), 0, 0, chance, dimensions, rows, (note,)), *sections]
    return [
        replace(
            section,
            dimensions=tuple(sorted(reported | set(section.dimensions), key=dimension_order)),
            rows=section.rows + rows,
            notes=(*section.notes, note),
        )
        if section.slice.config == DEFAULT_CONFIG
        else section
        for section in sections
    ]


def measured(joined: Joined) -> tuple[dict[str, Estimate], tuple[str, ...]]:
    """Returns the figures of a system on a set of questions, and why its blind run is not a valid control, if so.

    Figures, as far as the runs exist: ``accuracy``; ``blind`` and ``guess``, the accuracies without images; ``gain``
    (accuracy minus blind score, paired) and ``adjusted``, with the larger valid blind run; the ablations in
    ``REMOVED`` as a paired loss of accuracy; all of these also by dimension; ``unparsed``; ``truncated``; ``flips``
    under shuffled images; ``circular``, the share right under every rotation; and ``group``.
    """
    found: dict[str, Estimate] = {}
    reasons: tuple[str, ...] = ()
    blind = [joined[name] for name in WITHOUT_IMAGES if name in joined]
    valid = bool(blind)
    if None in joined:
        run, full = joined[None]
        digest = questions_digest(full.questions)
        about = {"predictions_hash": run.predictions.digest, "data_hash": digest, **run.predictions.settings}
        control = choose_control(about, full, [(one.predictions, answers) for one, answers in blind])
        valid, reasons = not control.reasons, control.reasons
        scores = score_answers(full, control.answers, control.reasons)
        found |= _scored("accuracy", scores) | {"unparsed": Estimate(scores["unparsed"]["rate"])}
        if cut := truncation(run.predictions):
            found["truncated"] = Estimate(cut["rate"])
        if scores["groups"] is not None:
            found["group"] = Estimate(scores["group_accuracy"], *scores["groups"]["interval"])
        if scores["blind"] is not None:
            parts = {f"/{name}": part for name, part in scores["by_dimension"].items()}
            for suffix, part in {"": scores | {"gain_interval": scores["blind"]["gain_interval"]}, **parts}.items():
                found[f"gain{suffix}"] = Estimate(part["visual_gain"], *part["gain_interval"])
                if part["leakage_adjusted_accuracy"] is not None:
                    ends = part["leakage_adjusted_interval"] or ()
                    found[f"adjusted{suffix}"] = Estimate(part["leakage_adjusted_accuracy"], *ends)
        for ablation in REMOVED:
            if ablation in joined:
                found |= _lost(ablation, full, joined[ablation][1])
        if "shuffled" in joined:
            flips = flip_rate(full, joined["shuffled"][1])
            found["flips"] = Estimate(flips["rate"], *flips["interval"])
    for run, answers in blind if valid else ():
        found |= _scored(str(run.ablation), score_answers(answers))
    if "circular" in joined:
        rotations = score_answers(joined["circular"][1])["circular"]
        found["circular"] = Estimate(rotations["accuracy"], *rotations["interval"])
    return found, reasons


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
