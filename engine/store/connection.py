"""The connection to a Qdrant server, with retries while the server is busy or unreachable."""

import logging
import math
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from ssl import PROTOCOL_TLS_CLIENT, SSLContext
from typing import Any, ParamSpec, TypeVar, cast
from urllib.parse import SplitResult, urlsplit

import grpc  # it and httpx are what qdrant-client speaks through
import httpx
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from tenacity import RetryCallState, Retrying, retry_if_exception

from engine.errors import (
    PrecedentError,
    SettingsError,
    StoreAway,
    StoreError,
    StoreLimited,
    StoreNotFound,
)
from engine.settings import StoreSettings
from engine.store.faces import Faces
from engine.store.nodes import Nodes, NoneReady

__all__ = ["Connection", "connect"]

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 20.0
"""Seconds before the second attempt, doubled before each further one, up to the second value."""
_LONGEST_ASKED = 120.0
"""A request is not repeated if the server asks for a longer pause than this, in seconds."""
_RECONNECT_WITHIN_MS = 5_000
"""gRPC by itself may wait two minutes before it reconnects to a server that is back."""
_SAID_EVERY = 60.0
"""Seconds between two warnings that a server is waited for."""
_LONGEST_WORDS = 300
"""Most characters of a server's message that are quoted."""

_BUSY_STATUS = {408, 429}
_BUSY_CODES = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    # What a cluster answers for a while, and over HTTP is status 500: a node or a replica is away
    # or not up to date yet, the nodes have no leader, or the server's own time was up.
    grpc.StatusCode.INTERNAL,
    # Now and then, a deadline of the client.
    grpc.StatusCode.CANCELLED,
}
_REFUSED_STATUS = {401, 403}
_UNREACHED = re.compile(r"[Ff]ailed to connect to (https?://[^\s,\"]+)")
"""How a node of a cluster names another one that is away."""
_OF_STRICT_MODE = ". Help: "
"""What the refusals of strict mode have between the limit and the way out."""
_REFUSED_CODES = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


def connect(settings: StoreSettings) -> QdrantClient:
    """A client for the server at ``settings.url``, or for the nodes at ``settings.urls``.

    Nothing is sent yet.

    Raises:
        SettingsError: the URL is missing or no plain web address, or the key holds characters
            that cannot be sent.
    """
    urls = [_checked_url(url) for url in settings.urls or (settings.url,)]
    key = None if settings.api_key is None else settings.api_key.get_secret_value()
    if key is not None and not (key.isascii() and key.isprintable() and key == key.strip()):
        # Sent as it is, it would fail with an error that shows it.
        raise SettingsError(
            "setting store.api_key holds a space, a line end or a character beyond ASCII; "
            "give PRECEDENT_STORE__API_KEY the key alone"
        )
    clients = [_client(url, key, settings) for url in urls]
    return clients[0] if len(clients) == 1 else cast(QdrantClient, Nodes(urls, clients))


def _client(url: str, key: str | None, settings: StoreSettings) -> QdrantClient:
    rest = _speaking(url, key, settings, grpc=False)
    if not settings.prefer_grpc:
        return rest
    return cast(QdrantClient, Faces(_speaking(url, key, settings, grpc=True), rest))


def _speaking(url: str, key: str | None, settings: StoreSettings, *, grpc: bool) -> QdrantClient:
    return QdrantClient(
        url=url,
        api_key=key or None,
        prefer_grpc=grpc,
        grpc_port=settings.grpc_port,
        grpc_options={"grpc.max_reconnect_backoff_ms": _RECONNECT_WITHIN_MS},
        timeout=math.ceil(settings.timeout_seconds),  # it takes whole seconds only
        # The client's own check would warn from a thread; ServerStore refuses old servers itself.
        check_compatibility=False,
        **_trust(url),
    )


