"""``eval.yaml``: what makes a data set a benchmark of the Hub, with tasks that ``inspect eval hf/ORG/NAME`` runs.

A task has the id under which ``card model`` writes the score of the same rows into ``.eval_results``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from model_card.cards.results import task_id
from model_card.cards.text import dump_yaml
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.predict.prompts import Prompt, load_prompt
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.release_folder.card import HUB, HUB_PROMPT, data_origin
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.scoring.score import questions_digest

EVAL_YAML: Final = "eval.yaml"
_PATTERN: Final = r"(?-i:<answer>)\s*([A-Za-z])\s*(?-i:</answer>)"
"""First letter between answer tags: the tags as they are, the letter in either case, as ``score`` reads it."""
_HINT: Final = "make it again: scale-vqa build hub FOLDER"


def eval_yaml(folder: Path) -> str | None:
    """Returns the content of ``eval.yaml`` for a release folder; None if it has no config ``hub``.

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
            raise InputError(Problem(location, expected, "other questions, or an older version", _HINT))
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
    """Returns a task as ``inspect_ai`` reads it from a data set on the Hub."""
    fields = {"input": "prompt", "target": "answer", "choices": "options"}
    generate = {"name": "generate", "args": {"temperature": 0.0, "max_tokens": prompt.max_tokens}}
    system = [{"name": "system_message", "args": {"template": prompt.system}}] if prompt.system else []
    return {
        "id": name,
        "config": HUB,
        "split": split,
        "field_spec": fields
        | ({} if blind else {"input_image": "composite"})
        | {"metadata": ["id", "dimension", "patient_id"]},
        "solvers": [*system, generate],
        "scorers": [{"name": "pattern", "args": {"pattern": _PATTERN}}],
    }
