"""Detector "exposure": on which side of a plane between known and foreign images one lies."""

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelError
from engine.ood.base import State, fitted, some
from engine.records import Observations

__all__ = ["ExposureDetector"]

_SHRINKAGE = 0.02


class ExposureDetector:
    """A linear discriminant of known images and of foreign ones that were shown to it.

    It looks at the tower's maps and at the image's appearance, not at z: training pulls all that
    is of one class to one place in z, and the rest of the world with it. What tells photographs,
    pages and drawings from radiographs and slices is the same whatever the scanner, so known kinds
    from other hospitals pass. Two classes of equal weight, ridge regression on −1 and 1; the idea
    is outlier exposure (Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", ICLR
    2019).

    Args:
        foreign: observations of foreign images of several kinds; None = :meth:`fit` refuses.
    """

    name: ClassVar[str] = "exposure"
    needs: ClassVar[tuple[str, ...]] = ("appearance", "maps")

    def __init__(self, foreign: Observations | None = None) -> None:
        self._foreign = None if foreign is None else _features(some(foreign, self.name))
        self._weights: NDArray[np.float32] | None = None
        self._offset = 0.0

    def fit(self, known: Observations, labels: NDArray[np.int64] | None = None) -> Self:  # noqa: ARG002
        """Finds the plane between the known images and the foreign ones.

        Raises:
            ModelError: there are no images, no foreign ones were given, or ``known.appearance`` or
                ``known.maps`` is None.
        """
        ours = _features(some(known, self.name)).astype(np.float64)
        if self._foreign is None:
            raise ModelError(
                "detector 'exposure' tells known images from foreign ones that it was shown, and "
                "was shown none; calibrate a model whose gate has it, or leave this detector out"
            )
        theirs = self._foreign.astype(np.float64)
        if theirs.shape[1] != ours.shape[1]:
            raise ModelError(
                f"detector 'exposure' was shown foreign images with {theirs.shape[1]} features, "
                f"the known ones have {ours.shape[1]}; take those of the same model"
            )
        middle = (ours.mean(axis=0) + theirs.mean(axis=0)) / 2
        # Each class weighs one half, whatever its number of images.
        scatter = sum(
            (part - middle).T @ (part - middle) / (2 * len(part)) for part in (ours, theirs)
        )
        ridge = _SHRINKAGE * np.trace(scatter) / len(scatter) + np.finfo(float).tiny
        apart = (theirs.mean(axis=0) - ours.mean(axis=0)) / 2
        weights = np.linalg.solve(scatter + ridge * np.eye(len(scatter)), apart)
        self._weights = weights.astype(np.float32)
        self._offset = float(middle @ weights)
        return self

    def score(self, observations: Observations) -> NDArray[np.float32]:
        """float32 (N,), around −1 for known images and 1 for those like the foreign ones shown."""
        weights = fitted(self._weights, self.name)
        scores: NDArray[np.float32] = _features(observations) @ weights - np.float32(self._offset)
        return scores

    def state(self) -> State:
        """weights: float32 (F,). offset: float64 (1,). foreign: float16 (E, F), the features of the
        foreign images, from which another archive's gate is made."""
        weights = fitted(self._weights, self.name)
        foreign = np.zeros((0, len(weights))) if self._foreign is None else self._foreign
        return {
            "weights": weights,
            "offset": np.array([self._offset]),
            "foreign": foreign.astype(np.float16),
        }

    @classmethod
    def from_state(cls, state: State) -> Self:
        detector = cls()
        detector._weights, detector._offset = state["weights"], float(state["offset"].item())
        detector._foreign = state["foreign"].astype(np.float32)
        return detector

    def unfitted(self) -> Self:
        """Another detector that was shown the same foreign images."""
        other = type(self)()
        other._foreign = self._foreign
        return other


def _features(observations: Observations) -> NDArray[np.float32]:
    """Appearance and maps side by side, float32 (N, F)."""
    if observations.appearance is None or observations.maps is None:
        raise ModelError(
            "detector 'exposure' looks at the image itself, and only its code is known; observe "
            "the image, or leave this detector out"
        )
    return np.concatenate([observations.appearance, observations.maps], axis=1)
