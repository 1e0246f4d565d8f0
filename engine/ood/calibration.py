"""The OOD gate: turns detectors' scores into conformal p-values and verdicts.

Whatever the detectors, at most a share alpha of known images is called foreign, as long as these
come from the same distribution as the calibration images (Vovk et al., "Algorithmic Learning in a
Random World", 2005; Bates et al., "Testing for outliers with conformal p-values", 2023). The share
holds for all known images together, not for each kind of them.

Images of other hospitals do not come from that distribution: their kinds are known, their scanners
are not. Where the gate has scores of such images as well, of sources that were left out one after
the other, an image is foreign when it is odd among these too, and unfamiliar when it is odd among
known images alone. As a source is to the sources left out, so at most a share alpha of its images
of known kinds is called foreign.

Several detectors are combined into one score, the sum of the logarithms of their ranks among the
calibration images (as Fisher combines p-values, "Statistical Methods for Research Workers", 1932),
and this score is calibrated again. Unlike Bonferroni's correction, this loses nothing when
detectors agree, and an image that two detectors find slightly unusual can be foreign.

The gate is stored in the model's checkpoint folder.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from engine.errors import ModelError
from engine.files import write_atomically
from engine.ood.base import Detector, State
from engine.ood.detectors import HammingDetector, KnnDetector, detector_kind
from engine.ood.likeness import LikenessScale
from engine.records import Observations, OodVerdict

__all__ = [
    "ALPHA",
    "CALIBRATION",
    "FORMATS",
    "LEVEL",
    "JointCalibration",
    "OodGate",
    "conformal_p",
    "fewest_calibration_images",
    "most_colour",
]

CALIBRATION = "calibration.safetensors"
ALPHA = 0.03
LEVEL = 0.05
FORMATS = ("3", "4")  # 3 has neither scores of other sources nor a scale of likeness
_SCORES, _ELSEWHERE, _LIKENESS, _COLOUR = "scores", "elsewhere", "likeness", "colour"
_COLOUR_MARGIN = 0.1  # an overlay or a mark that no known picture happens to have
_ROWS = 1024
_ROUNDING = 1e-9  # sums of logarithms that differ by less count as equal


def conformal_p(
    scores: NDArray[np.floating], calibration: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Conformal p-values p(x) = (1 + #{i : s_i ≥ s(x)}) / (n + 1), float64 (N,) in (0, 1].

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
    """The least number of calibration images n with which an image can be called foreign.

    For fewer, the smallest possible p, 1/(n + 1), is above alpha.

    Raises:
        ModelError: alpha is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ModelError(f"alpha is {alpha}; choose a share between 0 and 1")
    return math.ceil(1 / alpha) - 1


