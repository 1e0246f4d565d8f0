"""The registry of OOD detectors by name."""

from engine.errors import ModelError
from engine.ood.appearance import AppearanceDetector
from engine.ood.base import Detector
from engine.ood.energy import EnergyDetector
from engine.ood.exposure import ExposureDetector
from engine.ood.hamming import HammingDetector
from engine.ood.knn import KnnDetector
from engine.ood.mahalanobis import MahalanobisDetector
from engine.ood.reconstruction import ReconstructionDetector
from engine.ood.softmax import MaxSoftmaxDetector
from engine.ood.vim import VimDetector

__all__ = [
    "DETECTORS",
    "AppearanceDetector",
    "Detector",
    "EnergyDetector",
    "ExposureDetector",
    "HammingDetector",
    "KnnDetector",
    "MahalanobisDetector",
    "MaxSoftmaxDetector",
    "ReconstructionDetector",
    "VimDetector",
    "detector_kind",
]

_KINDS: tuple[type[Detector], ...] = (
    KnnDetector,
    AppearanceDetector,
    ReconstructionDetector,
    MaxSoftmaxDetector,
    EnergyDetector,
    MahalanobisDetector,
    VimDetector,
    HammingDetector,
    ExposureDetector,
)

DETECTORS: dict[str, type[Detector]] = {kind.name: kind for kind in _KINDS}


def detector_kind(name: str) -> type[Detector]:
    """The detector class of this name. Raises ModelError: the name is unknown."""
    if name not in DETECTORS:
        raise ModelError(f"there is no detector {name!r}; use some of {', '.join(DETECTORS)}")
    return DETECTORS[name]
