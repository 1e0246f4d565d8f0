"""The routes of the search page, which works without JavaScript."""

from dataclasses import dataclass, replace
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

from api.http.deps import ArchiveDep, Readers, ReadersDep, served
from api.http.observing import note_search, stage
from api.http.problems import Problem
from api.http.routes.search import Found, answered, query_of
from api.http.viewers import links_from_image
from api.portal import compare, documents, embed, facets, image, jobs, oidc, sessions, study, words
from api.portal.kept import KeptQueries, KeptQuery, owner_of
from api.portal.page_route import PageRoute, page
from api.portal.pages import pages
from api.portal.question import AskedByForm, AskedByLink, Question, was_added
from api.portal.sessions import OwnForm
from api.schemas import ImageDocument, SearchDocument
from api.security.seen import Seen, tell
from engine.errors import ImageNotFound, PrecedentError, QueryError
from engine.records import ImageRecord
from engine.search.query import Cursor, parse_id, parse_where
from engine.search.sizes import Size, size_of
from engine.search.spelling import as_spelled
from engine.search.stopwatch import Stopwatch
from indexer.archive import TenantArchive

__all__ = ["add_portal"]

_SAMPLES = 12
_STATIC = Path(__file__).parent / "static"


class _SearchRoute(PageRoute):
    """Its problems are shown with the form, where the archive can be read."""

    @staticmethod
    def problem_page(request: Request, problem: Problem) -> HTMLResponse:
        asked: Question = getattr(request.state, "question", Question())
        not_found = problem.code == ImageNotFound.code
        # The links must not repeat an upload, nor an image that is not there (any more).
        if not_found or problem.status == HTTPStatus.GONE:
            asked = replace(asked, kept=None, like=None, sop=None, frame=None, study=None)
        asked = replace(asked, upload=None)
        try:
            with served(request) as (archive, _):
                values = _page_values(request, archive, asked, problem=problem)
                return page(request, "search.html", values, problem.status)
        except PrecedentError:
            return PageRoute.problem_page(request, problem)


_router = APIRouter(
    route_class=_SearchRoute, include_in_schema=False, default_response_class=HTMLResponse
)


def add_portal(app: FastAPI) -> None:
    """Adds the pages and their static files to the service."""
    pages()
    app.state.kept_queries = KeptQueries()
    app.include_router(_router)
    for one in (study, image, compare, documents, jobs, sessions, oidc, embed):
        app.include_router(one.router)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")


@_router.get("/", response_model=None)
def browse(
    request: Request, asked: AskedByLink, archive: ArchiveDep, readers: ReadersDep
) -> Response:
    """The form with the answer for the image in the address, or with a few images to start from."""
    if was_added(request):
        return RedirectResponse(asked.address(), HTTPStatus.SEE_OTHER)
    if not asked.names_an_image:
        return page(request, "search.html", _page_values(request, archive, asked))
    if asked.like is not None:
        asked = replace(asked, like=parse_id(asked.like))
    found = _found(request, asked, archive, readers)
    return page(request, "search.html", _page_values(request, archive, asked, found=found))


@_router.post("/", response_model=None, dependencies=[OwnForm])
def search(
    request: Request, asked: AskedByForm, archive: ArchiveDep, readers: ReadersDep
) -> Response:
    """The form with the answer for an upload; without one, a redirect to :func:`browse`.

    Raises:
        QueryError: there is no upload, no image and no filter.
    """
    if asked.upload is None and (asked.names_an_image or asked.where):
        # Anything but an upload fits into an address, which can be bookmarked and shared.
        return RedirectResponse(asked.address(), HTTPStatus.SEE_OTHER)
    if asked.upload is None:
        raise QueryError("choose an image file first, or start from an image of the archive")
    found = _found(request, asked, archive, readers)
    asked = replace(asked, upload=None, kept=found.token)
    return page(request, "search.html", _page_values(request, archive, asked, found=found))


