"""Answers 429 to a credential that asks too often, and tells each how much it may still ask."""

import hashlib
import math
from collections.abc import Mapping

from fastapi import HTTPException
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.problems import problem_of, problem_response
from api.http.request_ids import request_id_of
from api.http.slots import is_always_answered
from api.security.access import Caller
from api.security.rates import Allowance, Rates

__all__ = ["Throttle", "check_rate"]


class Throttle:
    """ASGI middleware, inside the one that tells who asks. Callers without a key are not counted:
    an open service has one, and others get nothing that costs much."""

    def __init__(self, app: ASGIApp, rates: Rates) -> None:
        self._app = app
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        credential = self._credential(scope)
        if credential is None:
            await self._app(scope, receive, send)
            return
        allowance = self._rates.at_hand(credential)
        if allowance is None:
            allowance = await run_in_threadpool(self._rates.ask, credential)
        told = self._told(allowance)
        if not allowance.allowed:
            error = _too_often(allowance)
            headers = {**(error.headers or {}), **told}
            problem = problem_of(error, scope["path"], request_id_of(scope))
            await problem_response(problem, headers)(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(told)
            await send(message)

        await self._app(scope, receive, sent)

    def _credential(self, scope: Scope) -> str | None:
        if scope["type"] != "http" or not self._rates.limited or is_always_answered(scope):
            return None
        caller: Caller | None = scope.get("state", {}).get("caller")
        if caller is None or caller.key is not None:
            return None if caller is None else caller.key
        # Whom an identity provider knows is counted by a hash: the buckets need not say who it is.
        subject = getattr(caller, "subject", None)
        return None if subject is None else hashlib.sha256(str(subject).encode()).hexdigest()[:32]

    def _told(self, allowance: Allowance) -> Mapping[str, str]:
        """The fields of draft-ietf-httpapi-ratelimit-headers."""
        burst, window = self._rates.policy
        wait = f";t={max(1, math.ceil(allowance.wait))}" if not allowance.allowed else ""
        return {
            "RateLimit-Policy": f'"key";q={burst};w={window}',
            "RateLimit": f'"key";r={allowance.left}{wait}',
        }


def check_rate(rates: Rates, key: str) -> None:
    """Counts a request of this key whose route alone can tell that it is the key's.

    Raises:
        HTTPException: 429, the key asks too often.
    """
    if not rates.limited:
        return
    allowance = rates.at_hand(key) or rates.ask(key)
    if not allowance.allowed:
        raise _too_often(allowance)


def _too_often(allowance: Allowance) -> HTTPException:
    return HTTPException(
        429,
        "this key asks more often than the service allows; wait for as long as Retry-After says, "
        "and send fewer requests at a time",
        {"Retry-After": str(max(1, math.ceil(allowance.wait)))},
    )
