"""Compares two models on the same questions: paired, clustered by patient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.scale_vqa_acc.clustered import (
    cluster_codes,
    holm,
    mcnemar_exact,
    minimum_detectable_effect,
    paired_difference,
)
from scale_vqa_eval.scoring.score import Answers, check_same_asks, dimension_order

Numbers = npt.NDArray[np.float64]


def compare_answers(a: Answers, b: Answers) -> dict[str, Any]:
    """Compares A with B over all questions and by dimension.

    Returns:
        a_accuracy, b_accuracy, difference (A - B), interval, standard_error, p_value, n, clusters, mcnemar,
        minimum_detectable_effect (80% power, two-sided 5%; None where it is undefined) and by_dimension, each with
        the same figures and ``p_holm``, the p-value corrected over the dimensions (Holm 1979).

    Raises:
        InputError: where the two were not asked the same questions under the same turns of their options.
    """
    check_same_asks(a, b)
    codes, _ = cluster_codes(a.clusters)
    names = a.dimensions or []
    parts = {}
    for name in sorted(set(names), key=dimension_order):
        rows = np.array([place for place, own in enumerate(names) if own == name])
        parts["none" if name is None else name] = _compared(a.correct[rows], b.correct[rows], codes[rows])
    for part, corrected in zip(parts.values(), holm([part["p_value"] for part in parts.values()]), strict=True):
        part["p_holm"] = corrected
    return {
        **_compared(a.correct, b.correct, codes),
        "clustered": any(question.patient or question.slide for question in a.questions),
        "by_dimension": parts,
    }


def _compared(left: Numbers, right: Numbers, codes: npt.NDArray[np.int64]) -> dict[str, Any]:
    paired = paired_difference(left, right, codes)
    figures: Mapping[str, Any] = paired.as_dict()
    tested = mcnemar_exact(left, right)
    effect = minimum_detectable_effect(paired.standard_error, paired.clusters)
    return {
        "a_accuracy": float(left.mean()),
        "b_accuracy": float(right.mean()),
        "difference": figures["difference"],
        "interval": [figures["ci_low"], figures["ci_high"]],
        "interval_method": figures["method"],
        "standard_error": figures["standard_error"],
        "p_value": figures["p_value"],
        "n": figures["n"],
        "clusters": figures["clusters"],
        "mcnemar": {"only_a": tested.only_a, "only_b": tested.only_b, "p_value": tested.p_value},
        "minimum_detectable_effect": None if np.isnan(effect) else effect,
    }
