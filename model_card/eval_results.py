"""Scores in the two forms that the Hub reads: ``model-index`` in a card's head, and ``.eval_results/*.yaml``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from model_card.run_results import Score

BARE: Final = "no blind control: does not show that images were used"
TASK: Final = "visual-question-answering"


def model_index(scores: Sequence[Score], dataset: str) -> list[EvalResult]:
    """Returns the figures of all scores for ``model-index``, in per cent: overall and by dimension.

    A blind accuracy stands as a result of its own beside each figure that has one; a figure without says so in its
    name.

    Args:
        scores: on configs of the dataset.
        dataset: its Hub id.
    """
    return [result for score in scores for result in _results(score, dataset)]


def entries(scores: Sequence[Score], dataset: str) -> list[EvalResultEntry]:
    """Returns one entry a score, its blind control in the notes."""
    return [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=f"{score.name}_{score.split}",
            value=_percent(score.content["accuracy"]),
            notes=_note(score),
        )
        for score in scores
    ]


def entries_yaml(scores: Sequence[Score], dataset: str) -> str:
    """Returns the content of ``.eval_results/scale-vqa.yaml``."""
    content = eval_result_entries_to_yaml(entries(scores, dataset))
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)


def _results(score: Score, dataset: str) -> Iterator[EvalResult]:
    parts: dict[str, Mapping[str, Any]] = {"": score.content, **score.content["by_dimension"]}
    for name, part in parts.items():
        blind = part.get("blind_accuracy") if name else (score.blind or {}).get("accuracy")
        of = f", {name}" if name else ""
        interval = [_percent(end) for end in part["interval"]]
        args = {"interval_95": interval, "n": part["n"], "patients": part["clusters"]}
        if blind is None:
            yield _result(score, dataset, "accuracy", f"Accuracy (%){of} [{BARE}]", part["accuracy"], args)
            continue
        args |= {"blind_accuracy": _percent(blind)}
        yield _result(score, dataset, "accuracy", f"Accuracy (%){of}", part["accuracy"], args)
        yield _result(score, dataset, "blind_accuracy", f"Blind accuracy (%), no images{of}", blind, None)


def _result(score: Score, dataset: str, kind: str, name: str, value: float, args: dict[str, Any] | None) -> EvalResult:
    return EvalResult(
        task_type=TASK,
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


def _note(score: Score) -> str:
    low, high = (_percent(end) for end in score.content["interval"])
    interval = f"95% interval {low} to {high}, {score.content['clusters']} patients"
    if score.blind is None:
        return f"{interval}; {BARE}"
    return f"{interval}; blind control (no images) {_percent(score.blind['accuracy'])}"


def _percent(share: float) -> float:
    return round(100 * share, 2)
