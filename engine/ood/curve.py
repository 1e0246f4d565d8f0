"""How often a gate calls known images foreign or unfamiliar, against how often it may."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.ood.calibration import JointCalibration, OodGate

__all__ = ["EXPECTED", "Flagged", "calibration_curve"]

EXPECTED = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True, slots=True)
class Flagged:
    """Of ``images`` known images so many have a p at or below ``expected``."""

    expected: float
    flagged: int
    images: int

    @property
    def share(self) -> float:
        return self.flagged / self.images


def calibration_curve(
    gate: OodGate, expected: Sequence[float] = EXPECTED, seed: int = 0
) -> list[Flagged]:
    """For each share how many of the calibration images have a p at or below it among the others:
    so many would be called foreign or, where the gate knows of other sources, other than known.

    The images are dealt into two halves at random; each half is judged as queries are, by all
    detectors of the gate, calibrated on the other half. An image that took part in its own
    calibration would agree with it whatever the detectors do.

    Args:
        expected: shares; alpha of the gate is added, and its level if it knows of other sources.
            One that no p among so few images can be below is left out.
    """
    scores = np.stack([gate.calibration[one.name] for one in gate.detectors], axis=1)
    order = np.random.default_rng(seed).permutation(len(scores))
    halves = order[::2], order[1::2]
    if not len(halves[1]):
        return []
    p = np.concatenate(
        [
            JointCalibration(scores[one]).joint(scores[other])
            for one, other in (halves, halves[::-1])
        ]
    )
    least = 1 / (len(halves[1]) + 1)
    own = {gate.alpha} if gate.elsewhere is None else {gate.alpha, gate.level}
    wanted = sorted({*expected, *own})
    return [Flagged(one, int((p <= one).sum()), len(p)) for one in wanted if one >= least]
