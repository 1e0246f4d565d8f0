"""``precedent demo``: calibrates on a sample archive, indexes it, searches and serves."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from api.cli.calibrate import calibrate
from api.cli.options import ModelOption
from api.cli.serve import announce, serve_until_stopped
from api.cli.terminal import answer_table, indexing_progress, report_table
from api.schemas import local_document
from engine.errors import ImageRefused
from engine.search.query import Query
from engine.settings import ServerSettings, load_settings

if TYPE_CHECKING:
    from indexer.archive import Archive

__all__ = ["demo", "run_demo"]


def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Where sample and index go.")] = Path(
        ".demo"
    ),
    port: Annotated[int, typer.Option(help="Port of the server.")] = 8000,
    model: ModelOption = None,
) -> None:
    """Calibrate on a sample archive, index it, answer a few searches, then serve.

    With PRECEDENT_DEMO_EXIT=1 it ends after the searches, without serving.
    """
    run_demo(directory, port, model, serve=os.environ.get("PRECEDENT_DEMO_EXIT") != "1")


def run_demo(directory: Path, port: int, model: Path | None, *, serve: bool) -> None:
    """Runs the demo.

    Args:
        directory: for sample, model and index; a sample that is already there is used again.
        port: of the HTTP service.
        model: folder of the checkpoint to calibrate; None = that of the settings.
        serve: serve at the end, until stopped; else print the command that does.
    """
    from indexer.archive import Archive
    from indexer.sample import write_queries, write_sample
    from indexer.sources.folder import FolderSource

    console = Console()
    archive_folder, calibrated = directory / "archive", directory / "model"
    settings = load_settings(
        data_dir=directory / "data", model=calibrated, server=ServerSettings(port=port)
    )
    console.rule("1. A sample archive", align="left")
    report = write_sample(archive_folder, replace_other=True)
    queries = write_queries(directory / "queries", seed=1)
    console.print(
        f"{report.instances + report.pydicom_files:,} files in {archive_folder}", highlight=False
    )
    console.rule("2. precedent calibrate", align="left")
    # Only on synthetic images: pydicom's test files are of odd kinds, and many are broken.
    calibrate(archive_folder / "synthetic", model=model, out=calibrated)
    console.rule("3. precedent index", align="left")
    with Archive(settings, create=True) as archive:
        source = FolderSource([archive_folder])
        errors = Console(stderr=True)
        with indexing_progress(errors, shown=errors.is_terminal) as progress:
            indexed = archive.index(source, progress=progress)
        console.print(report_table(indexed))
        console.rule("4. precedent search", align="left")
        console.print(
            f"{len(queries) - 1} images of patients that are not in the archive, and a drawn "
            "landscape, which the answer should call foreign",
            highlight=False,
        )
        _search(console, archive, queries)
    if not serve:
        places = ("--data-dir", settings.data_dir, "--model", calibrated)
        _next_steps(console, "Serve the page", _command("serve", *places, "--port", str(port)))
        return
    console.rule("5. precedent serve", align="left")

    def ready(url: str) -> None:
        announce(url)
        _next_steps(console, "Open the page", url)

    serve_until_stopped(settings, ready)


def _search(console: Console, archive: "Archive", queries: Sequence[Path]) -> None:
    with archive.query_reader() as reader:
        for path, image in zip(queries, reader.read(queries), strict=True):
            if isinstance(image, ImageRefused):
                raise image
            (answer,) = archive.engine.search([image.canvas], Query(k=3))
            paths = archive.paths([hit.id for hit in answer.hits])
            console.print(answer_table(path.name, local_document(answer, paths)))


def _next_steps(console: Console, first: str, page: str) -> None:
    """Prints what to do next, as commands to copy. first, page: the first step and its command."""
    console.rule("What next", align="left")
    for what, how in (
        (first, page),
        ("Index images of your own", _command("index", "/your/folder", "--data-dir", "my-index")),
        (
            "Teach the gate what they look like, then add --model my-model",
            _command("calibrate", "/your/folder", "--out", "my-model"),
        ),
    ):
        console.print(f"{what}: {how}", soft_wrap=True, highlight=False, markup=False)


def _command(*arguments: str | Path) -> str:
    """A command line that starts this program again from the current folder."""
    program = Path(sys.argv[0])
    found = shutil.which(program.name)
    if program.suffix == ".py":
        start = [sys.executable, "-m", "api"]
    elif found is not None and program.exists() and program.samefile(found):
        start = [program.name]
    else:
        start = [str(program)]
    return shlex.join([*start, *map(str, arguments)])
