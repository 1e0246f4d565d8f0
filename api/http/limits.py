"""Limits the size of request bodies, by their declared length and by counting received bytes."""

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.addresses import path_of
from api.security.policy import POLICY, PUBLIC

__all__ = ["FRAME_ALLOWANCE", "BodyLimit"]

FRAME_ALLOWANCE = 64 * 1024
"""Bytes allowed, besides the file, for multipart boundaries and the other fields of a form."""
_FORM_BYTES = 16 * 1024
_STORES = "/dicomweb/studies"
_FORMS = frozenset(
    path for (method, path), needed in POLICY.items() if method == "POST" and needed is PUBLIC
)


class BodyLimit:
    """ASGI middleware that refuses request bodies of more than ``max_bytes``, and of much less on
    routes that ask for no key: nobody unknown may fill the room for uploads. Where instances are
    stored as they come, with limits of their own, ``max_store_bytes`` may be sent at once.

    Reading such a body raises an HTTPException with status 413: at the first read if the declared
    length is too large, else once too much has been received. It is raised inside the route, which
    answers it like its other errors.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_store_bytes: int = 0) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_store_bytes = max_store_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = _content_length(scope)
        most = self._most(scope)
        received = 0

        async def counted() -> Message:
            nonlocal received
            if declared > most:
                raise _too_large(most)
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise _too_large(most)
            return message

        await self._app(scope, counted, send)

    def _most(self, scope: Scope) -> int:
        path = path_of(scope)
        if scope["method"] == "POST" and path.startswith(_STORES):
            return self._max_store_bytes or self._max_bytes
        return min(self._max_bytes, _FORM_BYTES) if path in _FORMS else self._max_bytes


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the request is larger than {most} bytes; send less")


def _content_length(scope: Scope) -> int:
    """The declared length in bytes; 0 if there is none, or it is not a number."""
    text = Headers(scope=scope).get("content-length", "")
    # int() fails on thousands of digits; the first twenty already exceed any limit.
    return int(text[:20]) if text.isascii() and text.isdigit() else 0
