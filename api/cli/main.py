"""The command line: ``precedent COMMAND``.

Exit codes: 0 done; 1 it could not be done, or an image could not be read; 2 the command
was not understood; 130 interrupted.
"""

import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from api.calibration import calibrate
from api.capacity import plan
from api.deletion import delete
from api.duplicates import duplicates
from api.evaluation import evaluate
from api.jobs import jobs, worker
from api.options import (
    AgainOption,
    DataDirOption,
    JsonOption,
    LabelsOption,
    ModalityOption,
    ModelOption,
    RetryRefusedOption,
    SinceOption,
    SourceOption,
    StudyOption,
    UntilOption,
    VanishedOption,
    WhereOption,
    chosen,
    refuse,
    write_json,
)
from api.receive import receive
from api.recommendation import recommend
from api.reencoding import reencode
from api.storage import profile, restore, snapshot
from api.training import train
from engine import __version__
from engine.errors import ImageRefused, PrecedentError
from engine.settings import Settings, load_settings
from indexer.room import is_full

__all__ = ["app", "main"]

app = typer.Typer(
    name="precedent",
    help="Finds the earlier cases that look like this one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command()(train)
app.command()(calibrate)
app.command()(evaluate)
app.command()(recommend)
app.command()(duplicates)
app.command()(profile)
app.command()(snapshot)
app.command()(restore)
app.command()(delete)
app.command()(reencode)
app.command()(plan)
app.command()(worker)
app.command()(receive)
app.add_typer(jobs, name="jobs")

_INTERRUPTED = 130  # what typer makes of Ctrl-C


def main() -> None:
    """The console script: errors become one line on standard error and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        code = app(standalone_mode=False)
    except PrecedentError as error:
        _fail(str(error), 1)
    except BrokenPipeError:
        # The reader of our output has gone, as in `precedent search … | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if not is_full(error):
            raise
        place = "" if error.filename is None else f" ({error.filename})"
        _fail(f"a disk is full{place}; make room, and the same command again goes on", 1)
    except typer.Abort:
        _fail("aborted; nothing was changed", 1)
    except Exception as error:  # click's own usage errors show themselves
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            sys.exit(error.exit_code)
        raise
    if code == _INTERRUPTED:
        _fail("interrupted; what was done is kept, the same command again goes on", code)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    print(f"precedent: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


def _settings(data_dir: Path | None, model: Path | None, **more: Any) -> Settings:
    return load_settings(data_dir=data_dir, model=model, **more)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        sys.stdout.write(f"precedent {__version__}\n")
        raise typer.Exit


@app.command()
def index(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders, files, zip archives, DICOMDIRs.", metavar="[PATH...]"),
    ] = None,
    source: SourceOption = None,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    labels: LabelsOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    modality: ModalityOption = None,
    study: StudyOption = None,
    retry_refused: RetryRefusedOption = False,
    again: AgainOption = False,
    delete_vanished: VanishedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring images into the index. Stop it at any time; the same command goes on."""
    from api.terminal import indexing_progress, report_table
    from indexer.archive import Archive
    from indexer.room import check_room
    from indexer.sources.opening import SourceSpec

    if not paths and source is None:
        raise typer.BadParameter(
            "name folders and files, or a source with --source", param_hint="PATH"
        )
    settings = _settings(data_dir, model)
    spec = SourceSpec.asked(paths, source, labels, since, until, modality, study)
    opened = spec.open(settings)
    errors = Console(stderr=True)
    check_room(settings.data_dir, settings.indexing.min_free_bytes)
    with Archive(settings, create=True) as archive:
        shown = errors.is_terminal and not as_json
        with indexing_progress(errors, shown=shown) as progress:
            report = archive.index(
                opened,
                retry_refused=retry_refused,
                again=again,
                vanished_from=spec.scope(settings) if delete_vanished else None,
                progress=progress,
            )
    if as_json:
        write_json(asdict(report))
    else:
        Console().print(report_table(report))
        if report.refused:
            Console().print("`precedent info --refusals` names the refused files.")


@app.command()
def search(
    images: Annotated[list[Path], typer.Argument(help="DICOM, PNG or JPEG.", metavar="IMAGE...")],
    k: Annotated[int, typer.Option("-k", help="Hits wanted.")] = 10,
    where: WhereOption = None,
    order: Annotated[str, typer.Option(help="'content' or 'hamming'.")] = "content",
    exact: Annotated[bool, typer.Option("--exact", help="Skip the pre-filter.")] = False,
    group_by: Annotated[
        str | None, typer.Option(help="One hit of each 'study' or 'patient'.")
    ] = None,
    exclude_own: Annotated[
        str | None,
        typer.Option(help="Leave out the own 'study' or 'patient' that the file's header names."),
    ] = None,
    page: Annotated[
        str | None, typer.Option(help="Go on: `next_page` of the same question's answer.")
    ] = None,
    no_facets: Annotated[bool, typer.Option("--no-facets", help="Count no values.")] = False,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> int:
    """Find the images that look like these."""
    from api.schemas import local_document
    from api.terminal import answer_table
    from engine.search.query import Cursor, Query, parse_where
    from indexer.archive import Archive

    query = Query(
        k=k,
        where=parse_where(where or []),
        order=order,
        exact=exact,
        group_by=chosen(group_by),
        exclude=chosen(exclude_own),
        page=None if page is None else Cursor.parse(page),
        facets=not no_facets,
    )
    code = 0
    with Archive(_settings(data_dir, model)) as archive, archive.query_reader() as reader:
        for path, image in zip(images, reader.read(images), strict=True):
            if isinstance(image, ImageRefused):
                code = 1
                refuse(path, image, as_json=as_json)
                continue
            (answer,) = archive.engine.search([image.canvas], query, [image.record])
            document = local_document(answer, archive.paths([hit.id for hit in answer.hits]))
            if as_json:
                write_json(document)
            else:
                Console().print(answer_table(str(path), document, query.offset))
    return code


@app.command()
def info(
    refusals: Annotated[
        bool, typer.Option("--refusals", help="Name the refused files, and why.")
    ] = False,
    limit: Annotated[int, typer.Option(help="Refused files to name.")] = 1000,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """What is in the index, and what was refused."""
    from api.terminal import printable
    from engine.store.base import Filter
    from indexer.archive import Archive
    from indexer.sources.base import shown

    with Archive(_settings(data_dir, model)) as archive:
        manifest = archive.manifest
        document: dict[str, Any] = {
            "version": __version__,
            "data_dir": str(archive.data_dir.root),
            "model": manifest.fingerprint,
            "tower": manifest.network.tower.name,
            "bits": manifest.bits,
            "dim": manifest.dim,
            "precision": archive.encoder.precision,
            "index_precision": archive.store.collection.precision,
            "points": archive.store.count(Filter()),
            "instances": archive.ledger.counts(),
            "facets": archive.engine.facets(Filter()),
        }
        refused = archive.ledger.refusals(limit) if refusals else []
    if refusals:
        document["refusals"] = [
            {"path": shown(one.locator), "reason": one.reason, "detail": one.detail}
            for one in refused
        ]
    if as_json:
        write_json(document)
        return
    lines = document.pop("refusals", [])
    facets = document.pop("facets")
    console = Console()
    for name, value in document.items():
        console.print(printable(f"{name:>10}  {_plain(value)}"), soft_wrap=True)
    for field, counts in facets.items():
        console.print(printable(f"{field:>10}  {_plain(counts)}"), soft_wrap=True)
    for line in lines:
        text = f"{line['reason']}  {line['path']}: {line['detail']}"
        console.print(printable(text), soft_wrap=True)


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count:,}" for name, count in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


@app.command()
def sample(
    directory: Annotated[Path, typer.Argument(help="A folder to make.")],
    seed: Annotated[int, typer.Option(help="Another seed, other patients.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a synthetic DICOM archive to try things on."""
    from indexer.sample import write_sample

    report = write_sample(directory, seed=seed)
    if as_json:
        write_json(asdict(report) | {"directory": str(report.directory)})
    else:
        Console().print(
            f"{report.written:,} of {report.instances + report.pydicom_files:,} files "
            f"written to {directory}",
            highlight=False,
        )


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
) -> None:
    """Answer searches over HTTP, with a page to try them on."""
    from api.demo import serve_until_stopped

    settings = _settings(data_dir, model)
    chosen = {"host": host, "port": port}
    given = {name: value for name, value in chosen.items() if value is not None}
    server = settings.server.model_copy(update=given)
    serve_until_stopped(settings.model_copy(update={"server": server}))


@app.command()
def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Where sample and index go.")] = Path(
        ".demo"
    ),
    port: Annotated[int, typer.Option(help="Port of the server.")] = 8000,
    model: ModelOption = None,
) -> None:
    """Calibrate on a sample archive, index it, answer a few searches, then serve.

    PRECEDENT_DEMO_EXIT=1 ends after the answers.
    """
    from api.demo import run_demo

    run_demo(directory, port, model, serve=os.environ.get("PRECEDENT_DEMO_EXIT") != "1")
