"""How large a request may be: refused by what it declares, or counted while it comes in."""

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["FRAME_ALLOWANCE", "BodyLimit"]

FRAME_ALLOWANCE = 64 * 1024
"""Bytes that the multipart frame and the other fields of a form may take beside the file."""


class BodyLimit:
    """ASGI middleware that lets no body above ``max_bytes`` through.

    Whoever reads the body meets an HTTPException 413, at the first byte when the length is
    declared, so that the route answers it as it answers its other errors.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = _content_length(scope)
        received = 0

        async def counted() -> Message:
            nonlocal received
            if declared > self._max_bytes:
                raise self._too_large()
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413, f"the request is larger than {self._max_bytes} bytes; send a smaller file"
        )


def _content_length(scope: Scope) -> int:
    """What the request declares; 0 when it declares nothing that is a length."""
    text = Headers(scope=scope).get("content-length", "")
    # Python converts no number of thousands of digits, and twenty are more than any limit.
    return int(text[:20]) if text.isascii() and text.isdigit() else 0
