"""Gives each request an id, by which answer, problem document and log lines belong together."""

import re
import uuid
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HEADER", "RequestIds", "request_id_of"]

HEADER = "X-Request-Id"
_WELL_FORMED = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestIds:
    """ASGI middleware: the id of each request is ``scope["state"]["request_id"]``, and a header of
    its answer.

    An id that the caller or a proxy sent is taken if it has up to 64 letters, digits, '.', '_' and
    '-', so that it cannot break a line of a log; another one is replaced.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = [value for name, value in scope["headers"] if name == HEADER.lower().encode()]
        taken = len(sent) == 1 and _WELL_FORMED.fullmatch(sent[0]) is not None
        request_id = sent[0].decode() if taken else uuid.uuid4().hex
        # A state of its own: servers give every request the same one of the lifespan.
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self._app(scope, receive, with_id)


def request_id_of(scope: Scope) -> str | None:
    """The id of a request; None = the middleware did not see it."""
    found: Any = scope.get("state", {}).get("request_id")
    return found if isinstance(found, str) else None
