"""The page on which a region of a picture is chosen, to be searched for."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from api.http.deps import ArchiveDep
from api.portal import shown, words
from api.portal.answers import whole_of
from api.portal.kept import KeptQueries, owner_of
from api.portal.page_route import PageRoute, page
from api.portal.question import AskedByLink
from api.schemas import ImageDocument
from api.security.seen import Seen, tell
from engine.errors import QueryError
from engine.search.query import parse_id
from indexer.imaging.region import LEAST_SIDE, Region

__all__ = ["router"]

router = APIRouter(
    route_class=PageRoute, include_in_schema=False, default_response_class=HTMLResponse
)

_SIDE = 1024
_MIDDLE = Region(0.25, 0.25, 0.5, 0.5)
"""What is marked before anything is chosen."""


@router.get("/region")
def choose_region(request: Request, asked: AskedByLink, archive: ArchiveDep) -> HTMLResponse:
    """The page with the picture of the one image that the address names; the other options of the
    address go on with the search.

    Raises:
        QueryError: not exactly one image is named. ImageNotFound: it is not indexed.
        QueryExpired: it is an upload that is not kept any more, or whose picture is not.
    """
    count = len(asked.kept) + len(asked.marks)
    if count != 1 or asked.dislikes:
        raise QueryError(f"a region is of one image, and {count} came; give one like or one query")
    image, inside = None, None
    if asked.kept:
        queries: KeptQueries = request.app.state.kept_queries
        owner, model = owner_of(request.state.caller), archive.manifest.fingerprint
        kept = queries.of(asked.kept[0], owner, model)
        inside = words.picture_inside(whole_of(kept).pixels, _SIDE)
    else:
        point = archive.engine.image(parse_id(asked.likes[0]))
        tell(request, Seen.of([point], listed=False))
        image = ImageDocument.from_point(point)
    values: dict[str, Any] = {
        "image": image,
        "picture": inside,
        "preview": None if image is None else shown.picture_address(image.id, None, _SIDE),
        "region": asked.region or _MIDDLE,
        "hidden": [one for one in asked.hidden() if one[0] != "region"],
        "whole": asked.address(region=None),
        "least": LEAST_SIDE,
        "words": words,
    }
    return page(request, "region.html", values)
