"""The connection to a Qdrant server, with retries while the server is busy or unreachable."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar
from urllib.parse import SplitResult, urlsplit

import grpc  # it and httpx are what qdrant-client speaks through
import httpx
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from engine.errors import SettingsError, StoreError, StoreNotFound
from engine.settings import StoreSettings

__all__ = ["Connection", "connect"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 20.0
"""Seconds before the second attempt, doubled before each further one, up to the second value."""
_LONGEST_ASKED = 120.0
"""A request is not repeated if the server asks for a longer pause than this, in seconds."""
_RECONNECT_WITHIN_MS = 5_000
"""gRPC by itself may wait two minutes before it reconnects to a server that is back."""
_LONGEST_WORDS = 300
"""Most characters of a server's message that are quoted."""

_BUSY_STATUS = {408, 429}
_BUSY_CODES = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_REFUSED_STATUS = {401, 403}
_REFUSED_CODES = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


def connect(settings: StoreSettings) -> QdrantClient:
    """A client for the server at ``settings.url``. Nothing is sent yet.

    Raises:
        SettingsError: the URL is missing or no plain web address, or the key holds characters
            that cannot be sent.
    """
    url = _checked_url(settings.url)
    key = None if settings.api_key is None else settings.api_key.get_secret_value()
    if key is not None and not (key.isascii() and key.isprintable() and key == key.strip()):
        # Sent as it is, it would fail with an error that shows it.
        raise SettingsError(
            "setting store.api_key holds a space, a line end or a character beyond ASCII; "
            "give PRECEDENT_STORE__API_KEY the key alone"
        )
    return QdrantClient(
        url=url,
        api_key=key or None,
        prefer_grpc=settings.prefer_grpc,
        grpc_port=settings.grpc_port,
        grpc_options={"grpc.max_reconnect_backoff_ms": _RECONNECT_WITHIN_MS},
        timeout=math.ceil(settings.timeout_seconds),  # it takes whole seconds only
        # The client's own check would warn from a thread; ServerStore refuses old servers itself.
        check_compatibility=False,
    )


def _checked_url(url: str | None) -> str:
    wanted = "give PRECEDENT_STORE__URL as in https://qdrant.example:6333"
    if url is None:
        raise SettingsError(f"setting store.url is not set; {wanted}")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise SettingsError(f"setting store.url is no web address; {wanted}") from None
    if "@" in parts.netloc:
        # The address itself is left out: it holds a secret.
        raise SettingsError(
            "setting store.url holds a user name or password; take it out, and give the key in "
            "PRECEDENT_STORE__API_KEY"
        )
    if not usable or parts.query or parts.fragment:
        raise SettingsError(f"setting store.url is {url!r}, which names no server; {wanted}")
    return url


@dataclass(frozen=True, slots=True)
class _Trouble:
    """The diagnosis of an exception that the client raised.

    words: a description. passing: temporary, so that another attempt may succeed.
    pause: seconds that the server asks to wait. refused: access was denied.
    missing: the collection does not exist.
    """

    words: str
    passing: bool = False
    pause: float | None = None
    refused: bool = False
    missing: bool = False


