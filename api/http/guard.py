"""Lets a request through to its route only if the policy lists it, and its caller may have it."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope as AsgiScope, Send

from api.http.problems import log_problem, problem_of, problem_response
from api.security.access import COOKIE, Access, Request
from api.security.policy import POLICY, Scope
from engine.errors import NotAuthenticated, PrecedentError, ProviderUnavailable

__all__ = ["Guard"]


class Guard:
    """ASGI middleware: the caller of each request, as ``request.state.caller``.

    It decides before anything of a body is read. What :data:`POLICY` does not list is not served,
    even if the application has a route for it.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        routes: dict[str, dict[str, Scope | None]] = {}
        for (method, path), needed in POLICY.items():
            routes.setdefault(path, {})[method] = needed
        self._routes = [(compile_path(path)[0], methods) for path, methods in routes.items()]

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Nothing here speaks WebSocket; the lifespan has no caller.
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        try:
            needed = self._needed(scope)
            caller = await run_in_threadpool(self._access.caller, _request(scope), needed)
        except (PrecedentError, HTTPException) as error:
            if isinstance(error, NotAuthenticated) and _may_sign_in(scope):
                await RedirectResponse("login", HTTPStatus.SEE_OTHER)(scope, receive, send)
                return
            problem = problem_of(error, scope["path"])
            log_problem(problem, error)
            await problem_response(problem, _headers(scope, error))(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)

    def _needed(self, scope: AsgiScope) -> Scope | None:
        """The scope that the request needs. Raises HTTPException: 404, 405."""
        path = _path(scope)
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        for pattern, methods in self._routes:
            if pattern.match(path):
                if method in methods:
                    return methods[method]
                raise HTTPException(405, headers={"Allow": ", ".join(methods)})
        raise HTTPException(404)


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
        _path(scope),
        cookies.get(COOKIE),
    )


def _path(scope: AsgiScope) -> str:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path


def _may_sign_in(scope: AsgiScope) -> bool:
    """Whether somebody without a key asks for the page, who can be asked for one."""
    sent = any(name == b"authorization" for name, _ in scope["headers"])
    return _path(scope) == "/" and not sent


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
