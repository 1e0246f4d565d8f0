"""Recommendations: the cases most similar to liked images, an upload or a study."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from api.http.asked import (
    ABOUT_RULE,
    MOST_IMAGES,
    RecommendFields,
    SeriesFields,
    own_group,
)
from api.http.bodies import Body, body_content, read_body
from api.http.deps import EXAMPLE_STUDY, ArchiveDep, Readers, ReadersDep, Where
from api.http.fhir.accept import wants_fhir
from api.http.fhir.bundle import fhir_answer
from api.http.fhir.described import BUNDLE
from api.http.observing import note_search, stage
from api.http.problems import problem_responses
from api.http.timing import search_answer
from api.http.viewers import example_link, links_from_image, links_from_study
from api.schemas import RecommendationDocument
from api.security.seen import Seen, tell
from engine.errors import ImageRefused
from engine.search.examples import taken_of
from engine.search.query import GROUPS, MAX_K, parse_group, parse_id, parse_where
from engine.search.recommend import RULES, Examples, Wanted
from indexer.archive import QueryImage, TenantArchive

__all__ = ["router"]

router = APIRouter(tags=["recommendation"])

_K = {"minimum": 1, "maximum": MAX_K}
_GROUP = {"enum": [*GROUPS, "none"]}
_DIVERSITY = {"minimum": 0, "maximum": 1}
_RULE = {"enum": list(RULES)}
_ABOUT_FILE = "DICOM, PNG, JPEG … file to like; it is not kept."
_ABOUT_SLICES = "The slices of a series, DICOM files among others; they are not kept."
_ABOUT_K = "Hits wanted; the service's setting when absent."
_ABOUT_GROUPS = "The best image of each `study` or `patient`; `none`: all images."
_ABOUT_EXCLUDE = (
    "Leave out the examples' own `study`, or their `patient`, or `none`; absent: `patient`."
)
_ABOUT_DIVERSITY = "0: the most similar ones; up to 1: ones that differ from each other."
_EXAMPLE_IDS = ["9d4f5c3e-6a3b-5b0e-8f52-0c7e1f0a6d11", "3b0d6c52-5c6f-5d83-9a39-4f8f0b6d2a77"]
_EXAMPLE = {
    "ood": {
        "verdict": "known",
        "foreign": False,
        "p": 0.41,
        "alpha": 0.03,
        "scores": {"knn": 0.18},
        "p_values": {"knn": 0.205},
        "p_elsewhere": 0.74,
        "level": 0.05,
    },
    "evidence": {
        "rule": "image",
        "liked": 2,
        "liked_of": 2,
        "disliked": 1,
        "diversity": 0.0,
        "model": "6f2d9c0b7a31e5d4",
        "bits": 64,
        "precision": "fp32",
        "index_precision": "fp32",
        "rungs": {"codes": 1, "cells": 1},
        "candidates": 311,
        "estimated": False,
        "approximate": False,
        "ranked": 47,
        "cases": None,
        "cases_sampled": 0,
        "nearer_to_disliked": 5,
        "rendering": "3",
        "rendered_otherwise": 0,
        "note": None,
        "timings_ms": {"fetch": 0.4, "ood": 0.2, "prefilter": 1.3, "rank": 2.2},
    },
    "hits": [
        {
            "id": "5f1f0d0e-6f0f-5a53-b0a5-2f5b6a1c9a10",
            "study": "1.2.826.0.1.3680043.8.498.7",
            "series": "1.2.826.0.1.3680043.8.498.7.1",
            "sop": "1.2.826.0.1.3680043.8.498.7.1.12",
            "frame": 0,
            "modality": "CT",
            "body_part": "CHEST",
            "view": None,
            "laterality": None,
            "manufacturer": "ACME",
            "sex": "M",
            "age_band": "50-59",
            "study_year": 2021,
            "labels": ["nodule"],
            "source": "folder",
            "burned_in": None,
            "similarity": 0.9688,
            "hamming": 2,
            "likeness": 0.82,
            "name": None,
            "missing_frames": None,
            "viewers": [example_link("1.2.826.0.1.3680043.8.498.7.1.12", EXAMPLE_STUDY)],
            "because": _EXAMPLE_IDS[0],
        }
    ],
    "votes": [{"label": "nodule", "share": 0.71, "hits": 7}],
}
_ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"example": _EXAMPLE}, **BUNDLE}}
}


@dataclass(frozen=True, slots=True)
class _Choices:
    """The options of a request besides its examples, as yet unchecked."""

    k: int | None
    where: tuple[str, ...]
    group_by: str | None
    exclude: str | None
    exact: bool
    diversity: float
    rule: str = "image"

    @classmethod
    def of(
        cls, fields: RecommendFields | SeriesFields, exclude: str | None, rule: str
    ) -> "_Choices":
        """Those of a body. exclude: its earlier name of ``exclude_own``, where it has one."""
        own = own_group(fields.exclude_own, exclude, "patient")
        return cls(
            fields.k,
            tuple(fields.where),
            fields.group_by,
            own,
            fields.exact,
            fields.diversity,
            rule,
        )

    def wanted(self, archive: TenantArchive) -> Wanted:
        return Wanted(
            k=archive.settings.search.k if self.k is None else self.k,
            where=parse_where(self.where),
            exact=self.exact,
            group_by=parse_group(self.group_by),
            exclude=self.exclude,
            diversity=self.diversity,
            rule=self.rule,
        )


async def _by_link(
    k: Annotated[int | None, Query(description=_ABOUT_K, json_schema_extra=_K)] = None,
    where: Where = [],  # noqa: B006 - FastAPI copies defaults
    group_by: Annotated[str, Query(description=_ABOUT_GROUPS, json_schema_extra=_GROUP)] = "study",
    exclude_own: Annotated[
        str | None, Query(description=_ABOUT_EXCLUDE, json_schema_extra=_GROUP)
    ] = None,
    exclude: Annotated[
        str | None, Query(description="The earlier name of `exclude_own`.", deprecated=True)
    ] = None,
    exact: Annotated[bool, Query(description="Compare with every image.")] = False,
    diversity: Annotated[
        float, Query(description=_ABOUT_DIVERSITY, json_schema_extra=_DIVERSITY)
    ] = 0.0,
    rule: Annotated[str, Query(description=ABOUT_RULE, json_schema_extra=_RULE)] = "image",
) -> _Choices:
    own = own_group(exclude_own, exclude, "patient")
    return _Choices(k, tuple(where), group_by, own, exact, diversity, rule)


async def _by_body(request: Request) -> AsyncIterator[Body[RecommendFields]]:
    async with read_body(request, RecommendFields, files="file") as body:
        yield body


async def _by_form(request: Request) -> AsyncIterator[Body[RecommendFields]]:
    async with read_body(request, RecommendFields, files="file", only_forms=True) as body:
        yield body


async def _by_slices(request: Request) -> AsyncIterator[Body[SeriesFields]]:
    async with read_body(
        request, SeriesFields, files="files", most=MOST_IMAGES, only_forms=True
    ) as body:
        yield body


@router.post(
    "/v1/recommend",
    operation_id="recommend",
    summary="Find the cases most like examples",
    response_description="Hits, most similar first, with votes on labels and how they were found.",
    response_model=RecommendationDocument,
    responses={**_ANSWERED, **problem_responses(400, 404, 406, 409, 413, 415, 422, 503)},
    openapi_extra={
        "requestBody": body_content(
            RecommendFields,
            name="Recommend",
            files="file",
            about_files=_ABOUT_FILE,
            example={"like": _EXAMPLE_IDS, "k": 10, "where": ["modality=CT"]},
        )
    },
)
def post_recommend(
    request: Request,
    archive: ArchiveDep,
    readers: ReadersDep,
    body: Annotated[Body[RecommendFields], Depends(_by_body)],
) -> Response:
    """Send a form with a `file`, or JSON with `like`, `study` or `series`, or several of these.

    A hit's similarity is relative to the liked image that it is most similar to, which `because`
    names. The examples themselves are never hits. Other images of their patients are left out
    unless `exclude_own` says otherwise.

    With `Accept: application/fhir+json` the studies of the hits are a FHIR R4 Bundle.
    """
    return _of_body(request, archive, readers, body)


@router.post(
    "/v1/recommend/upload",
    operation_id="recommendUpload",
    summary="Find the cases most like an image that is sent",
    response_description="As of a recommendation.",
    response_model=RecommendationDocument,
    responses={**_ANSWERED, **problem_responses(400, 404, 406, 409, 413, 415, 422, 503)},
    openapi_extra={
        "requestBody": body_content(
            RecommendFields,
            name="Recommend",
            files="file",
            about_files=_ABOUT_FILE,
            example={"k": 10, "where": ["modality=CT"]},
            only_forms=True,
        )
    },
)
def post_recommend_upload(
    request: Request,
    archive: ArchiveDep,
    readers: ReadersDep,
    body: Annotated[Body[RecommendFields], Depends(_by_form)],
) -> Response:
    """What `recommend` does with a form: an operation with one kind of body and a file that has to
    come, for clients that are made of this document."""
    return _of_body(request, archive, readers, body)


def _of_body(
    request: Request,
    archive: TenantArchive,
    readers: Readers,
    body: Body[RecommendFields],
) -> Response:
    fields = body.fields
    rule = fields.rule or ("series" if fields.series else "image")
    wanted = _Choices.of(fields, fields.exclude, rule).wanted(archive)
    image = None
    if body.uploads:
        with stage("read"):
            image = readers.read(body.uploads[0])
    examples = Examples(
        liked=tuple(parse_id(one) for one in fields.like if one),
        disliked=tuple(parse_id(one) for one in fields.dislike if one),
        study=fields.study or None,
        series=fields.series or None,
        seen=None if image is None else archive.engine.observed([image.canvas], [image.colour]),
        records=() if image is None else (image.record,),
        seen_ids=() if image is None else (archive.id_of(image),),
    )
    return _recommended(request, archive, examples, wanted)


@router.post(
    "/v1/recommend/series",
    operation_id="recommendSeries",
    summary="Find the cases most like a series that is sent",
    response_description="As of a recommendation.",
    response_model=RecommendationDocument,
    responses={**_ANSWERED, **problem_responses(400, 404, 406, 409, 413, 415, 422, 503)},
    openapi_extra={
        "requestBody": body_content(
            SeriesFields,
            name="RecommendSeries",
            files="files",
            most=MOST_IMAGES,
            about_files=_ABOUT_SLICES,
            example={"k": 10, "where": ["modality=MR"]},
            only_forms=True,
        )
    },
)
def post_recommend_series(
    request: Request,
    archive: ArchiveDep,
    readers: ReadersDep,
    body: Annotated[Body[SeriesFields], Depends(_by_slices)],
) -> Response:
    """Send up to 64 slices of one series as `files` of a form; together they may be as large as one
    upload. Of more than 32, 32 that are evenly spaced over the series are the examples. One that
    cannot be used is a problem of the whole request.

    A series is as similar as the mean, over the slices sent, of the similarity of each to its best
    match in the series; its hit is the image that is most like one of the slices. Of a longer
    series send every second or third slice.

    With `Accept: application/fhir+json` the studies of the hits are a FHIR R4 Bundle.
    """
    fields = body.fields
    wanted = _Choices.of(fields, None, fields.rule).wanted(archive)
    with stage("read"):
        read = readers.read_all(body.uploads)
    images: list[QueryImage] = []
    for upload, one in zip(body.uploads, read, strict=True):
        if isinstance(one, ImageRefused):
            name = (upload.filename or "")[:64]
            raise ImageRefused(one.reason, f"file {len(images) + 1} ({name}): {one.detail}")
        images.append(one)
    taken = [images[at] for at in taken_of([one.record for one in images], wanted.rule)]
    examples = Examples(
        seen=archive.engine.observed([one.canvas for one in taken], [one.colour for one in taken]),
        seen_of=len(images),
        records=tuple(one.record for one in taken),
        seen_ids=tuple(archive.id_of(one) for one in images),
    )
    return _recommended(request, archive, examples, wanted)


@router.get(
    "/v1/studies/{uid}/related",
    operation_id="getRelatedStudies",
    summary="Find the cases most like a study",
    response_description="As of a recommendation.",
    response_model=RecommendationDocument,
    responses={**_ANSWERED, **problem_responses(400, 404, 406, 409, 422, 503)},
)
def get_related(
    uid: Annotated[
        str, Path(description="Study Instance UID of an indexed study.", examples=[EXAMPLE_STUDY])
    ],
    request: Request,
    archive: ArchiveDep,
    choices: Annotated[_Choices, Depends(_by_link)],
) -> Response:
    """Recommends other studies, each by its image most similar to the images of this study.

    Of a study with more than 32 images, 32 that are evenly spaced over it are the examples. With
    `rule=study` whole studies are compared: a study is as similar as the mean, over the examples,
    of the best match of each in it.

    With `Accept: application/fhir+json` the studies are a FHIR R4 Bundle, of type searchset.
    """
    wanted = choices.wanted(archive)
    return _recommended(request, archive, Examples(study=uid), wanted)


def _recommended(
    request: Request,
    archive: TenantArchive,
    examples: Examples,
    wanted: Wanted,
) -> Response:
    as_fhir = wants_fhir(request)
    answer = archive.engine.recommend(examples, wanted)
    study = examples.study
    if examples.series is not None:
        study = archive.study_of_series(examples.series)
    # An answer names the examples that hits are like, which of a study nobody else named.
    because = (one.because for one in answer.hits if one.because is not None)
    asked = (*examples.liked, *examples.disliked, *because)
    shown = [one.hit for one in answer.hits]
    studies = [] if study is None else [study]
    tell(request, Seen.of(shown, asked=asked, studies=studies, ood=answer.ood))
    note_search(tuple(answer.evidence.rungs), answer.ood, answer.evidence.timings_ms)
    if study is not None:
        viewers = links_from_study(archive, study)
    else:
        viewers = links_from_image(archive, next(iter(examples.liked), None))
    if as_fhir:
        return fhir_answer(request, archive, shown, answer.ood, viewers)
    document = RecommendationDocument.from_answer(answer, archive.names(shown), viewers)
    return search_answer(document, answer.evidence.timings_ms, vary="Accept")
