"""Lets a request through to its route only if the policy lists it, and its caller may have it."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest, cookie_parser
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope as AsgiScope, Send

from api.http.addresses import Addresses, path_of
from api.http.problems import log_problem, problem_of, problem_response
from api.http.request_ids import request_id_of
from api.security.access import COOKIE, FRAMED, Access, Request, check_scope
from api.security.policy import OPENED, PAGES, Scope
from api.security.way_back import known_page
from engine.errors import NotAllowed, NotAuthenticated, PrecedentError, ProviderUnavailable

__all__ = ["Guard"]


class Guard:
    """ASGI middleware: the caller of each request, as ``request.state.caller``.

    It decides before anything of a body is read. What :data:`POLICY` does not list is not served,
    even if the application has a route for it. The application's ``state.problem_page``, if there
    is one, makes the page that tells people that they may not see another one.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._addresses = Addresses()

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Nothing here speaks WebSocket; the lifespan has no caller.
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        try:
            needed = self._needed(scope)
            asked = _request(scope)
            caller = self._access.at_hand(asked)
            if caller is None:
                caller = await run_in_threadpool(self._access.identified, asked)
            # Known before it is refused: the audit log names who was refused.
            scope.setdefault("state", {})["caller"] = caller
            check_scope(caller, needed)
        except (PrecedentError, HTTPException) as error:
            if isinstance(error, NotAllowed):
                scope.setdefault("state", {})["refused"] = error
            if isinstance(error, NotAuthenticated) and self._may_sign_in(scope):
                sign_in = RedirectResponse(_sign_in(scope), HTTPStatus.SEE_OTHER)
                await sign_in(scope, receive, send)
                return
            problem = problem_of(error, scope["path"], request_id_of(scope))
            log_problem(problem, error)
            show = getattr(scope["app"].state, "problem_page", None)
            if show is not None and isinstance(error, NotAllowed) and self._is_for_people(scope):
                told = await run_in_threadpool(show, HttpRequest(scope), problem)
                await told(scope, receive, send)
                return
            await problem_response(problem, _headers(scope, error))(scope, receive, send)
            return
        # For answers that last: whether the caller may still have them.
        scope["state"]["still_allowed"] = lambda: self._access.caller(asked, needed)
        await self._app(scope, receive, send)

    def _may_sign_in(self, scope: AsgiScope) -> bool:
        """Whether somebody without a key asks for a page, who can be asked for one."""
        found = self._addresses.find(path_of(scope))
        sent = any(name == b"authorization" for name, _ in scope["headers"])
        return found is not None and found.template in (*OPENED, *PAGES) and not sent

    def _is_for_people(self, scope: AsgiScope) -> bool:
        """Whether a browser asks for a page, for somebody who is known."""
        found = self._addresses.find(path_of(scope))
        accepted = (value for name, value in scope["headers"] if name == b"accept")
        return (
            scope.get("state", {}).get("caller") is not None
            and found is not None
            and found.template in (*OPENED, *PAGES)
            and any(b"text/html" in value for value in accepted)
        )

    def _needed(self, scope: AsgiScope) -> Scope | None:
        """The scope that the request needs. Raises HTTPException: 404, 405."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        found = self._addresses.find(path_of(scope))
        if found is None:
            raise HTTPException(404)
        if method not in found.methods:
            raise HTTPException(405, headers={"Allow": ", ".join(found.methods)})
        return found.methods[method]


def _request(scope: AsgiScope) -> Request:
    headers = [
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
    ]
    client = scope.get("client")
    cookies = cookie_parser("; ".join(value for name, value in headers if name == "cookie"))
    return Request(
        headers,
        None if client is None else client[0],
        scope["http_version"],
        scope["method"],
        path_of(scope),
        cookies.get(FRAMED) or cookies.get(COOKIE),
    )


def _sign_in(scope: AsgiScope) -> str:
    """The address of the form that asks who it is, which leads back to the page that was asked for,
    relative to that page."""
    path = path_of(scope)
    wanted = path.removeprefix("/")
    if scope["query_string"]:
        wanted += "?" + scope["query_string"].decode("latin-1")
    back = known_page(wanted) if scope["method"] == "GET" else ""
    root = "../" * (path.count("/") - 1)
    return f"{root}login" + (f"?to={quote(back, safe='')}" if back else "")


def _headers(scope: AsgiScope, error: Exception) -> Mapping[str, str] | None:
    if isinstance(error, HTTPException):
        return error.headers
    if isinstance(error, ProviderUnavailable):
        return {"Retry-After": "10"}
    if not isinstance(error, NotAuthenticated):
        return None
    sent: Any = any(name == b"authorization" for name, _ in scope["headers"])
    challenge = 'Bearer realm="precedent"'
    return {"WWW-Authenticate": challenge + (', error="invalid_token"' if sent else "")}
