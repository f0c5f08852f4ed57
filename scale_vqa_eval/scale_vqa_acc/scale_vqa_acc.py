"""The Scale-VQA metric: answer accuracy with patient-clustered intervals and a blind control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from .clustered import cluster_codes
from .parsing import Mode, parse_batch
from .summary import gold_codes, summarise

# evaluate copies only the modules that this file imports, so every module is imported here
MODULES = (cluster_codes, parse_batch, summarise)

_DESCRIPTION = """\
Accuracy on Scale-VQA and other lettered multiple-choice questions. The letter is parsed from the model's text by the
published rule (never guessed). The accuracy has a patient-clustered 95% interval, overall, by dimension and by
exchange group, and is compared with a blind run of the same model.
"""

_CITATION = """\
@inproceedings{phan2026scale,
  title = {Enhancing Pathological VLMs with Cross-scale Reasoning},
  author = {Phan and Zhang and Xue and Wu and Hu and Liu and Wang and Jin},
  booktitle = {MICCAI},
  year = {2026},
  eprint = {2606.17412},
  archivePrefix = {arXiv}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: responses, the model's unchanged texts. None, or a value that is not text, counts as wrong.
    references: gold letters, or 0-based class indices.
    dimension: name of the dimension of each item (configs that contain ``dimension``).
    cluster: patient or slide of each item; without it all items count as independent.
    group: exchange group of each item, or None.
    blind: responses of the same model to the same items without images.
    mode: ``reference`` (the published rule, default) or ``strict`` (a single answer after the think block, with a
        letter of the question).
    options: number of options, one for all (default 4) or one per item.

The four optional inputs are declared by the config name, joined by ``+``: ``evaluate.load("scale_vqa_acc",
"dimension+cluster")``; ``full`` has all four. A single call of ``compute`` accepts them with any config.

Returns:
    A dictionary: accuracy, interval, interval_method, standard_error, n, clusters, effective_n, clustered, chance,
    macro, macro_interval, by_dimension, unparsed (n, rate, reasons), format_rate, reward, group_accuracy, groups,
    blind, visual_gain, leakage_adjusted_accuracy, leakage_adjusted_interval, blind_withheld, mode. Figures that were
    not requested or are undefined are None. Gain and adjusted accuracy are withheld if more than 2% of the blind
    responses have no letter.

Example:

    >>> import evaluate
    >>> metric = evaluate.load("scale_vqa_acc")
    >>> responses = ["<think>Glands at 40x.</think> <answer>B</answer>", "<answer>C</answer>", "It is A.", None]
    >>> score = metric.compute(predictions=responses, references=["B", "C", "A", "D"])
    >>> score["accuracy"], score["unparsed"]["n"], score["unparsed"]["reasons"]
    (0.5, 2, {'not_text': 1, 'no_answer': 1})
    >>> score = metric.compute(predictions=responses, references=[1, 2, 0, 3], cluster=["P1", "P1", "P2", "P3"])
    >>> score["clusters"], [round(end, 2) for end in score["interval"]]
    (3, [0.03, 0.97])
"""

FIELDS = ("dimension", "cluster", "group", "blind")
_TEXTS = ("predictions", "blind")


class ScaleVqaAcc(evaluate.Metric):  # type: ignore[misc]
    """Accuracy of lettered answers; see ``inputs_description``."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("large_string")  # unlike "string", it accepts None and more than 2 GB
        features = {name: text for name in ("predictions", "references", *_fields_of(self.config_name))}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(features),
            reference_urls=["https://arxiv.org/abs/2606.17412", "https://arxiv.org/abs/2411.00640"],
            license="Apache-2.0",
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """Computes the score of the given responses, or of those added by ``add`` and ``add_batch``."""
        gathered = self.writer is not None or self.num_process > 1
        if gathered or predictions is None or references is None:
            figures: dict[str, Any] | None = super().compute(predictions=predictions, references=references, **kwargs)
            return figures
        missing = [name for name in self._feature_names() if name not in ("predictions", "references", *kwargs)]
        if missing:
            raise ValueError(f"config {self.config_name!r} needs the inputs {', '.join(missing)}")
        # a single call in one process does not need evaluate's temporary files
        return self._compute(predictions=predictions, references=references, **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Adds a batch of responses and references."""
        batch = {"predictions": predictions, "references": references, **kwargs}
        super().add_batch(**{name: _storable_column(name, values) for name, values in batch.items()})

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds one response and its reference."""
        one = {"predictions": prediction, "references": reference, **kwargs}
        stored = {name: _storable_column(name, [value])[0] for name, value in one.items()}
        super().add(prediction=stored.pop("predictions"), reference=stored.pop("references"), **stored)

    def _compute(
        self,
        *,
        predictions: Any,
        references: Any,
        dimension: Any = None,
        cluster: Any = None,
        group: Any = None,
        blind: Any = None,
        mode: Mode = "reference",
        options: Any = 4,
    ) -> dict[str, Any]:
        counts = np.asarray(options, dtype=np.int64)
        responses, answers, without = _listed(predictions), _listed(references), _listed(blind)
        for name, values in {
            "predictions": responses,
            "blind": without,
            "options": counts if counts.ndim else None,
        }.items():
            if values is not None and len(values) != len(answers):
                raise ValueError(f"{len(answers)} references but {len(values)} values of {name}")
        figures = summarise(
            parse_batch(responses, mode, counts),
            gold_codes(answers, counts),
            dimension=_listed(dimension),
            cluster=_listed(cluster),
            group=_listed(group),
            blind=None if without is None else parse_batch(without, mode, counts),
            options=counts,
        )
        return {**figures, "mode": mode}


def _fields_of(config_name: str) -> tuple[str, ...]:
    """Returns the optional inputs that a config name declares."""
    if config_name in ("default", "full"):
        return FIELDS if config_name == "full" else ()
    named = config_name.split("+")
    if not set(named) <= set(FIELDS) or len(set(named)) != len(named):
        raise ValueError(
            f"config_name must be 'default', 'full' or some of {', '.join(FIELDS)} joined by '+', got {config_name!r}"
        )
    return tuple(name for name in FIELDS if name in named)


def _listed(values: Any) -> Any:
    """Converts arrays, series and columns to lists."""
    if values is None or isinstance(values, list | tuple):
        return values
    for convert in ("to_pylist", "tolist"):
        if hasattr(values, convert):
            return getattr(values, convert)()
    return list(values)


def _storable_column(name: str, values: Any) -> Any:
    """Returns a column that Arrow can store without a change of meaning."""
    column: Sequence[Any] | None = _listed(values)
    if column is None:
        return None
    if name == "references":
        return [chr(code) for code in gold_codes(column)]
    return [_storable(value, keep=name not in _TEXTS) for value in column]


def _storable(value: Any, keep: bool) -> str | None:
    """Returns text without lone surrogates, which no rule depends on; None for other values, unless ``keep``."""
    if value is None or not (keep or isinstance(value, str)):
        return None
    text = str(value)
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
