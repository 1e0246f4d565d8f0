"""Indexed images: the record of one, its thumbnail, and facet counts over many."""

import hashlib
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, ConfigDict

from api.http.deps import ArchiveDep, PointId, Where, point_id
from api.http.problems import problem_responses
from api.schemas import ImageDocument
from api.security.seen import Seen, tell
from engine.search.query import parse_where
from engine.search.spelling import as_spelled

__all__ = ["FacetsDocument", "router"]

router = APIRouter(tags=["images"])


class FacetsDocument(BaseModel):
    """Facets of the images that match.

    - `facets`: number of images by field and value.
    - `count`: number of images that match.
    """

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {"facets": {"modality": {"CT": 120, "MR": 14}, "sex": {"F": 71}}, "count": 134}
            ]
        },
    )

    facets: dict[str, dict[str, int]]
    count: int


@router.get(
    "/v1/images/{id}",
    operation_id="getImage",
    summary="What the index knows of an image",
    responses=problem_responses(404, 422, 503),
)
def get_image(request: Request, image_id: PointId, archive: ArchiveDep) -> ImageDocument:
    """The identifiers of the image and what it shows, without the pseudonym of its patient."""
    point = archive.engine.image(point_id(image_id))
    tell(request, Seen.of([point], listed=False))
    return ImageDocument.from_point(point)


@router.get(
    "/v1/images/{id}/thumbnail",
    operation_id="getThumbnail",
    summary="A small picture of an image",
    response_class=Response,
    responses={
        200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
        304: {"description": "The picture with this ETag is still the right one."},
        **problem_responses(404, 422, 503),
    },
)
def get_thumbnail(
    request: Request,
    image_id: PointId,
    archive: ArchiveDep,
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    """A JPEG without metadata, made when the image was indexed."""
    point, jpeg = archive.pictured(point_id(image_id))
    tell(request, Seen.of([point], listed=False))
    etag = f'"{hashlib.sha256(jpeg).hexdigest()[:32]}"'
    # Only the browser may cache it, and must ask each time whether it is still valid.
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(jpeg, media_type="image/jpeg", headers=headers)


@router.get(
    "/v1/facets",
    operation_id="getFacets",
    summary="Counts by modality, body part and other fields",
    responses=problem_responses(400, 422, 503),
)
def get_facets(
    request: Request,
    archive: ArchiveDep,
    where: Where = [],  # noqa: B006 - FastAPI copies defaults
) -> FacetsDocument:
    """Facet counts over all images, or over those that match the filters."""
    passing, _ = as_spelled(archive.store, parse_where(where))
    count = archive.store.count(passing)
    tell(request, Seen(results=count))
    return FacetsDocument(facets=archive.engine.facets(passing), count=count)
