"""The routes of the search page, which works without JavaScript."""

from dataclasses import replace
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope as AsgiScope

from api.http.deps import ArchiveDep, ReadersDep, served
from api.http.problems import Problem
from api.portal import (
    archive as archive_page,
    audit,
    collection,
    compare,
    documents,
    embed,
    facets,
    image,
    jobs,
    keys,
    model,
    oidc,
    region,
    sessions,
    smart,
    study,
    words,
)
from api.portal.alike import AlikeMaps
from api.portal.answers import Answered, answer
from api.portal.catalogues import speaking
from api.portal.kept import KeptQueries, recent_of, saved_of
from api.portal.language import language_of
from api.portal.page_route import PageRoute, page
from api.portal.pages import pages
from api.portal.question import (
    MOST_UPLOADS,
    TILES,
    AskedByForm,
    AskedByLink,
    Question,
    was_added,
)
from api.portal.sessions import OwnForm
from api.schemas import BasisDocument, ImageDocument
from api.security.seen import Seen, tell
from engine.errors import ImageNotFound, PrecedentError, QueryError, SourceGone
from engine.search.query import parse_where
from engine.search.sizes import Size, size_of
from engine.search.spelling import as_spelled
from indexer.archive import TenantArchive

__all__ = ["add_portal"]

_SAMPLES = 12
_WHOLE_SIDE = 256
"""Longest side in pixels of the picture on which a region is shown."""
_STATIC = Path(__file__).parent / "static"
_COMPONENT = "precedent-related.js"


class _SearchRoute(PageRoute):
    """Its problems are shown with the form, where the archive can be read."""

    @staticmethod
    def problem_page(request: Request, problem: Problem) -> HTMLResponse:
        asked: Question = getattr(request.state, "question", Question())
        not_found = problem.code == ImageNotFound.code
        # The links must not repeat an upload, nor an image that is not there (any more).
        if not_found:
            asked = asked.without_image()
        asked = replace(asked, uploads=())
        # Without its original an image of the archive is there as before.
        if problem.status == HTTPStatus.GONE and problem.code != SourceGone.code:
            # What is liked of the archive is there as before.
            marks = asked.marks if asked.likes else ()
            asked = replace(asked.without_image(), marks=marks)
        try:
            with served(request) as (archive, _):
                values = _page_values(request, archive, asked, problem=problem)
                values["again"] = values["asked"].address()
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
    app.state.alike_maps = AlikeMaps()
    app.state.problem_page = _refused_page
    app.include_router(_router)
    for one in (
        *(study, image, compare, region, collection, documents, archive_page, model, jobs, keys),
        *(audit, sessions, oidc, smart, embed),
    ):
        app.include_router(one.router)
    app.mount("/static", _Files(directory=_STATIC), name="static")


def _refused_page(request: Request, problem: Problem) -> HTMLResponse:
    """The page for somebody who may not see another one, which no route has made."""
    with speaking(language_of(request)):
        return PageRoute.problem_page(request, problem)


class _Files(StaticFiles):
    """The files of the pages. The component for pages of other sites may be loaded by them."""

    async def get_response(self, path: str, scope: AsgiScope) -> Response:
        found = await super().get_response(path, scope)
        if path == _COMPONENT:
            found.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
            # So that they can check what they load (integrity).
            found.headers["Access-Control-Allow-Origin"] = "*"
        return found


@_router.get("/", response_model=None)
def browse(
    request: Request, asked: AskedByLink, archive: ArchiveDep, readers: ReadersDep
) -> Response:
    """The form with the answer for the image in the address, or with a few images to start from."""
    if was_added(request):
        return RedirectResponse(asked.address(), HTTPStatus.SEE_OTHER)
    if not asked.names_an_image:
        return page(request, "search.html", _page_values(request, archive, asked))
    found = answer(request, asked, archive, readers)
    return page(request, "search.html", _page_values(request, archive, found.asked, found=found))


@_router.post("/", response_model=None, dependencies=[OwnForm])
def search(
    request: Request, asked: AskedByForm, archive: ArchiveDep, readers: ReadersDep
) -> Response:
    """The form with the answer for uploads; without one, a redirect to :func:`browse`.

    Raises:
        QueryError: there is no upload, no image and no filter.
    """
    if not asked.uploads and (asked.names_an_image or asked.where):
        # Anything but an upload fits into an address, which can be bookmarked and shared.
        return RedirectResponse(asked.address(), HTTPStatus.SEE_OTHER)
    if not asked.uploads:
        raise QueryError("choose an image file first, or start from an image of the archive")
    found = answer(request, asked, archive, readers)
    values = _page_values(request, archive, found.asked, found=found)
    return page(request, "search.html", {**values, "again": found.asked.address()})


def _page_values(
    request: Request,
    archive: TenantArchive,
    asked: Question,
    *,
    found: Answered | None = None,
    problem: Problem | None = None,
) -> dict[str, Any]:
    """The values of the template ``search.html``. What they show is told."""
    # If the request was invalid, its filters may be what is wrong.
    expired = problem is not None and problem.status == HTTPStatus.GONE
    # What could not be searched for, and what leads on from there.
    failed = asked if problem is not None and asked.region is not None else None
    if failed is not None:
        asked = replace(asked, region=None)
    if problem is not None and not expired:
        asked = Question(marks=asked.marks, sop=asked.sop, study=asked.study, tiles=asked.tiles)
    where, _ = as_spelled(archive.store, parse_where(asked.where))
    matching = size_of(archive.store, where, archive.settings.search.max_faceted)
    counts = facets.counted(archive, asked.where)
    values: dict[str, Any] = {
        "asked": asked,
        "k": archive.settings.search.k if asked.k is None else asked.k,
        "problem": problem,
        "failed": failed,
        "found": None,
        "matching": words.size_text(matching),
        "estimated": counts.estimated,
        "facets": facets.facet_lists(counts, asked, archive.settings.search.facet_values),
        "chips": facets.chips(asked),
        "samples": [],
        "refused": False,
        "refine": None,
        "tiles": TILES,
        "most_uploads": MOST_UPLOADS,
        "recent_of": recent_of(request.state.caller),
        "saved_of": saved_of(request.state.caller),
        "words": words,
    }
    if found is not None:
        return values | _answer_values(found, matching)
    if problem is None:
        points = islice(archive.store.scroll(where, page=_SAMPLES), _SAMPLES)
        begun = list(points)
        tell(request, Seen.of(begun))
        values["samples"] = [ImageDocument.from_point(point) for point in begun]
    return values


def _answer_values(answer: Answered, matching: Size) -> dict[str, Any]:
    """Those of an answer."""
    document, asked = answer.document, answer.asked
    evidence = document.evidence
    if isinstance(evidence, BasisDocument):
        how = words.refined_sentence(evidence, by_bits=asked.order != "content")
        refused = not evidence.rungs
    else:
        how = words.evidence_sentence(evidence, matching, filtered=bool(asked.where))
        refused = evidence.rung == "none"
    return {
        "found": answer,
        "refused": refused,
        "bits": evidence.bits,
        "query": answer.query,
        "own": answer.own,
        "refine": answer.refine,
        "pictures": {token: words.picture_inside(one) for token, one in answer.canvases.items()},
        "whole": words.picture_inside(answer.whole, _WHOLE_SIDE),
        "recent": words.recent_label(answer.query, asked),
        "offset": answer.offset,
        "verdict": words.verdict(document.ood),
        "evidence": how,
    }
