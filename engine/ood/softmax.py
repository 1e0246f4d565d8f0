"""Detector "max-softmax": uncertainty of the classifier."""

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from engine.ood.base import State, logits_of
from engine.records import Observations

__all__ = ["MaxSoftmaxDetector"]


class MaxSoftmaxDetector:
    """1 − the largest softmax probability, in [0, 1 − 1/C].

    Hendrycks & Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
    Examples in Neural Networks", ICLR 2017.
    """

    name: ClassVar[str] = "max-softmax"
    needs: ClassVar[tuple[str, ...]] = ("logits",)

    def fit(self, known: Observations, labels: NDArray[np.int64] | None = None) -> Self:  # noqa: ARG002
        """Learns nothing. Raises ModelError: there are no logits."""
        logits_of(known, self.name)
        return self

    def score(self, observations: Observations) -> NDArray[np.float32]:
        """float32 (N,) in [0, 1 − 1/C]."""
        logits = np.sort(logits_of(observations, self.name).astype(np.float64), axis=1)
        odds = np.exp(logits[:, :-1] - logits[:, -1:]).sum(axis=1)
        # The summed probability of the other classes: 1 − the largest would round to 0.
        share: NDArray[np.float32] = (odds / (1 + odds)).astype(np.float32)
        return share

    def state(self) -> State:
        return {}

    @classmethod
    def from_state(cls, state: State) -> Self:  # noqa: ARG003
        return cls()
