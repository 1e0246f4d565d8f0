"""Requests to the identity provider: to named hosts alone, over TLS, small and quick."""

import json
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx

from engine.errors import ProviderUnavailable, SettingsError
from engine.loopback import is_loopback

__all__ = ["Outbound", "Reached"]

_MOST_BYTES = 512 * 1024
"""Of one answer. Sets of keys and configurations have some thousand bytes."""
# A compressed answer could be small and still fill the memory.
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}


class Reached(Protocol):
    """How a provider is reached. called: what messages call these settings."""

    @property
    def issuer(self) -> str | None: ...
    @property
    def timeout_seconds(self) -> float: ...
    @property
    def allowed_hosts(self) -> tuple[str, ...]: ...
    @property
    def ca_file(self) -> Path | None: ...
    @property
    def called(self) -> str: ...


class Outbound:
    """Asks the hosts of the issuer and of ``allowed_hosts``, and no other. Close it.

    Whatever goes wrong raises ProviderUnavailable: that the provider's own configuration leads
    elsewhere, that it redirects, is slow, answers too much, or no JSON.

    Raises:
        SettingsError: the certificates to trust cannot be read.
    """

    def __init__(self, settings: Reached) -> None:
        issuer = settings.issuer or ""
        self._called = settings.called
        self._seconds = settings.timeout_seconds
        self._plain = urlsplit(issuer).scheme == "http"
        self._hosts = {_host(issuer), *(one.lower() for one in settings.allowed_hosts)}
        verify: ssl.SSLContext | bool = True
        if settings.ca_file is not None:
            try:
                verify = ssl.create_default_context(cafile=settings.ca_file)
            except (OSError, ssl.SSLError) as error:
                raise SettingsError(
                    f"{self._called}.ca_file {settings.ca_file} cannot be used ({error}); name a "
                    "file of PEM certificates"
                ) from None
        self._client = httpx.Client(
            timeout=settings.timeout_seconds, follow_redirects=False, verify=verify
        )

    def close(self) -> None:
        self._client.close()

    def checked(self, url: object) -> str:
        """The URL, if it may be asked, or browsers be sent there."""
        if not isinstance(url, str) or len(url) > 2000:
            raise ProviderUnavailable("the provider's configuration lacks an address; correct it")
        try:
            parts = urlsplit(url)
            host, named = parts.hostname or "", _host(url)
        except ValueError:
            host, named = "", url
        # A provider with TLS never leads to plain HTTP, not even on this machine.
        plain = self._plain and parts.scheme == "http" and is_loopback(host)
        if not host or parts.username is not None or (parts.scheme != "https" and not plain):
            raise ProviderUnavailable(
                f"the provider's configuration names {url[:200]!r}, which is no https address"
            )
        if named not in self._hosts:
            raise ProviderUnavailable(
                f"the provider's configuration names the host {named[:200]!r}, which is not asked; "
                f"add it to {self._called}.allowed_hosts if it is the provider's"
            )
        return url

    def get(self, url: str) -> dict[str, Any]:
        """The JSON object at this address."""
        status, found = self._ask("GET", url)
        if status != httpx.codes.OK:
            raise ProviderUnavailable(f"{url} answered {status}; look into the provider's log")
        return found

    def read(self, url: str, token: str, most_bytes: int) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of the answer to a request with an access token, in FHIR.

        Args:
            most_bytes: of the answer.
        """
        headers = {"Accept": "application/fhir+json", "Authorization": f"Bearer {token}"}
        return self._ask("GET", url, most_bytes, headers=headers)

    def post(
        self, url: str, form: Mapping[str, str], login: tuple[str, str] | None
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of the answer to a form.

        Args:
            login: name and password, sent as such (RFC 6749 2.3.1); None = none.
        """
        return self._ask("POST", url, data=dict(form), auth=login)

    def _ask(
        self,
        method: str,
        url: str,
        most_bytes: int = _MOST_BYTES,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> tuple[int, dict[str, Any]]:
        until = time.monotonic() + 2 * self._seconds
        content = bytearray()
        try:
            with self._client.stream(
                method, self.checked(url), headers={**_HEADERS, **(headers or {})}, **options
            ) as answer:
                for part in answer.iter_raw():
                    content += part
                    # The client's timeout begins anew with each byte.
                    if len(content) > most_bytes or time.monotonic() > until:
                        raise ProviderUnavailable(f"{url} answers too much, or too slowly")
            found = json.loads(content)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ProviderUnavailable(f"{url} does not answer: {error}") from None
        except (ValueError, RecursionError):
            raise ProviderUnavailable(f"{url} answered {answer.status_code} and no JSON") from None
        except RuntimeError:
            # Closed meanwhile by another thread, in which the service ends.
            raise ProviderUnavailable(f"{url} is not asked any more") from None
        if not isinstance(found, dict):
            raise ProviderUnavailable(f"{url} answered JSON that is no object")
        return answer.status_code, found


def _host(url: str) -> str:
    """Host of an address, with its port unless that is the scheme's own. Raises ValueError."""
    parts = urlsplit(url)
    usual = {"https": 443, "http": 80}.get(parts.scheme)
    host = (parts.hostname or "").lower()
    return host if parts.port in (None, usual) else f"{host}:{parts.port}"
