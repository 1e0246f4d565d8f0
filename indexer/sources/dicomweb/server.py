"""A DICOMweb server: asked with patience, at a pace, and told of in words for people."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock
from typing import Any, TypeVar

import requests
from dicomweb_client.web import DICOMwebClient
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt
from tenacity.stop import stop_when_event_set

from engine.errors import SourceError
from engine.settings import DicomWebSettings
from indexer.sources.dicomweb.failure import Failed
from indexer.sources.dicomweb.session import Session

__all__ = ["Pace", "Wait", "WebServer"]

_T = TypeVar("_T")

Wait = Callable[[Event, float], object]
"""Waits so many seconds, or until the event is set."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 20.0
"""Seconds before the second attempt, doubled with each further one, and where that ends."""
_REFUSED = {401, 403}


class Pace:
    """At most so many requests a second, over all threads; None = as many as there are.

    Args:
        clock: a monotonic time in seconds.
    """

    def __init__(self, per_second: float | None, *, clock: Callable[[], float], wait: Wait) -> None:
        self._interval = 0.0 if per_second is None else 1.0 / per_second
        self._clock, self._wait = clock, wait
        self._next = 0.0
        self._lock = Lock()

    def __call__(self) -> None:
        """Returns when the next request may be sent."""
        if not self._interval:
            return
        with self._lock:
            now = self._clock()
            mine = max(now, self._next)
            self._next = mine + self._interval
        if mine > now:
            self._wait(Event(), mine - now)


class WebServer:
    """One DICOMweb server, which threads may share. Nothing is sent when it is made.

    Args:
        name: of the source in the settings.
        wait: makes the pauses. clock: a monotonic time in seconds.

    Raises:
        SettingsError: the address, the credentials or the certificates cannot be used.
    """

    def __init__(
        self,
        name: str,
        settings: DicomWebSettings,
        *,
        wait: Wait = Event.wait,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._wait = settings, wait
        pace = Pace(settings.requests_per_second, clock=clock, wait=wait)
        self._session = Session(name, settings, pace=pace, clock=clock)
        self.base = self._session.base
        self.setting = self._session.setting
        self.body = self._session.body
        self.client = DICOMwebClient(
            self.base, session=self._session, timeout=settings.timeout_seconds
        )
        self.client.set_http_retry_params(retry=False)  # ``ask`` does

    def __str__(self) -> str:
        return self._session.server

    def ask(
        self, call: Callable[[], _T], *, stopped: Event | None = None, attempts: int | None = None
    ) -> _T:
        """What ``call`` returns, called again while it fails in a way that may pass.

        Args:
            stopped: once set, there are no further attempts.
            attempts: None = as many as the settings allow.

        Raises:
            Failed: the last attempt's.
        """
        ended = stopped or Event()

        def wait(seconds: float) -> None:
            self._wait(ended, seconds)

        retrying = Retrying(
            sleep=wait,
            stop=stop_after_attempt(attempts or self._settings.attempts)
            | stop_when_event_set(ended),
            wait=_pause,
            retry=retry_if_exception(lambda error: isinstance(error, Failed) and error.passing),
            reraise=True,
        )
        return retrying(call)

    @contextmanager
    def get(self, url: str, accept: str) -> Iterator[requests.Response]:
        """The answer, whose body is still to be read by :meth:`body`.

        Raises:
            Failed: there is none, or its status says that it is an error.
            SourceError: it leads to where it may not lead.
        """
        # Images are packed, if at all, by their transfer syntax.
        headers = {"Accept": accept, "Accept-Encoding": "identity"}
        timeout = self._settings.timeout_seconds
        response = self._session.get(url, headers=headers, stream=True, timeout=timeout)
        try:
            yield response
        finally:
            response.close()

    def search(
        self,
        search: Callable[..., list[dict[str, Any]]],
        *,
        attempts: int | None = None,
        **query: Any,
    ) -> list[dict[str, Any]]:
        """The entries that one of the searches of :attr:`client` answers with.

        Raises:
            Failed: there is no answer, or it is no DICOM JSON.
            SourceError: it leads to where it may not lead.
        """

        def entries() -> list[dict[str, Any]]:
            try:
                found = search(**query)
            except (ValueError, RecursionError):
                # Half an answer is no JSON either.
                raise Failed("its answer is no DICOM JSON", passing=True) from None
            if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
                raise Failed("its answer is no DICOM JSON")
            return found

        return self.ask(entries, attempts=attempts)

    def error(self, failed: Failed) -> SourceError:
        """The failure in words for people."""
        if failed.status in _REFUSED:
            return SourceError(
                f"{self} refused access (HTTP {failed.status}); correct "
                f"{self.setting('username')} and {self.setting('password')}, or "
                f"{self.setting('token')}, or have its user given access"
            )
        if failed.untrusted:
            return SourceError(
                f"{self} shows a certificate that is not trusted here; name the file of the "
                f"certificate that signed it in {self.setting('ca_file')}"
            )
        if failed.passing:
            attempts = self._settings.attempts
            often = "one attempt" if attempts == 1 else f"{attempts} attempts"
            return SourceError(
                f"{self} could not be used in {often} ({failed.words}); check that it runs and "
                f"can be reached from here, or raise {self.setting('attempts')}"
            )
        return SourceError(
            f"{self} could not do what was asked ({failed.words}); check "
            f"{self.setting('url')}, or look into the server's log"
        )


def _pause(state: RetryCallState) -> float:
    """Seconds before the next attempt: at least what the server asked for, then ever more."""
    error = None if state.outcome is None else state.outcome.exception()
    asked = (error.pause if isinstance(error, Failed) else None) or 0.0
    backoff = min(_FIRST_PAUSE * 2.0 ** (state.attempt_number - 1), _LONGEST_PAUSE)
    # Many clients that were sent away together shall not come back together.
    return asked + random.uniform(0.5, 1.0) * backoff  # noqa: S311
