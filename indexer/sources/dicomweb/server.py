"""Requests to a DICOMweb server, with retries and a rate limit, and readable error messages."""

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
"""Waits the given seconds, or until the event is set."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 20.0
"""Seconds before the second attempt; they double with each further one, up to the latter."""
_REFUSED = {401, 403}


class Pace:
    """Limits the rate of requests over all threads.

    Args:
        per_second: the most requests a second; None = no limit.
        clock: returns a monotonic time in seconds.
    """

    def __init__(self, per_second: float | None, *, clock: Callable[[], float], wait: Wait) -> None:
        self._interval = 0.0 if per_second is None else 1.0 / per_second
        self._clock, self._wait = clock, wait
        self._next = 0.0
        self._lock = Lock()

    def __call__(self) -> None:
        """Blocks until the next request may be sent."""
        if not self._interval:
            return
        with self._lock:
            now = self._clock()
            mine = max(now, self._next)
            self._next = mine + self._interval
        if mine > now:
            self._wait(Event(), mine - now)


class WebServer:
    """A client of one DICOMweb server, which threads may share. The constructor sends nothing.

    Args:
        name: of the source in the settings.
        wait: makes the pauses. clock: returns a monotonic time in seconds.

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
        """What ``call`` returns; it is retried while it fails with a transient failure.

        Args:
            stopped: once set, there are no further attempts.
            attempts: the most attempts; None = as many as the settings allow.

        Raises:
            Failed: of the last attempt.
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
        """The answer to a GET request; its body is still to be read with :meth:`body`.

        Raises:
            Failed: there is no answer, or it has an error status.
            SourceError: it redirects to a host that is not allowed.
        """
        # No HTTP compression: images are compressed by their transfer syntax, if at all.
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
        """The entries (DICOM JSON) that a search finds.

        Args:
            search: one of the search methods of :attr:`client`.
            attempts: the most attempts; None = as many as the settings allow.

        Raises:
            Failed: there is no answer, or it is no DICOM JSON.
            SourceError: it redirects to a host that is not allowed.
        """

        def entries() -> list[dict[str, Any]]:
            try:
                found = search(**query)
            except (ValueError, RecursionError):
                # Transient: an incomplete answer is invalid JSON as well.
                raise Failed("its answer is no DICOM JSON", passing=True) from None
            if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
                raise Failed("its answer is no DICOM JSON")
            return found

        return self.ask(entries, attempts=attempts)

    def error(self, failed: Failed) -> SourceError:
        """The error for a failure, which says what to correct."""
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
    """Seconds before the next attempt: what the server asked for, and an exponential backoff."""
    error = None if state.outcome is None else state.outcome.exception()
    asked = (error.pause if isinstance(error, Failed) else None) or 0.0
    backoff = min(_FIRST_PAUSE * 2.0 ** (state.attempt_number - 1), _LONGEST_PAUSE)
    # Random, so that many clients refused at once do not all return at once.
    return asked + random.uniform(0.5, 1.0) * backoff  # noqa: S311
