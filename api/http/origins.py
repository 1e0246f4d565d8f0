"""Lets pages of named other origins ask, and be told; and says whose pages may frame ours."""

from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.security.policy import POLICY
from engine.settings import ServerSettings

__all__ = ["Origins", "security_headers"]

_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors {}"
)
_METHODS = ", ".join(sorted({method for method, _ in POLICY} | {"HEAD"}))
_MAY_SEND = (
    "Authorization, Content-Type, Accept, If-None-Match, If-Match, Last-Event-ID, X-Request-Id"
)
_MAY_READ = (
    "ETag, Link, Location, Retry-After, RateLimit, RateLimit-Policy, Server-Timing, "
    "WWW-Authenticate, X-Request-Id"
)
_PREFLIGHT_SECONDS = 600


def security_headers(server: ServerSettings) -> Mapping[str, str]:
    """The headers that every answer has, unless its route sets others."""
    framed = ["'self'" if one == "self" else one for one in server.frame_ancestors]
    return {
        "Content-Security-Policy": _POLICY.format(" ".join(framed) or "'none'"),
        "X-Content-Type-Options": "nosniff",
        # With "no-referrer" browsers would name "null" as origin of the page's own form.
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }


class Origins:
    """ASGI middleware for cross-origin requests (Fetch, 3.2): it answers preflights of named
    origins, before anybody is asked for a key, and lets these origins read answers.

    A page of another origin has to send a key: cookies are left out of what it sends, so that
    nothing is ever answered to it in the name of whoever is signed in.
    """

    def __init__(self, app: ASGIApp, server: ServerSettings) -> None:
        self._app = app
        self._allowed = frozenset(server.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._allowed:
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).getlist("origin")
        origin = sent[0] if len(sent) == 1 and sent[0] in self._allowed else None

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                # Caches must not give one origin's answer to another.
                headers.add_vary_header("Origin")
                if origin is not None:
                    headers["Access-Control-Allow-Origin"] = origin
                    headers["Access-Control-Expose-Headers"] = _MAY_READ
                    headers["Cross-Origin-Resource-Policy"] = "cross-origin"
            await send(message)

        if origin is not None:
            if _is_preflight(scope):
                await _preflight()(scope, receive, told)
                return
            scope["headers"] = [one for one in scope["headers"] if one[0] != b"cookie"]
        await self._app(scope, receive, told)


def _is_preflight(scope: Scope) -> bool:
    asks = any(name == b"access-control-request-method" for name, _ in scope["headers"])
    return scope["method"] == "OPTIONS" and asks


def _preflight() -> Response:
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": _MAY_SEND,
            "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
        },
    )
