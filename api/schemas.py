"""The answers of command line and HTTP service, as JSON documents with stable names."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from engine.records import Answer, ImageRecord, Point

__all__ = [
    "EvidenceDocument",
    "HitDocument",
    "ImageDocument",
    "OodDocument",
    "SearchDocument",
    "by_detector",
    "local_document",
]

_HIDDEN = {"tenant", "patient"}


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ImageDocument(_Document):
    """An indexed image: identifiers kept by the index, and what it is of."""

    id: str
    study: str | None
    series: str | None
    sop: str | None
    frame: int
    modality: str | None
    body_part: str | None
    view: str | None
    laterality: str | None
    manufacturer: str | None
    sex: str | None
    age_band: str | None
    study_year: int | None
    labels: list[str]
    source: str | None
    burned_in: bool | None

    @classmethod
    def from_point(cls, point: Point) -> "ImageDocument":
        return cls(id=point.id, **_shown(point.record))


class HitDocument(ImageDocument):
    """A found image. similarity: Pearson r of the blended features, in [-1, 1]. hamming:
    differing bits of the codes."""

    similarity: float
    hamming: int


class OodDocument(_Document):
    """foreign: the query lies outside what the model knows (p ≤ alpha, the operating point).
    p: that of all detectors together. scores: by detector, raw, higher = more foreign.
    p_values: by detector, conformal; of those that could look at the query."""

    foreign: bool
    p: float
    alpha: float
    scores: dict[str, float]
    p_values: dict[str, float]


class EvidenceDocument(_Document):
    """How the answer came about; see docs/architecture.md for the rungs."""

    rung: str
    radius: int | None
    candidates: int
    ranked: int
    rungs_tried: dict[str, int]
    order: str
    model: str
    bits: int
    timings_ms: dict[str, float]


class SearchDocument(_Document):
    """An answer. ood is null when the model was never calibrated, or its calibration needs
    more of the query than is known. There are no hits, and evidence has the rung "none", when
    the query is foreign and the policy (setting search.ood_policy) refuses it."""

    ood: OodDocument | None
    evidence: EvidenceDocument
    hits: list[HitDocument]
    facets: dict[str, dict[str, int]]

    @classmethod
    def from_answer(cls, answer: Answer) -> "SearchDocument":
        return cls(
            ood=None if answer.ood is None else OodDocument(**asdict(answer.ood)),
            evidence=EvidenceDocument(**asdict(answer.evidence)),
            hits=[
                HitDocument(
                    id=hit.id,
                    similarity=round(hit.similarity, 6),
                    hamming=hit.hamming,
                    **_shown(hit.record),
                )
                for hit in answer.hits
            ],
            facets=answer.facets,
        )


def local_document(answer: Answer, paths: dict[str, Path]) -> dict[str, Any]:
    """The answer for local use: its hits carry the path of their file as well."""
    document = SearchDocument.from_answer(answer).model_dump(mode="json")
    for hit in document["hits"]:
        path = paths.get(hit["id"])
        hit["path"] = None if path is None else str(path)
    return document


def by_detector(p_values: Mapping[str, float]) -> str:
    """The detectors' p-values for people, as in "knn 0.205, reconstruction 0.63"."""
    return ", ".join(f"{name} {p:.3g}" for name, p in p_values.items())


def _shown(record: ImageRecord) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if name not in _HIDDEN}
