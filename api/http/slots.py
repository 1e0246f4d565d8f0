"""How many requests are worked on at a time, how many may wait, and 503 for all others."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.arrival import has_body
from api.http.problems import problem_of, problem_response
from api.http.request_ids import request_id_of
from engine.settings import ServerSettings

__all__ = ["ALWAYS_ANSWERED", "Load", "Overload", "Slots", "is_always_answered"]

ALWAYS_ANSWERED = ("/healthz", "/livez", "/readyz", "/metrics")
"""Paths that are never refused for want of room: they tell how the service is."""
_RETRY: Mapping[str, str] = {"Retry-After": "1"}
_PAUSE_SECONDS = 1.0
"""For how long a refusal is held back. Many a client asks again as soon as it is refused, whatever
Retry-After says, and a crowd of them would leave no time for those who were let in."""
_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS", "DELETE")


def is_always_answered(scope: Scope) -> bool:
    """Whether the request is for a path of :data:`ALWAYS_ANSWERED`."""
    return scope["path"].removeprefix(scope.get("root_path", "")) in ALWAYS_ANSWERED


@dataclass(slots=True)
class Load:
    """How many requests are being worked on, wait, and are being received."""

    at_work: int = 0
    waiting: int = 0
    uploading: int = 0

    def full(self, server: ServerSettings) -> str | None:
        """Why no further request finds room; None = it does."""
        if self.at_work < server.max_at_once or self.waiting < server.max_waiting:
            return None
        return f"{self.at_work} requests are being answered and {self.waiting} wait"


class Overload:
    """ASGI middleware that refuses requests as long as there is no room, before anything is done
    for them: it stands outside of what asks databases. If refusing cost as much as asking who
    somebody is and recording it, a crowd would leave no time for those who were let in.
    """

    def __init__(self, app: ASGIApp, server: ServerSettings, load: Load) -> None:
        self._app = app
        self._server = server
        self._load = load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        full = self._load.full(self._server) if scope["type"] == "http" else None
        if full is None or is_always_answered(scope):
            await self._app(scope, receive, send)
        else:
            await asyncio.sleep(_PAUSE_SECONDS)
            await _refuse(_full(full), scope, receive, send)


class Slots:
    """ASGI middleware that gives each request a slot before anything is computed for it.

    An upload gets it when all of it has come: a slow one takes no slot, only a place among
    ``max_uploads``. It is given back when the answer begins, which is when the work is done: a
    client that takes its answer slowly, or a stream of events, holds none.
    """

    def __init__(self, app: ASGIApp, server: ServerSettings, load: Load) -> None:
        self._app = app
        self._server = server
        self._free = asyncio.Semaphore(server.max_at_once)
        self._load = load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_always_answered(scope):
            await self._app(scope, receive, send)
            return
        held = _Slot(self)
        uploads = has_body(scope) and scope["method"] not in _WITHOUT_BODY

        async def received() -> Message:
            nonlocal uploads
            message = await receive()
            if uploads and not message.get("more_body", False):
                uploads = False
                self._load.uploading -= 1
                if message["type"] == "http.request":
                    await held.take()
            return message

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                held.give_back()
            await send(message)

        try:
            if not uploads:
                await held.take()
            elif self._load.uploading >= self._server.max_uploads:
                uploads = False
                raise _full(f"{self._server.max_uploads} uploads are being received")
            else:
                self._load.uploading += 1
        except HTTPException as error:
            await _refuse(error, scope, receive, send)
            return
        try:
            await self._app(scope, received, sent)
        finally:
            held.give_back()
            if uploads:
                self._load.uploading -= 1

    async def take(self) -> None:
        """Waits for a slot. Raises HTTPException: 503, there is none, or not in time."""
        if (full := self._load.full(self._server)) is not None:
            raise _full(full)
        self._load.waiting += 1
        try:
            async with asyncio.timeout(self._server.max_waiting_seconds):
                await self._free.acquire()
        except TimeoutError:
            seconds = f"{self._server.max_waiting_seconds:g}"
            raise _full(f"the request has waited {seconds} seconds for its turn") from None
        finally:
            self._load.waiting -= 1
        self._load.at_work += 1

    def give_back(self) -> None:
        self._load.at_work -= 1
        self._free.release()


class _Slot:
    """The slot of one request; taken once, and given back once."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._give_back: Callable[[], None] | None = None

    async def take(self) -> None:
        await self._slots.take()
        self._give_back = self._slots.give_back

    def give_back(self) -> None:
        if self._give_back is not None:
            self._give_back()
            self._give_back = None


def _full(what: str) -> HTTPException:
    return HTTPException(503, f"the service is busy: {what}; try again shortly", dict(_RETRY))


async def _refuse(error: HTTPException, scope: Scope, receive: Receive, send: Send) -> None:
    problem = problem_of(error, scope["path"], request_id_of(scope))
    await problem_response(problem, _RETRY)(scope, receive, send)
