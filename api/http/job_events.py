"""The progress of a job as server-sent events (HTML standard, 9.2)."""

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
from fastapi import HTTPException
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from api.http.problems import log_problem, problem_of
from api.http.readiness import Readiness
from api.http.request_ids import request_id_of
from api.http.shares import Shares
from engine.errors import PrecedentError

__all__ = ["Events", "job_events"]

_ENDED = ("finished", "failed", "cancelled")
_OF_THE_MOMENT = ("per_second", "seconds_left")
"""What changes with the time alone, and is no news."""


class Events:
    """How many streams there are, and how often each looks.

    Args:
        most: streams at once. of_one: of one tenant; None = half of them.
        look_seconds: between two looks. beat_seconds: between two signs of life.
        longest_seconds: of one stream.
    """

    def __init__(
        self,
        most: int = 128,
        look_seconds: float = 1.0,
        beat_seconds: float = 15.0,
        longest_seconds: float = 600.0,
        of_one: int | None = None,
    ) -> None:
        self.look_seconds = look_seconds
        self.beat_seconds = beat_seconds
        self.longest_seconds = longest_seconds
        self.places = Shares(most, (most + 1) // 2 if of_one is None else of_one, _full)

    def are_known(self, state: dict[str, Any], last_event_id: str) -> bool:
        """Whether whoever had this event knows the end of the job."""
        return state["state"] in _ENDED and last_event_id == _id(state)


async def job_events(
    events: Events, state: Callable[[], dict[str, Any]], request: Request, last_event_id: str
) -> AsyncIterator[str]:
    """The text of the stream, event by event.

    Args:
        state: the job as a JSON document; raises a PrecedentError when it, or the right to see it,
            is gone.
        last_event_id: of the last event that the caller has; "" = none.
    """
    readiness: Readiness = request.state.readiness
    tenant: str = request.state.caller.tenant
    events.places.take(tenant, anyway=True)
    try:
        known, began = last_event_id, time.monotonic()
        said = began
        while True:
            try:
                found = await run_in_threadpool(state)
            except PrecedentError as error:
                path, request_id = request.url.path, request_id_of(request.scope)
                problem = problem_of(error, path, request_id)
                log_problem(problem, error)
                yield _event("error", "", problem.model_dump(mode="json", exclude_none=True))
                return
            ended = found["state"] in _ENDED
            now, event_id = time.monotonic(), _id(found)
            if ended or event_id != known:
                yield _event("end" if ended else "progress", event_id, found)
                known, said = event_id, now
            elif now - said >= events.beat_seconds:
                yield ": alive\n\n"
                said = now
            if ended or now - began >= events.longest_seconds or readiness.is_draining:
                return
            await anyio.sleep(events.look_seconds)
    finally:
        events.places.give_back(tenant)


def _full(own: bool) -> HTTPException:
    who = "your tenant follows" if own else "others follow"
    return HTTPException(
        429 if own else 503,
        f"{who} too many jobs already; ask for the job itself",
        {"Retry-After": "30"},
    )


def _id(state: dict[str, Any]) -> str:
    """The same for the same state of a job, in every process."""
    news = {name: value for name, value in state.items() if name not in _OF_THE_MOMENT}
    return hashlib.sha256(json.dumps(news, sort_keys=True).encode()).hexdigest()[:16]


def _event(kind: str, event_id: str, document: dict[str, Any]) -> str:
    head = f"id: {event_id}\n" if event_id else ""
    return f"{head}event: {kind}\ndata: {json.dumps(document)}\n\n"