class Connection:
    """A client with the settings and the retries of its requests; may be shared between threads.

    Args:
        settings: ``collection`` names the collection of a store on this connection, ``attempts``
            is how often a request is sent at most.
        sleep: called with the seconds to wait between two attempts.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        client: QdrantClient,
        settings: StoreSettings,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.client = client
        self.settings = settings
        self.sleep = sleep
        self.clock = clock

    @property
    def server(self) -> str:
        """The server's name for messages, with its address but without credentials."""
        if self.settings.url is None:
            return "the Qdrant server in this process"
        return f"the Qdrant server at {_bare(urlsplit(self.settings.url))}"

    def ask(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """The result of one request, which is repeated while the server is busy or unreachable.

        All requests are idempotent, so repeating one is safe even if only its answer was lost:
        point ids are derived from the image, and deletions and settings state the result.

        Args:
            call: a method of the client, called with the other arguments.

        Raises:
            StoreError: every attempt failed, or the server answered with an error.
            StoreNotFound: the collection does not exist.
        """
        attempts = Retrying(
            sleep=self.sleep,
            stop=stop_after_attempt(self.settings.attempts),
            wait=_pause,
            retry=retry_if_exception(lambda error: _diagnosed(error).passing),
            reraise=True,
        )
        try:
            return attempts(call, *args, **kwargs)
        except Exception as error:  # of httpx, grpc, pydantic and the client itself
            raise self._named(_diagnosed(error)) from error

    def _named(self, trouble: _Trouble) -> StoreError:
        words = self._without_key(trouble.words)
        name = self.settings.collection
        if trouble.passing:
            attempts = self.settings.attempts
            often = "one attempt" if attempts == 1 else f"{attempts} attempts"
            return StoreError(
                f"{self.server} could not be used in {often} ({words}); check that it runs and "
                "can be reached from here, or raise PRECEDENT_STORE__ATTEMPTS"
            )
        if trouble.refused:
            return StoreError(
                f"{self.server} refused access to collection {name!r} ({words}); give a key "
                "that may use it in PRECEDENT_STORE__API_KEY"
            )
        if trouble.missing:
            return StoreNotFound(
                f"{self.server} has no collection {name!r} ({words}); index again with "
                "`precedent index PATH…`, or restore a snapshot"
            )
        return StoreError(
            f"{self.server} could not do what was asked of collection {name!r} ({words}); if "
            "that does not go away, look into the server's log"
        )

    def _without_key(self, words: str) -> str:
        key = self.settings.api_key
        secret = "" if key is None else key.get_secret_value()
        return words.replace(secret, "…") if secret else words


def _bare(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def _pause(state: RetryCallState) -> float:
    """Seconds before the next attempt: what the server asked for, plus exponential backoff."""
    error = None if state.outcome is None else state.outcome.exception()
    asked = (_diagnosed(error).pause if error is not None else None) or 0.0
    backoff = min(_FIRST_PAUSE * 2.0 ** (state.attempt_number - 1), _LONGEST_PAUSE)
    # Jitter, so that clients that failed together do not retry together.
    return asked + random.uniform(0.5, 1.0) * backoff  # noqa: S311


def _diagnosed(error: BaseException) -> _Trouble:
    match error:
        case ResourceExhaustedResponse():
            asked = float(error.retry_after_s)
            words = f"it asks to be left alone for {asked:g} s: {_short(error)}"
            return _Trouble(words, passing=asked <= _LONGEST_ASKED, pause=asked)
        case QdrantException():
            # A 429 whose Retry-After is a date.
            return _Trouble(_short(error), passing=True)
        case UnexpectedResponse():
            return _of_status(error)
        case ResponseHandlingException():
            return _of_transport(error.source)
        case grpc.RpcError():
            return _of_grpc(error)
        case _:
            return _Trouble(_short(error))


def _of_status(error: UnexpectedResponse) -> _Trouble:
    status = error.status_code or 0
    try:
        said = _short(error.structured()["status"]["error"])
    except (ValueError, TypeError, KeyError):
        said = _short(error.reason_phrase)
    after = error.headers.get("retry-after", "") if error.headers else ""
    pause = float(after) if after.isascii() and after.isdigit() else None
    busy = status in _BUSY_STATUS or 500 <= status < 600
    return _Trouble(
        f"HTTP {status}: {said}",
        passing=busy and (pause or 0.0) <= _LONGEST_ASKED,
        pause=pause,
        refused=status in _REFUSED_STATUS,
        missing=status == 404,
    )


def _of_transport(source: Exception) -> _Trouble:
    words = f"{type(source).__name__}: {_short(source)}".removesuffix(": ")
    dropped = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
    return _Trouble(words, passing=isinstance(source, dropped))


def _of_grpc(error: grpc.RpcError) -> _Trouble:
    code, details = error.code(), error.details()
    return _Trouble(
        f"gRPC {code.name}: {_short(details or '')}".removesuffix(": "),
        passing=code in _BUSY_CODES,
        refused=code in _REFUSED_CODES,
        missing=code is grpc.StatusCode.NOT_FOUND,
    )


def _short(said: object) -> str:
    """A message of the server or the client on one line, shortened."""
    words = " ".join(str(said).split())
    return words if len(words) <= _LONGEST_WORDS else words[: _LONGEST_WORDS - 1] + "…"
