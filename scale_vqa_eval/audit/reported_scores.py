"""Reads accuracies that others reported for a question set, for comparison with the probes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import parse_yaml

SHIPPED: Final = {"scale-vqa-test": "scale_vqa_test_scores.yaml"}
"""Name -> file of the accuracies in this package."""


def read_reported_scores(source: str | Path) -> dict[str, Any]:
    """Reads reported accuracies.

    Args:
        source: a name in ``SHIPPED``, or a YAML or JSON file with ``models`` (model -> dimension or ``all`` ->
        accuracy
            in per cent) and optionally ``source``, ``data`` (name of the question set) and ``chance`` (in per cent). A
            file may also contain only the mapping of models.

    Returns:
        ``source``, ``data``, ``chance`` (or None) and ``models``: model -> dimension or ``all`` -> accuracy, 0 to 1.

    Raises:
        InputError: if the file has another format.
    """
    name = SHIPPED.get(str(source))
    path = files("scale_vqa_eval.audit") / "templates" / name if name else Path(source)
    try:
        content = parse_yaml(path.read_text(encoding="utf-8-sig"), str(source))
        models = content.get("models", content)
        about = {
            key: str(content[key]) if "models" in content and key in content else None for key in ("source", "data")
        }
        chance = _share(content["chance"]) if "models" in content and "chance" in content else None
        return {
            **about,
            "chance": chance,
            "models": {
                str(model): {str(part): _share(value) for part, value in row.items()} for model, row in models.items()
            },
        }
    except (OSError, ValueError, AttributeError, TypeError) as error:
        expected = "YAML or JSON with models: {NAME: {all: 58.5, Diagnosis: 65.2}}, accuracies in per cent"
        hint = f"fix the file, or name one of {', '.join(SHIPPED)}"
        raise InputError(Problem(str(source), expected, preview(" ".join(str(error).split()), 200), hint)) from error


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ValueError(f"{preview(value)} is not an accuracy of 0 to 100 per cent")
    return value / 100
