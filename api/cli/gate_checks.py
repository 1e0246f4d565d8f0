"""What a new OOD gate catches of pictures that are foreign to any archive, and flags of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from api.cli.known_images import Known
from engine.model.encoder import Encoder
from engine.ood.base import Detector
from engine.ood.calibration import OodGate, fewest_calibration_images
from engine.ood.detectors import KnnDetector
from engine.ood.likeness import LikenessScale
from engine.records import Observations
from indexer.sample.foreign import document_images, noise_images, scene_images

__all__ = ["Caught", "caught", "foreign_pictures", "scale_of", "share_flagged", "weakest"]

_COUNT = 36
_SEED = 20
_DRAWN = {"documents": document_images, "noise": noise_images, "scenes": scene_images}


@dataclass(frozen=True, slots=True)
class Caught:
    """Of a kind of foreign pictures the share that a gate calls foreign, and that the gate before
    it did; None = there was none, or it cannot judge them."""

    share: float
    before: float | None


def foreign_pictures(encoder: Encoder) -> dict[str, Observations]:
    """Drawn pictures that belong to no archive: pages of documents, noise and patterns, scenes as
    photographs have them. None of them is in colour, which would give it away."""
    preprocess = encoder.manifest.preprocess
    return {
        name: encoder.observe([preprocess.canvas(image) for image in draw(_COUNT, _SEED)])
        for name, draw in _DRAWN.items()
    }


def caught(
    gate: OodGate, before: OodGate | None, pictures: Mapping[str, Observations]
) -> dict[str, Caught]:
    """By kind of foreign pictures, what the gate catches and what the one before it did."""
    return {
        name: Caught(
            _share(gate, seen),
            _share(before, seen) if before is not None and before.detectors_for(seen) else None,
        )
        for name, seen in pictures.items()
    }


def weakest(found: Mapping[str, Caught]) -> tuple[str, float]:
    """The kind of foreign pictures of which least are caught, and the share."""
    name = min(found, key=lambda kind: found[kind].share)
    return name, found[name].share


def share_flagged(
    detectors: Sequence[Detector], calibration: Known, alpha: float, seed: int
) -> float | None:
    """The share of the archive's own images that a gate of these detectors calls foreign.

    Each half of the calibration images, which share no patient, is judged by a gate calibrated on
    the other; the gate itself cannot be asked about images that it was calibrated on.

    Returns:
        None where a half is too small for that.
    """
    halves = calibration.split(seed)
    if min(map(len, halves)) < fewest_calibration_images(alpha):
        return None
    flagged = images = 0
    for known, asked in (halves, halves[::-1]):
        gate = OodGate.calibrated(detectors, known.observations, alpha)
        flagged += round(_share(gate, asked.observations) * len(asked))
        images += len(asked)
    return flagged / images


def scale_of(detectors: Sequence[Detector], reference: Known) -> LikenessScale | None:
    """The scale of likeness of the references of detector "knn"; None = there is no such detector,
    or the references are of one patient."""
    owners: NDArray[np.int64] = np.unique(np.array(reference.owners), return_inverse=True)[1]
    for one in detectors:
        if isinstance(one, KnnDetector) and owners.any():
            return LikenessScale.fitted(one.reference, owners)
    return None


def _share(gate: OodGate, seen: Observations) -> float:
    return float(np.mean([verdict.foreign for verdict in gate.verdicts(seen)]))
