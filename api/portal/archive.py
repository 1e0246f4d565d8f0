"""The page of the archive as a whole: counts, growth, refusals, a map; and that of duplicates."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import islice
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse

from api.http.deps import ArchiveDep
from api.http.remembered import Remembered
from api.http.routes.archive import GrowthDocument, archive_map, get_growth, get_refusals
from api.http.routes.duplicates import SEARCHES, to_compare
from api.portal import charts, words
from api.portal.page_route import PageRoute, page
from api.portal.question import Question
from api.refusals import REFUSALS
from api.schemas import ImageDocument
from api.security.seen import Seen, tell
from engine.errors import QueryError
from engine.search.duplicates import duplicates
from engine.store.base import Filter
from indexer.archive import TenantArchive

__all__ = ["router"]

router = APIRouter(
    route_class=PageRoute, include_in_schema=False, default_response_class=HTMLResponse
)

_MOST_DAYS = 62
"""Growth over more days than this is shown by months."""
_FEWEST = 3
"""Fewer images than this have no map."""
_GROUPS = 10
"""Groups on a page."""
_MOST_GROUPS = 500
_MOST_MEMBERS = 12
_KEPT_SECONDS = 600.0


@router.get("/archive")
def show_archive(
    request: Request,
    archive: ArchiveDep,
    colour: Annotated[str, Query(max_length=40)] = "",
) -> HTMLResponse:
    """What the archive has.

    colour: the field by which the map is coloured; empty = the first one that is known.

    Raises:
        QueryError: there is no such field.
    """
    if colour and colour not in words.TITLES:
        raise QueryError(
            f"the map was to be coloured by {colour!r}; use one of {', '.join(words.TITLES)}"
        )
    counts = archive.engine.facets(Filter())
    growth = _growth(request, archive)
    refused = get_refusals(request, archive)
    values: dict[str, Any] = {
        "points": archive.store.count(Filter()),
        "instances": archive.instances(),
        "charts": charts.bar_charts(counts, counts.at_least),
        "estimated": counts.estimated,
        "unknown": [words.title_of(name) for name in words.TITLES if not counts.get(name)],
        "growth": growth,
        "columns": charts.columns(growth),
        "refused": refused,
        "advice": {one.value: advice for one, advice in REFUSALS.items()},
        "map": None,
        "words": words,
        "asked": Question(),
    }
    if values["points"] >= _FEWEST:
        values |= _map_values(request, archive, colour)
    return page(request, "archive.html", values)


def _growth(request: Request, archive: TenantArchive) -> GrowthDocument:
    """By day, as long as these are few enough; else by month."""
    found = get_growth(request, archive, "day")
    if found.periods:
        first, last = (date.fromisoformat(found.periods[at].period) for at in (0, -1))
        if (last - first).days >= _MOST_DAYS:
            return get_growth(request, archive, "month")
    return found


def _map_values(request: Request, archive: TenantArchive, colour: str) -> dict[str, Any]:
    found = archive_map(request, archive)
    fields = charts.colours_of(found.points)
    field = colour or (fields[0] if fields else "modality")
    legend, marked = charts.keys(found.points, field)
    return {
        "map": found,
        "colour": field,
        "colours": [(name, words.title_of(name)) for name in fields],
        "legend": legend,
        "marks": charts.marks(found.points, field, marked),
        "squares": charts.squares(found, field),
        "height": max((round(1000 * one.y) for one in found.points), default=0),
    }


@dataclass(frozen=True, slots=True)
class _Group:
    """A group of duplicates. images: how many it has. members: id, similarity to the first one and
    whether it is identical to it, of the first of them."""

    images: int
    studies: int
    members: tuple[tuple[str, float, bool], ...]


@dataclass(frozen=True, slots=True)
class _Compared:
    """What a comparison found. images: how many were compared. more: there are more groups."""

    groups: tuple[_Group, ...]
    images: int
    more: bool


@router.get("/archive/duplicates")
def show_duplicates(
    request: Request,
    archive: ArchiveDep,
    where: Annotated[list[str], Query()] = [],  # noqa: B006 - FastAPI copies defaults
    across_studies: bool = False,
    page_number: Annotated[int, Query(alias="page")] = 1,
) -> HTMLResponse:
    """Groups of images that are the same picture, or nearly, side by side.

    Raises:
        QueryError: a filter is none, too many images match, or there is no such page.
        HTTPException: 429 or 503, duplicates are being looked for already.
    """
    terms = tuple(term for term in where if term)
    found = _compared(request, archive, terms, across=across_studies)
    last = max(1, -(-len(found.groups) // _GROUPS))
    if not 1 <= page_number <= last:
        raise QueryError(f"page {page_number} of the duplicates was asked for; there are {last}")
    shown = found.groups[(page_number - 1) * _GROUPS : page_number * _GROUPS]
    ids = [image for group in shown for image, *_ in group.members]
    # Read anew each time: what was deleted since is not shown.
    points = {point.id: point for point in archive.store.get(ids)}
    tell(request, Seen.of(points.values()))

    def address(**changed: Any) -> str:
        """The address of this page with something else chosen."""
        asked = {"where": terms, "across_studies": across_studies, "page": 1, **changed}
        return _address(asked)

    modalities = archive.store.facets(["modality"], Filter(), 20).get("modality", {})
    values: dict[str, Any] = {
        "found": found,
        "groups": [
            (
                group,
                [
                    (ImageDocument.from_point(points[image]), similarity, identical)
                    for image, similarity, identical in group.members
                    if image in points
                ],
            )
            for group in shown
        ],
        "start": (page_number - 1) * _GROUPS,
        "page_number": page_number,
        "last": last,
        "across_studies": across_studies,
        "terms": terms,
        "modalities": [(name, (f"modality={name}",)) for name in modalities],
        "address": address,
        "words": words,
        "asked": Question(),
    }
    return page(request, "duplicates.html", values)


def _compared(
    request: Request, archive: TenantArchive, where: Sequence[str], *, across: bool
) -> _Compared:
    """What a comparison found; it is kept, so that the next page does not compare again."""
    passing, count = to_compare(archive, where)

    def compare() -> _Compared:
        with SEARCHES.held(archive.tenant):
            wanted = (
                group
                for group in duplicates(archive.store, where=passing)
                if group.studies > 1 or not across
            )
            groups = tuple(
                _Group(
                    len(one.members),
                    one.studies,
                    tuple((m.id, m.similarity, m.identical) for m in one.members[:_MOST_MEMBERS]),
                )
                for one in islice(wanted, _MOST_GROUPS)
            )
            return _Compared(groups, count, next(wanted, None) is not None)

    known: Remembered = request.state.remembered
    return known.of(
        archive.tenant,
        ("duplicates", tuple(where), across),
        compare,
        stamp=(archive.manifest.fingerprint, count),
        seconds=_KEPT_SECONDS,
    )


def _address(asked: dict[str, Any]) -> str:
    query = [("where", term) for term in asked["where"]]
    if asked["across_studies"]:
        query.append(("across_studies", "true"))
    if asked["page"] > 1:
        query.append(("page", str(asked["page"])))
    return "duplicates" + ("?" + urlencode(query) if query else "")
