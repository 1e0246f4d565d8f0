"""What sending a call needs, whether it blocks or not: headers, and what to do after a failure."""

import inspect
import logging
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from typing import Any, TypeVar, get_args

import httpx
from pydantic import ValidationError

from .answers import Problem
from .call import Call
from .errors import ConnectionFailed, ServiceError, TimedOut, service_error
from .retries import Retries, told_to_wait
from .uploads import opened

__all__ = ["Asking", "Key", "lost", "signed"]

_C = TypeVar("_C", bound=Callable[..., Any])

Key = str | Callable[[], str]
"""An API key or access token; or what gives one, asked before each request."""

_LOG = logging.getLogger("precedent_client")
_DISTRIBUTION = "precedent-imaging-client"
_BEFORE_WORK = (429, 503)
_AFTER_WORK = "audit"
"""Code of the 503 that may come when the work is done, and could only not be recorded."""
_LEAST_PATIENCE = 60.0
"""Seconds between two signs of life of a stream of events; one comes every 15 seconds."""


class Asking:
    """How requests are made and repeated.

    Args:
        address: of the service, as in "https://precedent.example"; with a path, where a proxy has
            one. key: None = the service is open.
        plain_http: send the key to another host without TLS all the same.

    Raises:
        ValueError: the address is none, or would send the key over a network without TLS.
    """

    def __init__(
        self, address: str, key: Key | None, retries: Retries, *, plain_http: bool = False
    ) -> None:
        self.address = _checked(address, key, plain_http)
        self.retries = retries
        self._key = key

    def request(self, call: Call[Any], until: ExitStack) -> dict[str, Any]:
        """The arguments with which httpx sends a call. until: how long its files stay open.

        Raises:
            OSError: a file cannot be opened.
        """
        headers = {"X-Request-Id": uuid.uuid4().hex, "User-Agent": _user_agent()}
        if self._key is not None:
            key = self._key if isinstance(self._key, str) else self._key()
            headers["Authorization"] = f"Bearer {key}"
        asked: dict[str, Any] = {"method": call.method, "url": call.path, "headers": headers}
        if call.uploads:
            form: dict[str, list[str]] = {}
            for name, value in call.options:
                form.setdefault(name, []).append(value)
            files = opened(call.field, call.uploads, until)
            return {**asked, "data": form, "files": files}
        if call.options:
            asked["params"] = list(call.options)
        if call.json is not None:
            asked["json"] = call.json
        return asked

    def streamed(self, call: Call[Any], timeout: httpx.Timeout, last_id: str) -> dict[str, Any]:
        """The same for a stream of events. last_id: of the last one that is known; "" = none."""
        asked = self.request(call, ExitStack())
        asked["headers"] |= {"Accept": "text/event-stream"}
        if last_id:
            asked["headers"]["Last-Event-ID"] = last_id
        read = None if timeout.read is None else max(timeout.read, _LEAST_PATIENCE)
        asked["timeout"] = httpx.Timeout(
            connect=timeout.connect, read=read, write=timeout.write, pool=timeout.pool
        )
        return asked

    def wait_after(
        self, call: Call[Any], attempt: int, failed: httpx.Response | httpx.RequestError
    ) -> float:
        """Seconds after which the call is to be sent again.

        Args:
            attempt: its number, from 1. failed: its answer, all of it read; or why there is none.

        Raises:
            ServiceError: it is not to be sent again: that was its answer.
            ConnectionFailed: the same, without one.
        """
        error: ServiceError | ConnectionFailed
        told: float | None = None
        if isinstance(failed, httpx.Response):
            error = answered = _answered(failed)
            told, may = answered.retry_after, _may_repeat(call, answered)
        else:
            # What could not connect was not sent.
            may = call.repeatable or isinstance(failed, (httpx.ConnectError, httpx.ConnectTimeout))
            error = lost(call, failed)
        wait = self.retries.wait(attempt, told) if may else None
        if wait is None:
            raise error from (failed if isinstance(failed, Exception) else None)
        why = error.status if isinstance(error, ServiceError) else type(failed).__name__
        _LOG.info("%s: %s; asking again in %.1f s", call.operation, why, wait)
        return wait


def _may_repeat(call: Call[Any], error: ServiceError) -> bool:
    if error.status not in _BEFORE_WORK:
        return False
    told = error.retry_after is not None and error.code != _AFTER_WORK
    return call.repeatable or told


def _answered(answer: httpx.Response) -> ServiceError:
    """The exception of an answer with an error; one of a proxy may have no problem document."""
    request_id = answer.headers.get("X-Request-Id")
    problem = Problem(
        status=answer.status_code,
        title=answer.reason_phrase,
        code=f"http-{answer.status_code}",
        request_id=request_id,
    )
    try:
        found = Problem.model_validate_json(answer.content)
    except ValidationError:
        pass
    else:
        given = {name: value for name, value in found if name in found.model_fields_set}
        problem = problem.model_copy(update={**given, "status": answer.status_code})
    retry_after = told_to_wait(answer.headers.get("Retry-After"))
    return service_error(problem, request_id or problem.request_id, retry_after)


def lost(call: Call[Any], error: httpx.RequestError) -> ConnectionFailed:
    """The exception of a request that got no answer, or not all of it."""
    sent: str | None = None
    try:
        sent = error.request.headers.get("X-Request-Id")
        host = error.request.url.host
    except RuntimeError:  # httpx has no request where it failed before there was one
        host = "the service"
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(
            f"{call.operation}: no answer of {host} in time ({type(error).__name__}); give a "
            "longer timeout, or see whether the service is busy",
            sent,
        )
    return ConnectionFailed(
        f"{call.operation}: no connection with {host} ({type(error).__name__}: {error}); see that "
        "the service runs and its address is right",
        sent,
    )


def _checked(address: str, key: Key | None, plain_http: bool) -> httpx.URL:
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise ValueError(f"{address!r} is no address: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{address!r} is no address of a service; give http://… or https://…")
    if url.userinfo:
        raise ValueError("give the key as `key`, and no user or password in the address")
    if key is not None and url.scheme == "http" and not plain_http and not _is_here(url.host):
        raise ValueError(
            f"key and images would go to {url.host} unprotected; use https://, or plain_http=True "
            "where something else protects them"
        )
    return url


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _user_agent() -> str:
    try:
        return f"{_DISTRIBUTION}/{version(_DISTRIBUTION)}"
    except PackageNotFoundError:
        return _DISTRIBUTION


def signed(method: _C, ask: Callable[..., Call[Any]]) -> _C:
    """The method, which takes what ``ask`` takes and says so."""
    told = inspect.signature(ask)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [own, *told.parameters.values()]
    (answer,) = get_args(told.return_annotation)
    method.__signature__ = told.replace(  # type: ignore[attr-defined]
        parameters=parameters, return_annotation=answer
    )
    return method
