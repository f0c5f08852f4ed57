"""Scores for a model's card, and the Hub's formats for scores and benchmark tasks.

Scores go to ``model-index`` in the card's YAML and to ``.eval_results/*.yaml``, each with its blind control or marked
as having none. ``eval.yaml`` makes a dataset a benchmark of the Hub with tasks for ``inspect eval hf/ORG/NAME``. A
model's scores on the same rows have the id of the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from model_card.cards.text import dump_yaml
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict.prompts import Prompt, load_prompt
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.release_folder.card import HUB, HUB_PROMPT, data_origin
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.scoring.blind_control import control_problems
from scale_vqa_eval.scoring.results import read_results
from scale_vqa_eval.scoring.score import questions_digest

NO_CONTROL: Final = "no blind control: does not show that images were used"


@dataclass(frozen=True)
class Score:
    """A results file.

    Attributes:
        name: config of the data, or name of another benchmark.
        content: content of the file, as ``scale-vqa score --json`` wrote it.
    """

    name: str
    content: Mapping[str, Any]

    @property
    def split(self) -> str:
        """The scored split, or ``all``."""
        return self.content["provenance"].get("split") or "all"

    @property
    def blind(self) -> Mapping[str, Any] | None:
        """Scores of the blind control, or None."""
        return self.content.get("blind")

    @property
    def asked(self) -> Mapping[str, Any]:
        """Settings of the run: prompt, sampling, backend, weights."""
        provenance = self.content["provenance"]
        return {**provenance, **(provenance.get("predicted_with") or {})}


def read_scores(named: Sequence[tuple[str | None, Path]], problems: list[Problem]) -> list[Score]:
    """Reads results files of runs with all images.

    Args:
        named: (name, file); if the name is None, the config in the file is used.
        problems: a problem is appended for an ablation, an unknown config, a second result of a split and an invalid
            blind control.
    """
    scores: dict[tuple[str, str], Score] = {}
    for name, path in named:
        try:
            content = read_results(path)
        except InputError as error:
            problems.extend(error.problems)
            continue
        provenance = content["provenance"]
        problems += control_problems(str(path), content)
        score = Score(name or provenance.get("config") or "", content)
        if provenance.get("ablation"):
            hint = "give the run with images, scored with --blind"
            problems.append(Problem(str(path), "a run with all images", f"ablation {provenance['ablation']}", hint))
        elif not score.name:
            hint = "score with --config, or write NAME=FILE"
            problems.append(Problem(str(path), "the config of the questions", "none stated", hint))
        elif (score.name, score.split) in scores:
            found = f"a second one of {score.name}"
            problems.append(Problem(str(path), "one result per config and split", found, "give only one"))
        else:
            scores[score.name, score.split] = score
    return list(scores.values())


def one_system(scores: Sequence[Score], problems: list[Problem], prompt_file: Path | None = None) -> Prompt | None:
    """Returns the prompt of all scores; adds a problem if weights, prompt or sampling differ between them.

    The prompt's text is read from ``prompt_file``, or else from this package by its id. The card prints it, so a
    hash that differs from the runs' is a problem.
    """
    for field, expected in (
        ("prompt_id", "one prompt"),
        ("prompt_hash", "one prompt"),
        ("model_sha256", "the same weights"),
        ("sampling", "one way of sampling"),
    ):
        values = sorted({repr(score.asked.get(field)) for score in scores})
        if len(values) > 1:
            found = preview(", ".join(values), 160)
            problems.append(Problem("the results", f"{expected} in all runs ({field})", found, "run those again"))
            return None
    asked = scores[0].asked
    if missing := [field for field in ("prompt_id", "sampling") if not asked.get(field)]:
        hint = "score predictions that `scale-vqa predict` wrote"
        problems.append(Problem("the results", "prompt and sampling of the run", f"no {', no '.join(missing)}", hint))
        return None
    id_, digest = str(asked["prompt_id"]), asked.get("prompt_hash")
    try:
        prompt = load_prompt(str(prompt_file or id_.split("@")[0]))
    except InputError as error:
        problems.extend(error.problems)
        return None
    if digest not in (None, prompt.digest):
        hint = "use the version of scale-vqa that made the runs, or run them again"
        problems.append(
            Problem("the results", f"the wording of prompt {id_} here ({prompt.digest})", str(digest), hint)
        )
        return None
    return prompt


def model_index(scores: Sequence[Score], dataset: str) -> list[EvalResult]:
    """Returns all scores for ``model-index``, in per cent: overall and by dimension.

    The blind accuracy is a separate result. An accuracy without one says so in its name.
    """
    return [result for score in scores for result in _results(score, dataset)]


def entries_yaml(scores: Sequence[Score], dataset: str) -> str:
    """Returns the content of ``.eval_results/scale-vqa.yaml``: an entry per score, and one per blind control.

    The task ids are those of the dataset's ``eval.yaml``. The notes of a score repeat its blind control.
    """
    entries = []
    for score in scores:
        low, high = (_percent(end) for end in score.content["interval"])
        control = NO_CONTROL
        if score.blind is not None:
            control = f"blind control (no images) {_percent(score.blind['accuracy'])}"
        notes = f"95% interval {low} to {high}, {score.content['clusters']} patients; {control}"
        task, value = task_id(score.name, score.split), _percent(score.content["accuracy"])
        entries.append(EvalResultEntry(dataset_id=dataset, task_id=task, value=value, notes=notes))
        if score.blind is not None:
            task, value = task_id(score.name, score.split, blind=True), _percent(score.blind["accuracy"])
            notes = f"the blind control of {task_id(score.name, score.split)}: the same text without images"
            entries.append(EvalResultEntry(dataset_id=dataset, task_id=task, value=value, notes=notes))
    return dump_yaml(eval_result_entries_to_yaml(entries))


def task_id(config: str, split: str, blind: bool = False) -> str:
    """Returns the Hub's task id for the rows of a config and split, with images or blind."""
    return f"{config}_{split}{'_blind' if blind else ''}"


