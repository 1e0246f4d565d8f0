"""One connection of the HTTP server: uvicorn's, with limits that uvicorn does not have.

It cuts clients that take too long over their headers or do not take their answers, answers 503
when too many are connected, and answers what is no HTTP with a problem document.
"""

import asyncio
import sys
import uuid
from collections.abc import Callable
from typing import Any

import h11
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.http.origins import security_headers
from api.http.problems import MEDIA_TYPE, problem_of
from api.http.request_ids import HEADER
from engine.settings import ServerSettings

__all__ = ["limited_protocol"]

_HEADERS = {"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store", "Connection": "close"}
_LINGER_SECONDS = 5.0
"""For how long what a client still sends is thrown away after it was answered. If the connection
were closed at once, the client would be told of that instead of the answer."""
_Refused = Callable[[int], None]


def limited_protocol(
    server: ServerSettings, refused: _Refused = lambda _: None
) -> type[asyncio.Protocol]:
    """The class of connections under these limits.

    Args:
        refused: called with the status of each answer that the application never sees.
    """

    class Connection(H11Protocol):
        """A connection. Its timers run while headers are awaited, or an answer is not taken."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._timers: dict[str, asyncio.TimerHandle] = {}
            self._refused = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > server.max_connections:
                self._refuse(503, "too many connections; try again shortly", {"Retry-After": "1"})
                return
            self._await_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            # What still comes after a refusal is thrown away.
            if self._refused or self.transport.is_closing():
                return
            super().data_received(data)
            if self._refused or self.transport.is_closing():
                return
            if self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE:
                self._await_headers()
            else:
                self._stop("headers")
            if self.conn.their_state is not h11.SEND_BODY:
                self._stop("unread")

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
                self._unset_keepalive_if_required()
                self._start("unread", _LINGER_SECONDS, self.transport.abort)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._start("taken", server.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop("taken")

        def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's, for every error
            error = sys.exc_info()[1]
            status = getattr(error, "error_status_hint", 400)
            if status == 431:
                self._refuse(431, "the headers are too large; send fewer or shorter ones")
            else:
                self._refuse(400, "this is no HTTP that the service understands")

        def _await_headers(self) -> None:
            if "headers" not in self._timers:
                self._start("headers", server.header_seconds, self._too_slow)

        def _too_slow(self) -> None:
            if not self._refused and not self.transport.is_closing():
                self._refuse(408, f"no request came within {server.header_seconds:g} seconds")

        def _refuse(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
            """Answers what never was a request of the application, and closes the connection."""
            self._stop()
            self._refused = True
            refused(status)
            request_id = uuid.uuid4().hex
            problem = problem_of(HTTPException(status, detail), "", request_id)
            body = problem.model_dump_json(exclude_none=True)
            sent = {
                **_HEADERS,
                **security_headers(server),
                HEADER: request_id,
                **(headers or {}),
                "Content-Length": str(len(body)),
            }
            try:
                answer = h11.Response(status_code=status, headers=[*sent.items()])
                for event in (answer, h11.Data(data=body.encode()), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            except h11.LocalProtocolError:
                # An answer has begun already, and cannot be taken back.
                self.transport.close()
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            if self.transport.can_write_eof() and not self.transport.is_closing():
                self.flow.resume_reading()
                self.transport.write_eof()
            self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

        def _start(self, name: str, seconds: float, call: Callable[[], None]) -> None:
            self._stop(name)
            self._timers[name] = self.loop.call_later(seconds, call)

        def _stop(self, *names: str) -> None:
            """Stops these timers, or all."""
            for name in names or tuple(self._timers):
                if (timer := self._timers.pop(name, None)) is not None:
                    timer.cancel()

    return Connection
