"""The OOD gate: a detector's score as a conformal p-value, stored beside the model.

A known image is called foreign at most a share alpha of the time, whatever the detector,
as long as it is drawn like the calibration images (Vovk et al., "Algorithmic Learning in a
Random World", 2005; Bates et al., "Testing for outliers with conformal p-values", 2023).
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from engine.errors import ModelError
from engine.files import write_atomically
from engine.ood.detectors import KnnDetector
from engine.records import OodVerdict

__all__ = ["ALPHA", "CALIBRATION", "OodGate", "conformal_p"]

CALIBRATION = "calibration.safetensors"
ALPHA = 0.03


def conformal_p(
    scores: NDArray[np.floating], calibration: NDArray[np.floating]
) -> NDArray[np.float64]:
    """p(x) = (1 + #{i : s_i ≥ s(x)}) / (n + 1), float64 (N,) in (0, 1].

    Args:
        scores: float (N,), higher = more foreign.
        calibration: float (n,), scores of known images, ascending.
    """
    above = len(calibration) - np.searchsorted(calibration, scores, side="left")
    p: NDArray[np.float64] = (1 + above) / (len(calibration) + 1)
    return p


class OodGate:
    """Says whether images are foreign to the model.

    Args:
        detector: fitted on images the model was trained on.
        calibration: float32 (n,), its scores of known images that took no part in that.
        alpha: share of known images that may be called foreign.
    """

    def __init__(
        self, detector: KnnDetector, calibration: NDArray[np.float32], alpha: float = ALPHA
    ) -> None:
        if not 0 < alpha < 1:
            raise ModelError(f"alpha is {alpha}; choose a share between 0 and 1")
        if len(calibration) + 1 < 1 / alpha:
            raise ModelError(
                f"{len(calibration)} calibration images can never give p ≤ {alpha}; "
                f"use at least {int(np.ceil(1 / alpha)) - 1}"
            )
        self.detector = detector
        self.calibration = np.sort(calibration)
        self.alpha = alpha

    def verdicts(self, z: NDArray[np.float32]) -> list[OodVerdict]:
        """One verdict for each row of z, float32 (N, D), unit length."""
        scores = self.detector.score(z)
        return [
            OodVerdict(bool(p <= self.alpha), float(p), self.alpha, {"knn": float(score)})
            for p, score in zip(conformal_p(scores, self.calibration), scores, strict=True)
        ]

    def save(self, directory: Path, model: str) -> None:
        """Writes the gate into a checkpoint folder, bound to the model's fingerprint."""
        data = save(
            {
                "reference": self.detector.reference.astype(np.float16),
                "knn": self.calibration.astype(np.float32),
            },
            metadata={"model": model, "alpha": repr(self.alpha), "k": str(self.detector.k)},
        )
        write_atomically(directory / CALIBRATION, data)

    @classmethod
    def load(cls, directory: Path, model: str) -> "OodGate | None":
        """The gate of a checkpoint folder; None when it was never calibrated.

        Raises:
            ModelError: the file is damaged, or belongs to another model.
        """
        path = directory / CALIBRATION
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as tensors:
                metadata = tensors.metadata()
                reference = tensors.get_tensor("reference").astype(np.float32)
                calibration = tensors.get_tensor("knn")
                bound_to = metadata["model"]
                alpha, k = float(metadata["alpha"]), int(metadata["k"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{path} is damaged ({error}); calibrate again, or delete it to search "
                "without an OOD verdict"
            ) from None
        if bound_to != model:
            raise ModelError(
                f"{path} was made for model {bound_to}, not {model}; calibrate again, or "
                "delete it to search without an OOD verdict"
            )
        return cls(KnnDetector(reference, k), calibration, alpha)
