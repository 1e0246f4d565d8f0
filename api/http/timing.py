"""Tells in a ``Server-Timing`` header how long an answer took, and its stages."""

import time
from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Timed", "tell_stages"]

_HEADER = "Server-Timing"


class Timed:
    """ASGI middleware that adds the time until the answer began, as ``total``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()

        async def timed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                total = f"total;dur={1000 * (time.perf_counter() - start):.1f}"
                stages = headers.get(_HEADER)
                headers[_HEADER] = total if stages is None else f"{stages}, {total}"
            await send(message)

        await self._app(scope, receive, timed)


def tell_stages(response: Response, timings_ms: Mapping[str, float]) -> None:
    """Names the stages of a search, in milliseconds, in the headers of its answer."""
    stages = [f"{stage};dur={ms:.1f}" for stage, ms in timings_ms.items()]
    if stages:
        response.headers[_HEADER] = ", ".join(stages)
