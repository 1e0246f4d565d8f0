"""Takes the client's address, scheme and host from headers, of proxies that settings name."""

import ipaddress
import re
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Proxies"]

_HOST = re.compile(rb"(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")


class Proxies:
    """ASGI middleware. Of requests that come from a trusted proxy it believes X-Forwarded-For,
    X-Forwarded-Proto and X-Forwarded-Host; of all others nothing.

    Proxies add to the end of X-Forwarded-For, so what a client made up stands before what is
    true: the last address that is no trusted proxy is the client's. The headers stay in the
    request; an open service refuses them wherever they come from.

    Args:
        trusted: addresses and networks.
    """

    def __init__(self, app: ASGIApp, trusted: Sequence[str]) -> None:
        self._app = app
        self._trusted = [ipaddress.ip_network(one) for one in trusted]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if scope["type"] == "http" and client is not None and self._trusts(client[0]):
            self._believe(scope)
        await self._app(scope, receive, send)

    def _trusts(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        # A socket for both versions names IPv4 clients so.
        found = getattr(found, "ipv4_mapped", None) or found
        return any(found in network for network in self._trusted)

    def _believe(self, scope: Scope) -> None:
        for address in reversed(_values(scope, b"x-forwarded-for")):
            written = address.decode("latin-1")
            try:
                ipaddress.ip_address(written)
            except ValueError:
                break
            scope["client"] = (written, 0)
            if not self._trusts(written):
                break
        schemes = _values(scope, b"x-forwarded-proto")
        if schemes and schemes[-1].lower() in (b"http", b"https"):
            scope["scheme"] = schemes[-1].lower().decode()
        hosts = _values(scope, b"x-forwarded-host")
        if hosts and _HOST.fullmatch(hosts[-1]):
            others = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope["headers"] = [*others, (b"host", hosts[-1])]


def _values(scope: Scope, wanted: bytes) -> list[bytes]:
    """The values of a list header, in their order."""
    joined = b",".join(value for name, value in scope["headers"] if name == wanted)
    return [value.strip() for value in joined.split(b",") if value.strip()]
