"""Detector "appearance": distance of an image's layout and spectrum to those of known images."""

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelError
from engine.ood.base import Reference, State, fitted, nearest, some
from engine.records import Observations

__all__ = ["AppearanceDetector"]

_LEAST_SPACING = 1e-3


class AppearanceDetector:
    """Distance in layout and spectrum to known images, relative to how dense these are nearby.

    A network trained on a few kinds of images maps anything with a body, a contour and a background
    to one of them, so z of unseen anatomy lies among the z of known images. Layout and spectrum are
    computed from the image itself without training, so they do not lose that difference.

    The score is the geometric mean of two: the distance to the k-th nearest known image
    (Ramaswamy et al., SIGMOD 2000), and that distance divided by the mean distance of the k
    neighbours to their own k-th neighbours, as in the local outlier factor (Breunig et al., SIGMOD
    2000). Some kinds of images resemble each other much more than others do. Near these, the first
    distance alone misses foreign images, and the second calls every unusual known image foreign.

    Args:
        k: number of neighbours; all known images if there are fewer.
    """

    name: ClassVar[str] = "appearance"
    needs: ClassVar[tuple[str, ...]] = ("appearance",)

    def __init__(self, k: int = 10) -> None:
        self.k = k
        self._origin = np.zeros(0, dtype=np.float32)
        self._reference: Reference | None = None
        self._spacing = np.zeros(0, dtype=np.float32)

    def fit(self, known: Observations, labels: NDArray[np.int64] | None = None) -> Self:  # noqa: ARG002
        """Keeps the appearance of the known images, and the distance of each to its k-th neighbour.

        Raises:
            ModelError: there are no images, or ``known.appearance`` is None.
        """
        looks = _looks(some(known, self.name))
        self._origin = looks.mean(axis=0)
        # float16 changes a distance by at most 1e-3, and halves the size of the stored gate.
        kept = (looks - self._origin).astype(np.float16).astype(np.float32)
        self._reference = Reference.of(kept)
        # k + 1, as the nearest image is the image itself.
        own, _ = nearest(kept, self._reference, self.k + 1)
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
        """The arrays to store.

        origin: float32 (384,), mean of the known images. reference: float16 (R, 384), the known
        images relative to it. spacing: float32 (R,), distance of each to its k-th neighbour.
        k: int64 (1,).
        """
        return {
            "origin": self._origin,
            "reference": fitted(self._reference, self.name).rows.astype(np.float16),
            "spacing": self._spacing,
            "k": np.array([self.k]),
        }

    @classmethod
    def from_state(cls, state: State) -> Self:
        detector = cls(int(state["k"].item()))
        detector._origin, detector._spacing = state["origin"], state["spacing"]
        detector._reference = Reference.of(state["reference"].astype(np.float32))
        return detector


def _looks(observations: Observations) -> NDArray[np.float32]:
    if observations.appearance is None:
        raise ModelError(
            "detector 'appearance' looks at the image itself, and only its code is known; observe "
            "the image, or leave this detector out"
        )
    return observations.appearance
