"""Cosine similarity of stored vectors that does not depend on a vector's row, to the last bit.

A matrix product may round the same row differently at another position in the matrix. Then the
order of hits could depend on the order of the archive, and a pair of images could lie above or
below a threshold by chance. So the products are summed row by row, in float64.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["cosines", "unit"]


def unit(z: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows (..., D) scaled to unit length, float64; rounding to float16 has changed it slightly."""
    rows = z.astype(np.float64, order="C")
    lengths = np.sqrt((rows * rows).sum(axis=-1, keepdims=True))
    scaled: NDArray[np.float64] = rows / lengths
    return scaled


def cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cosine of each row of ``a`` with that of ``b``: float64 (N,) in [-1, 1].

    Args:
        a: float64 (N, D), unit rows.
        b: float64 (N, D), unit rows, or (D,), one vector for all rows of ``a``.
    """
    found: NDArray[np.float64] = (a * b).sum(axis=-1).clip(-1.0, 1.0)
    return found
