"""Signing in to the page, with an API key, and out again; forms that no other site can send."""

import hmac
from http import HTTPStatus
from typing import Annotated
from urllib.parse import urlencode, urlsplit

from fastapi import APIRouter, Depends, Form, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse

from api.portal.beside import home_of
from api.portal.catalogues import language
from api.portal.cookies import drop_cookie, set_cookie
from api.portal.kept import owner_of
from api.portal.language import LanguageRoute, choices
from api.portal.pages import html_page
from api.security.access import COOKIE, FRAMED, Access
from api.security.keys import public_id
from api.security.sessions import ABSOLUTE, csrf_token
from api.security.way_back import known_page
from engine.errors import NotAllowed, NotAuthenticated

__all__ = ["OwnForm", "form_token", "login_page", "router", "with_session"]

router = APIRouter(
    route_class=LanguageRoute, include_in_schema=False, default_response_class=HTMLResponse
)


def form_token(request: Request) -> str:
    """What the forms of the page carry for this caller; empty for callers without a session."""
    caller = request.state.caller
    return "" if caller is None or caller.session is None else csrf_token(caller.session)


def _check_form(request: Request, csrf: Annotated[str, Form(max_length=100)] = "") -> None:
    """Checks that a form was sent from this page, in this session.

    Raises:
        NotAllowed: it was not, or may not have been.
    """
    _check_origin(request)
    wanted = form_token(request)
    if wanted and not hmac.compare_digest(wanted.encode(), csrf.encode()):
        raise NotAllowed("this form is of another session; load the page again, and send it then")


OwnForm = Depends(_check_form)


def _check_origin(request: Request) -> None:
    """Raises NotAllowed if a browser says that another site sent the request."""
    host = request.headers.get("host", "").lower()
    for origin in request.headers.getlist("origin"):
        try:
            sent = urlsplit(origin).netloc.lower()
        except ValueError:
            sent = ""
        if sent != host:
            raise NotAllowed("this form was sent from another site, or the proxy changes Host")


def login_page(
    request: Request,
    problem: str | None,
    status: int,
    *,
    sign_out_url: str | None = None,
    to: str = "",
) -> HTMLResponse:
    """The page that asks who it is: for a key, or by the identity provider, or both.

    Args:
        problem: what went wrong; None = nothing.
        sign_out_url: where the provider's own session ends; None = it is not told.
        to: the page that was asked for, see :func:`known_page`.
    """
    access: Access = request.state.access
    path = request.url.path.removeprefix(request.scope.get("root_path", ""))
    button = None if access.provider is None else access.provider.button
    # From below /login to the folder of the page.
    root = "../" * (path.count("/") - 1)
    back = known_page(to)
    # What others may have put into the address, a provider's error for one, is not repeated.
    here = f"./{root}login" + (f"?{urlencode({'to': back})}" if back else "")
    values = {
        "root": root,
        "languages": choices(request, language(), root, here),
        "problem": problem,
        "button": button,
        "ehrs": access.ehrs.standalone,
        "from_ehr": bool(access.ehrs.issuers),
        "asks_for_key": access.has_keys or (button is None and not access.ehrs.issuers),
        "sign_out_url": sign_out_url,
        "to": back,
    }
    return html_page("login.html", values, status)


def with_session(answer: Response, secret: str, *, framed: bool = False) -> Response:
    """The answer, with the cookie of a session, and without that of another one. framed: whether
    the page is in a frame of another site."""
    name, other = (FRAMED, COOKIE) if framed else (COOKIE, FRAMED)
    set_cookie(answer, name, secret, int(ABSOLUTE.total_seconds()), framed=framed)
    drop_cookie(answer, other, framed=not framed)
    return answer


def _wanted(request: Request, to: str) -> str:
    """The page that was asked for, or the one for whoever asked for none."""
    return known_page(to) or home_of(request.state.caller)


@router.get("/login")
def show_login(request: Request, left: str = "", to: str = "") -> Response:
    """The form that asks for a key; the page itself if there is nothing to ask for."""
    if request.state.caller is not None:
        return RedirectResponse("./" + _wanted(request, to), HTTPStatus.SEE_OTHER)
    provider = request.state.access.provider
    there = provider.sign_out_url if left and provider is not None else None
    return login_page(request, None, HTTPStatus.OK, sign_out_url=there, to=to)


@router.post("/login", response_model=None)
def login(
    request: Request,
    key: Annotated[str, Form(max_length=200)] = "",
    to: Annotated[str, Form(max_length=2000)] = "",
) -> Response:
    """Begins a session, and leads to the page that was asked for."""
    _check_origin(request)
    access: Access = request.state.access
    # For the audit log, should the key not be valid.
    request.state.claimed = public_id(key.strip())
    try:
        secret = access.sign_in(key.strip())
    except (NotAuthenticated, NotAllowed) as error:
        return login_page(request, str(error), HTTPStatus.UNAUTHORIZED, to=to)
    request.state.caller = access.of_session(secret)
    back = RedirectResponse("./" + _wanted(request, to), HTTPStatus.SEE_OTHER)
    return with_session(back, secret)


@router.post("/logout", response_model=None, dependencies=[OwnForm])
def logout(request: Request) -> Response:
    """Ends the session."""
    caller = request.state.caller
    if caller is not None and caller.session is not None:
        request.state.access.sign_out(caller.session)
        request.app.state.kept_queries.forget(owner_of(caller))
    # Somebody whom the provider knows is told how to leave it too: this browser may not be theirs.
    known = caller is not None and caller.subject is not None
    answer = RedirectResponse("login?left=1" if known else "login", HTTPStatus.SEE_OTHER)
    drop_cookie(answer, COOKIE, framed=False)
    drop_cookie(answer, FRAMED, framed=True)
    return answer