class JointCalibration:
    """Conformal p-values of queries, calibrated on the scores of n known images by m detectors.

    The joint p-value: T = Σ_j log r_j, where r_j is the query's rank by detector j among the n
    calibration images and the query itself, 1 = the highest score. T_i is the same for calibration
    image i, ranked among the same n + 1 images. Then p = (1 + #{i : T_i ≤ T}) / (n + 1). As query
    and calibration images are treated alike, p is valid for any n and any dependence between the
    detectors.

    Args:
        scores: float (n, m), higher = more foreign; row i has the scores of image i.
    """

    def __init__(self, scores: NDArray[np.floating]) -> None:
        n, detectors = scores.shape
        self._scores = scores
        self._ascending = np.sort(scores, axis=0)
        self._logarithms = np.log(np.arange(1, n + 2))
        # Number of other calibration images that score as high as each, or higher.
        self._among = [_ranks(scores[:, j], self._ascending[:, j]) - 1 for j in range(detectors)]

    def alone(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """The p-value of each detector alone: scores float (N, m) → float64 (N, m) in (0, 1]."""
        columns = range(scores.shape[1])
        each = [conformal_p(scores[:, j], self._ascending[:, j]) for j in columns]
        return np.stack(each, axis=1)

    def joint(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """The joint p-value of all detectors: scores float (N, m) → float64 (N,) in (0, 1]."""
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
    """Decides whether images are foreign to the model.

    An image is foreign when the joint p-value of the detectors (:class:`JointCalibration`) is at or
    below alpha, among known images and, where there are such, among those of other sources.

    Args:
        detectors: fitted on known images, best on those that the model was trained on.
        calibration: detector name → float32 (n,), its scores of n known images that it was not
            fitted on; the same images in the same order for every detector.
        alpha: share of known images that may be called foreign, between 0 and 1.
        elsewhere: as ``calibration``, of images of known kinds from sources that neither the model
            nor the detectors knew, of each source about as many; None = no image is called
            unfamiliar.
        level: share of known images that may be called other than known, at least alpha; None =
            :data:`LEVEL`, or alpha where that is more.
        colour: share of a picture in colour beyond which it is foreign whatever the detectors say,
            as nothing known has that much; None = colour does not matter.
        likeness: the scale for similarities of hits, made of the references of detector "knn";
            None = there is none.

    Raises:
        ModelError: there is no detector, or one is given twice; the numbers of scores differ, or a
            score is not finite; alpha or level is out of range; or there are too few calibration
            images for any image to be called foreign.
    """

    def __init__(
        self,
        detectors: Sequence[Detector],
        calibration: Mapping[str, NDArray[np.float32]],
        alpha: float = ALPHA,
        *,
        elsewhere: Mapping[str, NDArray[np.float32]] | None = None,
        level: float | None = None,
        colour: float | None = None,
        likeness: LikenessScale | None = None,
    ) -> None:
        names = [detector.name for detector in detectors]
        least = fewest_calibration_images(alpha)
        if not names or len(set(names)) < len(names):
            raise ModelError(f"the gate's detectors are {names}; name one or more, each once")
        level = max(alpha, LEVEL) if level is None else level
        if not alpha <= level < 1:
            raise ModelError(
                f"level is {level}, alpha {alpha}; the share that may be called unfamiliar or "
                "foreign is at least that which may be called foreign, and below 1"
            )
        self.detectors = tuple(detectors)
        self.alpha = alpha
        self.level = level
        self.colour = colour
        self.likeness = likeness
        self.calibration = _scores(calibration, names, least, alpha)
        self.elsewhere = None if elsewhere is None else _scores(elsewhere, names, least, alpha)
        self.images = len(self.calibration[names[0]])
        self._joints: dict[tuple[str, ...], JointCalibration] = {}

    @classmethod
    def calibrated(
        cls,
        detectors: Sequence[Detector],
        known: Observations,
        alpha: float = ALPHA,
        *,
        elsewhere: Mapping[str, NDArray[np.float32]] | None = None,
        colour: float | None = None,
        likeness: LikenessScale | None = None,
    ) -> "OodGate":
        """The gate of fitted detectors, calibrated on other known images.

        Args:
            detectors: fitted.
            known: observations of known images that the detectors were not fitted on.
            elsewhere, colour, likeness: see the constructor.

        Raises:
            ModelError: as the constructor and ``Detector.score`` raise it.
        """
        scores = {detector.name: detector.score(known) for detector in detectors}
        return cls(detectors, scores, alpha, elsewhere=elsewhere, colour=colour, likeness=likeness)

    def with_elsewhere(
        self, scores: Mapping[str, NDArray[np.float32]], level: float | None = None
    ) -> "OodGate":
        """The same gate with scores of other sources.

        Args:
            scores, level: see the constructor.

        Raises:
            ModelError: as the constructor raises it.
        """
        return OodGate(
            self.detectors,
            self.calibration,
            self.alpha,
            elsewhere=scores,
            level=self.level if level is None else level,
            colour=self.colour,
            likeness=self.likeness,
        )

    def detectors_for(self, observations: Observations) -> tuple[Detector, ...]:
        """The detectors whose needed fields ``observations`` has."""
        return tuple(
            detector
            for detector in self.detectors
            if all(getattr(observations, field) is not None for field in detector.needs)
        )

    def verdicts(self, observations: Observations) -> list[OodVerdict]:
        """The verdicts on N images, by the detectors whose needed fields ``observations`` has.

        If these are not all detectors of the gate, at most a share alpha of known images is still
        called foreign, but images that only the others would detect are missed. The ``p_values`` of
        a verdict name the detectors used.

        Raises:
            ModelError: no detector has the fields that it needs.
        """
        verdicts = self.judged(self.scores(observations))
        if self.colour is None or observations.colour is None:
            return verdicts
        return [
            self._coloured(verdict, share) if share > self.colour else verdict
            for verdict, share in zip(verdicts, observations.colour.tolist(), strict=True)
        ]

    def _coloured(self, verdict: OodVerdict, share: float) -> OodVerdict:
        """The verdict on a picture with more colour than any known one. Fisher's product would
        drown what one detector alone sees; it has the p of an image odder than all n others."""
        p = 1 / (self.images + 1)
        outside = verdict.p_elsewhere
        if outside is not None and self.elsewhere is not None:
            outside = 1 / (len(next(iter(self.elsewhere.values()))) + 1)
        return replace(
            verdict,
            p=p,
            p_elsewhere=outside,
            scores=verdict.scores | {_COLOUR: share},
            p_values=verdict.p_values | {_COLOUR: p},
        )

    def scores(self, observations: Observations) -> dict[str, NDArray[np.float32]]:
        """The scores of N images, float32 (N,) by detector, of those that :meth:`verdicts` uses.

        Raises:
            ModelError: no detector has the fields that it needs.
        """
        used = self.detectors_for(observations)
        if not used:
            every = ", ".join(repr(detector.name) for detector in self.detectors)
            raise ModelError(
                f"the gate's detectors ({every}) need more than is known of this image; observe "
                "the image itself, or calibrate with the detector 'knn' as well"
            )
        return {detector.name: detector.score(observations) for detector in used}

    def judged(self, scores: Mapping[str, NDArray[np.float32]]) -> list[OodVerdict]:
        """The verdicts on N images with these scores, float32 (N,) of some detectors."""
        names = tuple(scores)
        each = np.stack([scores[name] for name in names], axis=1)
        calibration = self._joint(self.calibration, names, "")
        alone, together = calibration.alone(each), calibration.joint(each)
        outside = None
        if self.elsewhere is not None:
            outside = self._joint(self.elsewhere, names, _ELSEWHERE).joint(each)
        return [
            OodVerdict(
                p=float(p),
                alpha=self.alpha,
                scores=dict(zip(names, each[i].tolist(), strict=True)),
                p_values=dict(zip(names, alone[i].tolist(), strict=True)),
                p_elsewhere=None if outside is None else float(outside[i]),
                level=None if outside is None else self.level,
            )
            for i, p in enumerate(together)
        ]

    def _joint(
        self, scores: Mapping[str, NDArray[np.float32]], names: tuple[str, ...], of: str
    ) -> JointCalibration:
        """The calibration of these detectors on these scores, which is kept for the next call."""
        key = (of, *names)
        if key not in self._joints:
            self._joints[key] = JointCalibration(np.stack([scores[n] for n in names], axis=1))
        return self._joints[key]

    def save(self, directory: Path, model: str, decoder: str | None = None) -> None:
        """Writes the gate into a checkpoint folder.

        Args:
            directory: the checkpoint folder.
            model: fingerprint of the model; the gate is loaded for no other.
            decoder: fingerprint of the decoder, recorded if a detector uses reconstructions.
        """
        tensors: State = {}
        for detector in self.detectors:
            for key, value in detector.state().items():
                tensors[f"{detector.name}.{key}"] = np.ascontiguousarray(value)
            scores = self.calibration[detector.name]
            tensors[f"{detector.name}.{_SCORES}"] = scores.astype(np.float32)
            if self.elsewhere is not None:
                outside = self.elsewhere[detector.name].astype(np.float32)
                tensors[f"{detector.name}.{_ELSEWHERE}"] = outside
        if self.likeness is not None:
            for key, value in self.likeness.state().items():
                tensors[f"{_LIKENESS}.{key}"] = value
        metadata = {
            "format": FORMATS[-1],
            "model": model,
            "alpha": repr(self.alpha),
            "level": repr(self.level),
            **({} if self.colour is None else {_COLOUR: repr(self.colour)}),
            "detectors": json.dumps([detector.name for detector in self.detectors]),
            "sha256": _digest(tensors),
        }
        if decoder is not None and self._needs_decoder():
            metadata["decoder"] = decoder
        write_atomically(directory / CALIBRATION, save(tensors, metadata=metadata))

    @property
    def looks_at_codes(self) -> bool:
        """Whether a detector uses the code or the class logits, beside or instead of z."""
        return any(
            detector.name == HammingDetector.name or "logits" in detector.needs
            for detector in self.detectors
        )

    def _needs_decoder(self) -> bool:
        return any("reconstruction" in detector.needs for detector in self.detectors)

    @classmethod
    def load(cls, directory: Path, model: str, decoder: str | None = None) -> "OodGate | None":
        """The gate in a checkpoint folder; None if the folder has none.

        Args:
            directory: the checkpoint folder.
            model: fingerprint of the model.
            decoder: fingerprint of the decoder; None = there is no decoder, so detectors that use
                reconstructions will not be used.

        Raises:
            ModelError: the file is damaged, of another version of the format, or was made for
                another model or decoder.
        """
        path = directory / CALIBRATION
        if not path.is_file():
            return None
        way_out = "calibrate again, or delete it to search without an OOD verdict"
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("format") not in FORMATS:
                raise ModelError(
                    f"{path} was made by another version of precedent (format "
                    f"{metadata.get('format', '1')}, this one reads {' and '.join(FORMATS)}); "
                    f"{way_out}"
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
            outside = {
                name: tensors[f"{name}.{_ELSEWHERE}"]
                for name in names
                if f"{name}.{_ELSEWHERE}" in tensors
            }
            alpha = float(metadata["alpha"])
            level = float(metadata["level"]) if "level" in metadata else None
            colour = float(metadata[_COLOUR]) if _COLOUR in metadata else None
            likeness = None
            if kept := _part(tensors, _LIKENESS):
                (knn,) = (one for one in detectors if isinstance(one, KnnDetector))
                likeness = LikenessScale.from_state(kept, knn.reference)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path} is damaged ({error}); {way_out}") from None
        return cls(
            detectors,
            scores,
            alpha,
            elsewhere=outside or None,
            level=level,
            colour=colour,
            likeness=likeness,
        )


def most_colour(known: Observations) -> float | None:
    """The ``colour`` of a gate that knows these images: a little above the most that any of them
    has; None = it is not known of them."""
    if known.colour is None or not len(known):
        return None
    return min(1.0, float(known.colour.max()) + _COLOUR_MARGIN)


def _scores(
    given: Mapping[str, NDArray[np.float32]], names: Sequence[str], least: int, alpha: float
) -> dict[str, NDArray[np.float32]]:
    """The scores of each detector. Raises ModelError: they are not the same number, too few, or
    not finite."""
    sizes = {name: len(given[name]) for name in names}
    count = sizes[names[0]]
    if set(sizes.values()) != {count}:
        raise ModelError(f"{sizes} calibration scores; score the same images by each detector")
    if count < least:
        raise ModelError(
            f"{count} calibration images can never give p ≤ {alpha}; use at least "
            f"{least} images, or a larger alpha"
        )
    scores = {name: np.asarray(given[name]) for name in names}
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise ModelError(f"calibration scores of {name!r} are not all finite numbers")
    return scores


def _part(tensors: Mapping[str, NDArray[Any]], name: str) -> State:
    """The state of the detector ``name``."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}


def _digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of the tensors, hex; safetensors itself has no checksum."""
    running = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        running.update(repr((name, value.dtype.str, value.shape)).encode())
        running.update(np.ascontiguousarray(value).tobytes())
    return running.hexdigest()
