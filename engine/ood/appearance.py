"""How unlike in looks the image is to every known one, whatever the network makes of it."""

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelError
from engine.ood.base import State, fitted, nearest, some
from engine.records import Observations

__all__ = ["AppearanceDetector"]

_LEAST_SPACING = 1e-3


class AppearanceDetector:
    """Distance in layout and spectrum to known images, for how densely these lie there.

    A network that has learned a few kinds of images finds one of them in anything with a body,
    a contour and a background: z of anatomy that it never saw lies among the known. The looks
    of the image itself do not, since nothing was learned to forget in them.

    The score is the geometric mean of two: the distance to the k-th nearest known image
    (Ramaswamy et al., SIGMOD 2000), and that distance over the same distance of the neighbours
    themselves, as in the local outlier factor (Breunig et al., SIGMOD 2000). Some kinds of
    images are much more alike among themselves than others: the first alone misses what lies
    just beside those, the second calls every unusual image of them foreign.

    Args:
        k: how many neighbours; all known images where there are fewer.
    """

    name: ClassVar[str] = "appearance"
    needs: ClassVar[tuple[str, ...]] = ("appearance",)

    def __init__(self, k: int = 10) -> None:
        self.k = k
        self._origin = np.zeros(0, dtype=np.float32)
        self._reference: NDArray[np.float32] | None = None
        self._spacing = np.zeros(0, dtype=np.float32)

    def fit(self, known: Observations, labels: NDArray[np.int64] | None = None) -> Self:  # noqa: ARG002
        """Keeps how known images look, and how far each lies from its own k-th neighbour.

        Raises:
            ModelError: there is no image, or the images themselves were not observed.
        """
        looks = _looks(some(known, self.name))
        self._origin = looks.mean(axis=0)
        # float16 moves a distance by 1e-3 at most, and halves the stored gate.
        self._reference = (looks - self._origin).astype(np.float16).astype(np.float32)
        # The nearest is the image itself.
        own, _ = nearest(self._reference, self._reference, self.k + 1)
        self._spacing = np.maximum(own[:, -1], _LEAST_SPACING)
        return self

    def score(self, observations: Observations) -> NDArray[np.float32]:
        """float32 (N,), at least 0."""
        reference = fitted(self._reference, self.name)
        distances, neighbours = nearest(_looks(observations) - self._origin, reference, self.k)
        spacing = self._spacing[neighbours].mean(axis=1)
        scores: NDArray[np.float32] = distances[:, -1] / np.sqrt(spacing)
        return scores

    def state(self) -> State:
        """origin: float32 (384,). reference: float16 (R, 384), from there. spacing: float32
        (R,). k: int64 (1,).
        """
        return {
            "origin": self._origin,
            "reference": fitted(self._reference, self.name).astype(np.float16),
            "spacing": self._spacing,
            "k": np.array([self.k]),
        }

    @classmethod
    def from_state(cls, state: State) -> Self:
        detector = cls(int(state["k"].item()))
        detector._origin, detector._spacing = state["origin"], state["spacing"]
        detector._reference = state["reference"].astype(np.float32)
        return detector


def _looks(observations: Observations) -> NDArray[np.float32]:
    if observations.appearance is None:
        raise ModelError(
            "detector 'appearance' looks at the image itself, and only its code is known; observe "
            "the image, or leave this detector out"
        )
    return observations.appearance
