"""Searches: the images most similar to an upload or to an indexed image."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from api.http.asked import (
    IN_PLACE_OF_A_FILE,
    AskedByBody,
    AskedByForm,
    SearchFields,
    UploadFields,
)
from api.http.bodies import body_content
from api.http.deps import EXAMPLE_IMAGE, ArchiveDep, Asked, Readers, ReadersDep
from api.http.fhir.accept import wants_fhir
from api.http.fhir.bundle import fhir_answer
from api.http.fhir.described import BUNDLE
from api.http.observing import note_search, stage
from api.http.problems import problem_responses
from api.http.timing import search_answer
from api.http.viewers import example_link, links_from_image
from api.schemas import SearchDocument
from api.security.seen import Seen, tell
from engine.errors import QueryError
from engine.records import Answer
from engine.search.query import Cursor, Query, parse_id, parse_where
from engine.search.representative import representative
from engine.store.base import Ids
from indexer.archive import TenantArchive
from indexer.imaging.region import Region

__all__ = ["EXAMPLE", "Found", "answered", "query_of", "router"]

router = APIRouter(tags=["search"])

_ABOUT_FILE = "DICOM, PNG, JPEG, TIFF or NIfTI file, among others; it is not kept."
_EXAMPLE_SOP = "1.2.826.0.1.3680043.8.498.1.1.7"
EXAMPLE = {
    "ood": {
        "verdict": "known",
        "foreign": False,
        "p": 0.41,
        "alpha": 0.03,
        "scores": {"knn": 0.18, "reconstruction": 0.07},
        "p_values": {"knn": 0.205, "reconstruction": 0.63},
        "p_elsewhere": 0.74,
        "level": 0.05,
    },
    "evidence": {
        "rung": "codes",
        "radius": 7,
        "cells": None,
        "cells_in_all": None,
        "matching": 15871,
        "candidates": 134,
        "estimated": False,
        "facets_estimated": False,
        "facets_at_least": [],
        "compared": 134,
        "approximate": False,
        "ranked": 20,
        "rungs_tried": {"codes-3": 31, "codes-7": 134},
        "order": "content",
        "query_id": None,
        "model": "6f2d9c0b7a31e5d4",
        "bits": 64,
        "precision": "fp32",
        "index_precision": "fp32",
        "rendering": "3",
        "rendered_otherwise": 0,
        "note": None,
        "timings_ms": {"encode": 11.2, "ood": 0.2, "prefilter": 0.6, "rank": 0.9, "facets": 1.1},
    },
    "hits": [
        {
            **EXAMPLE_IMAGE,
            "similarity": 0.9731,
            "hamming": 3,
            "likeness": 0.82,
            "name": None,
            "missing_frames": None,
            "viewers": [example_link(_EXAMPLE_SOP)],
        }
    ],
    "facets": {"modality": {"CT": 120, "MR": 14}, "body_part": {"CHEST": 97}},
    "next_page": "cells-16:10",
}


@router.post(
    "/v1/search",
    operation_id="search",
    summary="Find the images most like this one",
    response_description="Hits, most similar first, with how they were found.",
    response_model=SearchDocument,
    responses={
        200: {"content": {"application/json": {"example": EXAMPLE}, **BUNDLE}},
        **problem_responses(400, 404, 406, 409, 410, 413, 415, 422, 502, 503),
    },
    openapi_extra={
        "requestBody": body_content(
            SearchFields,
            name="Search",
            files="file",
            about_files=_ABOUT_FILE,
            without=IN_PLACE_OF_A_FILE,
            example={"sop": _EXAMPLE_SOP, "frame": 0, "k": 10, "where": ["modality=CT"]},
        )
    },
)
def search(
    request: Request,
    asked: AskedByBody,
    archive: ArchiveDep,
    readers: ReadersDep,
) -> Response:
    """Send an image that is not stored as `file` of a form, or name an image of the index in JSON:
    by `id`, or by its DICOM UIDs, as `sop` (with `frame`, of an instance of several), `series` or
    `study`. A series or study of many images is represented by the one in the middle, in the order
    of series, instance and frame; `evidence.query_id` says which that was. To compare with all
    images of a study, ask for what is related to it.

    A query that is foreign to the model (`ood.foreign`) is answered like any other, unless the
    service is set to refuse it: then there are no hits, and `evidence.rung` is "none". To get more
    hits, repeat the request, otherwise unchanged, with `next_page` of the answer as `page`.

    With `region` only that part of the picture is searched for, and judged by `ood`: of a file, or
    of an indexed image, whose original is read again for it (410 where it is gone, 409 where
    another file is in its place).

    With `text` the images are found that fit it best, if the model knows words: 400 if it does not.
    All that pass the filters are compared; `ood`, `likeness` and `hamming` are null, as there is no
    scale for how alike a text and an image are, and `evidence.note` says so.

    With `Accept: application/fhir+json` the studies of the hits are a FHIR R4 Bundle.
    """
    return _answer(request, asked, archive, readers)


@router.post(
    "/v1/search/upload",
    operation_id="searchUpload",
    summary="Find the images most like one that is sent",
    response_description="Hits, most similar first, with how they were found.",
    response_model=SearchDocument,
    responses={
        200: {"content": {"application/json": {"example": EXAMPLE}, **BUNDLE}},
        **problem_responses(400, 404, 406, 409, 413, 415, 422, 503),
    },
    openapi_extra={
        "requestBody": body_content(
            UploadFields,
            name="Search",
            files="file",
            about_files=_ABOUT_FILE,
            example={"k": 10, "where": ["modality=CT"]},
            only_forms=True,
        )
    },
)
def search_upload(
    request: Request,
    asked: AskedByForm,
    archive: ArchiveDep,
    readers: ReadersDep,
) -> Response:
    """What `search` does with a form: an operation with one kind of body and a file that has to
    come, for clients that are made of this document."""
    return _answer(request, asked, archive, readers)


def _answer(request: Request, asked: Asked, archive: TenantArchive, readers: Readers) -> Response:
    as_fhir = wants_fhir(request)
    found = answered(asked, archive, readers)
    tell(request, found.seen)
    viewers = links_from_image(archive, found.query_id)
    if as_fhir:
        return fhir_answer(request, archive, found.answer.hits, found.answer.ood, viewers)
    names = archive.names(found.answer.hits)
    document = SearchDocument.from_answer(found.answer, found.query_id, names, viewers)
    return search_answer(document, found.answer.evidence.timings_ms, vary="Accept")


class Found(NamedTuple):
    """An answer, the canvas of its query, and what it shows.

    canvas: the upload as the model saw it, uint8 (S, S) or (S, S, 3); None = the query was an
    indexed image. query_id: id of that image; None = it was an upload.
    """

    answer: Answer
    canvas: NDArray[np.uint8] | None
    seen: Seen
    query_id: str | None = None


def answered(asked: Asked, archive: TenantArchive, readers: Readers) -> Found:
    """The answer to a search request.

    Raises:
        QueryError: not exactly one image or text is given, the model knows no words, or an option
            is out of range or unknown.
        ModelError: what the model encodes words with is not in its folder.
        ImageNotFound: no indexed image has this id, or is of this instance, series or study.
        ImageRefused: the upload, or the original that a region is of, cannot be read, or the region
            has too few pixels.
        SourceGone, SourceChanged, SourceError: the original that a region is of is not there.
        HTTPException: 503, all readers of uploads are busy.
    """
    given = [
        name
        for name, value in (
            ("file", asked.upload),
            ("id", asked.image_id),
            ("sop", asked.sop),
            ("series", asked.series),
            ("study", asked.study),
            ("text", asked.text),
        )
        if value is not None
    ]
    if len(given) != 1:
        came = " and ".join(given) or "none of them"
        raise QueryError(
            f"give one image, as file, id, sop, series or study, or a text; {came} came"
        )
    (field,) = given
    if asked.frame is not None and field != "sop":
        raise QueryError("a frame is one of an instance; give its sop as well")
    query = query_of(asked, archive)
    if asked.text is not None:
        if asked.region is not None:
            raise QueryError("a region is one of a picture; leave it out, or search by an image")
        answer = archive.engine.search_text(asked.text, query)
        note_search([answer.evidence.rung], answer.ood, answer.evidence.timings_ms)
        return Found(answer, None, Seen.of(answer.hits, ood=answer.ood))
    if asked.upload is not None:
        with stage("read"):
            image = readers.read(asked.upload, asked.region)
        answer = archive.engine.search([image.canvas], query, [image.record], [image.colour])[0]
        note_search([answer.evidence.rung], answer.ood, answer.evidence.timings_ms)
        return Found(answer, image.canvas, Seen.of(answer.hits, ood=answer.ood))
    if asked.image_id is not None:
        image_id = parse_id(asked.image_id)
    else:
        uid = str(asked.sop or asked.series or asked.study or "")
        image_id = representative(archive.store, field, uid, asked.frame)
    if asked.region is None:
        answer = archive.engine.search_like(image_id, query)
    else:
        answer = _like_region(image_id, asked.region, query, archive, readers)
    note_search([answer.evidence.rung], answer.ood, answer.evidence.timings_ms)
    # It is a UID: an image of it was found.
    studies = [] if asked.study is None else [asked.study]
    seen = Seen.of(answer.hits, asked=[image_id], studies=studies, ood=answer.ood)
    return Found(answer, None, seen, image_id)


def _like_region(
    image_id: str, region: Region, query: Query, archive: TenantArchive, readers: Readers
) -> Answer:
    """The answer for a region of an indexed image, which is cut from its original; the image itself
    is excluded, as if all of it was asked for."""
    original = archive.original(image_id)
    with stage("read"):
        image = readers.read_region(original, region)
    others = replace(query.where, must_not=(*query.where.must_not, Ids((original.id,))))
    (answer,) = archive.engine.search(
        [image.canvas], replace(query, where=others), [image.record], [image.colour]
    )
    return answer


def query_of(asked: Asked, archive: TenantArchive) -> Query:
    """The options of a request, checked.

    Raises:
        QueryError: one of them is out of range or unknown.
    """
    return Query(
        k=archive.settings.search.k if asked.k is None else asked.k,
        where=parse_where(asked.where),
        order=asked.order,
        exact=asked.exact,
        radius=asked.radius,
        group_by=asked.group_by,
        exclude=asked.exclude,
        page=None if asked.page is None else Cursor.parse(asked.page),
        facets=asked.facets,
    )
