"""``precedent receive``: a DICOM storage SCP that indexes the instances sent to it."""

import logging
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from queue import SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from api.cli.options import (
    DataDirOption,
    JsonOption,
    ModelOption,
    TenantOption,
    tenant_of,
    write_json,
)
from engine.settings import load_settings

if TYPE_CHECKING:
    from indexer.pipeline.run import IndexingReport
    from indexer.sources.base import ImageSource

__all__ = ["receive"]

_STOP_SECONDS = 30.0
"""How long open associations may continue after a signal."""


def receive(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")
    ] = None,
    tenant: TenantOption = None,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take what a PACS pushes (C-STORE), and index it as it comes.

    PRECEDENT_RECEIVE__ALLOWED_AE_TITLES='["PACS"]' says who may send. An instance is acknowledged
    once it is on disk, in the folder `received` of the data folder. After Ctrl-C or SIGTERM no more
    associations are accepted, and it ends when the waiting instances are indexed. A second signal
    ends it at once; the next start indexes the rest. Destinations of documents that were asked for
    storage commitment report to the same port.
    """
    from indexer.archive import Archive
    from indexer.datadir.disk_space import check_room
    from indexer.datadir.layout import DataDir
    from indexer.documents.outbox import commitment_nodes
    from indexer.sources.pushed.inbox import Inbox, index_in_rounds
    from indexer.sources.pushed.storescp import StoreScp

    logging.getLogger("indexer.sources.pushed").setLevel(logging.INFO)
    settings = load_settings(data_dir=data_dir, model=model)
    given = {"host": host, "port": port}
    wanted = {name: value for name, value in given.items() if value is not None}
    options = settings.receive.model_copy(update=wanted)
    scp = StoreScp(options, commitment_nodes(settings))
    whose = tenant_of(tenant, settings, "storescp")
    folder = DataDir(settings.data_dir).received_for(whose)
    check_room(settings.data_dir, settings.indexing.min_free_bytes)
    with (
        ExitStack() as opened,
        Inbox(folder, options, settings.limits.max_file_bytes) as inbox,
    ):
        archive = opened.enter_context(Archive(settings, tenant=whose, create=True))

        def index(source: "ImageSource") -> None:
            nonlocal archive
            if archive.is_replaced:
                opened.close()
                # The data folder names the model of the index in force, not the settings.
                now = settings.model_copy(update={"model": None})
                archive = opened.enter_context(Archive(now, tenant=whose, create=True))
            report = archive.index(source)
            # The round has succeeded, even if its report cannot be printed.
            with suppress(OSError):
                _print_report(report, as_json=as_json)

        def indexed(locators: Sequence[str]) -> Collection[str]:
            return archive.ledger.points_of(locators)

        inbox.look_back(indexed)
        with _until_signalled() as (wait, end), ThreadPoolExecutor(1, "rounds") as thread:
            try:
                taken = scp.start(inbox)
                _print_address(scp.ae_title, options.host, taken, as_json=as_json)
                rounds = thread.submit(index_in_rounds, inbox, index, indexed, keep=options.keep)
                rounds.add_done_callback(lambda _: end())
                wait()
                scp.stop(_STOP_SECONDS)
            finally:
                scp.stop(0.0)
                inbox.close()
        rounds.result()


@contextmanager
def _until_signalled() -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """Two functions: one that blocks until SIGINT or SIGTERM, and one that makes it return.

    A second signal has its default effect: it ends the process.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    # Unlike threading.Event, a SimpleQueue is safe in a signal handler.
    ended: SimpleQueue[None] = SimpleQueue()

    def handle(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        ended.put(None)

    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield lambda: ended.get(), lambda: ended.put(None)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _print_address(ae_title: str, host: str, port: int, *, as_json: bool) -> None:
    if as_json:
        write_json({"ae_title": ae_title, "host": host, "port": port})
    else:
        Console().print(
            f"{ae_title} listens on {host}:{port} (Ctrl-C stops it)",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _print_report(report: "IndexingReport", *, as_json: bool) -> None:
    """Prints the counts of a round's instances, by outcome, as one line."""
    if as_json:
        write_json(asdict(report))
        return
    refused = ", ".join(f"{count:,} {reason}" for reason, count in report.refused.items())
    Console().print(
        f"{report.indexed:,} indexed, {report.unchanged:,} already there, "
        f"refused: {refused or 'none'}; {report.seconds:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
