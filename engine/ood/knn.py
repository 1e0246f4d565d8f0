"""Detector "knn": distance of z to the k-th nearest known image."""

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from engine.ood.base import Reference, State, fitted, nearest, some
from engine.records import Observations

__all__ = ["KnnDetector"]


class KnnDetector:
    """1 − cosine of z to its k-th nearest known image, in [0, 2].

    Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022.

    Args:
        k: which neighbour; the farthest known image if there are fewer than k.
    """

    name: ClassVar[str] = "knn"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, k: int = 10) -> None:
        self.k = k
        self._reference: Reference | None = None

    @property
    def reference(self) -> NDArray[np.float32]:
        """float32 (R, D), z of the known images. Raises ModelError: not fitted."""
        return fitted(self._reference, self.name).rows

    def fit(self, known: Observations, labels: NDArray[np.int64] | None = None) -> Self:  # noqa: ARG002
        """Keeps z of the known images, rounded to float16 as it is stored.

        Raises:
            ModelError: there are no images.
        """
        # float16 changes a score by at most 1e-4, and halves the size of the stored gate.
        kept = some(known, self.name).z.astype(np.float16).astype(np.float32)
        self._reference = Reference.of(kept)
        return self

    def score(self, observations: Observations) -> NDArray[np.float32]:
        """float32 (N,) in [0, 2]."""
        distances, _ = nearest(observations.z, fitted(self._reference, self.name), self.k)
        # |a − b|² = 2 − 2 a·b, of unit vectors.
        return (np.square(distances[:, -1]) / 2).astype(np.float32)

    def state(self) -> State:
        """reference: float16 (R, D). k: int64 (1,)."""
        return {"reference": self.reference.astype(np.float16), "k": np.array([self.k])}

    @classmethod
    def from_state(cls, state: State) -> Self:
        detector = cls(int(state["k"].item()))
        detector._reference = Reference.of(state["reference"].astype(np.float32))
        return detector
