"""The OOD gate: detectors' scores as conformal p-values, stored beside the model.

A known image is called foreign at most a share alpha of the time, whatever the detectors,
as long as it is drawn like the calibration images (Vovk et al., "Algorithmic Learning in a
Random World", 2005; Bates et al., "Testing for outliers with conformal p-values", 2023). It is
a share of all known images, not of each kind of them.

Several detectors are one score: the sum of the logarithms of their ranks among the calibration
images, Fisher's way of joining p-values ("Statistical Methods for Research Workers", 1932), and
this score is calibrated in its turn. So nothing is lost to detectors that say the same, as with
Bonferroni, and what two find a little odd counts.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from engine.errors import ModelError
from engine.files import write_atomically
from engine.ood.base import Detector, State
from engine.ood.detectors import detector_kind
from engine.records import Observations, OodVerdict

__all__ = [
    "ALPHA",
    "CALIBRATION",
    "JointCalibration",
    "OodGate",
    "conformal_p",
    "fewest_calibration_images",
]

CALIBRATION = "calibration.safetensors"
ALPHA = 0.03
_FORMAT = "3"
_SCORES = "scores"
_ROWS = 1024
_ROUNDING = 1e-9  # sums of the same logarithms in another order are equal


def conformal_p(
    scores: NDArray[np.floating], calibration: NDArray[np.floating]
) -> NDArray[np.float64]:
    """p(x) = (1 + #{i : s_i ≥ s(x)}) / (n + 1), float64 (N,) in (0, 1].

    Args:
        scores: float (N,), higher = more foreign.
        calibration: float (n,), scores of known images, ascending.
    """
    p: NDArray[np.float64] = _ranks(scores, calibration) / (len(calibration) + 1)
    return p


def _ranks(scores: NDArray[np.floating], calibration: NDArray[np.floating]) -> NDArray[np.int64]:
    """1 + #{i : s_i ≥ s(x)}, int64 (N,)."""
    above = len(calibration) - np.searchsorted(calibration, scores, side="left")
    ranks: NDArray[np.int64] = above.astype(np.int64) + 1
    return ranks


def fewest_calibration_images(alpha: float) -> int:
    """The least n for which the least p, 1/(n + 1), is at or below alpha.

    Raises:
        ModelError: alpha is no share.
    """
    if not 0 < alpha < 1:
        raise ModelError(f"alpha is {alpha}; choose a share between 0 and 1")
    return math.ceil(1 / alpha) - 1


class JointCalibration:
    """Scores of the same n known images by m detectors, and what queries' scores are among them.

    The joint p-value: T = Σ_j log r_j, where r_j is the rank from above by detector j among the
    n calibration images and the query; the same of every calibration image among the same n + 1.
    Then p = (1 + #{i : T_i ≤ T}) / (n + 1). The query is treated as the others are, so that the
    promise is exact for any n and however the detectors depend on each other.

    Args:
        scores: float (n, m), higher = more foreign, in any order of images.
    """

    def __init__(self, scores: NDArray[np.floating]) -> None:
        n, detectors = scores.shape
        self._scores = scores
        self._ascending = np.sort(scores, axis=0)
        self._logarithms = np.log(np.arange(1, n + 2))
        # Of each among themselves; no image is above itself.
        self._among = [_ranks(scores[:, j], self._ascending[:, j]) - 1 for j in range(detectors)]

    def alone(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """``conformal_p`` by each detector, float64 (N, m), of scores float (N, m)."""
        columns = range(scores.shape[1])
        each = [conformal_p(scores[:, j], self._ascending[:, j]) for j in columns]
        return np.stack(each, axis=1)

    def joint(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """The p-value of all detectors together, float64 (N,) in (0, 1], of scores float (N, m)."""
        n, detectors = self._scores.shape
        p = np.empty(len(scores))
        for start in range(0, len(scores), _ROWS):
            asked = scores[start : start + _ROWS]
            total, others = np.zeros(len(asked)), np.zeros((len(asked), n))
            for j in range(detectors):
                total += self._logarithms[_ranks(asked[:, j], self._ascending[:, j]) - 1]
                above = asked[:, j, None] >= self._scores[:, j]
                others += self._logarithms[self._among[j] - 1 + above]
            as_odd = others <= total[:, None] + _ROUNDING
            p[start : start + _ROWS] = (1 + as_odd.sum(axis=1)) / (n + 1)
        return p


class OodGate:
    """Says whether images are foreign to the model.

    An image is foreign when the p-value of its detectors together (``JointCalibration``) is at or
    below alpha; with one detector that is its own p-value.

    Args:
        detectors: fitted on known images, best on those the model was trained on.
        calibration: for each detector by name float32 (n,), its scores of the same n known
            images, which took no part in that.
        alpha: share of known images that may be called foreign.

    Raises:
        ModelError: no or equal detectors, scores that are not of the same images, alpha is no
            share, or there are too few images for any verdict of foreign.
    """

    def __init__(
        self,
        detectors: Sequence[Detector],
        calibration: Mapping[str, NDArray[np.float32]],
        alpha: float = ALPHA,
    ) -> None:
        names = [detector.name for detector in detectors]
        least = fewest_calibration_images(alpha)
        if not names or len(set(names)) < len(names):
            raise ModelError(f"the gate's detectors are {names}; name one or more, each once")
        sizes = {name: len(calibration[name]) for name in names}
        self.images = sizes[names[0]]
        if set(sizes.values()) != {self.images}:
            raise ModelError(f"{sizes} calibration scores; score the same images by each detector")
        if self.images < least:
            raise ModelError(
                f"{self.images} calibration images can never give p ≤ {alpha}; use at least "
                f"{least} images, or a larger alpha"
            )
        self.detectors = tuple(detectors)
        self.calibration = {name: np.asarray(calibration[name]) for name in names}
        self.alpha = alpha
        self._joints: dict[tuple[str, ...], JointCalibration] = {}
        for name, scores in self.calibration.items():
            if not np.isfinite(scores).all():
                raise ModelError(f"calibration scores of {name!r} are not all finite numbers")

    @classmethod
    def calibrated(
        cls, detectors: Sequence[Detector], known: Observations, alpha: float = ALPHA
    ) -> "OodGate":
        """The gate of fitted detectors, calibrated on ``known`` images that they were not
        fitted on. Raises ModelError as the constructor and the detectors do.
        """
        return cls(detectors, {d.name: d.score(known) for d in detectors}, alpha)

    def detectors_for(self, observations: Observations) -> tuple[Detector, ...]:
        """The detectors for which ``observations`` have all that they need."""
        return tuple(
            detector
            for detector in self.detectors
            if all(getattr(observations, field) is not None for field in detector.needs)
        )

    def verdicts(self, observations: Observations) -> list[OodVerdict]:
        """One verdict for each of N images, by the detectors that can look at them.

        With fewer detectors than the gate has the promise holds as well; what only the
        others would notice is missed. The verdict's ``p_values`` show who looked.

        Raises:
            ModelError: none of the gate's detectors can look at these observations.
        """
        used = self.detectors_for(observations)
        if not used:
            every = ", ".join(repr(detector.name) for detector in self.detectors)
            raise ModelError(
                f"the gate's detectors ({every}) need more than is known of this image; observe "
                "the image itself, or calibrate with the detector 'knn' as well"
            )
        names = tuple(detector.name for detector in used)
        scores = np.stack([detector.score(observations) for detector in used], axis=1)
        calibration = self._joint(names)
        alone, together = calibration.alone(scores), calibration.joint(scores)
        return [
            OodVerdict(
                foreign=bool(p <= self.alpha),
                p=float(p),
                alpha=self.alpha,
                scores=dict(zip(names, scores[i].tolist(), strict=True)),
                p_values=dict(zip(names, alone[i].tolist(), strict=True)),
            )
            for i, p in enumerate(together)
        ]

    def _joint(self, names: tuple[str, ...]) -> JointCalibration:
        """Of these detectors; in order from the second call on."""
        if names not in self._joints:
            scores = np.stack([self.calibration[name] for name in names], axis=1)
            self._joints[names] = JointCalibration(scores)
        return self._joints[names]

    def save(self, directory: Path, model: str, decoder: str | None = None) -> None:
        """Writes the gate into a checkpoint folder, bound to the fingerprints of the model and,
        where it looks at reconstructions, of the decoder.
        """
        tensors: State = {}
        for detector in self.detectors:
            for key, value in detector.state().items():
                tensors[f"{detector.name}.{key}"] = np.ascontiguousarray(value)
            scores = self.calibration[detector.name]
            tensors[f"{detector.name}.{_SCORES}"] = scores.astype(np.float32)
        metadata = {
            "format": _FORMAT,
            "model": model,
            "alpha": repr(self.alpha),
            "detectors": json.dumps([detector.name for detector in self.detectors]),
            "sha256": _digest(tensors),
        }
        if decoder is not None and self._needs_decoder():
            metadata["decoder"] = decoder
        write_atomically(directory / CALIBRATION, save(tensors, metadata=metadata))

    def _needs_decoder(self) -> bool:
        return any("reconstruction" in detector.needs for detector in self.detectors)

    @classmethod
    def load(cls, directory: Path, model: str, decoder: str | None = None) -> "OodGate | None":
        """The gate of a checkpoint folder; None when it was never calibrated.

        Args:
            directory: of the checkpoint.
            model: fingerprint of the model.
            decoder: fingerprint of the decoder beside it, None = there is none; then the
                gate does without what looks at reconstructions.

        Raises:
            ModelError: the file is damaged, of an earlier version, or of another model or
                decoder.
        """
        path = directory / CALIBRATION
        if not path.is_file():
            return None
        way_out = "calibrate again, or delete it to search without an OOD verdict"
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("format") != _FORMAT:
                raise ModelError(
                    f"{path} was made by another version of precedent (format "
                    f"{metadata.get('format', '1')}, this one reads {_FORMAT}); {way_out}"
                )
            if metadata["model"] != model:
                raise ModelError(
                    f"{path} was made for model {metadata['model']}, not {model}; {way_out}"
                )
            if decoder is not None and metadata.get("decoder", decoder) != decoder:
                raise ModelError(
                    f"{path} was made for decoder {metadata['decoder']}, not {decoder}; {way_out}"
                )
            if metadata["sha256"] != _digest(tensors):
                raise ValueError("its content is not what was written")
            names = json.loads(metadata["detectors"])
            detectors = [detector_kind(name).from_state(_part(tensors, name)) for name in names]
            scores = {name: tensors[f"{name}.{_SCORES}"] for name in names}
            alpha = float(metadata["alpha"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path} is damaged ({error}); {way_out}") from None
        return cls(detectors, scores, alpha)


def _part(tensors: Mapping[str, NDArray[Any]], name: str) -> State:
    """The state of one detector."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}


def _digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    """sha256, hex: safetensors itself does not notice a changed byte."""
    running = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        running.update(repr((name, value.dtype.str, value.shape)).encode())
        running.update(np.ascontiguousarray(value).tobytes())
    return running.hexdigest()
