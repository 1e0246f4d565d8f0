"""``precedent serve``: runs the HTTP service until stopped."""

import logging
import socket
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from api.cli.options import DataDirOption, ModelOption, tenant_of
from engine.errors import QueryError, SettingsError, StoreNotFound
from engine.loopback import is_loopback
from engine.settings import Settings, load_settings
from engine.store.opening import check_access, holder_of, open_store
from indexer.datadir.layout import DataDir

if TYPE_CHECKING:
    from engine.store.holder import Holder

__all__ = ["announce", "listening", "serve", "serve_until_stopped"]


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    receive: Annotated[
        str | None,
        typer.Option(
            "--receive",
            help="Also take what a PACS pushes (C-STORE), under this AE title on this port.",
            metavar="AET:PORT",
        ),
    ] = None,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
) -> None:
    """Answer searches over HTTP, with a page to try them on.

    Other commands go on beside it: it has the index open, and they ask it. It also works on the
    jobs of the data folder. PRECEDENT_RECEIVE__ALLOWED_AE_TITLES says who may push.
    """
    settings = load_settings(data_dir=data_dir, model=model)
    chosen = {"host": host, "port": port, "receive": None if receive is None else True}
    given = {name: value for name, value in chosen.items() if value is not None}
    changed: dict[str, Any] = {"server": settings.server.model_copy(update=given)}
    if receive is not None:
        changed["receive"] = settings.receive.model_copy(update=_title_and_port(receive))
    serve_until_stopped(settings.model_copy(update=changed))


def _title_and_port(written: str) -> dict[str, Any]:
    """The settings in AET:PORT. Raises QueryError: it is not of that form."""
    title, colon, port = written.rpartition(":")
    if not colon or not title or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise QueryError(f"--receive is {written!r}; write it as in PRECEDENT:11112")
    return {"ae_title": title, "port": int(port)}


def announce(url: str) -> None:
    """Prints the address of the page."""
    Console().print(f"Precedent is at {url} (Ctrl-C stops it)")


def listening(host: str, port: int, option: str = "--port") -> socket.socket:
    """A socket on which connections are accepted, or wait until the server has started.

    option: names the port.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only where the protocol is named does asyncio switch Nagle's algorithm off; with it the end
    # of an answer on a connection that is kept waits some 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another with {option}"
        ) from None
    return listener


def _holder(settings: Settings) -> "Holder | None":
    """The other process that has the index open; None = none has, or there is no index yet.

    Raises:
        StoreLocked: one has, and does not answer.
    """
    place = DataDir(settings.data_dir).index
    try:
        check_access(settings.store)
        with open_store(settings, place, None, create=False) as store:
            return holder_of(store)
    except StoreNotFound:
        return None


def serve_until_stopped(settings: Settings, ready: Callable[[str], None] = announce) -> None:
    """Runs the HTTP server in this thread until Ctrl-C or SIGTERM.

    Args:
        settings: of the archive, and the address to listen on.
        ready: called with the URL of the page, as soon as connections to it are accepted.

    Raises:
        SettingsError: the address cannot be listened on, or others could reach it without a key.
        StoreLocked: another process has the index open, and does not answer; or another one
            receives.
        ModelError, StoreError, LedgerError: the service cannot start.
    """

    from api.http.draining import DrainingServer
    from api.http.logs import configure_logs
    from api.http.running import server_config
    from api.security.access import Access
    from api.service import create_service

    server = settings.server
    with closing(Access(settings)) as access:
        is_open = not access.needs_key()
    if is_open and not is_loopback(server.host):
        raise SettingsError(
            f"{server.host} can be reached from other machines, and no key was made yet; make one "
            "with `precedent keys create NAME --scope search`, or listen on 127.0.0.1"
        )
    if server.receive:
        from indexer.documents.outbox import commitment_nodes
        from indexer.sources.pushed.inbox import Inbox
        from indexer.sources.pushed.storescp import StoreScp

        logging.getLogger("indexer.sources.pushed").setLevel(logging.INFO)
        # All before an address is printed: whether somebody may send, whether that port is free,
        # and whether no other process receives.
        StoreScp(settings.receive, commitment_nodes(settings))
        listening(settings.receive.host, settings.receive.port, "--receive").close()
        whose = tenant_of(None, settings, "storescp")
        received = DataDir(settings.data_dir).received_for(whose)
        with Inbox(received, settings.receive, settings.limits.max_file_bytes):
            pass
    if (holder := _holder(settings)) is not None:
        Console(stderr=True).print(
            f"The index is open in another process ({holder}), which this one asks until it ends",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    configure_logs(server)
    app = create_service(settings)
    listener = listening(server.host, server.port)
    port = listener.getsockname()[1]
    ready(f"http://{server.host}:{port}/")
    if is_open:
        Console(stderr=True).print(
            "Without keys it answers everybody on this machine, and nobody else; "
            "`precedent keys create` makes the first key, and then it asks for one",
            soft_wrap=True,
            highlight=False,
        )
    if not settings.audit.enabled:
        Console(stderr=True).print(
            "The setting audit.enabled is off: who has access to which images is not recorded",
            soft_wrap=True,
            highlight=False,
        )
    config = server_config(app, server)
    log = logging.getLogger("uvicorn.error")
    log.addFilter(unless_failed := lambda _: not hasattr(app.state, "failed"))
    try:
        with listener:
            DrainingServer(config, app, server.drain_seconds).run(sockets=[listener])
    except SystemExit:
        if (failed := getattr(app.state, "failed", None)) is None:
            raise
        raise failed from None
    finally:
        log.removeFilter(unless_failed)
