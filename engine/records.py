"""The domain types that model, store, search and indexer exchange."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.tenants import DEFAULT_TENANT

__all__ = [
    "BESIDE_RECORD",
    "RECORD_FIELDS",
    "Answer",
    "EncodedImages",
    "Evidence",
    "Hit",
    "ImageRecord",
    "Observations",
    "OodVerdict",
    "Point",
    "Verdict",
    "content_identity",
    "content_point_id",
    "dicom_identity",
    "dicom_point_id",
    "point_id",
]

Verdict = Literal["known", "unfamiliar", "foreign"]
"""known: a kind of image that the gate knows, made as it knows it. unfamiliar: a known kind, but
not this scanner, window or view of it. foreign: nothing that it knows."""

# uuid5(NAMESPACE_URL, "precedent-point"): a namespace of its own, so that ids do not collide with
# other UUIDv5 ids.
_NAMESPACE = uuid.UUID("c117ea35-bdc3-54a3-b0a7-399a24a569a2")


def dicom_identity(sop_instance_uid: str, frame: int) -> str:
    """What one frame (counted from 0) of a DICOM instance is known by."""
    return f"{sop_instance_uid}#{frame}"


def content_identity(sha256_hex: str) -> str:
    """What a raster image is known by, from the SHA-256 of its file in hex."""
    return f"sha256:{sha256_hex}"


def point_id(identity: str, tenant: str) -> str:
    """Point id of an image: a UUIDv5 as text.

    The same image has another id for each tenant, so that each has a point of its own. Names of
    tenants hold neither "#" nor ":", so no identity is that of another tenant's image.
    """
    name = identity if tenant == DEFAULT_TENANT else f"{tenant}#{identity}"
    return str(uuid.uuid5(_NAMESPACE, name))


def dicom_point_id(sop_instance_uid: str, frame: int, tenant: str = DEFAULT_TENANT) -> str:
    """Point id of one frame (counted from 0) of a DICOM instance."""
    return point_id(dicom_identity(sop_instance_uid, frame), tenant)


def content_point_id(sha256_hex: str, tenant: str = DEFAULT_TENANT) -> str:
    """Point id of a raster image, from the SHA-256 of its file in hex."""
    return point_id(content_identity(sha256_hex), tenant)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """The metadata of an image that the index may keep: an allow-list.

    study, series, sop: DICOM UIDs. frame: index of the frame in the instance, from 0.
    patient: keyed HMAC of the patient id, never the id itself.
    age_band: decade of the age, as in "60-69". study_year: the only date that is kept.
    burned_in: whether text may be burned into the pixels; None = unknown.
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
    tenant: str = DEFAULT_TENANT

    def known(self) -> dict[str, Any]:
        """The fields that are not None."""
        values = zip(RECORD_FIELDS, _values_of(self), strict=True)
        return {name: value for name, value in values if value is not None}


RECORD_FIELDS: tuple[str, ...] = tuple(f.name for f in fields(ImageRecord))
_values_of = attrgetter(*RECORD_FIELDS)
BESIDE_RECORD = ("indexed_at", "rendering", "missing_frames")
"""Fields of a :class:`Point` that are stored beside its record where they are known."""


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """The encodings of N images.

    z: float32 (N, D), blended features (embeddings), centred per row and of unit length, so that
        the dot product of two rows is their Pearson correlation.
    codes: uint8 (N, B/8), SCH codes, packed most significant bit first.
    words: float32 (N, E), of unit length, what a text is compared with; None = not asked for, or
        the model knows no words.
    """

    z: NDArray[np.float32]
    codes: NDArray[np.uint8]
    words: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.z)


@dataclass(frozen=True, slots=True)
class Observations:
    """The encodings of N images and what else OOD detectors use; None = not available.

    z: float32 (N, D), blended features, centred and of unit length.
    codes: uint8 (N, B/8), packed SCH codes.
    logits: float32 (N, C), class logits; None for a model without a classifier.
    reconstruction: float32 (N,) in [0, 40], the decoder's error relative to how hard the image is
        to rebuild (``ReconstructionScores.relative``); None for a model without a decoder.
    appearance: float32 (N, 384), layout and spectrum of the canvas, see
        :func:`engine.model.appearance.appearance`; None if only the encoding is known.
    maps: float32 (N, M), the means of the tower's shallow and deep map, each of unit length; None
        if only the encoding is known.
    colour: float32 (N,) in [0, 1], the share of the picture's pixels that have a colour, see
        :func:`engine.model.colour.coloured_share`; None if it is not known.
    """

    z: NDArray[np.float32]
    codes: NDArray[np.uint8]
    logits: NDArray[np.float32] | None = None
    reconstruction: NDArray[np.float32] | None = None
    appearance: NDArray[np.float32] | None = None
    colour: NDArray[np.float32] | None = None
    maps: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.z)

    @classmethod
    def joined(cls, parts: "Sequence[Observations]") -> "Observations":
        """The parts concatenated, in order; all of one model."""
        columns: dict[str, Any] = {}
        for name in (f.name for f in fields(cls)):
            values = [getattr(part, name) for part in parts]
            columns[name] = None if any(v is None for v in values) else np.concatenate(values)
        return cls(**columns)

    def __getitem__(self, rows: slice | NDArray[Any]) -> "Observations":
        """The observations of some of the images, given as a slice, indices or a mask."""
        return Observations(
            self.z[rows],
            self.codes[rows],
            None if self.logits is None else self.logits[rows],
            None if self.reconstruction is None else self.reconstruction[rows],
            None if self.appearance is None else self.appearance[rows],
            None if self.colour is None else self.colour[rows],
            None if self.maps is None else self.maps[rows],
        )