def _trust(url: str) -> dict[str, Any]:
    """Whom the client trusts, where that is not what the machine trusts.

    Without TLS nobody's certificate is looked at, and to read those of all authorities takes
    longer than most requests. Should TLS be met after all, nobody is trusted.
    """
    return {"verify": SSLContext(PROTOCOL_TLS_CLIENT)} if urlsplit(url).scheme == "http" else {}


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
    missing: the collection does not exist. limit: the server allows less in one request.
    """

    words: str
    passing: bool = False
    pause: float | None = None
    refused: bool = False
    missing: bool = False
    limit: bool = False


class Connection:
    """A client with the settings and the retries of its requests; may be shared between threads.

    Args:
        settings: ``collection`` names the collection of a store on this connection, ``attempts``
            is how often a request is sent at most.
        patient: for batch work: a server that has answered before is waited for,
            ``patience_seconds`` of the settings.
        sleep: called with the seconds to wait between two attempts.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        client: QdrantClient,
        settings: StoreSettings,
        *,
        patient: bool = False,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.client = client
        self.settings = settings
        self.sleep = sleep
        self.clock = clock
        self._patient = patient
        self._has_answered = False

    @property
    def server(self) -> str:
        """The server's name for messages, with its address but without credentials."""
        url = self.client.url if isinstance(self.client, Nodes) else self.settings.url
        if url is None:
            return "the Qdrant server in this process"
        return f"the Qdrant server at {_bare(urlsplit(url))}"

    def ask(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """The result of one request, which is repeated while the server is busy or unreachable.

        All requests are idempotent, so repeating one is safe even if only its answer was lost:
        point ids are derived from the image, and deletions and settings state the result.

        Args:
            call: a method of the client, called with the other arguments.

        Raises:
            StoreAway: every attempt failed, because the server is away or busy.
            StoreLimited: a limit of the server stands in the way.
            StoreNotFound: the collection does not exist.
            StoreError: the server answered with another error.
        """
        waiting = _Waiting(self)
        attempts = Retrying(
            sleep=self.sleep,
            stop=waiting.is_over,
            wait=waiting.pause,
            retry=retry_if_exception(lambda error: _diagnosed(error).passing),
            before_sleep=waiting.say,
            reraise=True,
        )
        try:
            answer = attempts(call, *args, **kwargs)
        except PrecedentError:
            raise
        except Exception as error:  # of httpx, grpc, pydantic and the client itself
            raise self._named(_diagnosed(error)) from error
        self._has_answered = True
        return answer

    @property
    def patience(self) -> float:
        """Seconds for which a busy or unreachable server is waited for, at least; 0 = no longer
        than the attempts take. A server that never answered may not exist: it is not waited for."""
        waits = self._patient and self._has_answered
        return self.settings.patience_seconds if waits else 0.0

    def _named(self, trouble: _Trouble) -> StoreError:
        words = self.without_key(trouble.words)
        name = self.settings.collection
        if trouble.passing:
            attempts = self.settings.attempts
            often = "one attempt" if attempts == 1 else f"{attempts} attempts"
            setting = "ATTEMPTS"
            if self.patience:
                often, setting = f"{self.patience:g} seconds", "PATIENCE_SECONDS"
            return StoreAway(
                f"{self.server} could not be used in {often} ({words}); {self._away(words)}check "
                f"that it runs and can be reached from here, or raise PRECEDENT_STORE__{setting}; "
                "a cluster goes on while a node is away if each shard has a copy elsewhere "
                "(PRECEDENT_STORE__REPLICATION_FACTOR)"
            )
        if trouble.refused:
            return StoreError(
                f"{self.server} refused access to collection {name!r} ({words}); give a key "
                "that may use it in PRECEDENT_STORE__API_KEY; a token has to name this alias and "
                f"the collection's own name, {name}-…, as docs/deployment.md says"
            )
        if trouble.missing:
            return StoreNotFound(
                f"{self.server} has no collection {name!r} ({words}); index again with "
                "`precedent index PATH…`, or restore a snapshot"
            )
        if trouble.limit:
            return StoreLimited(
                f"{self.server} does not allow this of collection {name!r} ({words}); its strict "
                "mode sets this limit, and who administers the server can raise it"
            )
        return StoreError(
            f"{self.server} could not do what was asked of collection {name!r} ({words}); if "
            "that does not go away, look into the server's log"
        )

    def _away(self, words: str) -> str:
        """Which nodes of a cluster are away: of those that are known here, and of those that the
        server's message names."""
        away = self.client.away() if isinstance(self.client, Nodes) else []
        away += [url.rstrip("/") for url in _UNREACHED.findall(words)]
        if not away:
            return ""
        named = ", ".join(dict.fromkeys(away))
        return f"away or not ready: {named}; "

    def without_key(self, words: str) -> str:
        """A message of the server without the API key, should it hold it."""
        key = self.settings.api_key
        secret = "" if key is None else key.get_secret_value()
        return words.replace(secret, "…") if secret else words


class _Waiting:
    """How long one request has been tried in vain, and at which node of a cluster it is tried next;
    says once a minute that it waits."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._nodes = connection.client if isinstance(connection.client, Nodes) else None
        self._asked = None if self._nodes is None else self._nodes.url
        self._began = self._said = connection.clock()

    def is_over(self, state: RetryCallState) -> bool:
        waited = self._connection.clock() - self._began
        enough = state.attempt_number >= self._connection.settings.attempts
        return enough and waited >= self._connection.patience

    def pause(self, state: RetryCallState) -> float:
        """Seconds before the next attempt: none where another node can be asked at once."""
        nodes, asked = self._nodes, self._asked
        if nodes is None or asked is None:
            return _pause(state)
        turned = nodes.turn(asked) and nodes.url != asked
        self._asked = nodes.url
        return 0.0 if turned and state.attempt_number < len(nodes) else _pause(state)

    def say(self, state: RetryCallState) -> None:
        now = self._connection.clock()
        error = None if state.outcome is None else state.outcome.exception()
        if error is None or now - self._said < _SAID_EVERY:
            return
        self._said = now
        logger.warning(
            "%s has not been there for %.0f s (%s); it is waited for, %.0f s in all",
            self._connection.server,
            now - self._began,
            self._connection.without_key(_diagnosed(error).words),
            self._connection.patience,
        )


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
        case NoneReady():
            return _Trouble(str(error), passing=True)
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
        limit=status == 400 and _OF_STRICT_MODE in said,
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
        limit=code is grpc.StatusCode.INVALID_ARGUMENT and _OF_STRICT_MODE in (details or ""),
    )


def _short(said: object) -> str:
    """A message of the server or the client on one line, shortened."""
    words = " ".join(str(said).split())
    return words if len(words) <= _LONGEST_WORDS else words[: _LONGEST_WORDS - 1] + "…"
