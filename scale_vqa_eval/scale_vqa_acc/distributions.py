"""Student's t and the beta distribution from the standard library alone, so that the metric needs no SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

_TINY = 1e-300
_NORMAL_FROM = 1e7  # degrees of freedom from which t and normal agree to 1e-7


def beta_cdf(x: float, a: float, b: float) -> float:
    """Returns the regularised incomplete beta function I_x(a, b) for a, b > 0.

    Continued fraction of DLMF 8.17.22, evaluated by the modified Lentz method.
    """
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):  # the fraction converges fast on the other side only
        return 1.0 - beta_cdf(1.0 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(front) / a / _continued_fraction(x, a, b)


def beta_quantile(p: float, a: float, b: float) -> float:
    """Returns x with I_x(a, b) = p, by bisection."""
    return _bisect(lambda x: beta_cdf(x, a, b), p, 0.0, 1.0)


def t_tail(t: float, df: float) -> float:
    """Returns P(T > t) for Student's t with ``df`` degrees of freedom."""
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    if df >= _NORMAL_FROM:
        return NormalDist().cdf(-t)
    # in the middle I_{t^2/(df+t^2)}(1/2, df/2) keeps digits of t, in the tail the other form keeps digits of p
    squared = t * t
    if squared < 1.0:
        half = 0.5 * (1.0 - beta_cdf(squared / (df + squared), 0.5, df / 2.0))
    else:
        half = 0.5 * beta_cdf(df / (df + squared), df / 2.0, 0.5)
    return half if t >= 0 else 1.0 - half


@lru_cache(maxsize=4096)
def t_quantile(p: float, df: float) -> float:
    """Returns the ``p`` quantile (0 < p < 1) of Student's t with ``df`` degrees of freedom.

    >>> round(t_quantile(0.975, 36), 4)
    2.0281
    """
    if not 0.0 < p < 1.0 or df <= 0:
        raise ValueError(f"t_quantile needs 0 < p < 1 and df > 0, got p={p}, df={df}")
    if p < 0.5:
        return -t_quantile(1.0 - p, df)
    if df >= _NORMAL_FROM:
        return NormalDist().inv_cdf(p)
    high = 1.0
    while t_tail(high, df) > 1.0 - p:
        high *= 2.0
    return _bisect(lambda t: -t_tail(t, df), -(1.0 - p), 0.0, high)


def _continued_fraction(x: float, a: float, b: float) -> float:
    c, d, value = 1.0, 0.0, 1.0
    for m in range(100_000):
        for step in (
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
            (m + 1) * (b - m - 1) * x / ((a + 2 * m + 1) * (a + 2 * m + 2)),
        ):
            d = 1.0 / ((1.0 + step * d) or _TINY)
            c = (1.0 + step / c) or _TINY
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def _bisect(rising: Callable[[float], float], target: float, low: float, high: float) -> float:
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return 0.5 * (low + high)
