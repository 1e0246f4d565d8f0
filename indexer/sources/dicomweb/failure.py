"""Describes a failed request to a server, in words that quote no query, header or body."""

import re
import ssl
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import requests  # it and urllib3 are what dicomweb-client speaks through
import urllib3

__all__ = ["Failed", "broken_off", "of_status", "unanswered"]

_LONGEST_ASKED = 120.0
"""A request is not retried if the server asks for a pause of more seconds than this."""
_BUSY = {408, 429}


class Failed(Exception):
    """A request failed.

    Args:
        words: what happened.
        status: the HTTP status of the answer; None = no answer, or an incomplete one.
        passing: whether the failure is transient, so that a retry may succeed.
        pause: seconds that the server asks to wait before the next request; None = it asks none.
        untrusted: whether the server's certificate is not trusted here.
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
    """The failure for an answer with an error status."""
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
    """The failure for a request without an answer."""
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
    """The failure for an answer whose body cannot be read to its end."""
    match error:
        case urllib3.exceptions.ReadTimeoutError():
            return Failed("the answer stopped midway", passing=True)
        case urllib3.exceptions.DecodeError():
            return Failed("the answer is not packed as it says")
        case _:
            return Failed("the answer broke off", passing=True)


def _asked_pause(response: requests.Response) -> float | None:
    """The seconds of the Retry-After header; a date in it is compared with the answer's Date.
    None = no valid header."""
    after = response.headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]{1,9}", after):
        return float(after)
    try:
        until = parsedate_to_datetime(after)
        return max(0.0, (until - parsedate_to_datetime(response.headers["Date"])).total_seconds())
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and its causes, at most 16; some libraries pass a cause only as an argument."""
    for _ in range(16):
        if error is None:
            return
        yield error
        inner = (one for one in error.args if isinstance(one, BaseException))
        reason = getattr(error, "reason", None)
        reason = reason if isinstance(reason, BaseException) else None
        error = reason or next(inner, None) or error.__cause__ or error.__context__
