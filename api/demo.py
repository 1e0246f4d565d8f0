"""``precedent demo``: a sample archive indexed, a few questions answered, a server started."""

import socket
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from rich.console import Console

from api.app import create_app
from api.schemas import local_document
from api.terminal import answer_table, indexing_progress, report_table
from engine.errors import ImageRefused, SettingsError
from engine.search.query import Query
from engine.settings import ServerSettings, Settings, load_settings
from indexer.archive import Archive
from indexer.sample import write_queries, write_sample
from indexer.sources.folder import FolderSource

__all__ = ["run_demo", "serve_until_stopped"]


def run_demo(directory: Path, port: int, model: Path | None, *, serve: bool) -> None:
    """Writes the sample below ``directory`` once, indexes it, searches, and serves."""
    console = Console()
    settings = load_settings(
        data_dir=directory / "data", model=model, server=ServerSettings(port=port)
    )
    console.rule("1. A sample archive", align="left")
    report = write_sample(directory / "archive")
    queries = write_queries(directory / "queries", seed=1)
    console.print(
        f"{report.instances + report.pydicom_files:,} files in {directory / 'archive'}",
        highlight=False,
    )
    console.rule("2. precedent index", align="left")
    with Archive(settings, create=True) as archive:
        source = FolderSource([directory / "archive"])
        with indexing_progress(Console(stderr=True), shown=console.is_terminal) as progress:
            indexed = archive.index(source, progress=progress)
        console.print(report_table(indexed))
        console.rule("3. precedent search", align="left")
        _search(console, archive, queries)
    if serve:
        console.rule("4. precedent serve", align="left")
        serve_until_stopped(settings)


def _search(console: Console, archive: Archive, queries: Sequence[Path]) -> None:
    with archive.query_reader() as reader:
        for path, image in zip(queries, reader.read(queries), strict=True):
            if isinstance(image, ImageRefused):
                raise image
            (answer,) = archive.engine.search([image.canvas], Query(k=3))
            paths = archive.paths([hit.id for hit in answer.hits])
            console.print(answer_table(path.name, local_document(answer, paths)))


def serve_until_stopped(settings: Settings) -> None:
    """Runs the HTTP server in this thread until Ctrl-C or SIGTERM.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    server = settings.server
    app = create_app(settings)
    listener = socket.socket(socket.AF_INET6 if ":" in server.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((server.host, server.port))
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"cannot listen on {server.host}:{server.port} ({error.strerror}); "
            "choose another with --port"
        ) from None
    port = listener.getsockname()[1]
    Console().print(f"Precedent is at http://{server.host}:{port}/ (Ctrl-C stops it)")
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    with listener:
        uvicorn.Server(config).run(sockets=[listener])
