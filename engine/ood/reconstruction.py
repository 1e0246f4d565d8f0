"""Detector "reconstruction": the error of the decoder, which was trained on known images only."""

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelError
from engine.ood.base import State, fitted, some
from engine.records import Observations

__all__ = ["ReconstructionDetector"]

_LEAST_SPREAD = 1e-3
# A class of fewer images is too small for quantiles of its own: those of all images are used.
_FEWEST = 20


class ReconstructionDetector:
    """The decoder's reconstruction error, standardised within the class of the query.

    Nan et al., "Revisiting Medical Image Retrieval via Knowledge Consolidation", Medical Image
    Analysis 2025, use the error itself. But some classes are harder to reconstruct than others,
    and one threshold for all would call many of their images foreign. So the median error of the
    class is subtracted, and the difference is divided by the interquartile range of the class. The
    class is the one whose mean z is nearest.
    """

    name: ClassVar[str] = "reconstruction"
    needs: ClassVar[tuple[str, ...]] = ("reconstruction",)

    def __init__(self) -> None:
        self._means: NDArray[np.float32] | None = None
        self._levels = np.zeros((0, 2), dtype=np.float32)

    def fit(self, known: Observations, labels: NDArray[np.int64] | None = None) -> Self:
        """Computes for each class its mean z, and median and interquartile range of its errors.

        Args:
            known: observations of R known images.
            labels: int64 (R,), their classes; None = those that the classifier predicts, or a
                single class if the model has no classifier.

        Raises:
            ModelError: there are no images, or ``known.reconstruction`` is None.
        """
        errors = _reconstruction(some(known, self.name))
        if labels is None:
            labels = (
                np.zeros(len(known), dtype=np.int64)
                if known.logits is None
                else known.logits.argmax(axis=1)
            )
        means, levels = [], []
        for label in np.unique(labels):
            of_class = labels == label
            means.append(known.z[of_class].mean(axis=0))
            among = errors[of_class] if of_class.sum() >= _FEWEST else errors
            low, middle, high = np.quantile(among, [0.25, 0.5, 0.75])
            levels.append((middle, max(high - low, _LEAST_SPREAD)))
        self._means = np.array(means, dtype=np.float32)
        self._levels = np.array(levels, dtype=np.float32)
        return self

    def score(self, observations: Observations) -> NDArray[np.float32]:
        """float32 (N,), in interquartile ranges above the median error of the class."""
        means = fitted(self._means, self.name)
        errors = _reconstruction(observations)
        lengths = np.maximum(np.linalg.norm(means, axis=1), _LEAST_SPREAD)
        kind = (observations.z @ means.T / lengths).argmax(axis=1)
        middle, spread = self._levels[kind].T
        scores: NDArray[np.float32] = ((errors - middle) / spread).astype(np.float32)
        return scores

    def state(self) -> State:
        """means: float32 (C, D), of z. levels: float32 (C, 2), median and interquartile range
        of the errors.
        """
        return {"means": fitted(self._means, self.name), "levels": self._levels}

    @classmethod
    def from_state(cls, state: State) -> Self:
        detector = cls()
        detector._means = state["means"].astype(np.float32)
        detector._levels = state["levels"].astype(np.float32).reshape(-1, 2)
        return detector


def _reconstruction(observations: Observations) -> NDArray[np.float32]:
    if observations.reconstruction is None:
        raise ModelError(
            "detector 'reconstruction' looks at what a decoder makes of the image, and there is "
            "none; train a decoder for this model, observe the image itself, or leave this "
            "detector out"
        )
    return observations.reconstruction
