"""Detector "mahalanobis": Mahalanobis distance of z to the nearest class mean."""

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelError
from engine.ood.base import State, fitted, some
from engine.records import Observations

__all__ = ["MahalanobisDetector", "ledoit_wolf"]


class MahalanobisDetector:
    """Squared Mahalanobis distance of z to the nearest class mean; all classes share a covariance.

    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
    Adversarial Attacks", NeurIPS 2018. The covariance is shrunk (:func:`ledoit_wolf`), as z has
    nearly as many dimensions as a small class has images.
    """

    name: ClassVar[str] = "mahalanobis"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self._whiten: NDArray[np.float32] | None = None
        self._means: NDArray[np.float32] | None = None

    def fit(self, known: Observations, labels: NDArray[np.int64] | None = None) -> Self:
        """Computes the class means and the covariance.

        Args:
            known: observations of R known images.
            labels: int64 (R,), their classes; None = those that the classifier predicts, or a
                single class if the model has no classifier.

        Raises:
            ModelError: there are no images, or no class has two different ones.
        """
        z = some(known, self.name).z.astype(np.float64)
        if labels is None:
            no_classes = np.zeros(len(z), dtype=np.int64)
            labels = no_classes if known.logits is None else known.logits.argmax(axis=1)
        _, classes = np.unique(labels, return_inverse=True)
        means = np.stack([z[classes == c].mean(axis=0) for c in range(classes.max() + 1)])
        covariance, _ = ledoit_wolf(z - means[classes])
        values, vectors = np.linalg.eigh(covariance)
        if not values[-1] > 0:
            raise ModelError(
                f"detector 'mahalanobis' was given {len(z)} known images in {len(means)} classes "
                "that do not spread at all; fit it on several images of each class"
            )
        # Leave out directions without variance; there is one, as z is centred.
        weights = (values > 1e-12 * values[-1]) / np.sqrt(np.maximum(values, 1e-300))
        self._whiten = (vectors * weights).astype(np.float32)
        self._means = (means @ self._whiten).astype(np.float32)
        return self

    def score(self, observations: Observations) -> NDArray[np.float32]:
        """float32 (N,), at least 0."""
        whiten, means = fitted(self._whiten, self.name), fitted(self._means, self.name)
        white = observations.z @ whiten
        distances = [np.square(white - mean).sum(axis=1) for mean in means]
        nearest: NDArray[np.float32] = np.min(distances, axis=0)
        return nearest

    def state(self) -> State:
        """whiten: float32 (D, D), maps z to unit covariance. means: float32 (C, D), whitened."""
        return {
            "whiten": fitted(self._whiten, self.name),
            "means": fitted(self._means, self.name),
        }

    @classmethod
    def from_state(cls, state: State) -> Self:
        detector = cls()
        detector._whiten, detector._means = state["whiten"], state["means"]
        return detector


def ledoit_wolf(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """The Ledoit–Wolf covariance (1 − ρ) S + ρ μ I, float64 (D, D), and the shrinkage ρ in [0, 1].

    Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices",
    Journal of Multivariate Analysis 88, 2004, section 3.2: S = XᵀX/n, μ = tr S / D,
    d² = ‖S − μI‖², b² = min(d², n⁻² Σ ‖xxᵀ − S‖²), ρ = b²/d².

    Args:
        x: float64 (n, D), with mean zero, or with the mean of its class subtracted from each row.
    """
    n, dim = x.shape
    s = x.T @ x / n
    mu = np.trace(s) / dim
    target = mu * np.eye(dim)
    d2 = np.square(s - target).sum()
    # Σ ‖xxᵀ − S‖² = Σ ‖x‖⁴ − n ‖S‖², for the xxᵀ have S as their mean.
    b2 = (np.square(np.square(x).sum(axis=1)).sum() / n - np.square(s).sum()) / n
    rho = float(min(b2, d2) / d2) if d2 > 0 else 1.0
    return (1 - rho) * s + rho * target, rho
