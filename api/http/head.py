"""Answers HEAD wherever GET is answered: the same status and headers, without the body."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Head", "is_head"]

_STATE = "head"


class Head:
    """ASGI middleware. What is inside of it sees GET in place of HEAD."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        state = {**scope.get("state", {}), _STATE: True}
        ended = False

        async def without_body(message: Message) -> None:
            nonlocal ended
            if message["type"] != "http.response.body":
                await send(message)
            elif not ended:
                ended = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app({**scope, "method": "GET", "state": state}, receive, without_body)


def is_head(scope: Scope) -> bool:
    """Whether nobody will get the body of the answer: no need to stream it."""
    return bool(scope.get("state", {}).get(_STATE))
