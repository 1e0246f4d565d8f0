"""Fits an OOD gate to known images, and looks at what it catches before anybody relies on it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.cli import gate_checks
from api.cli.known_images import Known
from engine.errors import TrainingDataError
from engine.model.encoder import Encoder
from engine.ood.base import Detector
from engine.ood.calibration import OodGate, fewest_calibration_images, most_colour
from engine.ood.detectors import ExposureDetector
from engine.records import Observations

__all__ = ["DEFAULT", "FittedGate", "check_enough", "fitted_gate"]

DEFAULT = "knn,appearance"
"""The detectors of a model's first gate."""


@dataclass(frozen=True, slots=True)
class FittedGate:
    """A calibrated gate, and what is known of it.

    references, calibration: numbers of images.
    caught: kind of drawn pictures → what it catches of them; empty = that was not looked at.
    flagged: the share of the archive's own images that it would call foreign; None = there are
        too few images to say.
    """

    gate: OodGate
    references: int
    calibration: int
    caught: Mapping[str, gate_checks.Caught]
    flagged: float | None

    def to_dict(self) -> dict[str, Any]:
        """All but the gate itself, as JSON values."""
        return {
            "detectors": [detector.name for detector in self.gate.detectors],
            "references": self.references,
            "calibration": self.calibration,
            "alpha": self.gate.alpha,
            "caught": {name: round(one.share, 4) for name, one in self.caught.items()},
            "caught_before": {
                name: None if one.before is None else round(one.before, 4)
                for name, one in self.caught.items()
            },
            "flagged": None if self.flagged is None else round(self.flagged, 4),
        }

    def lines(self) -> Iterator[str]:
        """What it catches and flags, in words."""
        for name, one in self.caught.items():
            was = "" if one.before is None else f", {one.before:.0%} before"
            yield f"catches {one.share:.0%} of drawn {name}{was}"
        if self.flagged is None:
            yield "too few images to say what share of the archive it would flag"
        else:
            yield (
                f"would call {self.flagged:.1%} of the archive's own images foreign "
                f"(alpha {self.gate.alpha:g})"
            )


def fitted_gate(
    encoder: Encoder,
    kinds: Sequence[type[Detector]],
    before: OodGate | None,
    reference: Known,
    calibration: Known,
    *,
    named: str,
    alpha: float,
    catch: float,
    force: bool,
    seed: int,
) -> FittedGate:
    """Fits detectors to the reference, calibrates the gate, and looks at what it catches.

    Args:
        kinds: of the detectors.
        before: the gate that it is to replace, whose foreign images a detector is shown again;
            None = there is none.
        reference, calibration: known images that have no owner in common.
        named: where they are from, for people.
        alpha: share of known images that may be called foreign.
        catch: the least share of each kind of drawn pictures; 0 = do not look.
        force: take a gate that catches less.
        seed: of the halves that judge each other.

    Raises:
        TrainingDataError: the gate catches too little, and ``force`` is False.
        ModelError: as ``OodGate.calibrated``.
    """
    fitted = [_unfitted(kind, before).fit(reference.observations) for kind in kinds]
    gate = OodGate.calibrated(
        fitted,
        calibration.observations,
        alpha,
        colour=most_colour(Observations.joined([reference.observations, calibration.observations])),
        likeness=gate_checks.scale_of(fitted, reference),
    )
    pictures = gate_checks.foreign_pictures(encoder) if catch else {}
    found = gate_checks.caught(gate, before, pictures)
    kind, least = gate_checks.weakest(found) if found else ("", catch)
    if least < catch and not force:
        raise TrainingDataError(
            f"the gate would catch {least:.0%} of drawn {kind}, less than --catch {catch:g}, and "
            f"was not written; look whether {named} has such pictures, name other detectors, or "
            "write it with --force"
        )
    flagged = gate_checks.share_flagged(fitted, calibration, alpha, seed)
    return FittedGate(gate, len(reference), len(calibration), found, flagged)


def check_enough(named: Path | str, images: int, alpha: float, left_out: int = 0) -> None:
    """Checks that there are enough calibration images for a p-value at or below ``alpha``.

    Raises:
        TrainingDataError: there are too few; the gate could call no image foreign.
    """
    least = fewest_calibration_images(alpha)
    if images < least:
        shared = f" ({left_out} of patients in the reference are left out)" if left_out else ""
        raise TrainingDataError(
            f"{named} gives {images} images for calibration{shared}, and alpha {alpha:g} takes at "
            f"least {least} (twice as many, of several patients, when one folder is split); name a "
            "larger folder or --alpha"
        )


def _unfitted(kind: type[Detector], before: OodGate | None) -> Detector:
    """A detector of this kind; if it is shown foreign images, those of the gate before."""
    for detector in () if before is None else before.detectors:
        if isinstance(detector, ExposureDetector) and kind is ExposureDetector:
            return detector.unfitted()
    return kind()
