"""What came of a request that failed, in words that hold no query, header or body."""

import re
import ssl
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import requests  # it and urllib3 are what dicomweb-client speaks through
import urllib3

__all__ = ["Failed", "broken_off", "of_status", "unanswered"]

_LONGEST_ASKED = 120.0
"""A server that asks to be left alone for more seconds is not waited for."""
_BUSY = {408, 429}


class Failed(Exception):
    """A request came to nothing.

    Args:
        words: what happened.
        status: of the answer, in HTTP; None = there was none, or it broke off.
        passing: it may well be gone at the next attempt.
        pause: seconds that the server asks to be left alone.
        untrusted: its certificate is not one that is trusted here.
    """

    def __init__(
        self,
        words: str,
        *,
        status: int | None = None,
        passing: bool = False,
        pause: float | None = None,
        untrusted: bool = False,
    ) -> None:
        super().__init__(words)
        self.words = words
        self.status = status
        self.passing = passing
        self.pause = pause
        self.untrusted = untrusted


def of_status(response: requests.Response) -> Failed:
    """An answer whose status says that it is none."""
    status = response.status_code
    pause = _asked_pause(response)
    busy = status in _BUSY or 500 <= status < 600
    return Failed(
        f"HTTP {status}" if pause is None else f"HTTP {status}, not again before {pause:g} s",
        status=status,
        passing=busy and (pause or 0.0) <= _LONGEST_ASKED,
        pause=pause,
    )


def unanswered(error: requests.RequestException) -> Failed:
    """A request without an answer."""
    for cause in _causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return Failed("its certificate is not trusted here", untrusted=True)
            case requests.ConnectTimeout():
                return Failed("no connection in time", passing=True)
            case requests.Timeout() | TimeoutError():
                return Failed("no answer in time", passing=True)
            case urllib3.exceptions.NameResolutionError():
                return Failed("its host name is not known", passing=True)
            case ConnectionRefusedError():
                return Failed("connection refused", passing=True)
    if isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
        return Failed("the connection broke off", passing=True)
    return Failed(type(error).__name__)


def broken_off(error: urllib3.exceptions.HTTPError) -> Failed:
    """An answer that ended before its end."""
    match error:
        case urllib3.exceptions.ReadTimeoutError():
            return Failed("the answer stopped midway", passing=True)
        case urllib3.exceptions.DecodeError():
            return Failed("the answer is not packed as it says")
        case _:
            return Failed("the answer broke off", passing=True)


def _asked_pause(response: requests.Response) -> float | None:
    """Seconds by Retry-After; one that is a date counts from the server's own clock."""
    after = response.headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]{1,9}", after):
        return float(after)
    try:
        until = parsedate_to_datetime(after)
        return max(0.0, (until - parsedate_to_datetime(response.headers["Date"])).total_seconds())
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what led to it. Some are handed on as an argument only."""
    for _ in range(16):
        if error is None:
            return
        yield error
        inner = (one for one in error.args if isinstance(one, BaseException))
        reason = getattr(error, "reason", None)
        reason = reason if isinstance(reason, BaseException) else None
        error = reason or next(inner, None) or error.__cause__ or error.__context__
