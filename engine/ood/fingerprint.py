"""How unlike in coarse layout the image is to every known one, whatever the network makes of it."""

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelError
from engine.ood.base import State, distance_to_kth, fitted, some
from engine.records import Observations

__all__ = ["FingerprintDetector"]


class FingerprintDetector:
    """1 − Pearson's r of the fingerprint to that of its k-th nearest known image, in [0, 2].

    A network that has learned a few kinds of images finds one of them in anything with a
    body, a contour and a background: z of anatomy that it never saw lies among the known.
    The 8 × 8 means of the image itself do not, since nothing was learned to forget in them.
    The image fingerprint is that of Nan et al., Medical Image Analysis 2025, who use it in
    training; the detector is ours.

    Args:
        k: which neighbour; the farthest known image where there are fewer.
    """

    name: ClassVar[str] = "fingerprint"
    needs: ClassVar[tuple[str, ...]] = ("fingerprint",)

    def __init__(self, k: int = 1) -> None:
        self.k = k
        self._reference: NDArray[np.float32] | None = None

    def fit(self, known: Observations, labels: NDArray[np.int64] | None = None) -> Self:  # noqa: ARG002
        """Keeps the known images' fingerprints, rounded to what is stored of them.

        Raises:
            ModelError: there is no image, or their fingerprints were not observed.
        """
        centred = _centred(some(known, self.name))
        self._reference = centred.astype(np.float16).astype(np.float32)
        return self

    def score(self, observations: Observations) -> NDArray[np.float32]:
        """float32 (N,) in [0, 2]; 1 for an image without any contrast."""
        reference = fitted(self._reference, self.name)
        return distance_to_kth(_centred(observations), reference, self.k)

    def state(self) -> State:
        """reference: float16 (R, F), centred and of unit length. k: int64 (1,)."""
        reference = fitted(self._reference, self.name)
        return {"reference": reference.astype(np.float16), "k": np.array([self.k])}

    @classmethod
    def from_state(cls, state: State) -> Self:
        detector = cls(int(state["k"].item()))
        detector._reference = state["reference"].astype(np.float32)
        return detector


def _centred(observations: Observations) -> NDArray[np.float32]:
    """The fingerprints, float32 (N, F), each minus its mean and of unit length."""
    found = observations.fingerprint
    if found is None:
        raise ModelError(
            "detector 'fingerprint' looks at the image itself, and only its code is known; "
            "observe the image, or leave this detector out"
        )
    centred = found - found.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.where(length > 1e-3, centred / np.maximum(length, 1e-3), 0)
    return unit.astype(np.float32)
