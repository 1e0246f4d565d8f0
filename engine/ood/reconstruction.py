"""How badly the decoder, which learnt to rebuild known images, rebuilds this one."""

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelError
from engine.ood.base import State, fitted, some
from engine.records import Observations

__all__ = ["ReconstructionDetector"]

_LEAST_SPREAD = 1e-3
# A kind of fewer images says little of its own spread: it is judged by all images'.
_FEWEST = 20


class ReconstructionDetector:
    """The decoder's error, standardised among known images of the kind the query looks like.

    Nan et al., "Revisiting Medical Image Retrieval via Knowledge Consolidation", Medical Image
    Analysis 2025, compare errors as they are. But some kinds of images are harder to rebuild
    than others, and one threshold for all calls many of the hard ones foreign: from each error
    the median of the kind is taken, and the rest divided by the kind's interquartile range.
    The kind is that of the nearest class mean in z.
    """

    name: ClassVar[str] = "reconstruction"
    needs: ClassVar[tuple[str, ...]] = ("reconstruction",)

    def __init__(self) -> None:
        self._means: NDArray[np.float32] | None = None
        self._levels = np.zeros((0, 2), dtype=np.float32)

    def fit(self, known: Observations, labels: NDArray[np.int64] | None = None) -> Self:
        """Learns each class's mean z and errors; without labels, of the classes that the
        model predicts, or of all images together when it has no classifier.

        Raises:
            ModelError: there is no image, or there was no decoder.
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
        """float32 (N,), in interquartile ranges above the median of its kind."""
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
