"""Sends requests to a DICOMweb server with its credentials, and only to allowed hosts.

The server's answers are not trusted. Redirects are followed only to its own host and to hosts
that the settings name, because the credentials are sent along. Answers are limited in size and
time. Proxies, ``.netrc`` and certificates from the environment are ignored: a password must only
go where the settings say, and an archive is not behind the proxy to the internet. Cookies are not
stored.
"""

import io
import re
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.cookiejar import DefaultCookiePolicy
from threading import Event
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from engine.errors import SettingsError, SourceError
from engine.settings import DicomWebSettings
from indexer.sources.dicomweb.failure import Failed, broken_off, of_status, unanswered
from indexer.sources.dicomweb.trust import trusting

__all__ = ["Session"]

_SLOWEST = 1024
"""Bytes a second. An answer that arrives more slowly is a failure."""
_CHUNK = 64 * 1024
_MAX_ANSWER = 64 * 1024**2
"""Most bytes of an answer that is no image: far more than any page of a search has."""
_MAX_REDIRECTS = 5


class Session(requests.Session):
    """An HTTP session for one server; threads may share it. The constructor sends nothing.

    Args:
        name: of the source in the settings.
        pace: called before each request; blocks until it may be sent.
        clock: returns a monotonic time in seconds.

    Raises:
        SettingsError: the address, the credentials or the certificates cannot be used.
    """

    def __init__(
        self,
        name: str,
        settings: DicomWebSettings,
        *,
        pace: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        super().__init__()
        self.base = _checked_base(name, settings)
        self.server = f"source {name!r} ({self.base})"
        self._name, self._pace, self._clock = name, pace, clock
        self._timeout = settings.timeout_seconds
        self._own = urlsplit(self.base)
        self._allowed = {host.lower() for host in settings.allowed_hosts}
        self.trust_env = False
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.headers.update({"User-Agent": "precedent", "Accept-Encoding": "gzip"})
        self.headers.update(_credentials(name, settings))
        adapter = _Adapter(
            trusting(settings.ca_file, f"sources.{name}.ca_file"), settings.max_connections
        )
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def setting(self, name: str) -> str:
        """The full name of a setting of this source, for error messages."""
        return f"sources.{self._name}.{name}"

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """The answer after redirects; with the option ``stream`` its body is still to be read.

        Raises:
            Failed: there is no answer, it has an error status, or it is too long.
            SourceError: it redirects to a host that is not allowed, or too many times.
        """
        streamed = options.get("stream", False)
        options = {**options, "stream": True, "allow_redirects": False}
        # dicomweb-client sets a Host header without the port.
        request.headers.pop("Host", None)
        for _ in range(_MAX_REDIRECTS + 1):
            self._pace()
            try:
                response = super().send(request, **options)
            except requests.RequestException as error:
                raise unanswered(error) from None
            if not response.is_redirect:
                break
            response.close()
            request = self._redirected(request, response)
        else:
            raise SourceError(
                f"{self.server} redirects more than {_MAX_REDIRECTS} times; give the address "
                f"that it leads to in {self.setting('url')}"
            )
        # dicomweb-client would log the text of this header.
        response.headers.pop("Warning", None)
        try:
            if not 200 <= response.status_code < 300:
                raise of_status(response)
            if not streamed:
                response.raw = io.BytesIO(self._whole(response))
        except BaseException:
            response.close()
            raise
        return response

    def resolve_redirects(self, *_: Any, **__: Any) -> Any:
        """Yields nothing: :meth:`send` follows redirects; requests would read their bodies."""
        return iter(())

    def body(self, response: requests.Response, stopped: Event | None = None) -> Iterator[bytes]:
        """The body of an answer in pieces as they arrive.

        Args:
            stopped: once set, reading ends with an error.

        Raises:
            Failed: the answer broke off, came too slowly, or ``stopped`` was set.
        """
        started, received = self._clock(), 0
        while True:
            try:
                # Unlike iter_content of requests, this does not wait until a chunk is full.
                data = response.raw.read1(_CHUNK, decode_content=True)
            except urllib3.exceptions.HTTPError as error:
                raise broken_off(error) from None
            if not data:
                return
            yield data
            received += len(data)
            if self._clock() - started - self._timeout > received / _SLOWEST:
                raise Failed("the answer came too slowly", passing=True)
            if stopped is not None and stopped.is_set():
                raise Failed("nobody waits for the answer any more")

    def _whole(self, response: requests.Response) -> bytes:
        read = io.BytesIO()
        for data in self.body(response):
            read.write(data)
            if read.tell() > _MAX_ANSWER:
                raise Failed(f"one answer has more than {_MAX_ANSWER // 1024**2} MiB")
        return read.getvalue()

    def _redirected(
        self, request: requests.PreparedRequest, response: requests.Response
    ) -> requests.PreparedRequest:
        old, followed = urlsplit(request.url or ""), request.copy()
        try:
            target = self.get_redirect_target(response) or ""
            followed.prepare_url(urljoin(request.url or "", target), None)
            new = urlsplit(followed.url or "")
            possible = self._may_follow(old, new)
        except (ValueError, requests.RequestException):
            raise SourceError(
                f"{self.server} redirects to what is no web address; look into its set-up"
            ) from None
        if not possible:
            host = new.hostname or ""
            # Only the host is named: the rest of the URL may hold signatures and queries.
            known = re.fullmatch(r"[A-Za-z0-9.-]{1,253}", host)
            raise SourceError(
                f"{self.server} redirects to {host if known else 'a host'} over {new.scheme}, "
                "where credentials must not go; if it is another host that is to be trusted, "
                f"name it in {self.setting('allowed_hosts')}, or give the address that it leads "
                f"to in {self.setting('url')}"
            )
        return followed

    def _may_follow(self, old: SplitResult, new: SplitResult) -> bool:
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            return False
        if "@" in new.netloc:
            return False
        host, port = new.hostname or "", _port(new)
        if host in self._allowed or f"{host}:{port}" in self._allowed:
            return True
        # Another port of the same host is another server, except from 80 to 443 (TLS).
        own = _port(self._own)
        return host == self._own.hostname and (own == port or (own, port) == (80, 443))


class _Adapter(HTTPAdapter):
    """Limits the number of connections, and checks certificates with one TLS context."""

    def __init__(self, tls: ssl.SSLContext, connections: int) -> None:
        self._tls = tls
        super().__init__(pool_maxsize=connections, pool_block=True)

    def init_poolmanager(self, *sizes: Any, **options: Any) -> None:
        super().init_poolmanager(*sizes, **options, ssl_context=self._tls)

    def cert_verify(self, *_: Any, **__: Any) -> None:
        """Does nothing: requests would add its own bundle of certificates."""


def _checked_base(name: str, settings: DicomWebSettings) -> str:
    url, setting = settings.url, f"sources.{name}.url"
    if url.username is not None or url.password is not None:
        # The address itself is left out: it holds a secret.
        raise SettingsError(
            f"setting {setting} holds a user name or password; take it out, and give them in "
            f"sources.{name}.username and sources.{name}.password"
        )
    if url.query is not None or url.fragment is not None:
        raise SettingsError(
            f"setting {setting} goes on after the path; give it as in "
            "https://pacs.example/dicom-web"
        )
    return str(url).rstrip("/")


def _credentials(name: str, settings: DicomWebSettings) -> dict[str, str]:
    """The Authorization header; empty when the settings have no credentials."""
    token = "" if settings.token is None else settings.token.get_secret_value()
    password = "" if settings.password is None else settings.password.get_secret_value()
    user = settings.username or ""
    if token and (user or password):
        raise SettingsError(
            f"settings sources.{name}.token and sources.{name}.username exclude each other; give "
            "the one that the server asks for"
        )
    if token:
        if re.fullmatch(r"[!-~]+", token) is None:
            # Sending it would fail with an error message that quotes it.
            raise SettingsError(
                f"setting sources.{name}.token holds a space, a line end or a character beyond "
                "ASCII; give the token alone, without the word Bearer"
            )
        return {"Authorization": f"Bearer {token}"}
    if not user and not password:
        return {}
    if not user or ":" in user:
        raise SettingsError(
            f"setting sources.{name}.username is missing or holds a colon; beside "
            f"sources.{name}.password there must be a name without one"
        )
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)
