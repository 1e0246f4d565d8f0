"""Detector "vim": the part of z outside the subspace of known images, compared with the logits."""

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelError
from engine.ood.base import State, fitted, log_sum_exp, logits_of, some
from engine.records import Observations

__all__ = ["VimDetector"]


class VimDetector:
    """The log odds of a virtual class, α‖residual of z‖ − log Σ exp(logits), unbounded.

    The residual is the part of z outside the principal subspace of known images. Wang et al.,
    "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022. There the features are the
    input of the last linear layer, whose bias gives the origin; here nonlinear layers lie between z
    and the logits, so the origin is the mean z of the known images.

    Args:
        principal: dimensions of the principal subspace; None = half of those of z.
    """

    name: ClassVar[str] = "vim"
    needs: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(self, principal: int | None = None) -> None:
        self.principal = principal
        self._origin: NDArray[np.float32] | None = None
        self._residual: NDArray[np.float32] | None = None

    def fit(self, known: Observations, labels: NDArray[np.int64] | None = None) -> Self:  # noqa: ARG002
        """Computes the principal subspace and α.

        α is chosen so that the virtual logits of the known images are on average as large as their
        largest logits.

        Raises:
            ModelError: there are no images or no logits, ``principal`` leaves no dimension for the
                residual, or the largest logits are not positive on average, so that no α exists.
        """
        logits, z = logits_of(known, self.name), some(known, self.name).z.astype(np.float64)
        dim = z.shape[1]
        principal = dim // 2 if self.principal is None else self.principal
        if not 0 <= principal < dim:
            raise ModelError(
                f"principal is {principal} and z has {dim} dimensions; leave some for the residual"
            )
        origin = z.mean(axis=0)
        _, vectors = np.linalg.eigh((z - origin).T @ (z - origin))
        directions = vectors[:, : dim - principal]  # eigenvalues ascend
        residual = np.linalg.norm((z - origin) @ directions, axis=1).mean()
        top = float(logits.max(axis=1).mean())
        if top <= 0:
            raise ModelError(
                f"the largest logits of known images are {top:.3g} on average, which no virtual "
                "logit can match; use the detector 'energy' instead"
            )
        # α is multiplied into the directions, so that each has length α.
        scale = top / max(float(residual), 1e-12)
        self._origin = origin.astype(np.float32)
        self._residual = (directions * scale).astype(np.float32)
        return self

    def score(self, observations: Observations) -> NDArray[np.float32]:
        """float32 (N,)."""
        origin, residual = fitted(self._origin, self.name), fitted(self._residual, self.name)
        logits = logits_of(observations, self.name)
        virtual = np.linalg.norm((observations.z - origin) @ residual, axis=1)
        score: NDArray[np.float32] = (virtual - log_sum_exp(logits)).astype(np.float32)
        return score

    def state(self) -> State:
        """origin: float32 (D,). residual: float32 (D, R), orthogonal, each of length α."""
        return {
            "origin": fitted(self._origin, self.name),
            "residual": fitted(self._residual, self.name),
        }

    @classmethod
    def from_state(cls, state: State) -> Self:
        dim, rest = state["residual"].shape
        detector = cls(dim - rest)
        detector._origin, detector._residual = state["origin"], state["residual"]
        return detector
