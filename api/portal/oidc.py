"""Signing in to the page by an identity provider."""

from http import HTTPStatus
from urllib.parse import quote, unquote

from fastapi import APIRouter, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse

from api.http.problems import log_problem, problem_of
from api.portal.beside import home_of
from api.portal.language import LanguageRoute
from api.portal.sessions import login_page, with_session
from api.security.access import Access
from api.security.oidc.code_flow import MOST_SECONDS
from api.security.way_back import known_page
from engine.errors import NotAllowed, NotAuthenticated, ProviderUnavailable

__all__ = ["COOKIE", "router"]

COOKIE = "__Host-precedent-sign-in"
"""Cookie of a sign-in that has begun. It comes back from the provider's site, so it is Lax."""
_BACK = "__Host-precedent-back"
"""Cookie of the page to which a sign-in leads, if it was another one than the search page."""
_ANSWERS = ("code", "state", "iss", "error")
_UNAVAILABLE = "The identity provider does not answer; try again later, or sign in with an API key."

router = APIRouter(
    route_class=LanguageRoute, include_in_schema=False, default_response_class=HTMLResponse
)


@router.get("/login/oidc")
def start(request: Request, to: str = "") -> Response:
    """Leads the browser to the identity provider."""
    access: Access = request.state.access
    if access.provider is None:
        return _told(request, NotAllowed("there is no identity provider here; use an API key"))
    try:
        started = access.provider.start()
    except (NotAllowed, ProviderUnavailable) as error:
        return _told(request, error)
    answer = RedirectResponse(started.url, HTTPStatus.SEE_OTHER)
    _set(answer, COOKIE, started.cookie)
    if known_page(to):
        _set(answer, _BACK, quote(known_page(to), safe=""))
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.get("/login/oidc/callback")
def finish(request: Request) -> Response:
    """Begins a session of whoever the provider has signed in, and leads to the page."""
    access: Access = request.state.access
    given = request.query_params
    answer: Response
    try:
        if any(len(given.getlist(name)) > 1 for name in _ANSWERS):
            raise NotAuthenticated("this answer is malformed; begin the sign-in again")
        brought = {name: given[name] for name in _ANSWERS if name in given}
        secret = access.sign_in_by_provider(request.cookies.get(COOKIE), brought)
        # For the audit log: who has signed in.
        request.state.caller = access.of_session(secret)
        back = known_page(unquote(request.cookies.get(_BACK, "")))
        back = back or home_of(request.state.caller)
        answer = with_session(RedirectResponse("../../" + back, HTTPStatus.SEE_OTHER), secret)
        answer.delete_cookie(_BACK, path="/", secure=True, httponly=True, samesite="lax")
    except (NotAuthenticated, NotAllowed, ProviderUnavailable) as error:
        # … or who has, and may do nothing here.
        request.state.refused = error
        answer = _told(request, error)
    answer.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="lax")
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _set(answer: Response, name: str, value: str) -> None:
    answer.set_cookie(
        name,
        value,
        max_age=MOST_SECONDS,
        path="/",
        secure=True,
        httponly=True,
        samesite="lax",
    )


def _told(request: Request, error: NotAuthenticated | NotAllowed | ProviderUnavailable) -> Response:
    """The form that asks who it is, with what went wrong."""
    problem = problem_of(error, request.url.path)
    log_problem(problem, error)
    text = _UNAVAILABLE if isinstance(error, ProviderUnavailable) else str(error)
    return login_page(request, text, problem.status)
