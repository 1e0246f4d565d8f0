"""Watches how a request comes in: the size of its headers, and the pace of its body."""

import asyncio
import time
from collections.abc import Callable

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.problems import problem_of, problem_response
from api.http.request_ids import request_id_of
from engine.settings import ServerSettings

__all__ = ["Bodies", "has_body"]


def has_body(scope: Scope) -> bool:
    """Whether the request says that a body follows its headers."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 ")):
            return True
    return False


class Bodies:
    """ASGI middleware that refuses headers that are too large (431) and bodies that come too
    slowly (408), the latter inside the route, which answers it like its other errors.

    clock: seconds from any start.
    """

    def __init__(
        self, app: ASGIApp, server: ServerSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._server = server
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._server.max_header_bytes
        if _header_bytes(scope) > limit:
            error = HTTPException(431, f"address and headers are larger than {limit} bytes")
            # The path is not repeated: it may be what is too large.
            problem = problem_of(error, "", request_id_of(scope))
            await problem_response(problem, {"Connection": "close"})(scope, receive, send)
            return
        if not has_body(scope):
            await self._app(scope, receive, send)
            return
        body = _Body(self._server, receive, self._clock)
        await self._app(scope, body.receive, send)


class _Body:
    """A body as it comes."""

    def __init__(
        self, server: ServerSettings, receive: Receive, clock: Callable[[], float]
    ) -> None:
        self._ended = False
        self._server = server
        self._receive = receive
        self._clock = clock
        self._began = clock()
        self._bytes = 0

    async def receive(self) -> Message:
        """The next message of the body, or after it. Raises HTTPException: 408."""
        if self._ended:
            return await self._receive()
        server = self._server
        allowed = server.body_grace_seconds + self._bytes / server.min_body_bytes_per_second
        left = self._began + min(allowed, server.max_body_seconds) - self._clock()
        try:
            async with asyncio.timeout(max(left, 0)):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(
                408,
                f"the request came too slowly: {self._bytes} bytes in "
                f"{self._clock() - self._began:.0f} seconds; send it over a faster connection",
                {"Connection": "close"},
            ) from None
        self._bytes += len(message.get("body", b""))
        if not message.get("more_body", False):
            self._ended = True
        return message


def _header_bytes(scope: Scope) -> int:
    """Bytes of the address and the headers, with what separates them."""
    address = len(scope.get("raw_path") or scope["path"]) + len(scope.get("query_string", b""))
    return address + sum(len(name) + len(value) + 4 for name, value in scope["headers"])
