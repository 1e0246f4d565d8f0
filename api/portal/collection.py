"""The page of images that were collected, and what they are exported as: CSV, FHIR, key objects."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import numpy as np
from fastapi import APIRouter, Form, Query, Request, Response
from numpy.typing import NDArray
from starlette.responses import HTMLResponse, RedirectResponse

from api.http.deps import ArchiveDep
from api.http.fhir.bundle import collection_answer
from api.http.routes.documents import TeachingFields, select_for_teaching
from api.http.routes.sendings import SendingRequest, send_documents
from api.http.viewers import ViewerLinks, links_from
from api.portal import words
from api.portal.kept import KeptQueries, owner_of
from api.portal.page_route import PageRoute, page
from api.portal.question import MOST_UPLOADS, Mark, Question
from api.portal.sessions import OwnForm
from api.portal.study import sending_of
from api.schemas import ImageDocument, ViewerLink
from api.security.access import Caller
from api.security.policy import Scope
from api.security.seen import Seen, tell
from engine.errors import ImageNotFound, QueryError, QueryExpired, StoreError
from engine.records import ImageRecord, Point
from engine.search.query import parse_id
from engine.search.recommend import MAX_EXAMPLES
from engine.search.similarity import cosines, unit
from indexer.archive import TenantArchive
from indexer.documents.outbox import destinations_of
from indexer.documents.planning import MOST_HITS
from indexer.sources.uids import why_unknown

__all__ = ["router"]

router = APIRouter(
    route_class=PageRoute, include_in_schema=False, default_response_class=HTMLResponse
)

_COLUMNS = (
    *("id", "study", "series", "sop", "frame"),
    *("modality", "body_part", "study_year", "similarity", "viewer"),
)
_FORMULAS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""What a spreadsheet takes for the beginning of a formula, full width ones as well."""
_SEPARATORS = str.maketrans(";\t\r\n", ",   ")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is collected.

    images: ids. likes, kept: the examples of the search, ids and tokens of uploads, with which they
    are compared.
    """

    images: tuple[str, ...]
    likes: tuple[str, ...]
    kept: tuple[str, ...]

    def address(self, **more: str) -> str:
        """The address of this collection, relative to the search page."""
        query = [("image", one) for one in self.images]
        query += [("like", one) for one in self.likes]
        query += [("query", one) for one in self.kept]
        return "collection?" + urlencode([*query, *more.items()])

    def without(self, image: str) -> str:
        """The address without an image."""
        left = tuple(one for one in self.images if one != image)
        return _Asked(left, self.likes, self.kept).address()


@dataclass(frozen=True, slots=True)
class _Collected:
    """An image of the collection.

    similarity: in [-1, 1], to the example of the search that it is most like, itself left out; None
    = there is no other one. named: other systems know it by its UIDs. viewers: links that open it.
    """

    image: ImageDocument
    record: ImageRecord
    similarity: float | None
    named: bool
    viewers: list[ViewerLink]

    @property
    def is_dicom(self) -> bool:
        """Whether a key object selection can name it."""
        record = self.record
        return self.named and None not in (record.study, record.series, record.sop)


@router.get("/collection", response_model=None)
def show_collection(
    request: Request,
    archive: ArchiveDep,
    image: Annotated[list[str], Query()] = [],  # noqa: B006 - FastAPI copies defaults
    like: Annotated[list[str], Query()] = [],  # noqa: B006
    query: Annotated[list[str], Query()] = [],  # noqa: B006
    as_file: Annotated[Literal["page", "csv", "fhir"], Query(alias="format")] = "page",
    sending: str = "",
) -> Response:
    """The images that are collected, as a page or as a file.

    Raises:
        ImageNotFound: one of them is not indexed (any more). QueryError: there are too many.
        SendingNotFound: there is no such sending.
    """
    asked = _asked(image, like, query)
    collected, expired = _collected(request, archive, asked)
    if as_file == "csv":
        return Response(_csv(collected), media_type="text/csv", headers=_saved_as("collection.csv"))
    if as_file == "fhir":
        named = [(one.image.id, one.record) for one in collected if one.named]
        answer = collection_answer(request, archive, named, links_from(archive))
        answer.headers.update(_saved_as("collection.json"))
        return answer
    caller: Caller | None = request.state.caller
    sends = caller is not None and Scope.SEND in caller.scopes
    searched = Question(kept=asked.kept, marks=tuple(Mark(one, True) for one in asked.likes))
    values: dict[str, Any] = {
        "collected": collected,
        "here": asked,
        "expired": expired,
        "search": searched.address() if searched.names_an_image else None,
        "unnamed": sum(not one.named for one in collected),
        "studies": {one.record.study for one in collected if one.record.study and one.named},
        "selected": [one.image.id for one in collected if one.is_dicom],
        "destinations": list(destinations_of(archive.settings, archive.tenant)) if sends else None,
        "sent": sending_of(request, sending, archive.tenant) if sends and sending else None,
        "words": words,
        "asked": Question(),
    }
    return page(request, "collection.html", values)


@router.post("/collection", response_model=None, dependencies=[OwnForm])
def select(
    request: Request,
    archive: ArchiveDep,
    image: Annotated[list[str], Form(min_length=1, max_length=MOST_HITS)],
    like: Annotated[list[str], Form()] = [],  # noqa: B006 - FastAPI copies defaults
    query: Annotated[list[str], Form()] = [],  # noqa: B006
    destination: Annotated[str, Form(max_length=200)] = "",
) -> Response:
    """A key object selection of each image, in a zip; with a destination they are sent there, and
    the page of the collection says what became of them."""
    fields = TeachingFields(images=image)
    if not destination:
        return select_for_teaching(request, archive, fields)
    sending = SendingRequest(destination=destination, teaching=fields)
    done = send_documents(sending, request, Response(), archive)
    here = _asked(image, like, query).address(sending=done.id)
    return RedirectResponse(f"./{here}#sent", HTTPStatus.SEE_OTHER)


def _asked(images: Sequence[str], likes: Sequence[str], kept: Sequence[str]) -> _Asked:
    """What an address asks for, with ids as the index writes them.

    Raises:
        QueryError: too much is named. ImageNotFound: an id is none.
    """
    asked = _Asked(
        tuple(dict.fromkeys(map(parse_id, images))),
        tuple(dict.fromkeys(map(parse_id, likes))),
        tuple(dict.fromkeys(kept)),
    )
    for found, most in (
        (asked.images, MOST_HITS),
        (asked.likes, MAX_EXAMPLES),
        (asked.kept, MOST_UPLOADS),
    ):
        if len(found) > most:
            raise QueryError(f"{len(found)} images are named; a collection takes up to {most}")
    return asked


def _collected(
    request: Request, archive: TenantArchive, asked: _Asked
) -> tuple[list[_Collected], bool]:
    """The images, in the order in which they are named, and whether an upload that they were to be
    compared with is not kept any more."""
    ids = list(dict.fromkeys((*asked.images, *asked.likes)))
    points = {one.id: one for one in archive.store.get(ids, with_z=True)}
    missing = [one for one in ids if one not in points]
    if missing:
        raise ImageNotFound(f"image {missing[0]} is not indexed, or not any more; take it out")
    tell(request, Seen.of([points[one] for one in asked.images], asked=asked.likes))
    uploads, expired = _uploads(request, archive, asked.kept)
    examples = [(one, _vector(points[one])) for one in asked.likes]
    links = links_from(archive)
    return [
        _one(archive, points[one], [*uploads, *(z for name, z in examples if name != one)], links)
        for one in asked.images
    ], expired


def _uploads(
    request: Request, archive: TenantArchive, tokens: Iterable[str]
) -> tuple[list[NDArray[np.float64]], bool]:
    """Unit vectors of uploads, and whether some are not kept any more."""
    queries: KeptQueries = request.app.state.kept_queries
    owner, model = owner_of(request.state.caller), archive.manifest.fingerprint
    found, expired = [], False
    for token in tokens:
        try:
            found.append(unit(queries.of(token, owner, model).seen.z[0]))
        except QueryExpired:
            expired = True
    return found, expired


def _one(
    archive: TenantArchive,
    point: Point,
    examples: Sequence[NDArray[np.float64]],
    links: ViewerLinks,
) -> _Collected:
    similarity = None
    if examples:
        # The same rows and sums as in a search, so that the figures are the same too.
        similarity = float(cosines(np.stack(examples), _vector(point)).max())
    record = point.record
    return _Collected(
        ImageDocument.from_point(point),
        record,
        similarity,
        why_unknown(record, archive.settings) is None,
        links(record),
    )


def _vector(point: Point) -> NDArray[np.float64]:
    """float64 (D,), unit length."""
    if point.z is None:
        raise StoreError(f"image {point.id} is stored without its vector; index it again")
    return unit(point.z)


def _saved_as(name: str) -> dict[str, str]:
    return {
        "Content-Disposition": f'attachment; filename="{name}"',
        "Cache-Control": "no-store",
    }


def _csv(collected: Iterable[_Collected]) -> str:
    """The table, every field in quotes. Without patients, and without UIDs that were replaced."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerow(_COLUMNS)
    for one in collected:
        image = one.image
        uids = (image.study, image.series, image.sop) if one.named else (None, None, None)
        similarity = None if one.similarity is None else f"{one.similarity:.6f}"
        viewer = one.viewers[0].url if one.viewers else None
        names = [_cell(text) for text in (image.id, *uids)]
        about = [_cell(text) for text in (image.modality, image.body_part)]
        writer.writerow([*names, image.frame, *about, image.study_year, similarity, viewer])
    return out.getvalue()


def _cell(text: str | None) -> str:
    """A text that no spreadsheet takes for a formula: headers of files say what they like."""
    # Of what parts the cells of a row elsewhere, the rest could begin with one.
    plain = (text or "").translate(_SEPARATORS)
    return f"'{plain}" if plain.lstrip().startswith(_FORMULAS) else plain
