"""Reads the predictions files of a report, with the model, questions and ablation of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict import ABLATIONS
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.scoring.predictions import Predictions, read_predictions
from scale_vqa_eval.scoring.score import DEFAULT_CONFIG, config_of

_SCREENED: Final = "screened"
_SETTINGS: Final = (
    "prompt_id",
    "prompt_hash",
    "backend",
    "sampling",
    "structured",
    "pixels",
    "options",
    "model_sha256",
)
"""Settings that, together with the model's name, identify a system."""


@dataclass(frozen=True)
class System:
    """A model's name and its settings, as pairs of a dotted name (``sampling.n``) and a JSON text."""

    model: str
    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True, order=True)
class QuestionSlice:
    """Config and split of a set of questions; an empty split stands for all splits."""

    config: str
    split: str

    @property
    def title(self) -> str:
        """Heading of the slice."""
        return f"{self.config}, {f'split {self.split}' if self.split else 'all splits'}"


@dataclass(frozen=True)
class ReportRun:
    """A predictions file, or the part of it that answers a subset of its questions.

    Attributes:
        predictions: the responses.
        system: model and settings.
        slice: the questions.
        ablation: name of the ablation, or None for all images.
        notes: notes for the reader of the report.
        taken_from: slice of the complete run, if this is a part of it, or None.
    """

    predictions: Predictions
    system: System
    slice: QuestionSlice
    ablation: str | None
    notes: tuple[str, ...] = ()
    taken_from: QuestionSlice | None = None

    @property
    def key(self) -> tuple[System, QuestionSlice, str | None]:
        """Key that is unique within a report."""
        return self.system, self.slice, self.ablation


def read_runs(paths: Iterable[Path], data: str, config: str | None, split: str | None) -> list[ReportRun]:
    """Reads predictions files; ``config`` and ``split`` are for runs that do not state theirs.

    Raises:
        InputError: lists every problem of every file, including unknown ablations and repeated runs.
    """
    runs: list[ReportRun] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            runs.append(_read_run(read_predictions(path), data, config, split))
        except InputError as error:
            problems.extend(error.problems)
    runs = [_with_its_system(run, runs) if run.ablation == "guess" else run for run in runs]
    first: dict[Any, ReportRun] = {}
    for run in runs:
        other = first.setdefault(run.key, run)
        if other is not run:
            what = run.ablation or "with images"
            found = f"that of {other.predictions.path}: {run.system.model}, {run.slice.title}, {what}"
            problems.append(Problem(str(run.predictions.path), "a different run", found, "give one of the two"))
    if problems:
        raise InputError(problems)
    return runs


class QuestionSets:
    """The questions of each slice of the data, read on first use."""

    def __init__(self, data: str) -> None:
        self._data = data
        self._read: dict[QuestionSlice, list[Question]] = {}
        folder = Path(data)
        self._configs = release_configs(folder) if folder.is_dir() else {}

    def __getitem__(self, slice_: QuestionSlice) -> list[Question]:
        if slice_ not in self._read:
            config = None if slice_.config == DEFAULT_CONFIG and DEFAULT_CONFIG not in self._configs else slice_.config
            self._read[slice_] = read_questions(self._data, slice_.split or None, config)
        return self._read[slice_]

    def screened_of(self, slice_: QuestionSlice) -> QuestionSlice | None:
        """Returns the screened part of a slice, or None if there is none or its questions were changed."""
        splits = self._configs.get(_SCREENED, {})
        screened = QuestionSlice(_SCREENED, slice_.split)
        if slice_.config != DEFAULT_CONFIG or not splits or (slice_.split and slice_.split not in splits):
            return None
        asked = {_content(question) for question in self[slice_]}
        return screened if all(_content(question) in asked for question in self[screened]) else None


