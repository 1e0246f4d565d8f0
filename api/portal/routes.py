"""The routes of the search page, which works without JavaScript."""

from collections.abc import Callable, Coroutine
from dataclasses import replace
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

from api.http.deps import ArchiveDep, Asked, AskedByForm, AskedByLink, ReadersDep, point_id, served
from api.http.problems import Problem, log_problem, problem_of
from api.http.routes.search import Found, answered
from api.http.viewers import links_from_image
from api.portal import embed, oidc, sessions, view
from api.portal.pages import pages
from api.portal.sessions import OwnForm, form_token
from api.schemas import ImageDocument, SearchDocument
from api.security.seen import Seen, tell
from engine.errors import ImageNotFound, PrecedentError, QueryError
from engine.search.query import Cursor, parse_where
from engine.search.sizes import size_of
from engine.search.spelling import as_spelled
from engine.store.base import Filter
from engine.store.counts import Facets
from indexer.archive import TenantArchive

__all__ = ["add_portal"]

_SAMPLES = 12
_STATIC = Path(__file__).parent / "static"


class _PageRoute(APIRoute):
    """A route whose errors are shown on the page, including those of its dependencies."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_or_show_problem(request: Request) -> Response:
            try:
                return await handle(request)
            except (PrecedentError, HTTPException, RequestValidationError) as error:
                problem = problem_of(error, request.url.path)
                log_problem(problem, error)
                return await run_in_threadpool(_problem_page, request, problem)

        return handle_or_show_problem


_router = APIRouter(
    route_class=_PageRoute, include_in_schema=False, default_response_class=HTMLResponse
)


def add_portal(app: FastAPI) -> None:
    """Adds the search page and its static files to the service."""
    pages()
    app.include_router(_router)
    app.include_router(sessions.router)
    app.include_router(oidc.router)
    app.include_router(embed.router)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")


@_router.get("/")
def browse(
    request: Request, asked: AskedByLink, archive: ArchiveDep, readers: ReadersDep
) -> HTMLResponse:
    """The form with the answer for the image in the address, or with a few images to start from."""
    request.state.asked = asked
    if asked.image_id is None:
        return _page(request, _page_values(request, archive, asked))
    asked = replace(asked, image_id=point_id(asked.image_id))
    found = answered(asked, archive, readers)
    return _page(request, _page_values(request, archive, asked, found=found))


@_router.post("/", response_model=None, dependencies=[OwnForm])
def search(
    request: Request, asked: AskedByForm, archive: ArchiveDep, readers: ReadersDep
) -> Response:
    """The form with the answer for an upload; without one, a redirect to :func:`browse`.

    Raises:
        QueryError: there is no upload, no image and no filter.
    """
    # The form also sends the image of the last search; a file that was chosen takes precedence.
    asked = replace(
        asked,
        image_id=None if asked.upload else asked.image_id,
        where=tuple(term for term in asked.where if term),
    )
    request.state.asked = asked
    if asked.upload is None and (asked.image_id or asked.where):
        # Anything but an upload fits into an address, which can be bookmarked and shared.
        return RedirectResponse(view.link(asked), HTTPStatus.SEE_OTHER)
    if asked.upload is None:
        raise QueryError("choose an image file first, or start from an image of the archive")
    found = answered(asked, archive, readers)
    return _page(request, _page_values(request, archive, asked, found=found))


def _page(request: Request, values: dict[str, Any], status: int = HTTPStatus.OK) -> HTMLResponse:
    html = pages().render("search.html", {**values, "csrf": form_token(request)})
    return HTMLResponse(html, status)


def _page_values(
    request: Request,
    archive: TenantArchive,
    asked: Asked,
    *,
    found: Found | None = None,
    problem: Problem | None = None,
) -> dict[str, Any]:
    """The values of the template ``search.html``. What they show is told."""
    where, _ = as_spelled(archive.store, parse_where(() if problem else asked.where))
    document = None
    if found is not None:
        viewers = links_from_image(archive, found.query_id)
        document = SearchDocument.from_answer(found.answer, viewers=viewers)
    matching = size_of(archive.store, where, archive.settings.search.max_faceted)
    whole = archive.engine.facets(Filter())
    made = view.selects(whole, asked.where)
    samples: list[ImageDocument] = []
    if document is None and problem is None:
        points = islice(archive.store.scroll(where, page=_SAMPLES), _SAMPLES)
        begun = list(points)
        tell(request, Seen.of(begun))
        samples = [ImageDocument.from_point(point) for point in begun]
    if found is not None:
        tell(request, found.seen)
    if document is not None:
        told = document.evidence
        facets = Facets(
            document.facets, at_least=told.facets_at_least, estimated=told.facets_estimated
        )
    else:
        facets = whole if where == Filter() else archive.engine.facets(where)
    return {
        "asked": asked,
        "k": archive.settings.search.k if asked.k is None else asked.k,
        "selects": made,
        "terms": view.terms_beside(made, asked.where),
        "problem": problem,
        "found": document,
        "preview": None if found is None else view.preview(found.canvas),
        "matching": matching.text,
        "estimated": facets.estimated,
        "offset": 0 if asked.page is None or found is None else Cursor.parse(asked.page).offset,
        "samples": samples,
        # If the request was invalid, the links keep only its image.
        "facets": view.facet_lists(facets, Asked(image_id=asked.image_id) if problem else asked),
        "facts": view.facts,
        "link": view.link,
        "ood": None if document is None else view.ood_sentence(document.ood),
        "evidence": None
        if document is None
        else view.evidence_sentence(document.evidence, matching, filtered=bool(asked.where)),
    }


def _problem_page(request: Request, problem: Problem) -> HTMLResponse:
    """The page with the problem on it; without the form if the archive cannot be read."""
    asked: Asked = getattr(request.state, "asked", Asked())
    not_found = problem.code == ImageNotFound.code
    # The links must not repeat an upload, nor an image that does not exist.
    asked = replace(asked, upload=None, image_id=None if not_found else asked.image_id)
    try:
        with served(request) as (archive, _):
            values = _page_values(request, archive, asked, problem=problem)
            return _page(request, values, problem.status)
    except PrecedentError:
        html = pages().render("unavailable.html", {"problem": problem})
    return HTMLResponse(html, problem.status)
