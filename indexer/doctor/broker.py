"""Checks of the message broker: it answers, takes our password, and asks for one."""

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from engine.errors import JobError
from engine.loopback import is_loopback
from indexer.doctor.examined import Examined
from indexer.doctor.finding import Finding, parted

__all__ = ["check_broker"]

_SECONDS = 5
_PORTS = {"redis": 6379, "rediss": 6379, "amqp": 5672, "pyamqp": 5672, "amqps": 5671}


def check_broker(examined: Examined) -> Iterator[Finding]:
    """Whether workers can be woken up."""
    broker = examined.settings.jobs.broker
    if broker is None:
        yield Finding("broker", "ok", "message broker", "none: workers take tasks from the ledger")
        return
    thing = f"message broker {_shown(broker.get_secret_value())}"
    check = "setting jobs.broker is to name it; see that it runs and can be reached from here"
    if (why := _unreached(broker.get_secret_value())) is not None:
        yield Finding("broker", "error", thing, f"it does not answer ({why})", check)
        return
    # Imported here, as they load a large library.
    from indexer.jobs.dispatch import celery_app, refuses

    try:
        app = celery_app(examined.settings)
    except JobError as error:
        yield Finding("broker", "error", thing, *parted(error, check))
        return
    once = {"max_retries": 0, "interval_start": 0, "interval_step": 0}
    connection = app.connection_for_write(
        connect_timeout=_SECONDS,
        transport_options={**app.conf.broker_transport_options, **once, "socket_timeout": _SECONDS},
    )
    try:
        connection.connect()
        connection.channel().close()
    except Exception as error:  # of amqp, redis and kombu, which have no base in common
        if refuses(error):
            told, way_out = "it refuses user or password", "correct them in PRECEDENT_JOBS__BROKER"
        else:
            told, way_out = f"it does not answer ({type(error).__name__})", check
        yield Finding("broker", "error", thing, told, way_out)
        return
    finally:
        connection.release()
    parts = urlsplit(broker.get_secret_value())
    if parts.password is None and not is_loopback(parts.hostname or ""):
        yield Finding(
            "broker",
            "warning",
            thing,
            "it answers, and asks nobody for a password",
            "give it one, and write it into PRECEDENT_JOBS__BROKER",
        )
    else:
        yield Finding("broker", "ok", thing, "it answers")


def _unreached(url: str) -> str | None:
    """Why nobody listens there, found out sooner than clients do, which try again; None = somebody
    does, or it cannot be told."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None
    if host is None or port is None or ";" in url:
        return None
    try:
        socket.create_connection((host, port), _SECONDS).close()
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def _shown(url: str) -> str:
    """The broker's address without user and password."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return ""
