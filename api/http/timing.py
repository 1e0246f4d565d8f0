"""Answers of searches, and the ``Server-Timing`` header that tells how long any answer took."""

import time
from collections.abc import Mapping

from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Timed", "search_answer"]

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


def search_answer(
    document: BaseModel, timings_ms: Mapping[str, float], vary: str | None = None
) -> Response:
    """The answer with a document, and the stages of its search in the headers.

    FastAPI would check the document again and copy it before it writes it, which takes longer than
    everything else that is done with it.

    Args:
        timings_ms: milliseconds by stage.
        vary: the header of the request that decides between this and another kind of answer.
    """
    headers = {} if vary is None else {"Vary": vary}
    if timings_ms:
        headers[_HEADER] = ", ".join(f"{stage};dur={ms:.1f}" for stage, ms in timings_ms.items())
    return Response(
        document.model_dump_json(by_alias=True), headers=headers, media_type="application/json"
    )