def _results(score: Score, dataset: str) -> Iterator[EvalResult]:
    def result(kind: str, name: str, value: float, args: dict[str, Any] | None) -> EvalResult:
        return EvalResult(
            task_type="visual-question-answering",
            dataset_type=dataset,
            dataset_name=f"Scale-VQA ({score.name})",
            dataset_config=score.name,
            dataset_split=score.split,
            metric_type=kind,
            metric_name=name,
            metric_value=_percent(value),
            metric_args=args,
            verified=False,
        )

    parts: dict[str, Mapping[str, Any]] = {"": score.content, **score.content["by_dimension"]}
    for name, part in parts.items():
        blind = part.get("blind_accuracy") if name else (score.blind or {}).get("accuracy")
        of = f", {name}" if name else ""
        interval = [_percent(end) for end in part["interval"]]
        args = {"interval_95": interval, "n": part["n"], "patients": part["clusters"]}
        if blind is None:
            yield result("accuracy", f"Accuracy (%){of} [{NO_CONTROL}]", part["accuracy"], args)
            continue
        args |= {"blind_accuracy": _percent(blind)}
        yield result("accuracy", f"Accuracy (%){of}", part["accuracy"], args)
        yield result("blind_accuracy", f"Blind accuracy (%), no images{of}", blind, None)


def _percent(share: float) -> float:
    return round(100 * share, 2)


EVAL_YAML: Final = "eval.yaml"
_PATTERN: Final = r"(?-i:<answer>)\s*([A-Za-z])\s*(?-i:</answer>)"
"""The letter between answer tags, by the rule of ``score``: the tags in lower case, the letter in either case."""
_HUB_HINT: Final = "build it again: scale-vqa build hub FOLDER"


def eval_yaml(folder: Path) -> str | None:
    """Returns the content of ``eval.yaml`` for a release folder, or None if it has no config ``hub``.

    Raises:
        InputError: if the rows of ``hub`` are not those of another config, or its prompt is missing.
    """
    configs = release_configs(folder)
    if HUB not in configs:
        return None
    prompt = load_prompt(str(folder / HUB_PROMPT))
    tasks: list[dict[str, Any]] = []
    for split in configs[HUB]:
        digest = questions_digest(read_questions(folder, split, HUB))
        same = (
            name
            for name, splits in configs.items()
            if name not in (HUB, "text") and split in splits
            if questions_digest(read_questions(folder, split, name)) == digest
        )
        config = next(same, None)
        if config is None:
            location, expected = f"{folder}, config {HUB}, split {split}", "the rows of another config of the folder"
            raise InputError(Problem(location, expected, "other questions, or an older version", _HUB_HINT))
        tasks += [_task(task_id(config, split, blind), split, prompt, blind) for blind in (False, True)]
    content = {
        "name": data_origin(folder).title,
        "description": "Four-option questions across three nested magnifications of a pathology slide, one composed "
        "image each. Report a score beside that of the task whose id ends in _blind: the same text without the image.",
        "evaluation_framework": "inspect-ai",
        "tasks": tasks,
    }
    return dump_yaml(content)


def _task(name: str, split: str, prompt: Prompt, blind: bool) -> dict[str, Any]:
    """Returns a task in the format in which ``inspect_ai`` reads it from a dataset on the Hub."""
    fields: dict[str, Any] = {"input": "prompt", "target": "answer", "choices": "options"}
    if not blind:
        fields["input_image"] = "composite"
    generate = {"name": "generate", "args": {"temperature": 0.0, "max_tokens": prompt.max_tokens}}
    system = [{"name": "system_message", "args": {"template": prompt.system}}] if prompt.system else []
    return {
        "id": name,
        "config": HUB,
        "split": split,
        "field_spec": fields | {"metadata": ["id", "dimension", "patient_id"]},
        "solvers": [*system, generate],
        "scorers": [{"name": "pattern", "args": {"pattern": _PATTERN}}],
    }
