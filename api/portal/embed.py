"""The page that other sites show in a frame: the cases related to one study, and nothing else.

It comes by POST, because the addresses of frames are written into logs: of a form in the page
around it, or of the frame of the component `precedent-related`, which has an empty page first and
is told its token there. A browser sends no cookie of ours along with it, and its pictures are part
of it, so that the token is all that it needs and there is no further address under which the token
would open anything.
"""

import base64
import hmac
from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Query, Request, Response
from starlette.responses import HTMLResponse

from api.http.deps import served
from api.http.problems import log_problem, problem_of
from api.http.throttle import check_rate
from api.portal import words
from api.portal.catalogues import LANGUAGES, speaking
from api.portal.language import language_of
from api.portal.pages import html_page
from api.schemas import RecommendationDocument
from api.security.access import Access
from api.security.embedding import Embed, site_origin
from api.security.seen import Seen, tell
from engine.errors import (
    ImageNotFound,
    NotAllowed,
    NotAuthenticated,
    PrecedentError,
    QueryError,
    StorageError,
)
from engine.search.recommend import Examples, Wanted
from indexer.archive import TenantArchive
from indexer.sources.uids import why_unknown

__all__ = ["router"]

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

_VARIES = "Accept-Language"


@router.get("/embed", response_model=None)
def show_empty(
    request: Request,
    parent: Annotated[str, Query(max_length=300)] = "",
    lang: Annotated[str, Query(max_length=40)] = "",
) -> Response:
    """The page in the frame of the component, which has nothing yet.

    Args:
        parent: origin of the page around it, which alone may have it in a frame, and tell it a
            token.
        lang: its language; one that the pages do not speak counts for nothing.

    Raises:
        QueryError: that is no origin, or the address says more.
    """
    if set(request.query_params) - {"parent", "lang"}:
        raise QueryError(
            "the address of this page says its parent and language alone; a token is sent in a "
            "message or a form, since addresses are logged"
        )
    origin = site_origin(parent)
    with speaking(_language(request, lang)):
        answer = html_page("embed_empty.html", {"parent": origin}, varies=_VARIES)
    answer.headers["Content-Security-Policy"] = (
        "default-src 'none'; script-src 'self'; connect-src 'self'; img-src data:; "
        f"style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors {origin}"
    )
    return _to_be_framed(answer)


@router.post("/embed", response_model=None)
def show_embedded(
    request: Request,
    token: Annotated[str, Form(max_length=4000)] = "",
    parent: Annotated[str, Form(max_length=300)] = "",
    study: Annotated[str, Form(max_length=64)] = "",
    lang: Annotated[str, Form(max_length=40)] = "",
) -> Response:
    """The page for a token, to be framed by the token's site.

    Args:
        parent: the site, as the page of :func:`show_empty` tells it: whoever else sends it is
            refused. Problems are then problem documents. study: what that page is to show.
        lang: as of :func:`show_empty`.

    Raises:
        NotAuthenticated: it is no token of ours.
        NotAllowed: the page was asked for from another site than the token's, or for another
            study.
    """
    access: Access = request.state.access
    embed, seconds = access.embed_tokens().read(token)
    # For the audit log, should it be refused: the token is ours.
    request.state.claimed = embed.key
    _check_site(request, embed, parent)
    if parent and study != embed.study:
        raise NotAllowed("this token is for another study; ask for one for the study that is shown")
    with speaking(_language(request, lang)):
        answer = _embedded(request, embed, parent, seconds)
    answer.headers["Content-Security-Policy"] = (
        "default-src 'none'; img-src data:; style-src 'self'; base-uri 'none'; "
        f"form-action 'none'; frame-ancestors {embed.origin}"
    )
    answer.headers["Referrer-Policy"] = "no-referrer"
    return _to_be_framed(answer)


def _language(request: Request, lang: str) -> str:
    """The language that is asked for. A cookie of ours is none of the site's affair."""
    return lang if lang in LANGUAGES else language_of(request, keeps=False)


def _embedded(request: Request, embed: Embed, parent: str, seconds: int) -> Response:
    """The related cases, or, in a form's answer, what went wrong."""
    access: Access = request.state.access
    try:
        if not seconds:
            raise NotAuthenticated("this view has expired; load the page around it again")
        caller = access.embedded(embed)
        request.state.caller = caller
        check_rate(request.state.rates, embed.key)
        with served(request) as (archive, _):
            values = _values(request, archive, embed.study)
        shown = {"problem": None, "seconds": seconds, "opens": bool(parent), **values}
        return html_page("embed.html", shown, varies=_VARIES)
    except (PrecedentError, HTTPException) as error:
        if parent:
            raise
        problem = problem_of(error, request.url.path)
        log_problem(problem, error)
        headers = error.headers if isinstance(error, HTTPException) else None
        values = {"problem": problem, "seconds": 0}
        return html_page("embed.html", values, problem.status, headers, varies=_VARIES)


def _check_site(request: Request, embed: Embed, parent: str) -> None:
    """Checks that the token's own site asks: by a form of its page, or by the frame in it, which
    the browser has shown to that site alone.

    Raises:
        NotAllowed: another one does, or may do.
    """
    sent = request.headers.getlist("origin")
    if not parent:
        holds = len(sent) == 1 and hmac.compare_digest(sent[0].encode(), embed.origin.encode())
    else:
        host = request.headers.get("host", "").lower()
        own = sent in ([f"https://{host}"], [f"http://{host}"])
        fetched = request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
        holds = own and fetched and hmac.compare_digest(parent.encode(), embed.origin.encode())
    if not holds:
        raise NotAllowed(
            "this page is shown by the site that it was made for alone; its page has to send its "
            "origin, which the referrer policy no-referrer hides"
        )


def _to_be_framed(answer: Response) -> Response:
    """The answer; a page that isolates itself (COEP) may frame it as well."""
    answer.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    answer.headers["Cross-Origin-Embedder-Policy"] = "require-corp"
    return answer


def _values(request: Request, archive: TenantArchive, study: str) -> dict[str, Any]:
    """The values of the template ``embed.html``."""
    wanted = Wanted(k=archive.settings.search.k)
    answer = archive.engine.recommend(Examples(study=study), wanted)
    shown = [one.hit for one in answer.hits]
    tell(request, Seen.of(shown, studies=[study], ood=answer.ood))
    document = RecommendationDocument.from_answer(answer)
    return {
        "found": document,
        "pictures": {hit.id: _picture(archive, hit.id) for hit in document.hits},
        # Under their UIDs other systems know nothing of the others.
        "known": {hit.id for hit in shown if why_unknown(hit.record, archive.settings) is None},
        "facts": words.facts,
        "how_alike": words.how_alike,
        "verdict": words.verdict(document.ood),
    }


def _picture(archive: TenantArchive, image_id: str) -> str | None:
    """A thumbnail as a ``data:`` URL; None = the image has none, or it cannot be had now."""
    try:
        jpeg = archive.thumbnail(image_id)
    except (ImageNotFound, StorageError):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
