"""Cohen's kappa of two reviewers, with an interval that takes patients as the sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from dataset_script.review.decisions import VERDICTS
from scale_vqa_eval.scale_vqa_acc.clustered import clopper_pearson, cluster_codes


@dataclass(frozen=True)
class Agreement:
    """How far two reviewers agree.

    Attributes:
        n: items that both reviewed.
        clusters: patients (slides, items) that these come from.
        observed: share of items with the same verdict.
        kappa: None where it is undefined: both gave one and the same verdict throughout.
        interval: 95%; None where kappa is undefined or there is one cluster.
        method: ``jackknife``, ``clopper-pearson`` (no disagreement, or no spread between clusters) or ``undefined``.
        table: (3, 3) counts, rows the first reviewer's ``VERDICTS``, columns the second's.
    """

    n: int
    clusters: int
    observed: float
    kappa: float | None
    interval: tuple[float, float] | None
    method: str
    table: tuple[tuple[int, ...], ...]


def cohen_kappa(table: npt.NDArray[np.int64]) -> float:
    """Returns (p_o - p_e) / (1 - p_e) of a square table of counts; nan where p_e is 1 or the table is empty.

    Cohen, Educational and Psychological Measurement 20:37, 1960.
    """
    total = int(table.sum())
    if total == 0:
        return math.nan
    observed = float(np.trace(table)) / total
    expected = float(table.sum(0) @ table.sum(1)) / total**2
    return (observed - expected) / (1 - expected) if expected < 1 else math.nan


def agreement(first: Sequence[str], second: Sequence[str], clusters: Sequence[str], level: float = 0.95) -> Agreement:
    """Compares the verdicts of two reviewers on n items.

    The interval is the delete-one-cluster jackknife's, with t at C-1 degrees of freedom (Efron and Tibshirani 1993,
    chapter 11): five questions of one path are not five independent ones. Where the jackknife shows no spread, as
    when the two never differ, the lower end comes from Clopper-Pearson for the observed agreement, clusters as the
    sample, at the expected agreement found.

    Args:
        first: (n,) verdicts of one.
        second: (n,) verdicts of the other, of the same items.
        clusters: (n,) patient of each item.
        level: confidence level.

    >>> found = agreement(["accept", "reject", "accept", "edit"], ["accept", "reject", "edit", "edit"], list("abcd"))
    >>> round(found.kappa, 3), found.n, found.observed
    (0.636, 4, 0.75)
    """
    codes, count = cluster_codes(list(clusters))
    tables = np.zeros((count, len(VERDICTS), len(VERDICTS)), np.int64)
    rows, columns = ([VERDICTS.index(verdict) for verdict in verdicts] for verdicts in (first, second))
    np.add.at(tables, (codes, rows, columns), 1)
    table = tables.sum(0)
    kappa = cohen_kappa(table)
    observed = float(np.trace(table)) / len(rows)
    interval, method = _interval(table, tables, kappa, observed, level)
    counts = tuple(tuple(int(value) for value in row) for row in table)
    return Agreement(len(rows), count, observed, None if math.isnan(kappa) else kappa, interval, method, counts)


def _interval(
    table: npt.NDArray[np.int64], tables: npt.NDArray[np.int64], kappa: float, observed: float, level: float
) -> tuple[tuple[float, float] | None, str]:
    count = len(tables)
    if math.isnan(kappa) or count < 2:
        return None, "undefined"
    left_out = np.array([cohen_kappa(table - one) for one in tables])
    if np.isnan(left_out).any():
        return None, "undefined"
    error = math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))
    if error > 1e-12:
        half = stdtrit(count - 1, 0.5 + level / 2) * error
        return (max(-1.0, kappa - half), min(1.0, kappa + half)), "jackknife"
    expected = (observed - kappa) / (1 - kappa) if kappa < 1 else float(table.sum(0) @ table.sum(1)) / table.sum() ** 2
    low, high = clopper_pearson(observed, count, level)
    ends = [max(-1.0, min(1.0, (end - expected) / (1 - expected))) for end in (low, high)]
    return (ends[0], ends[1]), "clopper-pearson"
