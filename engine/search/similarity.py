"""Similarity of stored vectors, the same to the last bit wherever a vector stands.

A matrix product may round a row differently in another place of the matrix; lists that are
the same on a shuffled archive, and thresholds that mean what they say, cannot have that.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["cosines", "unit"]


def unit(z: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows (N, D) of unit length. Stored as float16, their length is one only nearly."""
    rows = z.astype(np.float64, order="C")
    lengths = np.sqrt((rows * rows).sum(axis=-1, keepdims=True))
    scaled: NDArray[np.float64] = rows / lengths
    return scaled


def cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row by row: float64 (N, D) unit rows, and (N, D) or one of (D,) → (N,) in [-1, 1]."""
    found: NDArray[np.float64] = (a * b).sum(axis=-1).clip(-1.0, 1.0)
    return found
