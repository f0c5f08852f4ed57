"""The card of the metric's Space: the folder's own README, with an example that was computed and a citation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import yaml
from huggingface_hub import RepoCard
from huggingface_hub.repocard_data import CardData

from model_card.sections import merged_card, render
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.release_folder.card import head

EXAMPLE: Final[dict[str, list[Any]]] = {
    "predictions": ["<think>Glands at 40x.</think> <answer>B</answer>", "<answer>C</answer>", "It is A.", None],
    "references": ["B", "C", "A", "D"],
    "cluster": ["P1", "P1", "P2", "P3"],
    "blind": ["<answer>B</answer>", "<answer>A</answer>", "<answer>A</answer>", "<answer>A</answer>"],
}
_NEEDED: Final = ("title", "sdk", "sdk_version", "app_file", "license", "tags")
_SHOWN: Final = ("accuracy", "interval", "clusters", "unparsed", "blind", "visual_gain", "leakage_adjusted_accuracy")


def metric_card(folder: Path) -> str:
    """Returns the card of a metric folder; the folder's README is its hand-written part.

    Args:
        folder: the metric's folder: script, README, requirements, app.

    Raises:
        InputError: naming every field of the README's head that a Space needs and that is missing.
    """
    path = folder / "README.md"
    if not path.is_file():
        raise InputError(Problem(str(folder), "a metric's folder with a README.md", "none", "name scale_vqa_acc"))
    old = path.read_text(encoding="utf-8")
    problems = [
        Problem(str(path), f"{name} in the head", "none", "a Space needs it: add it")
        for name in _NEEDED
        if not head(old).get(name)
    ]
    if problems:
        raise InputError(problems)
    figures = _computed(folder)
    text = render(
        RepoCard,
        CardData(),
        "metric_card.md.j2",
        call=",\n".join(
            f"    {name}={json.dumps(values).replace('null', 'None')}" for name, values in EXAMPLE.items()
        ),
        figures=yaml.safe_dump({name: figures[name] for name in _SHOWN}, sort_keys=False).strip(),
    )
    return merged_card(old, text)


def _computed(folder: Path) -> dict[str, Any]:
    import evaluate

    name = folder.resolve().name
    figures: dict[str, Any] = evaluate.load(str(folder / f"{name}.py")).compute(**EXAMPLE)
    return json.loads(json.dumps(figures), parse_float=lambda text: round(float(text), 6))  # type: ignore[no-any-return]
