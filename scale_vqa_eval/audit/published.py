"""Accuracies that others have published for a question set, to stand beside the probes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import yaml

from scale_vqa_eval.errors import InputError, Problem, preview

SHIPPED: Final = {"scale-vqa-test": "scale_vqa_test.yaml"}
"""Names of the figures that come with this package, and their files."""


def read_published(place: str | Path) -> dict[str, Any]:
    """Reads published accuracies.

    Args:
        place: a name in ``SHIPPED``, or a YAML or JSON file: ``models`` maps a model to dimension (or ``all``) ->
            accuracy in per cent; ``source`` and ``data`` say where they are from and what they were measured on. A
            file may also be the mapping of models alone.

    Returns:
        ``source``, ``data`` (None where not said) and ``models``: model -> dimension or ``all`` -> accuracy, 0 to 1.

    Raises:
        InputError: where the file is no such thing.
    """
    name = SHIPPED.get(str(place))
    path = files("scale_vqa_eval.audit") / "published_scores" / name if name else Path(place)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        models = content.get("models", content)
        about = {
            key: str(content[key]) if "models" in content and key in content else None for key in ("source", "data")
        }
        return about | {
            "models": {
                str(model): {str(part): _share(value) for part, value in row.items()} for model, row in models.items()
            }
        }
    except (OSError, ValueError, AttributeError, TypeError, RecursionError, yaml.YAMLError) as error:
        expected = "YAML or JSON with models: {NAME: {all: 58.5, Diagnosis: 65.2}}, accuracies in per cent"
        hint = f"fix the file, or name one of {', '.join(SHIPPED)}"
        raise InputError(Problem(str(place), expected, preview(" ".join(str(error).split()), 200), hint)) from error


def _share(percent: object) -> float:
    if isinstance(percent, bool) or not isinstance(percent, int | float) or not 0 <= percent <= 100:
        raise ValueError(f"{preview(percent)} is no accuracy of 0 to 100 per cent")
    return percent / 100
