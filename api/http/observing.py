"""What is told of each request: a line in the log, figures for /metrics, and spans.

None of them has anything of what was asked or answered: no path, id, query, file name or UID.
A route says what its search took with :func:`note_search` and :func:`stage`.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.addresses import Addresses, path_of
from api.http.head import is_head
from api.security.policy import POLICY
from engine.records import OodVerdict
from engine.search.stopwatch import Stopwatch

__all__ = [
    "Observation",
    "Observed",
    "Observer",
    "current",
    "note_problem",
    "note_search",
    "stage",
]

UNMATCHED = "unmatched"
"""Route of requests for what is not served."""
_METHODS = frozenset({method for method, _ in POLICY} | {"HEAD", "OPTIONS"})
_LOG = logging.getLogger("precedent.requests")
_ID_LENGTH = 128


@dataclass(slots=True, eq=False)
class Observation:
    """What is known of one request.

    route: template of its path. status: of the answer; None = none has begun. code: of the problem
    that was answered. stages: seconds by stage of the search. began: as time.time_ns().
    """

    scope: Scope
    route: str
    method: str
    began: int = field(default_factory=time.time_ns)
    status: int | None = None
    code: str | None = None
    verdict: str | None = None
    filters: list[str] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def request_id(self) -> str | None:
        found = self.scope.get("state", {}).get("request_id")
        return found[:_ID_LENGTH] if isinstance(found, str) else None

    def told(self) -> dict[str, Any]:
        """What every line says that is logged during the request."""
        caller = self.scope.get("state", {}).get("caller")
        found = {
            "request_id": self.request_id,
            "route": self.route,
            "tenant": None if caller is None else caller.tenant,
            "key": None if caller is None else caller.key,
        }
        return {name: value for name, value in found.items() if value is not None}


class Observer(Protocol):
    """Is told of each request, in the thread of the event loop."""

    def began(self, seen: Observation) -> None: ...
    def ended(self, seen: Observation) -> None: ...


_current: ContextVar[Observation | None] = ContextVar("observation", default=None)


def current() -> Observation | None:
    """What is known of the request that this code works for; None = of none."""
    return _current.get()


def note_search(
    filters: Sequence[str], verdict: OodVerdict | None, timings_ms: Mapping[str, float]
) -> None:
    """Says how a search was answered: which filters it took, and how long each stage."""
    seen = _current.get()
    if seen is None:
        return
    seen.filters += filters
    if verdict is not None:
        seen.verdict = verdict.verdict
    for name, milliseconds in timings_ms.items():
        seen.stages[name] = seen.stages.get(name, 0.0) + milliseconds / 1000


def note_problem(code: str) -> None:
    """Says which problem is answered."""
    seen = _current.get()
    if seen is not None:
        seen.code = code


@contextmanager
def stage(name: str) -> Iterator[None]:
    """A context whose duration is noted as that of a stage."""
    watch = Stopwatch()
    with watch(name):
        yield
    note_search((), None, watch.milliseconds)


class Observed:
    """ASGI middleware that tells observers of each request, and logs a line for it.

    lines: whether to log them.
    """

    def __init__(self, app: ASGIApp, observers: Sequence[Observer], *, lines: bool) -> None:
        self._app = app
        self._observers = observers
        self._lines = lines
        self._addresses = Addresses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})
        sent = "HEAD" if is_head(scope) else scope["method"]
        method = sent if sent in _METHODS else "other"
        seen = Observation(scope, self._route(scope), method)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
            await send(message)

        token = _current.set(seen)
        for one in self._observers:
            one.began(seen)
        try:
            await self._app(scope, receive, watched)
        finally:
            seen.seconds = (time.time_ns() - seen.began) / 1e9
            for one in self._observers:
                one.ended(seen)
            if self._lines:
                _log(seen)
            _current.reset(token)

    def _route(self, scope: Scope) -> str:
        found = self._addresses.find(path_of(scope))
        return UNMATCHED if found is None else found.template


def _log(seen: Observation) -> None:
    client = seen.scope.get("client")
    extra = {
        "method": seen.method,
        "status": seen.status,
        "milliseconds": round(seen.seconds * 1000, 1),
        "address": None if client is None else client[0],
        "code": seen.code,
        "verdict": seen.verdict,
    }
    told = {name: value for name, value in extra.items() if value is not None}
    _LOG.info("answered" if seen.status is not None else "client left", extra=told)
