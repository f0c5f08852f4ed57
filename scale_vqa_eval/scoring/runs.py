"""What was run: each predictions file placed by the account that it gives of itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict.ablations import ABLATIONS
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.scoring.predictions import Predictions, read_predictions
from scale_vqa_eval.scoring.score import doubts

SETTINGS: Final = (
    "prompt_id",
    "prompt_hash",
    "backend",
    "sampling",
    "structured",
    "pixels",
    "options",
    "model_sha256",
)
"""What has to be the same, besides the model's name, for two runs to be of one system."""
_DEFAULT: Final = "default"
_SCREENED: Final = "screened"


@dataclass(frozen=True)
class System:
    """A model as it was asked: its name and its settings, flat (``sampling.n``), as JSON texts."""

    model: str
    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True, order=True)
class Place:
    """Which questions: config and split; an empty split is all."""

    config: str
    split: str

    @property
    def title(self) -> str:
        """What a heading calls them."""
        return f"{self.config}, {f'split {self.split}' if self.split else 'all splits'}"


@dataclass(frozen=True)
class Run:
    """One predictions file, or the part of it that answers a subset of its questions.

    Attributes:
        ablation: what was taken away; None for nothing.
        notes: what a reader has to know about it.
        taken_from: the place that it was asked at, where this is another one.
    """

    predictions: Predictions
    system: System
    place: Place
    ablation: str | None
    notes: tuple[str, ...] = ()
    taken_from: Place | None = None

    @property
    def key(self) -> tuple[System, Place, str | None]:
        """What there is one run of."""
        return self.system, self.place, self.ablation


def read_runs(paths: Iterable[Path], data: str, config: str | None, split: str | None) -> list[Run]:
    """Reads predictions files and says of each which model, questions and ablation it is of.

    Args:
        paths: the files.
        data: what the questions are read from.
        config: config of a run that notes none; None for that of the data which loads without a name.
        split: split of a run that notes none; None for all.

    Raises:
        InputError: with every fault of every file, an unknown ablation, and two runs of the same thing.
    """
    runs: list[Run] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            runs.append(_placed(read_predictions(path), data, config, split))
        except InputError as error:
            problems.extend(error.problems)
    first: dict[Any, Run] = {}
    for run in runs:
        other = first.setdefault(run.key, run)
        if other is not run:
            what = run.ablation or "with images"
            found = f"that of {other.predictions.path}: {run.system.model}, {run.place.title}, {what}"
            problems.append(Problem(str(run.predictions.path), "a run of its own", found, "give one of the two"))
    if problems:
        raise InputError(problems)
    return runs


class QuestionSets:
    """The questions of each place of the data, each read once."""

    def __init__(self, data: str) -> None:
        self._data = data
        self._read: dict[Place, list[Question]] = {}
        folder = Path(data)
        self._configs = release_configs(folder) if folder.is_dir() else {}

    def __getitem__(self, place: Place) -> list[Question]:
        if place not in self._read:
            config = None if place.config == _DEFAULT and _DEFAULT not in self._configs else place.config
            self._read[place] = read_questions(self._data, place.split or None, config)
        return self._read[place]

    def screened_of(self, place: Place) -> Place | None:
        """Returns where the screened part of ``place`` is; None where there is none of the very same questions."""
        splits = self._configs.get(_SCREENED, {})
        there = Place(_SCREENED, place.split)
        if place.config != _DEFAULT or not splits or (place.split and place.split not in splits):
            return None
        asked = {_text_of(question) for question in self[place]}
        return there if all(_text_of(question) in asked for question in self[there]) else None


def with_screened(runs: Sequence[Run], sets: QuestionSets) -> list[Run]:
    """Adds, for each run on ``default``, its answers to the screened questions, where no run asked these alone.

    Screening takes questions away and changes none, so that an answer to the whole is an answer to the part.
    """
    made = {run.key for run in runs}
    found = list(runs)
    for run in runs:
        there = sets.screened_of(run.place)
        if there is None or (run.system, there, run.ablation) in made:
            continue
        kept = {question.id for question in sets[there]}
        rows = tuple(row for row in run.predictions.rows if row.id in kept)
        part = replace(run.predictions, rows=rows)
        found.append(replace(run, predictions=part, place=there, notes=(), taken_from=run.place))
    return found


def run_doubts(run: Run, questions: Sequence[Question]) -> list[str]:
    """Returns what a run says of itself that speaks against these questions."""
    said = [] if run.taken_from else doubts(run.predictions, questions)
    return [*run.notes, *(f"{line}." for line in said)]


def system_names(runs: Sequence[Run], given: Mapping[str, str]) -> dict[System, str]:
    """Names each system by its model, and by the settings that differ where a model was asked in several ways.

    Args:
        runs: all runs; systems are named in their order.
        given: model -> name to print instead.
    """
    systems = list(dict.fromkeys(run.system for run in runs))
    names: dict[System, str] = {}
    for system in systems:
        name = given.get(system.model, system.model)
        alike = [other for other in systems if other.model == system.model]
        shared = set.intersection(*(set(other.settings) for other in alike))
        own = [f"{field.split('.')[-1]} {_short(field, value)}" for field, value in system.settings]
        own = [text for text, pair in zip(own, system.settings, strict=True) if pair not in shared]
        names[system] = f"{name} ({', '.join(own) or 'nothing noted'})" if len(alike) > 1 else name
    return names


def _placed(run: Predictions, data: str, config: str | None, split: str | None) -> Run:
    account, notes = run.account, []
    turned = any(row.rotation is not None for row in run.rows)
    ablation = run.noted["ablation"] or ("circular" if turned else None)
    if ablation not in (None, *ABLATIONS) or (ablation == "circular") != turned:
        expected = f"one of {', '.join(ABLATIONS)}, null for none; turns of the options in a circular run alone"
        found = f"{preview(ablation)} {'with' if turned else 'without'} turns"
        raise InputError(Problem(f"{run.path}, ablation", expected, found, "correct the first line"))
    if ablation is None and not account.keys() & {"ablation", "ablate"}:
        notes.append(f"{run.path.name} does not say whether it saw the images; it is listed as if it had.")
    model = run.noted["model"]
    if model is None:
        model = run.path.stem
        notes.append(f"{run.path.name} names no model; the file's name stands for it.")
    stated = {field: account.get(field, run.noted.get(field)) for field in SETTINGS}
    place = Place(_config(account.get("config") or config, data), str(account.get("split") or split or ""))
    return Run(run, System(str(model), _flat(stated)), place, ablation, tuple(notes))


def _config(named: Any, data: str) -> str:
    """Returns the config by its name, also where the data's first one was meant."""
    if named:
        return str(named)
    configs = release_configs(Path(data)) if Path(data).is_dir() else {}
    return _DEFAULT if _DEFAULT in configs or not configs else next(iter(configs))


def _flat(stated: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Returns settings by dotted names; the seed of greedy decoding is left out, as nothing is drawn."""
    flat: dict[str, Any] = {}
    for field, value in stated.items():
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


def _text_of(question: Question) -> tuple[str, str, tuple[str, ...], int]:
    return question.id, question.question, question.options, question.answer
