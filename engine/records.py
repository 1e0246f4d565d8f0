"""The domain types that travel between the model, the store, the search and the indexer."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "RECORD_FIELDS",
    "Answer",
    "EncodedImages",
    "Evidence",
    "Hit",
    "ImageRecord",
    "Observations",
    "OodVerdict",
    "Point",
    "content_point_id",
    "dicom_point_id",
]

# uuid5(NAMESPACE_URL, "precedent-point"): our ids never meet those of another UUIDv5 user.
_NAMESPACE = uuid.UUID("c117ea35-bdc3-54a3-b0a7-399a24a569a2")


def dicom_point_id(sop_instance_uid: str, frame: int) -> str:
    """Point id of one frame (counted from 0) of a DICOM instance: a UUIDv5 as text."""
    return str(uuid.uuid5(_NAMESPACE, f"{sop_instance_uid}#{frame}"))


def content_point_id(sha256_hex: str) -> str:
    """Point id of a raster image, from the SHA-256 of its file in hex: a UUIDv5 as text."""
    return str(uuid.uuid5(_NAMESPACE, "sha256:" + sha256_hex))


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What the index knows of an image besides its vectors: the payload's allow-list.

    ``patient`` is a keyed HMAC, never an identifier. ``age_band`` is a decade
    ("60-69"), ``study_year`` a year; no other date is kept. ``frame`` counts from 0.
    """

    study: str | None = None
    series: str | None = None
    sop: str | None = None
    frame: int = 0
    patient: str | None = None
    modality: str | None = None
    body_part: str | None = None
    view: str | None = None
    laterality: str | None = None
    manufacturer: str | None = None
    sex: str | None = None
    age_band: str | None = None
    study_year: int | None = None
    labels: tuple[str, ...] = ()
    source: str | None = None
    burned_in: bool | None = None
    tenant: str = "default"


RECORD_FIELDS: tuple[str, ...] = tuple(f.name for f in fields(ImageRecord))


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """The model's answer for N images.

    z: float32 (N, D), blended features, centred per row and of unit length, so that a
        dot product of two rows is their Pearson correlation.
    codes: uint8 (N, B/8), SCH codes, packed most significant bit first.
    """

    z: NDArray[np.float32]
    codes: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.z)


@dataclass(frozen=True, slots=True)
class Observations:
    """What a detector of foreign images may look at, for N images.

    z: float32 (N, D), blended features, centred and of unit length.
    codes: uint8 (N, B/8), packed SCH codes.
    logits: float32 (N, C), of the classifier; None for a model without one.
    reconstruction: float32 (N,) in [0, 40], how badly the decoder rebuilds the image from
        its deep map, for an image as hard as it is; None for a model without a decoder.
    appearance: float32 (N, 384), layout and spectrum of the canvas, see
        :func:`engine.model.appearance.appearance`; None where the image itself was not seen.
    """

    z: NDArray[np.float32]
    codes: NDArray[np.uint8]
    logits: NDArray[np.float32] | None = None
    reconstruction: NDArray[np.float32] | None = None
    appearance: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.z)

    @classmethod
    def joined(cls, parts: "Sequence[Observations]") -> "Observations":
        """All images of the parts, which are of one model, in order."""
        columns: dict[str, Any] = {}
        for name in (f.name for f in fields(cls)):
            values = [getattr(part, name) for part in parts]
            columns[name] = None if any(v is None for v in values) else np.concatenate(values)
        return cls(**columns)

    def __getitem__(self, rows: slice | NDArray[Any]) -> "Observations":
        """Of some of the images: a slice, indices or a mask."""
        return Observations(
            self.z[rows],
            self.codes[rows],
            None if self.logits is None else self.logits[rows],
            None if self.reconstruction is None else self.reconstruction[rows],
            None if self.appearance is None else self.appearance[rows],
        )


@dataclass(frozen=True, slots=True)
class Point:
    """One image as the store keeps it.

    z: float32 (D,), unit length. code: uint8 (B/8,), packed.
    ``score`` is the similarity to the vector asked for, in [-1, 1], when there was one.
    """

    id: str
    record: ImageRecord
    code: NDArray[np.uint8]
    z: NDArray[np.float32] | None = None
    score: float | None = None
    indexed_at: str | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One found image. similarity: Pearson r in [-1, 1]. hamming: differing bits of B."""

    id: str
    similarity: float
    hamming: int
    record: ImageRecord


@dataclass(frozen=True, slots=True)
class OodVerdict:
    """Whether the query lies outside what the model knows.

    foreign: p is at or below the operating point alpha.
    p: of all detectors together, conformal, in (0, 1].
    scores: by detector, raw, higher = more foreign.
    p_values: by detector, conformal, in (0, 1]; of those detectors that could look at the
        query. An image that is known by its vector alone has no ``appearance``.
    """

    foreign: bool
    p: float
    alpha: float
    scores: dict[str, float]
    p_values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Evidence:
    """How an answer came about.

    rung: "s0", "s1", "s2" for a pre-filter with that many flipped bits a band; "dense"
        when no rung gave enough candidates, or was worth taking; "exact" when everything was
        asked for; "none" when nothing was searched, because the query is foreign and the
        policy refuses it.
    radius: every image within this Hamming distance was a candidate; None = no distance
        bounds the candidates: they are all images, or at rung "none" no image.
    candidates: images that passed pre-filter and facet filters.
    estimated: ``candidates`` is an estimate, and may be too high, four times at most.
    facets_estimated: the facets' counts are estimates, from a sample.
    compared: how many candidates' vectors could be looked at: all, or a sample of too many.
    approximate: a graph or quantised vectors chose among them, and may have missed some.
    ranked: how many of them, the most similar first, were put into order.
    rungs_tried: candidates found on each rung, in the order they were tried.
    precision: in which this process computes: "fp32" or "bf16". index_precision: that of the
        process which made the index; None = not noted.
    note: in words, what a reader of the list should know of how it came about; or None.
    timings_ms: wall-clock milliseconds by stage.
    """

    rung: str
    radius: int | None
    candidates: int
    estimated: bool
    compared: int
    approximate: bool
    ranked: int
    rungs_tried: dict[str, int]
    order: str
    model: str
    bits: int
    precision: str
    index_precision: str | None
    note: str | None = None
    facets_estimated: bool = False
    timings_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """Hits in a total order, with how they were found and what matched besides them.

    next_page: cursor of the hits that follow; None = there are none.
    """

    hits: tuple[Hit, ...]
    evidence: Evidence
    ood: OodVerdict | None
    facets: dict[str, dict[str, int]]
    next_page: str | None = None