def with_screened(runs: Sequence[ReportRun], sets: QuestionSets) -> list[ReportRun]:
    """Adds the answers to the screened questions for each run on ``default``, unless there is a run on ``screened``.

    Screening removes questions without changing the others, so answers on ``default`` are valid on ``screened``.
    """
    keys = {run.key for run in runs}
    found = list(runs)
    for run in runs:
        screened = sets.screened_of(run.slice)
        if screened is None or (run.system, screened, run.ablation) in keys:
            continue
        kept = {question.id for question in sets[screened]}
        part = replace(run.predictions, rows=tuple(row for row in run.predictions.rows if row.id in kept))
        found.append(replace(run, predictions=part, slice=screened, notes=(), taken_from=run.slice))
    return found


def system_names(runs: Sequence[ReportRun], given: Mapping[str, str]) -> dict[System, str]:
    """Returns the name of each system in the order of the runs.

    This is the model's name, or its name in ``given``; if a model has several systems, with the settings that differ.
    """
    systems = list(dict.fromkeys(run.system for run in runs))
    names: dict[System, str] = {}
    for system in systems:
        name = given.get(system.model, system.model)
        same_model = [other for other in systems if other.model == system.model]
        shared = set.intersection(*(set(other.settings) for other in same_model))
        own = [f"{field.split('.')[-1]} {_short(field, value)}" for field, value in system.settings
               if (field, value) not in shared]  # fmt: skip
        names[system] = f"{name} ({', '.join(own) or 'nothing stated'})" if len(same_model) > 1 else name
    return names


def _read_run(run: Predictions, data: str, config: str | None, split: str | None) -> ReportRun:
    stated, notes = run.provenance, []
    rotated = any(row.rotation is not None for row in run.rows)
    ablation = run.settings["ablation"] or ("circular" if rotated else None)
    if ablation not in (None, *ABLATIONS) or (ablation == "circular") != rotated:
        expected = f"one of {', '.join(ABLATIONS)}, or null; rotations of the options in a circular run only"
        found = f"{preview(ablation)} {'with' if rotated else 'without'} rotations"
        raise InputError(Problem(f"{run.path}, ablation", expected, found, "correct the first line"))
    if ablation is None and not stated.keys() & {"ablation", "ablate"}:
        notes.append(f"{run.path.name} does not state whether it saw the images; it is listed as if it did.")
    model = run.settings["model"]
    if model is None:
        model = run.path.stem
        notes.append(f"{run.path.name} does not state its model; it is listed under the file's name.")
    settings = {field: stated.get(field, run.settings.get(field)) for field in _SETTINGS}
    named = config_of(data, stated.get("config") or config) or DEFAULT_CONFIG
    slice_ = QuestionSlice(str(named), str(stated.get("split") or split or ""))
    return ReportRun(run, System(str(model), _flat(settings)), slice_, ablation, tuple(notes))


def _with_its_system(guess: ReportRun, runs: Sequence[ReportRun]) -> ReportRun:
    """Assigns a guess run, whose prompt has an additional sentence, to the system of its model's other runs."""

    def without_hash(system: System, suffix: str) -> System:
        pairs = ((name, value.replace(suffix, "@")) for name, value in system.settings if name != "prompt_hash")
        return System(system.model, tuple(pairs))

    wanted = without_hash(guess.system, "-guess@")
    systems = {run.system for run in runs if run.ablation != "guess" and without_hash(run.system, "@") == wanted}
    return replace(guess, system=systems.pop()) if len(systems) == 1 else guess


def _flat(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Returns settings by dotted names, without the seed of greedy decoding."""
    flat: dict[str, Any] = {}
    for field, value in settings.items():
        parts = (
            {f"{field}.{name}": one for name, one in value.items()} if isinstance(value, Mapping) else {field: value}
        )
        flat |= {name: one for name, one in parts.items() if one is not None}
    if flat.get("sampling.temperature") == 0:
        flat.pop("sampling.seed", None)
    return tuple(sorted((name, json.dumps(value, sort_keys=True)) for name, value in flat.items()))


def _short(field: str, value: str) -> str:
    text = value.strip('"')
    return text[:8] if field.endswith(("hash", "sha256")) else text


def _content(question: Question) -> tuple[str, str, tuple[str, ...], int]:
    return question.id, question.question, question.options, question.answer
