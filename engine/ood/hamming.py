"""Detector "hamming": Hamming distance to the nearest code of a known image."""

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from engine.codes import hamming
from engine.ood.base import State, fitted, some
from engine.records import Observations

__all__ = ["HammingDetector"]


class HammingDetector:
    """Hamming distance to the nearest code of a known image, 0 … B.

    Uses the code alone: the score of Sun et al., "Out-of-Distribution Detection with Deep Nearest
    Neighbors", ICML 2022, for k = 1 and with codes in place of features.
    """

    name: ClassVar[str] = "hamming"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self._reference: NDArray[np.uint8] | None = None

    def fit(self, known: Observations, labels: NDArray[np.int64] | None = None) -> Self:  # noqa: ARG002
        """Keeps the distinct codes of the known images."""
        self._reference = np.unique(some(known, self.name).codes, axis=0)
        return self

    def score(self, observations: Observations) -> NDArray[np.float32]:
        """float32 (N,), whole numbers."""
        reference = fitted(self._reference, self.name)
        nearest = [hamming(reference, code).min() for code in observations.codes]
        return np.array(nearest, dtype=np.float32)

    def state(self) -> State:
        """reference: uint8 (R, B/8), distinct."""
        return {"reference": fitted(self._reference, self.name)}

    @classmethod
    def from_state(cls, state: State) -> Self:
        detector = cls()
        detector._reference = state["reference"]
        return detector
