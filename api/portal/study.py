"""The page of a study: its series and images, related cases, viewers, documents."""

from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import HTMLResponse

from api.http.deps import ArchiveDep
from api.http.observing import note_search
from api.http.routes.sendings import SendingDocument
from api.http.sender import Sender
from api.http.viewers import links_from
from api.portal import words
from api.portal.page_route import PageRoute, page
from api.portal.question import Question
from api.schemas import ImageDocument, RecommendationDocument
from api.security.access import Caller
from api.security.policy import Scope
from api.security.seen import Seen, tell, tell_about
from engine.errors import ImageNotFound, QueryError
from engine.records import Point
from engine.search.recommend import Examples, Wanted
from engine.search.representative import place
from engine.store.base import Filter, Match
from indexer.archive import TenantArchive
from indexer.documents.outbox import destinations_of

__all__ = ["router", "sending_of"]

router = APIRouter(
    route_class=PageRoute, include_in_schema=False, default_response_class=HTMLResponse
)

_IMAGES = 48
"""Images on a page."""
_RELATED = 12


@dataclass(frozen=True, slots=True)
class _Series:
    """A series, or what of it is on this page. count: its images in all. first: the number of the
    first one that is shown, from 1."""

    number: int
    about: str
    count: int
    first: int
    images: list[ImageDocument]


@router.get("/studies/{uid}")
def show_study(
    uid: Annotated[str, Path()],
    request: Request,
    archive: ArchiveDep,
    page_number: Annotated[int, Query(alias="page")] = 1,
    sending: str = "",
) -> HTMLResponse:
    """The page of an indexed study.

    Raises:
        ImageNotFound: nothing of it is indexed. QueryError: it has no such page.
        SendingNotFound: there is no such sending.
    """
    found = archive.store.scroll(Filter((Match("study", (uid,)),)))
    points = sorted(found, key=lambda point: place(point.id, point.record))
    if not points:
        raise ImageNotFound(
            f"no indexed image is of study {uid[:64]!r}; the archive may not have it, or not yet"
        )
    last = (len(points) - 1) // _IMAGES + 1
    if not 1 <= page_number <= last:
        raise QueryError(f"page {page_number} of this study was asked for; it has {last}")
    start = (page_number - 1) * _IMAGES
    shown = points[start : start + _IMAGES]
    tell(request, Seen.of([points[0], *shown], studies=[uid]))
    first = points[0].record
    caller: Caller | None = request.state.caller
    values: dict[str, Any] = {
        "uid": uid,
        "first": ImageDocument.from_point(points[0]),
        "count": len(points),
        "series": _series(points, shown, start),
        "series_in_all": len({point.record.series for point in points}),
        "page_number": page_number,
        "last": last,
        "viewers": links_from(archive)(first),
        "found": None,
        "destinations": None,
        "sent": None,
        "words": words,
        "asked": Question(),
    }
    if page_number == 1:
        values |= _related(request, archive, uid, first_record=points[0])
    if caller is not None and Scope.SEND in caller.scopes and first.sop is not None:
        values["destinations"] = list(destinations_of(archive.settings, archive.tenant))
        if sending:
            values["sent"] = sending_of(request, sending, archive.tenant)
    return page(request, "study.html", values)


def _series(points: list[Point], shown: list[Point], start: int) -> list[_Series]:
    """What is shown, by series."""
    counts: dict[str | None, int] = {}
    firsts: dict[str | None, int] = {}
    for number, point in enumerate(points):
        firsts.setdefault(point.record.series, number)
        counts[point.record.series] = counts.get(point.record.series, 0) + 1
    numbers = {uid: number for number, uid in enumerate(counts, 1)}
    made, at = [], start
    for uid, group in groupby(shown, key=lambda point: point.record.series):
        images = [ImageDocument.from_point(point) for point in group]
        first = at - firsts[uid] + 1
        made.append(_Series(numbers[uid], words.about(images[0]), counts[uid], first, images))
        at += len(images)
    return made


def _related(
    request: Request, archive: TenantArchive, uid: str, first_record: Point
) -> dict[str, Any]:
    """Cases related to the study: one image of each, none of its own patient's."""
    answer = archive.engine.recommend(Examples(study=uid), Wanted(k=_RELATED))
    shown = [one.hit for one in answer.hits]
    because = [one.because for one in answer.hits if one.because is not None]
    tell(request, Seen.of(shown, asked=because, studies=[uid], ood=answer.ood))
    note_search(tuple(answer.evidence.rungs), answer.ood, answer.evidence.timings_ms)
    viewers = links_from(archive, first_record.record)
    document = RecommendationDocument.from_answer(answer, archive.names(shown), viewers)
    return {"found": document, "verdict": words.verdict(document.ood)}


def sending_of(request: Request, sending: str, tenant: str) -> SendingDocument:
    """What became of documents that were sent.

    Raises:
        SendingNotFound: there is no such sending of the tenant.
    """
    sender: Sender = request.state.sender
    found = sender.outbox.of(sending, tenant)
    tell_about(request, sending=found.id, destination=found.destination)
    tell(request, Seen((), tuple(dict.fromkeys(plan.image for plan in found.plans))))
    return SendingDocument.of(found)
