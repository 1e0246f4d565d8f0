"""Indexed images: the record of one, its pictures, and facet counts over many."""

import hashlib
import math
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from api.http.deps import EXAMPLE_IMAGE, ArchiveDep, PointId, Where
from api.http.pictures import PICTURE, Previews, etag_of, picture, unchanged
from api.http.problems import problem_responses
from api.schemas import ImageDocument
from api.security.seen import Seen, tell
from engine.errors import QueryError
from engine.search.query import parse_id, parse_where
from engine.search.spelling import as_spelled
from indexer.imaging.voi import Window

__all__ = ["FacetsDocument", "router"]

router = APIRouter(tags=["images"])

IfNoneMatch = Annotated[
    str, Header(description="ETags of pictures that the caller has: 304 if one is still right.")
]

LEAST_SIDE, MOST_SIDE = 16, 4096


class FacetsDocument(BaseModel):
    """Facets of the images that match.

    - `facets`: number of images by field and value. `facets_estimated`, `facets_at_least`: as in
      the evidence of a search.
    - `count`: number of images that match.
    """

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "facets": {"modality": {"CT": 120, "MR": 14}, "sex": {"F": 71}},
                    "facets_estimated": False,
                    "facets_at_least": [],
                    "count": 134,
                }
            ]
        },
    )

    facets: dict[str, dict[str, int]]
    facets_estimated: bool
    facets_at_least: list[str]
    count: int


@router.get(
    "/v1/images/{id}",
    operation_id="getImage",
    summary="What the index knows of an image",
    responses={
        200: {"content": {"application/json": {"example": EXAMPLE_IMAGE}}},
        **problem_responses(404, 422, 503),
    },
)
def get_image(request: Request, image_id: PointId, archive: ArchiveDep) -> ImageDocument:
    """The identifiers of the image and what it shows, without the pseudonym of its patient."""
    point = archive.engine.image(parse_id(image_id))
    tell(request, Seen.of([point], listed=False))
    return ImageDocument.from_point(point)


@router.get(
    "/v1/images/{id}/thumbnail",
    operation_id="getThumbnail",
    summary="A small picture of an image",
    response_class=Response,
    responses={**PICTURE, **problem_responses(404, 422, 503)},
)
def get_thumbnail(
    request: Request, image_id: PointId, archive: ArchiveDep, if_none_match: IfNoneMatch = ""
) -> Response:
    """A JPEG without metadata, made when the image was indexed."""
    point, jpeg = archive.pictured(parse_id(image_id))
    tell(request, Seen.of([point], listed=False))
    etag = f'"{hashlib.sha256(jpeg).hexdigest()[:32]}"'
    return picture(etag, None if unchanged(etag, if_none_match) else jpeg)


@router.get(
    "/v1/images/{id}/preview",
    operation_id="getPreview",
    summary="A large picture of an image, made of its original",
    response_class=Response,
    responses={**PICTURE, **problem_responses(400, 404, 409, 410, 413, 422, 502, 503)},
)
def get_preview(
    image_id: PointId,
    archive: ArchiveDep,
    request: Request,
    window: Annotated[
        float | None,
        Query(description="Width of the window, of CT in Hounsfield units.", examples=[1500.0]),
    ] = None,
    level: Annotated[
        float | None,
        Query(description="Centre of the window; given together with it.", examples=[-600.0]),
    ] = None,
    frame: Annotated[
        int | None,
        Query(
            description="Another frame of the same file, counted from 0.",
            json_schema_extra={"minimum": 0},
        ),
    ] = None,
    size: Annotated[
        int,
        Query(
            description="Longest side in pixels; smaller pictures are not enlarged.",
            json_schema_extra={"minimum": LEAST_SIDE, "maximum": MOST_SIDE},
        ),
    ] = 1024,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """A JPEG without metadata, rendered at this moment from the file that was indexed, as that file
    has it: not turned.

    410: the file, or the setting that says where it is, is not there any more. 409: another file is
    in its place.
    """
    original = archive.original(parse_id(image_id))
    study = original.record.study
    tell(request, Seen(() if study is None else (study,), (original.id,)))
    chosen = _window(window, level)
    if not LEAST_SIDE <= size <= MOST_SIDE:
        raise QueryError(f"size is {size}; use {LEAST_SIDE} to {MOST_SIDE} pixels")
    if frame is not None and not 0 <= frame < 2**31:
        raise QueryError(f"frame is {frame}; frames are counted from 0")
    number = original.record.frame if frame is None else frame
    etag = etag_of(original.id, original.content, archive.rendering, number, chosen, size)
    if unchanged(etag, if_none_match):
        return picture(etag, None)
    previews: Previews = request.state.previews
    with previews.reader() as reader:
        jpeg = reader.render(
            original.record,
            original.locator,
            original.content,
            frame=number,
            side=size,
            window=chosen,
        )
    return picture(etag, jpeg)


def _window(width: float | None, level: float | None) -> Window | None:
    if width is None and level is None:
        return None
    if width is None or level is None:
        raise QueryError("a window has a width and a level; give window and level together")
    if not (math.isfinite(level) and 1 <= width < math.inf):
        raise QueryError(f"window is {width:g} and level {level:g}; use a width of 1 or more")
    return Window(level, width)


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
    facets = archive.engine.facets(passing)
    return FacetsDocument(
        facets=facets,
        facets_estimated=facets.estimated,
        facets_at_least=list(facets.at_least),
        count=count,
    )
