"""Searches: the images most similar to an upload or to an indexed image."""

from typing import NamedTuple

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray

from api.http.deps import ArchiveDep, Asked, AskedByForm, Readers, ReadersDep, point_id
from api.http.observing import note_search, stage
from api.http.problems import problem_responses
from api.schemas import SearchDocument
from engine.errors import QueryError
from engine.records import Answer
from engine.search.query import Cursor, Query, parse_where
from indexer.archive import TenantArchive

__all__ = ["Found", "answered", "router"]

router = APIRouter(tags=["search"])

_EXAMPLE = {
    "ood": {
        "foreign": False,
        "p": 0.41,
        "alpha": 0.03,
        "scores": {"knn": 0.18, "reconstruction": 0.07},
        "p_values": {"knn": 0.205, "reconstruction": 0.63},
    },
    "evidence": {
        "rung": "codes",
        "radius": 7,
        "cells": None,
        "cells_in_all": 252,
        "matching": 15871,
        "candidates": 134,
        "estimated": False,
        "facets_estimated": False,
        "compared": 134,
        "approximate": False,
        "ranked": 20,
        "rungs_tried": {"codes-3": 31, "codes-7": 134},
        "order": "content",
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
            "id": "9d4f5c3e-6a3b-5b0e-8f52-0c7e1f0a6d11",
            "study": "1.2.826.0.1.3680043.8.498.1",
            "series": "1.2.826.0.1.3680043.8.498.1.1",
            "sop": "1.2.826.0.1.3680043.8.498.1.1.7",
            "frame": 0,
            "modality": "CT",
            "body_part": "CHEST",
            "view": None,
            "laterality": None,
            "manufacturer": "ACME",
            "sex": "F",
            "age_band": "60-69",
            "study_year": 2019,
            "labels": ["nodule"],
            "source": "folder",
            "burned_in": None,
            "similarity": 0.9731,
            "hamming": 3,
            "missing_frames": None,
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
    responses={
        200: {"content": {"application/json": {"example": _EXAMPLE}}},
        **problem_responses(400, 404, 413, 422, 503),
    },
)
def search(asked: AskedByForm, archive: ArchiveDep, readers: ReadersDep) -> SearchDocument:
    """Give either `file`, an image that is not stored, or `id`, an image of the index.

    A query that is foreign to the model (`ood.foreign`) is answered like any other, unless the
    service is set to refuse it: then there are no hits, and `evidence.rung` is "none". To get more
    hits, repeat the request, otherwise unchanged, with `next_page` of the answer as `page`.
    """
    return SearchDocument.from_answer(answered(asked, archive, readers).answer)


class Found(NamedTuple):
    """An answer, and the canvas of its query.

    canvas: the upload as the model saw it, uint8 (S, S) or (S, S, 3); None = the query was an
    indexed image.
    """

    answer: Answer
    canvas: NDArray[np.uint8] | None


def answered(asked: Asked, archive: TenantArchive, readers: Readers) -> Found:
    """The answer to a search request.

    Raises:
        QueryError: not exactly one of upload and id is given, or an option is out of range or
            unknown.
        ImageNotFound: no indexed image has this id.
        ImageRefused: the upload cannot be read.
        HTTPException: 503, all readers of uploads are busy.
    """
    if (asked.upload is None) == (asked.image_id is None):
        given = "none" if asked.upload is None else "both"
        raise QueryError(f"give one image, as file or as id; {given} of them came")
    query = Query(
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
    if asked.image_id is not None:
        return _noted(archive.engine.search_like(point_id(asked.image_id), query), None)
    if asked.upload is None:
        raise AssertionError("one of both was given")
    with stage("read"):
        image = readers.read(asked.upload)
    return _noted(archive.engine.search([image.canvas], query, [image.record])[0], image.canvas)


def _noted(answer: Answer, canvas: NDArray[np.uint8] | None) -> Found:
    note_search([answer.evidence.rung], answer.ood, answer.evidence.timings_ms)
    return Found(answer, canvas)
