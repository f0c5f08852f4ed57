"""A listwise linear model: the gold option of a question by a softmax over that question's own options.

McFadden's conditional logit (1974), with a ridge penalty. It sees differences between the options of one question
only: whatever they share cancels, so no column needs to be centred.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scale_vqa_eval.audit.layout import FloatArray, IntArray, OptionLayout


def fit_listwise(matrix: Any, layout: OptionLayout, gold: IntArray, strength: float = 10.0) -> FloatArray:
    """Fits the weights (f,) that minimise 1/2 |w|^2 + strength * sum over questions of -log p(gold).

    Args:
        matrix: (N, f) sparse or dense columns of all options.
        layout: where each question's options stand.
        gold: (n,) 0-based gold option of each question.
        strength: inverse of the ridge penalty.
    """
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    transposed = matrix.T.tocsr() if hasattr(matrix, "tocsr") else np.ascontiguousarray(matrix.T)
    at = layout.starts + gold

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        values = matrix @ weights
        top = np.maximum.reduceat(values, layout.starts)
        raised = np.exp(values - top[layout.owner])
        total = np.add.reduceat(raised, layout.starts)
        slope = raised / total[layout.owner]
        slope[at] -= 1.0
        missed = float((np.log(total) + top - values[at]).sum())
        return strength * missed + 0.5 * float(weights @ weights), strength * (transposed @ slope) + weights

    start = np.zeros(matrix.shape[1])
    with threadpool_limits(1):  # the vectors are short: threads of the linear algebra would only wait for each other
        return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x)
