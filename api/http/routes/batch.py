"""Searches by many uploads at once."""

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from api.http.asked import MOST_IMAGES, ManyAsked, SearchOptions
from api.http.bodies import body_content
from api.http.deps import ArchiveDep, ReadersDep
from api.http.observing import note_search
from api.http.problems import Problem, problem_of, problem_responses
from api.http.request_ids import request_id_of
from api.http.routes.search import EXAMPLE, query_of
from api.http.timing import search_answer
from api.http.viewers import links_from
from api.schemas import SearchDocument
from api.security.seen import Seen, tell
from engine.errors import ImageRefused, QueryError
from engine.search.stopwatch import Stopwatch

__all__ = ["router"]

router = APIRouter(tags=["search"])


class BatchResult(BaseModel):
    """What was found for one of the images.

    - `query`: the name of its file, as it was sent. `number`: its place in the request, from 0.
    - `answer`: as of a search; null: there is a problem.
    - `problem`: why this image cannot be used; null: there is an answer.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    query: str
    answer: SearchDocument | None
    problem: Problem | None


class BatchDocument(BaseModel):
    """The answers to a batch of searches. `results`: one for each image, in the order sent."""

    model_config = ConfigDict(frozen=True)

    results: list[BatchResult]


_EXAMPLE: dict[str, Any] = {
    "results": [
        {"number": 0, "query": "slice-7.dcm", "answer": EXAMPLE, "problem": None},
        {
            "number": 1,
            "query": "notes.txt",
            "answer": None,
            "problem": {
                "type": "urn:precedent:problem:image-refused",
                "title": "The image cannot be used",
                "status": 422,
                "detail": "no image that is known here",
                "code": "not-an-image",
                "instance": "/v1/search/batch",
                "request_id": "0b9d3c5a1f8e4d6c9a7b2e4f6a8c0d1e",
                "errors": None,
                "missing": None,
            },
        },
    ]
}


@router.post(
    "/v1/search/batch",
    operation_id="searchBatch",
    summary="Find the images most like each of several",
    response_description="For each image its hits, or why it cannot be used.",
    response_model=BatchDocument,
    responses={
        200: {"content": {"application/json": {"example": _EXAMPLE}}},
        **problem_responses(400, 413, 415, 422, 503),
    },
    openapi_extra={
        "requestBody": body_content(
            SearchOptions,
            name="SearchBatch",
            files="files",
            most=MOST_IMAGES,
            about_files="Image files; they are not kept.",
            example={"k": 10, "where": ["modality=CT"]},
        )
    },
)
def search_batch(
    asked: ManyAsked,
    archive: ArchiveDep,
    readers: ReadersDep,
    request: Request,
) -> Response:
    """Send up to 64 images as `files` of a form, with options for all of them; together they may
    be as large as one upload. They are encoded together, which takes less time than one by one. An
    image that cannot be used has a problem in place of an answer, and does not disturb the others.
    For further pages ask for one image alone.
    """
    if not asked:
        raise QueryError("give images, as files of a form; none came")
    query = query_of(asked[0], archive)
    uploads = [one.upload for one in asked if one.upload is not None]
    watch = Stopwatch()
    with watch("read"):
        read = readers.read_all(uploads)
    images = [image for image in read if not isinstance(image, ImageRefused)]
    with watch("search"):
        answers = iter(
            archive.engine.search(
                [image.canvas for image in images],
                query,
                [image.record for image in images],
                [image.colour for image in images],
            )
            if images
            else []
        )
    results = []
    for number, (upload, image) in enumerate(zip(uploads, read, strict=True)):
        name = upload.filename or str(number)
        if isinstance(image, ImageRefused):
            problem = problem_of(image, request.url.path, request_id_of(request.scope))
            results.append(BatchResult(number=number, query=name, answer=None, problem=problem))
            continue
        answer = next(answers)
        note_search([answer.evidence.rung], answer.ood, answer.evidence.timings_ms)
        tell(request, Seen.of(answer.hits, ood=answer.ood))
        found = SearchDocument.from_answer(
            answer, names=archive.names(answer.hits), viewers=links_from(archive)
        )
        results.append(BatchResult(number=number, query=name, answer=found, problem=None))
    return search_answer(BatchDocument(results=results), watch.rounded())
