"""Confidence intervals of shares."""

import math

__all__ = ["wilson"]

_Z = 1.959963984540054
"""The 97.5th percentile of the standard normal distribution."""


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of which ``hits`` of ``n`` were seen: both ends in [0, 1].

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927. Unlike
    the usual approximation it holds for few observations and for shares near 0 and 1. Without any
    observation it is all of [0, 1].
    """
    if n == 0:
        return 0.0, 1.0
    share, square = hits / n, _Z * _Z
    centre = share + square / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    # At the ends rounding would leave a little that is not there.
    low = 0.0 if hits == 0 else (centre - half) / (1 + square / n)
    high = 1.0 if hits == n else (centre + half) / (1 + square / n)
    return low, high
