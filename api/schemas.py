"""The answers of command line and HTTP service, as JSON documents with stable names."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from engine.records import Answer, Hit, ImageRecord, OodVerdict, Point
from engine.search.recommend import Recommendation

__all__ = [
    "BasisDocument",
    "EvidenceDocument",
    "HitDocument",
    "ImageDocument",
    "OodDocument",
    "RecommendationDocument",
    "SearchDocument",
    "SuggestionDocument",
    "VoteDocument",
    "between_precisions",
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

    @classmethod
    def from_hit(cls, hit: Hit, **more: Any) -> Self:
        return cls(
            id=hit.id,
            similarity=round(hit.similarity, 6),
            hamming=hit.hamming,
            **_shown(hit.record),
            **more,
        )


class OodDocument(_Document):
    """foreign: the query lies outside what the model knows (p ≤ alpha, the operating point).
    p: that of all detectors together. scores: by detector, raw, higher = more foreign.
    p_values: by detector, conformal; of those that could look at the query."""

    foreign: bool
    p: float
    alpha: float
    scores: dict[str, float]
    p_values: dict[str, float]

    @classmethod
    def from_verdict(cls, verdict: OodVerdict | None) -> "OodDocument | None":
        return None if verdict is None else cls(**asdict(verdict))


class EvidenceDocument(_Document):
    """How the answer came about; see docs/search.md for the rungs. estimated: candidates
    is an estimate, as facets are when facets_estimated. compared: candidates whose vectors could
    be looked at. approximate: of these some may have been missed. precision: in which the query
    was encoded, index_precision: in which the index was (null: not noted). note: what is
    special."""

    rung: str
    radius: int | None
    candidates: int
    estimated: bool
    facets_estimated: bool
    compared: int
    approximate: bool
    ranked: int
    rungs_tried: dict[str, int]
    order: str
    model: str
    bits: int
    precision: str
    index_precision: str | None
    note: str | None
    timings_ms: dict[str, float]


class SearchDocument(_Document):
    """An answer. ood is null when the model was never calibrated, or its calibration needs
    more of the query than is known. There are no hits, and evidence has the rung "none", when
    the query is foreign and the policy (setting search.ood_policy) refuses it. next_page, sent
    as page with all else as it was, gets the hits that follow; null when there are none."""

    ood: OodDocument | None
    evidence: EvidenceDocument
    hits: list[HitDocument]
    facets: dict[str, dict[str, int]]
    next_page: str | None

    @classmethod
    def from_answer(cls, answer: Answer) -> "SearchDocument":
        return cls(
            ood=OodDocument.from_verdict(answer.ood),
            evidence=EvidenceDocument(**asdict(answer.evidence)),
            hits=[HitDocument.from_hit(hit) for hit in answer.hits],
            facets=answer.facets,
            next_page=answer.next_page,
        )


class SuggestionDocument(HitDocument):
    """A recommended image. because: id of the example that it is most like, to which
    similarity and hamming are; null = the uploaded image."""

    because: str | None


class VoteDocument(_Document):
    """A label of the hits. share: the similarity of the hits that carry it, as a share of that
    of all hits with labels; not a probability. hits: how many carry it."""

    label: str
    share: float
    hits: int


class BasisDocument(_Document):
    """How a recommendation came about. liked, disliked: examples that took part. rungs: liked
    examples by where they were searched for. candidates: over all examples together; an
    estimate when estimated. approximate: some may have been missed. ranked: images compared
    with every example. precision: in which an example was encoded that is no indexed image,
    index_precision: in which the index was (null: not noted). nearer_to_disliked: left out of
    these. note: what is special."""

    liked: int
    disliked: int
    diversity: float
    model: str
    bits: int
    precision: str | None
    index_precision: str | None
    rungs: dict[str, int]
    candidates: int
    estimated: bool
    approximate: bool
    ranked: int
    nearer_to_disliked: int
    note: str | None
    timings_ms: dict[str, float]


class RecommendationDocument(_Document):
    """A recommendation. ood: of the least familiar liked example, its p corrected for their
    number; null as for a search. There are no hits, and evidence names no rungs, when it is
    foreign and the policy (setting search.ood_policy) refuses it."""

    ood: OodDocument | None
    evidence: BasisDocument
    hits: list[SuggestionDocument]
    votes: list[VoteDocument]

    @classmethod
    def from_answer(cls, answer: Recommendation) -> "RecommendationDocument":
        return cls(
            ood=OodDocument.from_verdict(answer.ood),
            evidence=BasisDocument(**asdict(answer.evidence)),
            hits=[SuggestionDocument.from_hit(one.hit, because=one.because) for one in answer.hits],
            votes=[
                VoteDocument(label=one.label, share=round(one.share, 4), hits=one.hits)
                for one in answer.votes
            ],
        )


def local_document(answer: Answer | Recommendation, paths: dict[str, Path]) -> dict[str, Any]:
    """The answer for local use: its hits carry the path of their file as well."""
    kind = SearchDocument if isinstance(answer, Answer) else RecommendationDocument
    document: dict[str, Any] = kind.from_answer(answer).model_dump(mode="json")  # type: ignore[arg-type]
    for hit in document["hits"]:
        path = paths.get(hit["id"])
        hit["path"] = None if path is None else str(path)
    return document


def by_detector(p_values: Mapping[str, float]) -> str:
    """The detectors' p-values for people, as in "knn 0.205, reconstruction 0.63"."""
    return ", ".join(f"{name} {p:.3g}" for name, p in p_values.items())


def between_precisions(precision: str | None, index_precision: str | None) -> str | None:
    """For people: that a query was encoded in another precision than the index; None = it was not.

    Args:
        precision: of the query; None = it was not encoded.
        index_precision: None = the index does not note it.
    """
    if precision is None or index_precision is None or precision == index_precision:
        return None
    return (
        f"encoded in {precision}, the index in {index_precision}: similarities may be off by 0.01"
    )


def _shown(record: ImageRecord) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if name not in _HIDDEN}
