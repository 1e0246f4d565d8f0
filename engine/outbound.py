"""Which addresses the service may call: those that its settings name, and hosts allowed there.

An address that comes from elsewhere (a provider's discovery document, a redirect) must pass
:meth:`Outbound.check` before it is opened, or whoever wrote it could make the service call hosts
that only it can reach.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from engine.errors import SourceError
from engine.operation import is_loopback_name
from engine.settings import DicomWebSettings, Settings

__all__ = ["Outbound"]

_SETTING = "server.outbound_hosts"
_PORTS = {"https": 443, "http": 80}


def _parsed(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None = it is no web address, or has a user name in it."""
    if not url.isascii() or not url.isprintable() or any(c in url for c in "\\ "):
        return None
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return None
    if scheme not in _PORTS or not host or "@" in parts.netloc:
        return None
    return scheme, host, _PORTS[scheme] if port is None else port


@dataclass(frozen=True, slots=True)
class Outbound:
    """What may be called. addresses: scheme, host and port of each address that settings name.
    hosts: further hosts, over TLS on any port."""

    addresses: frozenset[tuple[str, str, int]]
    hosts: frozenset[str]

    @classmethod
    def of(cls, settings: Settings, named: Iterable[str] = ()) -> Self:
        """What these settings allow.

        named: other addresses that settings name, such as that of an OpenID provider.
        """
        sources = settings.sources.values()
        web = [str(one.url) for one in sources if isinstance(one, DicomWebSettings)]
        parsed = (_parsed(url) for url in (*named, *web))
        hosts = {
            host
            for one in sources
            if isinstance(one, DicomWebSettings)
            for host in (allowed.partition(":")[0].lower() for allowed in one.allowed_hosts)
        }
        return cls(
            frozenset(one for one in parsed if one is not None),
            frozenset((*settings.server.outbound_hosts, *hosts)),
        )

    def check(self, url: str) -> str:
        """The address, which may be called.

        Raises:
            SourceError: it is no web address, or of a host that is not allowed.
        """
        found = _parsed(url)
        if found is None:
            raise SourceError(
                "an address that was to be called is no plain http or https address; look into "
                "the set-up of whoever named it"
            )
        scheme, host, _ = found
        if found in self.addresses:
            return url
        if host not in self.hosts:
            raise SourceError(
                f"{host[:253]!r} is none of the hosts that this service may call; if it is to be "
                f"trusted, name it in {_SETTING}"
            )
        # The path there must be safe from others, and a name must not be an inner address.
        if scheme != "https" and not is_loopback_name(host):
            raise SourceError(f"{host[:253]!r} may be called over https alone, not over {scheme}")
        return url
