"""The page that other sites show in a frame: the cases related to one study, and nothing else.

It comes by POST, because the addresses of frames are written into logs. A browser sends no cookie
of ours along with it, and its pictures are part of it, so that the token is all that it needs and
there is no further address under which the token would open anything.
"""

import base64
import hmac
from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Request, Response
from starlette.responses import HTMLResponse

from api.http.deps import served
from api.http.problems import log_problem, problem_of
from api.http.throttle import check_rate
from api.portal import words
from api.portal.pages import pages
from api.schemas import RecommendationDocument
from api.security.access import Access
from api.security.seen import Seen, tell
from engine.errors import ImageNotFound, NotAllowed, NotAuthenticated, PrecedentError
from engine.search.recommend import Examples, Wanted
from indexer.archive import TenantArchive

__all__ = ["router"]

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@router.post("/embed", response_model=None)
def show_embedded(request: Request, token: Annotated[str, Form(max_length=4000)] = "") -> Response:
    """The page for a token, to be framed by the token's site.

    Raises:
        NotAuthenticated: it is no token of ours.
        NotAllowed: the page was asked for from another site than the token's.
    """
    access: Access = request.state.access
    embed, holds = access.embed_tokens().read(token)
    # For the audit log, should it be refused: the token is ours.
    request.state.claimed = embed.key
    sent = request.headers.getlist("origin")
    if len(sent) != 1 or not hmac.compare_digest(sent[0].encode(), embed.origin.encode()):
        raise NotAllowed(
            "this page is shown by the site that it was made for alone; its page has to send its "
            "origin, which the referrer policy no-referrer hides"
        )
    try:
        if not holds:
            raise NotAuthenticated("this view has expired; load the page around it again")
        caller = access.embedded(embed)
        request.state.caller = caller
        check_rate(request.state.rates, embed.key)
        with served(request) as (archive, _):
            values = _values(request, archive, embed.study)
        answer = HTMLResponse(pages().render("embed.html", {"problem": None, **values}))
    except (PrecedentError, HTTPException) as error:
        problem = problem_of(error, request.url.path)
        log_problem(problem, error)
        html = pages().render("embed.html", {"problem": problem})
        headers = error.headers if isinstance(error, HTTPException) else None
        answer = HTMLResponse(html, problem.status, headers)
    answer.headers["Content-Security-Policy"] = (
        "default-src 'none'; img-src data:; style-src 'self'; base-uri 'none'; "
        f"form-action 'none'; frame-ancestors {embed.origin}"
    )
    # A page that isolates itself (COEP) may still frame this one.
    answer.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    answer.headers["Cross-Origin-Embedder-Policy"] = "require-corp"
    answer.headers["Referrer-Policy"] = "no-referrer"
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
        "facts": words.facts,
        "how_alike": words.how_alike,
        "verdict": words.verdict(document.ood),
    }


def _picture(archive: TenantArchive, image_id: str) -> str | None:
    """A thumbnail as a ``data:`` URL; None = the image has none."""
    try:
        jpeg = archive.thumbnail(image_id)
    except ImageNotFound:
        return None
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
