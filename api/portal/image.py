"""The page of an image: a large picture of it, with a window and a frame to choose."""

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from api.http.deps import ArchiveDep, PointId
from api.http.viewers import links_from
from api.portal import shown, words
from api.portal.page_route import PageRoute, page
from api.portal.question import Question
from api.schemas import ImageDocument
from api.security.seen import Seen, tell
from engine.records import Point
from engine.search.query import parse_id
from engine.search.representative import place
from engine.store.base import Filter, Match
from indexer.archive import TenantArchive

__all__ = ["router"]

router = APIRouter(
    route_class=PageRoute, include_in_schema=False, default_response_class=HTMLResponse
)

_SIDE, _LARGEST_SIDE = 1024, 4096
_MOST_FRAMES = 32
"""Indexed frames of an instance that are linked to."""


@router.get("/images/{id}")
def show_image(
    image_id: PointId,
    request: Request,
    archive: ArchiveDep,
    window: str = "",
    level: str = "",
    frame_number: str = "",
    turn: str = "",
    mirror: str = "",
) -> HTMLResponse:
    """The page of an indexed image.

    frame_number: another frame of its file, counted from 1 as in DICOM. turn, mirror: see
    :class:`api.portal.shown.Turned`.

    Raises:
        ImageNotFound: there is no such image. QueryError: window, level, frame, turn or mirror is
            none.
    """
    point = archive.engine.image(parse_id(image_id))
    document = ImageDocument.from_point(point)
    chosen = shown.window_of(window, level)
    frame = shown.frame_of(frame_number, document.frame)
    turned = shown.turned_of(turn, mirror)
    other = None if frame == document.frame else frame
    stack = _stack(archive, point)
    at = next(number for number, one in enumerate(stack) if one.id == point.id)
    is_dicom = document.sop is not None
    frames = [one for one in stack if is_dicom and one.record.sop == document.sop]
    frames = frames[:_MOST_FRAMES] if len(frames) > 1 else []
    near = (*stack[max(at - 1, 0) : at], *stack[at + 1 : at + 2])
    tell(request, Seen.of([point, *near, *frames], listed=False))

    def query(window: shown.Window | None, frame: int, turned: shown.Turned) -> dict[str, str]:
        """What of the address of this page says how the picture is shown."""
        found = shown.written(window)
        if frame != document.frame:
            found["frame_number"] = str(frame + 1)
        return {**found, **turned.written()}

    def address(window: shown.Window | None, frame: int, turned: shown.Turned = turned) -> str:
        return "?" + urlencode(query(window, frame, turned))

    def others(*names: str) -> list[tuple[str, str]]:
        """The same, as hidden fields of a form that has these fields itself."""
        return [one for one in query(chosen, frame, turned).items() if one[0] not in names]

    values: dict[str, Any] = {
        "image": document,
        "picture": shown.picture_address(document.id, chosen, _SIDE, other),
        "largest": shown.picture_address(document.id, chosen, _LARGEST_SIDE, other),
        "frame": frame,
        "frames": {one.record.frame: one.id for one in frames},
        "missing_frames": point.missing_frames,
        "chosen": chosen,
        # What a drag begins with: of other modalities it is not known.
        "dragged": chosen
        or (shown.SOFT_TISSUE if document.modality == "CT" and is_dicom else None),
        "presets": shown.PRESETS if document.modality == "CT" else (),
        "is_dicom": is_dicom,
        "number": at + 1,
        "count": len(stack),
        "before": stack[at - 1].id if at > 0 else None,
        "after": stack[at + 1].id if at + 1 < len(stack) else None,
        "viewers": links_from(archive)(point.record),
        "words": words,
        "asked": Question(),
        "turned": turned,
        "steps": {name: address(chosen, frame, one) for name, one in turned.steps.items()},
        "with_window": lambda one: address(one, frame),
        "with_frame": lambda one: address(chosen, one),
        "other_fields": others,
    }
    return page(request, "image.html", values)


def _stack(archive: TenantArchive, point: Point) -> list[Point]:
    """The images of its series, in order; it alone if it names none."""
    if point.record.series is None:
        return [point]
    found = archive.store.scroll(Filter((Match("series", (point.record.series,)),)))
    stack = sorted(found, key=lambda one: place(one.id, one.record))
    # It may have been removed in this moment.
    return stack if any(one.id == point.id for one in stack) else [point]
