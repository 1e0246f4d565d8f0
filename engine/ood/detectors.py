"""Detectors of foreign images: fit on what is known, then score; higher = more foreign."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["KnnDetector"]


class KnnDetector:
    """Distance to the k-th nearest known image (Sun et al., ICML 2022).

    Args:
        reference: float32 (R, D), embeddings of known images, rows of unit length.
        k: which neighbour; at most R are there.
    """

    def __init__(self, reference: NDArray[np.float32], k: int = 10) -> None:
        self.reference = reference
        self.k = min(k, len(reference))

    def score(self, z: NDArray[np.float32]) -> NDArray[np.float32]:
        """1 − cosine to the k-th neighbour, float32 (N,) in [0, 2].

        Args:
            z: float32 (N, D), rows of unit length.
        """
        similarity = z @ self.reference.T
        kth: NDArray[np.float32] = np.partition(similarity, -self.k, axis=1)[:, -self.k]
        return 1 - kth