@dataclass(frozen=True, slots=True)
class _Answered:
    """An answer, and what was asked.

    own: record of the query. token: of the upload that was the query; None = an indexed image was.
    """

    found: Found
    own: ImageRecord
    token: str | None = None


def _found(
    request: Request, asked: Question, archive: TenantArchive, readers: Readers
) -> _Answered:
    """The answer to a question that names an image.

    Raises:
        QueryExpired: the upload that it names is not kept any more. Else as ``answered``.
    """
    if asked.upload is None and asked.kept is None:
        found = answered(asked.asked(), archive, readers)
        return _Answered(found, archive.engine.image(found.query_id or "").record)
    queries: KeptQueries = request.app.state.kept_queries
    owner, model = owner_of(request.state.caller), archive.manifest.fingerprint
    # Refused before it is read and encoded.
    query = query_of(asked.asked(), archive)
    watch = Stopwatch()
    canvas = None
    if asked.upload is not None:
        with stage("read"):
            upload = readers.read(asked.upload)
        with watch("encode"):
            seen = archive.engine.observed([upload.canvas], [upload.colour])
        canvas, kept = upload.canvas, KeptQuery(seen, upload.record, model)
        token = queries.keep(owner, kept)
    else:
        token = asked.kept or ""
        if len({asked.like, asked.sop, asked.study} - {None}):
            raise QueryError("give one image, as query, like, sop or study; several came")
        kept = queries.of(token, owner, model)
    answer = archive.engine.answer(kept.seen, query, kept.record, watch.milliseconds)
    note_search([answer.evidence.rung], answer.ood, answer.evidence.timings_ms)
    found = Found(answer, canvas, Seen.of(answer.hits, ood=answer.ood))
    return _Answered(found, kept.record, token)


def _page_values(
    request: Request,
    archive: TenantArchive,
    asked: Question,
    *,
    found: _Answered | None = None,
    problem: Problem | None = None,
) -> dict[str, Any]:
    """The values of the template ``search.html``. What they show is told."""
    # If the request was invalid, its filters may be what is wrong.
    expired = problem is not None and problem.status == HTTPStatus.GONE
    if problem is not None and not expired:
        asked = Question(like=asked.like, sop=asked.sop, study=asked.study)
    where, _ = as_spelled(archive.store, parse_where(asked.where))
    matching = size_of(archive.store, where, archive.settings.search.max_faceted)
    counts = facets.counted(archive, asked.where)
    values: dict[str, Any] = {
        "asked": asked,
        "k": archive.settings.search.k if asked.k is None else asked.k,
        "problem": problem,
        "found": None,
        "matching": matching.text,
        "estimated": counts.estimated,
        "facets": facets.facet_lists(counts, asked, archive.settings.search.facet_values),
        "chips": facets.chips(asked),
        "samples": [],
        "words": words,
    }
    if found is not None:
        return values | _answer_values(request, archive, asked, found, matching)
    if problem is None:
        points = islice(archive.store.scroll(where, page=_SAMPLES), _SAMPLES)
        begun = list(points)
        tell(request, Seen.of(begun))
        values["samples"] = [ImageDocument.from_point(point) for point in begun]
    return values


def _answer_values(
    request: Request, archive: TenantArchive, asked: Question, answer: _Answered, matching: Size
) -> dict[str, Any]:
    """Those of an answer."""
    found = answer.found
    tell(request, found.seen)
    viewers = links_from_image(archive, found.query_id)
    names = archive.names(found.answer.hits)
    document = SearchDocument.from_answer(found.answer, found.query_id, names, viewers)
    query = None
    if found.query_id is not None:
        query = ImageDocument.from_point(archive.engine.image(found.query_id))
    filtered = bool(asked.where)
    return {
        "found": document,
        "query": query,
        "own": "patient" if answer.own.patient else "study" if answer.own.study else None,
        "preview": words.picture_inside(found.canvas),
        "offset": 0 if asked.page is None else Cursor.parse(asked.page).offset,
        "verdict": words.verdict(document.ood),
        "evidence": words.evidence_sentence(document.evidence, matching, filtered=filtered),
    }
