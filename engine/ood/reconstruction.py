"""How badly the decoder, which learnt to rebuild known images, rebuilds this one."""

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelError
from engine.ood.base import State
from engine.records import Observations

__all__ = ["ReconstructionDetector"]


class ReconstructionDetector:
    """1 − Pearson between the image and its reconstruction, in [0, 2].

    Nan et al., "Revisiting Medical Image Retrieval via Knowledge Consolidation", Medical Image
    Analysis 2025. Their squared error is small for any dark image; Pearson's r is not.
    """

    name: ClassVar[str] = "reconstruction"
    needs: ClassVar[tuple[str, ...]] = ("reconstruction",)

    def fit(self, known: Observations, labels: NDArray[np.int64] | None = None) -> Self:  # noqa: ARG002
        """Learns nothing: the decoder has. Raises ModelError: there was none."""
        _reconstruction(known)
        return self

    def score(self, observations: Observations) -> NDArray[np.float32]:
        """float32 (N,) in [0, 2]."""
        return _reconstruction(observations)

    def state(self) -> State:
        return {}

    @classmethod
    def from_state(cls, state: State) -> Self:  # noqa: ARG003
        return cls()


def _reconstruction(observations: Observations) -> NDArray[np.float32]:
    if observations.reconstruction is None:
        raise ModelError(
            "detector 'reconstruction' looks at what a decoder makes of the image, and there is "
            "none; train a decoder for this model, observe the image itself, or leave this "
            "detector out"
        )
    return observations.reconstruction
