"""Detector "energy": the classifier's evidence for any class at all."""

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from engine.ood.base import State, log_sum_exp, logits_of
from engine.records import Observations

__all__ = ["EnergyDetector"]


class EnergyDetector:
    """The energy −log Σ exp(logits), unbounded.

    Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, at temperature 1.
    """

    name: ClassVar[str] = "energy"
    needs: ClassVar[tuple[str, ...]] = ("logits",)

    def fit(self, known: Observations, labels: NDArray[np.int64] | None = None) -> Self:  # noqa: ARG002
        """Learns nothing. Raises ModelError: there are no logits."""
        logits_of(known, self.name)
        return self

    def score(self, observations: Observations) -> NDArray[np.float32]:
        """float32 (N,)."""
        return -log_sum_exp(logits_of(observations, self.name)).astype(np.float32)

    def state(self) -> State:
        return {}

    @classmethod
    def from_state(cls, state: State) -> Self:  # noqa: ARG003
        return cls()