@dataclass(frozen=True, slots=True)
class Point:
    """One indexed image: a frame of a DICOM instance, or a raster image.

    id: a UUID as text. code: uint8 (B/8,), packed.
    z: float32 (D,), unit length; None = not read from the store.
    words: float32 (E,), unit length, for searches by words; None = the model has none, or not read:
        stores only take it.
    score: similarity to the vector of the query, in [-1, 1]; None = not the result of a query.
    indexed_at: time of indexing; None = not recorded.
    rendering: version of the reader that made the picture; None = not recorded.
    missing_frames: which frames of the instance could not be read, for people; None = none.
    """

    id: str
    record: ImageRecord
    code: NDArray[np.uint8]
    z: NDArray[np.float32] | None = None
    score: float | None = None
    indexed_at: str | None = None
    rendering: str | None = None
    missing_frames: str | None = None
    words: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A hit. similarity: Pearson r to the query, in [-1, 1]; of a search by words the cosine.
    hamming: differing bits, 0 … B; None = the query has no code: it is a text.
    rendering, missing_frames: as of a :class:`Point`. likeness: how alike it is on one scale for
    all kinds of images, in [0, 1], see :class:`engine.ood.likeness.LikenessScale`; None = there is
    no scale."""

    id: str
    similarity: float
    hamming: int | None
    record: ImageRecord
    rendering: str | None = None
    missing_frames: str | None = None
    likeness: float | None = None

    @classmethod
    def of(cls, point: Point, similarity: float, hamming: int | None) -> "Hit":
        return cls(
            point.id, similarity, hamming, point.record, point.rendering, point.missing_frames
        )


@dataclass(frozen=True, slots=True)
class OodVerdict:
    """The verdict of the OOD gate: can the hits of this query be trusted?

    p: joint conformal p-value of all detectors used, in (0, 1], among known images.
    alpha: the operating point: share of known images that may be called foreign.
    scores: detector → raw score, higher = more foreign.
    p_values: detector → conformal p-value in (0, 1]. Has only the detectors used: for an indexed
        image, of which only vector and code are known, "appearance" is missing, for example.
    p_elsewhere: as p, but among images of known kinds from sources that the gate does not know;
        None = the gate was calibrated without such images.
    level: share of known images that may be called other than known; None as ``p_elsewhere``.
    """

    p: float
    alpha: float
    scores: dict[str, float]
    p_values: dict[str, float]
    p_elsewhere: float | None = None
    level: float | None = None

    @property
    def verdict(self) -> Verdict:
        """What p and p_elsewhere say. "foreign": even among images of other sources hardly any is
        as odd. "unfamiliar": some are, and hardly any of the sources that the gate knows."""
        if self.p_elsewhere is None or self.level is None:
            return "foreign" if self.p <= self.alpha else "known"
        if self.p <= self.alpha and self.p_elsewhere <= self.alpha:
            return "foreign"
        return "unfamiliar" if self.p <= self.level else "known"

    @property
    def foreign(self) -> bool:
        """Whether the verdict is "foreign"."""
        return self.verdict == "foreign"

    def of_several(self, images: int) -> "OodVerdict":
        """The verdict on a query of so many images, of which this is the one with the smallest p.

        Its p-values are multiplied by their number (Bonferroni); otherwise a query of more images
        would be called foreign more often.
        """
        elsewhere = self.p_elsewhere
        return replace(
            self,
            p=min(1.0, images * self.p),
            p_elsewhere=None if elsewhere is None else min(1.0, images * elsewhere),
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence of an answer: how the hits were found.

    rung: the rung of the coarse filter (engine/search/ladder.py): "codes" when the images with the
        nearest codes were candidates; "cells" when those in the nearest cells were; "dense" when
        all were, as there were few, or the others would not have saved time; "exact" when the
        query asked for that; "none" when nothing was searched, because the query is foreign and the
        policy refuses it.
    radius: every image within this Hamming distance was a candidate; None = the candidates are not
        limited by distance (or there are none, at rung "none").
    cells: how many cells were looked into; None = cells played no part. cells_in_all: how many the
        index has; None = it has none, or the asker is not to learn how large it is.
    matching: number of images that pass the filters.
    candidates: how many of them passed the coarse filter.
    estimated: ``candidates`` is an estimate; it may be too high, by a factor of at most four.
    facets_estimated: the counts of the facets are estimated from a sample.
    facets_at_least: fields of the facets whose counts are lower bounds, see
        :class:`engine.store.counts.Facets`.
    compared: number of candidates in reach of the comparison: all, or a sample of too many.
    approximate: a graph or quantised vectors preselected candidates, and may have missed some.
    ranked: number of candidates, the most similar ones, that were put into order.
    rungs_tried: rung, with its radius or cells as in "codes-7", → number of candidates, in the
        order tried.
    order: "content" or "hamming". model: fingerprint of the model. bits: of a code.
    precision: number format in which this process encodes, "fp32" or "bf16". index_precision: that
        in which the index was computed; None = not recorded.
    note: a sentence on limits of the result for the reader, or None.
    rendering: version of the reader of this process; None = not known. rendered_otherwise: hits
        whose picture another version made.
    timings_ms: wall-clock milliseconds by stage.
    """

    rung: str
    radius: int | None
    cells: int | None
    cells_in_all: int | None
    matching: int
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
    facets_at_least: tuple[str, ...] = ()
    rendering: str | None = None
    rendered_otherwise: int = 0
    timings_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a search.

    hits: in a total order, see engine/search/ranking.py.
    ood: verdict of the OOD gate; None = no verdict.
    facets: field → value → number of matching images.
    next_page: cursor of the next page; None = there is none.
    """

    hits: tuple[Hit, ...]
    evidence: Evidence
    ood: OodVerdict | None
    facets: dict[str, dict[str, int]]
    next_page: str | None = None
