"""The JSON documents that the command line and the HTTP service answer with.

Their names are stable. Their docstrings are the descriptions in the OpenAPI document.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from engine.records import RECORD_FIELDS, Answer, Hit, ImageRecord, OodVerdict, Point
from engine.search.recommend import Recommendation

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "BasisDocument",
    "EvidenceDocument",
    "HitDocument",
    "ImageDocument",
    "OodDocument",
    "RecommendationDocument",
    "SearchDocument",
    "SuggestionDocument",
    "ViewerLink",
    "ViewerLinksOf",
    "VoteDocument",
    "by_detector",
    "local_document",
    "versions_remarks",
]

_HIDDEN = {"tenant", "patient"}


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ImageDocument(_Document):
    """One indexed image (a frame of a DICOM instance, or a PNG or JPEG file).

    - `id`: its UUID in the index. `study`, `series`, `sop`: DICOM UIDs. `frame`: counted from 0.
    - `age_band`: a decade, such as "60-69". `source`: where it was indexed from. `burned_in`:
      whether text is part of its pixels, as far as the file's header tells.

    Values that are not known are null.
    """

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


class ViewerLink(_Document):
    """A link that opens a hit in one of the hospital's viewers.

    - `name`: of the viewer in the settings. `title`: what people call it.
    - `url`: opens the hit, at its image where the viewer can.
    - `beside`: shows the hit beside what was searched for; null: the viewer cannot, or its server
      does not have that.
    """

    name: str
    title: str
    url: str
    beside: str | None


ViewerLinksOf = Callable[[ImageRecord], list[ViewerLink]]
"""What makes the links of a hit."""


def _no_links(_: ImageRecord) -> list[ViewerLink]:
    return []


class HitDocument(ImageDocument):
    """A hit: an indexed image that was found.

    - `similarity`: Pearson correlation of its features with the query's, in [-1, 1]; of a search by
      words the cosine of image and text, which is on another scale.
    - `hamming`: number of bits in which its code differs from the query's; null: the query is a
      text.
    - `likeness`: how alike it is, in [0, 1], on one scale for all kinds of images; null: the model
      has no such scale.
    - `name`: where a file without DICOM UIDs lies in its source; null unless the service's setting
      `server.show_names` allows it.
    - `missing_frames`: which frames of its instance are missing or broken, and why, as in
      "frames 10 to 19: truncated", counted from 0; null: none, or not recorded.
    - `viewers`: links that open it, of the viewers in the settings whose server has its study.
    """

    similarity: float
    hamming: int | None
    likeness: float | None = Field(json_schema_extra={"minimum": 0, "maximum": 1})
    name: str | None
    missing_frames: str | None
    viewers: list[ViewerLink]

    @classmethod
    def from_hit(
        cls,
        hit: Hit,
        names: Mapping[str, str] | None = None,
        viewers: ViewerLinksOf = _no_links,
        **more: Any,
    ) -> Self:
        """names: of hits that may be named, by id. viewers: makes the links of a hit."""
        return cls(
            id=hit.id,
            similarity=round(hit.similarity, 6),
            hamming=hit.hamming,
            likeness=None if hit.likeness is None else round(hit.likeness, 4),
            name=(names or {}).get(hit.id),
            missing_frames=hit.missing_frames,
            viewers=viewers(hit.record),
            **_shown(hit.record),
            **more,
        )


class OodDocument(_Document):
    """Out-of-distribution verdict: whether the query is unlike the images that the model knows.

    - `verdict`: "known", "unfamiliar" (the kind of image is known, but not this scanner, window or
      view of it), or "foreign". A model without the middle one says "known" or "foreign".
    - `foreign`: whether `verdict` is "foreign"; the hits may then look alike and mean nothing.
    - `p`: conformal p-value of all detectors together, in (0, 1], among known images.
    - `alpha`: the share of known images that may be called foreign.
    - `p_elsewhere`: as `p`, among images of known kinds from sources that the model was not
      calibrated on. An image is foreign where both are at or below `alpha`; null: there are none
      such, and `p` alone counts.
    - `level`: the share of known images that may be called unfamiliar or foreign; null: no image is
      called unfamiliar.
    - `scores`: raw score of each detector; higher is more foreign.
    - `p_values`: conformal p-value of each detector. Detectors that lack an input are absent.
    """

    verdict: Literal["known", "unfamiliar", "foreign"]
    foreign: bool
    p: float
    alpha: float
    scores: dict[str, float]
    p_values: dict[str, float]
    p_elsewhere: float | None
    level: float | None

    @classmethod
    def from_verdict(cls, verdict: OodVerdict | None) -> "OodDocument | None":
        if verdict is None:
            return None
        return cls(verdict=verdict.verdict, foreign=verdict.foreign, **_fields_of(verdict))


class EvidenceDocument(_Document):
    """How the hits were found.

    - `rung`: the coarse filter used. "codes": the images with the nearest codes; "cells": those in
      the cells of the index that are nearest; "dense": all, because they are few, or the others
      would have saved no time; "exact": all, as asked for; "none": nothing was searched, because
      the query is foreign and the service refuses such queries.
    - `radius`: every image within this Hamming distance was a candidate; null: no such bound.
    - `cells`: how many cells were looked into; null: they played no part. `cells_in_all`: how many
      the index has; null: it has none, or shares them with other tenants, whose size they would
      tell: so always over HTTP.
    - `matching`: images that pass the facet filters.
    - `candidates`: those of them that passed the coarse filter. If `estimated`, both numbers may be
      estimates, and that of the candidates up to four times too high.
    - `facets_estimated`: the facet counts are estimated from a sample.
    - `facets_at_least`: fields with very many values on a Qdrant server of several shards: their
      counts are lower bounds, and values may be missing from them. Usually none.
    - `compared`: candidates that took part in the comparison of features: all, or a sample.
    - `approximate`: a graph or quantised vectors chose among them, and may have missed some.
    - `ranked`: number of the most similar candidates that were put into order.
    - `rungs_tried`: candidates on each rung, with its radius or cells as in "codes-7", in the order
      in which the rungs were tried.
    - `order`: "content" or "hamming".
    - `query_id`: the indexed image that was compared; null: an upload or a text was.
    - `model`: fingerprint of the model. `bits`: length of its codes.
    - `precision`, `index_precision`: "fp32" or "bf16", in which this service and the index encode;
      null: not recorded.
    - `rendering`: version of this service's reader; null: not known. `rendered_otherwise`: hits
      whose pictures another version made, and may look otherwise since.
    - `note`: anything unusual about this search, in words.
    - `timings_ms`: milliseconds by stage.
    """

    rung: str
    radius: int | None
    cells: int | None
    cells_in_all: int | None
    matching: int
    candidates: int
    estimated: bool
    facets_estimated: bool
    facets_at_least: list[str]
    compared: int
    approximate: bool
    ranked: int
    rungs_tried: dict[str, int]
    order: str
    query_id: str | None = None
    model: str
    bits: int
    precision: str
    index_precision: str | None
    rendering: str | None
    rendered_otherwise: int
    note: str | None
    timings_ms: dict[str, float]


class SearchDocument(_Document):
    """The answer to a search.

    - `ood`: null if the model is not calibrated, none of its detectors can judge this query, or it
      is a text.
    - `evidence`: how the hits were found. Its rung is "none", and there are no hits, if the query
      is foreign and the service refuses such queries (setting `search.ood_policy`).
    - `hits`: in the order asked for.
    - `facets`: number of candidates by field and value; empty if not asked for.
    - `next_page`: to get the hits that follow, repeat the request, otherwise unchanged, with this
      value as `page`; null: there are no more.
    """

    ood: OodDocument | None
    evidence: EvidenceDocument
    hits: list[HitDocument]
    facets: dict[str, dict[str, int]]
    next_page: str | None

    @classmethod
    def from_answer(
        cls,
        answer: Answer,
        query_id: str | None = None,
        names: Mapping[str, str] | None = None,
        viewers: ViewerLinksOf = _no_links,
    ) -> "SearchDocument":
        """query_id: the indexed image that was the query; None = an upload was. names: of hits that
        may be named, by id. viewers: makes the links of a hit."""
        return cls(
            ood=OodDocument.from_verdict(answer.ood),
            evidence=EvidenceDocument(query_id=query_id, **_fields_of(answer.evidence)),
            hits=[HitDocument.from_hit(hit, names, viewers) for hit in answer.hits],
            facets=answer.facets,
            next_page=answer.next_page,
        )


class SuggestionDocument(HitDocument):
    """A recommended image; by the rules `series` and `study` the one of a series or study that is
    most like an example.

    - `because`: id of the liked example that it is most similar to; null: an uploaded image.
    - `hamming`: relative to that example. `similarity`: too; by the rules `series` and `study` the
      mean, over the examples, of the similarity of each to its best match in the series or study.
    """

    because: str | None


class VoteDocument(_Document):
    """A label that hits carry.

    - `share`: summed similarity of the hits with this label, divided by that of all hits with
      labels; in [0, 1], not a probability.
    - `hits`: number of hits with this label.
    """

    label: str
    share: float
    hits: int


class BasisDocument(_Document):
    """How the recommended images were found.

    - `rule`: what was compared with the examples: "image", each image; "series" or "study", all
      images of each series or study.
    - `liked`, `disliked`: number of examples. `liked_of`: how many images there are of what is
      liked; where they are more, evenly spaced ones were the examples.
    - `diversity`: as asked for.
    - `model`: fingerprint of the model. `bits`: length of its codes.
    - `precision`: "fp32" or "bf16", in which uploaded examples were encoded; null: none was
      uploaded. `index_precision`: that of the index; null: not recorded.
    - `rungs`: number of liked examples searched for on each rung (see EvidenceDocument). Empty if
      nothing was searched, because an example is foreign and the service refuses such queries.
    - `candidates`: images that passed the coarse filter and the facet filters, summed over the
      liked examples. If `estimated`, the number is an estimate, and may be too high.
    - `approximate`: a graph or quantised vectors chose among them, and may have missed some.
    - `ranked`: distinct images compared with every example. `cases`: series or studies that were
      compared; null: images were. `cases_sampled`: of so many of them evenly spaced images were
      compared, not all.
    - `nearer_to_disliked`: images, series or studies left out because they are nearer to a disliked
      example than to any liked one.
    - `rendering`, `rendered_otherwise`: as in EvidenceDocument.
    - `note`: anything unusual about this search, in words.
    - `timings_ms`: milliseconds by stage.
    """

    rule: Literal["image", "series", "study"]
    liked: int
    liked_of: int
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
    cases: int | None
    cases_sampled: int
    nearer_to_disliked: int
    rendering: str | None
    rendered_otherwise: int
    note: str | None
    timings_ms: dict[str, float]


class RecommendationDocument(_Document):
    """The answer to a request for recommendations.

    - `ood`: verdict on the liked example with the lowest p-value. `p` is that value times the
      number of examples judged together, since one of many is low by chance. null as for a search.
    - `evidence`: how the hits were found. Its `rungs` are empty, and there are no hits, if that
      example is foreign and the service refuses such queries (setting `search.ood_policy`).
    - `hits`: most similar first; with diversity, in the order in which they were chosen.
    - `votes`: the labels of the hits.
    """

    ood: OodDocument | None
    evidence: BasisDocument
    hits: list[SuggestionDocument]
    votes: list[VoteDocument]

    @classmethod
    def from_answer(
        cls,
        answer: Recommendation,
        names: Mapping[str, str] | None = None,
        viewers: ViewerLinksOf = _no_links,
    ) -> "RecommendationDocument":
        return cls(
            ood=OodDocument.from_verdict(answer.ood),
            evidence=BasisDocument(**_fields_of(answer.evidence)),
            hits=[
                SuggestionDocument.from_hit(one.hit, names, viewers, because=one.because)
                for one in answer.hits
            ],
            votes=[
                VoteDocument(label=one.label, share=round(one.share, 4), hits=one.hits)
                for one in answer.votes
            ],
        )


def local_document(answer: Answer | Recommendation, paths: dict[str, Path]) -> dict[str, Any]:
    """The JSON document of an answer, with the file path of each hit (for local use only).

    paths: by image id; the path of a hit that is not in it is None.
    """
    kind = SearchDocument if isinstance(answer, Answer) else RecommendationDocument
    document: dict[str, Any] = kind.from_answer(answer).model_dump(mode="json")  # type: ignore[arg-type]
    for hit in document["hits"]:
        path = paths.get(hit["id"])
        hit["path"] = None if path is None else str(path)
    return document


def by_detector(p_values: Mapping[str, float]) -> str:
    """The detectors' p-values as text, as in "knn 0.205, reconstruction 0.63"."""
    return ", ".join(f"{name} {p:.3g}" for name, p in p_values.items())


def versions_remarks(
    precision: str | None, index_precision: str | None, rendered_otherwise: int
) -> list[str]:
    """Remarks on query and hits that were not made in the same way; empty = they were.

    Args:
        precision: in which the query was encoded, "fp32" or "bf16"; None = it was not encoded.
        index_precision: that of the index; None = not recorded.
        rendered_otherwise: hits whose pictures another version of the reader made.
    """
    remarks = []
    if None not in (precision, index_precision) and precision != index_precision:
        remarks.append(
            f"encoded in {precision}, the index in {index_precision}: similarities may be off by "
            "0.01"
        )
    if rendered_otherwise:
        hits = "1 hit was" if rendered_otherwise == 1 else f"{rendered_otherwise} hits were"
        remarks.append(
            f"{hits} rendered by another version; `precedent index --again` renews the pictures"
        )
    return remarks


def _shown(record: ImageRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in RECORD_FIELDS if name not in _HIDDEN}


def _fields_of(one: "DataclassInstance") -> dict[str, Any]:
    """The values by field. dataclasses.asdict copies all of them first, which takes longer than to
    write them."""
    return {field.name: getattr(one, field.name) for field in fields(one)}
