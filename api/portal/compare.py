"""The page that shows a query and a hit side by side, both through the same window."""

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse

from api.http.deps import ArchiveDep, ReadersDep
from api.portal import shown, words
from api.portal.alike import alike
from api.portal.page_route import PageRoute, page
from api.portal.question import Question
from api.schemas import ImageDocument
from api.security.seen import Seen, tell
from engine.errors import QueryError
from engine.search.query import parse_id

__all__ = ["router"]

router = APIRouter(
    route_class=PageRoute, include_in_schema=False, default_response_class=HTMLResponse
)

_SIDE = 1024


@router.get("/compare")
def compare(
    request: Request,
    archive: ArchiveDep,
    readers: ReadersDep,
    right: str,
    left: str = "",
    query: str = "",
    window: str = "",
    level: str = "",
    alike_shown: Annotated[str, Query(alias="alike")] = "",
) -> HTMLResponse:
    """The page with two images.

    Args:
        left, right: ids. query: in place of ``left`` the token of an upload, whose picture the
            browser has.
        alike_shown: "true" = with where they look alike, which takes a while.

    Raises:
        ImageNotFound: one of them is not indexed. QueryError: there is no left one, window and
            level are none, or alike is neither true nor false.
    """
    if bool(left) == bool(query):
        raise QueryError("two images are compared; give left or query, and right")
    if alike_shown not in ("", "true", "false"):
        raise QueryError(f"alike is {alike_shown[:20]!r}; use true or false")
    with_map = alike_shown == "true"
    ids = [parse_id(one) for one in (left, right) if one]
    points = [archive.engine.image(one) for one in ids]
    tell(request, Seen.of(points, listed=False))
    images = [ImageDocument.from_point(point) for point in points]
    chosen = shown.window_of(window, level)
    asked = {"query": query} if query else {"left": ids[0]}
    asked["right"] = ids[-1]
    pair = {**asked, **shown.written(chosen)}
    if with_map:
        asked["alike"] = "true"
    # Of other images there are no grey values for a window.
    windowed = all(one.sop is not None for one in images)

    def picture(image: ImageDocument) -> str:
        return shown.picture_address(image.id, chosen if windowed else None, _SIDE)

    values: dict[str, Any] = {
        "images": images,
        "token": query,
        "picture": picture,
        "chosen": chosen,
        "windowed": windowed,
        "presets": shown.PRESETS if {one.modality for one in images} == {"CT"} else (),
        "hidden": list(asked.items()),
        "with_window": lambda one: "?" + urlencode({**asked, **shown.written(one)}),
        "alike": alike(request, archive, readers, query, ids) if with_map else None,
        "alike_link": "?" + urlencode(pair if with_map else {**pair, "alike": "true"}),
        "words": words,
        "asked": Question(),
    }
    return page(request, "compare.html", values)
