"""Settings of the running service: its limits, the proxies and origins it trusts, what it reports.

Names say the unit. Durations are in seconds, sizes in bytes.
"""

import ipaddress
import os
import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from engine.loopback import is_loopback
from engine.settings_fields import SettingsGroup

__all__ = ["OperationSettings"]

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]+\]", re.ASCII)


def _network(written: str) -> str:
    """Checks an address or network, as in 10.1.2.3 or 10.1.0.0/16.

    Raises:
        ValueError: it is none, or it is every address there is.
    """
    try:
        network = ipaddress.ip_network(written)
    except ValueError:
        raise ValueError(
            f"{written[:80]!r} is no address or network; write it as in 10.1.2.3 or 10.1.2.0/24"
        ) from None
    if network.prefixlen == 0:
        raise ValueError(
            f"{written!r} is every address: anybody could then name any address as their own; "
            "name the addresses of the proxies"
        )
    return str(network)


def _origin(written: str) -> str:
    """Checks an origin, as browsers write it: https, or http on the machine itself.

    Raises:
        ValueError: it is none, or stands for more than one.
    """
    if "*" in written:
        raise ValueError(
            f"{written[:80]!r} would let the pages of every site ask; name each origin, as in "
            "https://portal.example"
        )
    lower = written.lower()
    try:
        parts = urlsplit(lower)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    shown = f"[{host}]" if ":" in host else host
    made = f"{parts.scheme}://{shown}" + ("" if port is None else f":{port}")
    if made != lower or _HOST.fullmatch(shown) is None:
        raise ValueError(
            f"{written[:80]!r} is no origin; write scheme, host and, where it is not the usual "
            "one, port, as in https://portal.example"
        )
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise ValueError(
            f"{written[:80]!r} is not https: whoever is on the way could put questions of their "
            "own into its pages; only pages of this machine may be http, as http://localhost:3000"
        )
    usual = {"https": 443, "http": 80}[parts.scheme]
    return made.removesuffix(f":{usual}") if port == usual else made


def _ancestor(written: str) -> str:
    """As :func:`_origin`, and "self" too."""
    return "self" if written.strip("'").lower() == "self" else _origin(written)


def _at_once() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(max(8, 4 * (usable or 1)), 32)


class OperationSettings(SettingsGroup):
    """How much the service takes on, whom it believes, and what it tells of itself."""

    max_connections: Annotated[int, Field(ge=8)] = 512
    """Connections open at a time; further ones are answered 503."""
    max_at_once: Annotated[int, Field(ge=1, le=256)] = Field(default_factory=_at_once)
    """Requests being worked on at a time. Health checks and metrics do not count."""
    max_waiting: Annotated[int, Field(ge=0)] = 128
    """Requests that wait until there is room for them; further ones are answered 503."""
    max_waiting_seconds: Annotated[float, Field(gt=0)] = 10.0
    """A request that has waited so long is answered 503."""
    max_uploads: Annotated[int, Field(ge=1)] = 64
    """Uploads that are being received at a time; further ones are answered 503."""
    max_header_bytes: Annotated[int, Field(ge=1024, le=1024**2)] = 32 * 1024
    """Size of the address and all headers of a request."""
    header_seconds: Annotated[float, Field(gt=0)] = 10.0
    """For how long a client may take to send the headers of a request."""
    body_grace_seconds: Annotated[float, Field(gt=0)] = 10.0
    """A body may come slowly for so long; then it must have come at least at …"""
    min_body_bytes_per_second: Annotated[int, Field(ge=1)] = 8 * 1024
    """… this pace, all in all …"""
    max_body_seconds: Annotated[float, Field(gt=0)] = 600.0
    """… and be complete after so long. A slower one is answered 408."""
    idle_seconds: Annotated[float, Field(gt=0)] = 30.0
    """For how long a connection is kept on which nothing is asked."""
    write_seconds: Annotated[float, Field(gt=0)] = 30.0
    """For how long a client may leave an answer untaken before the connection is cut."""
    requests_per_second: Annotated[float, Field(gt=0)] | None = 100.0
    """Requests of one key, over all processes with the same ledger database; None = no limit."""
    burst: Annotated[int, Field(ge=1)] = 500
    """Requests of one key that may come at once, after a pause."""
    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    """Addresses or networks of proxies whose X-Forwarded-For, -Proto and -Host are believed."""
    allowed_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = ()
    """Origins whose pages may ask, with a key, as in "https://portal.example"."""
    frame_ancestors: tuple[Annotated[str, AfterValidator(_ancestor)], ...] = ()
    """Origins whose pages may show this service's page in a frame; "self" is its own."""
    hsts_seconds: Annotated[int, Field(ge=0)] = 0
    """For how long browsers remember to come over TLS alone; sent over TLS only. 0 = not sent."""
    metrics_host: str = "127.0.0.1"
    """The address of that port of its own."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """A port of its own on which anybody who reaches it may read /metrics; None = there is none."""
    log_format: Literal["console", "json"] = "console"
    """Lines for people, or a JSON object a line."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least urgent lines that are written."""
    log_requests: bool = True
    """Whether each request gets a line."""
    traces_url: str | None = None
    """Where OpenTelemetry traces are sent, as in "http://collector.example:4318/v1/traces"
    (OTLP over HTTP); None = none are made. Needs the extra "traces"."""
