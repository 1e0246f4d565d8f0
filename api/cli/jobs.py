"""``precedent jobs …``: creates, shows and controls jobs, which several workers index."""

import csv
import io
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console

from api.cli.accesses import note, record_before
from api.cli.options import (
    AgainOption,
    AtMostOption,
    DataDirOption,
    JsonOption,
    LabelsOption,
    ModalityOption,
    RetryRefusedOption,
    SinceOption,
    SourceOption,
    StudyOption,
    TenantOption,
    UntilOption,
    VanishedOption,
    check_writable,
    parse_vanished,
    tenant_of,
    write_json,
)
from api.cli.refusals import ReasonOption, by_reason, parse_reason, refusals_table
from engine.errors import JobError, QueryError, RefusalReason
from engine.settings import Settings, load_settings
from indexer.datadir.layout import DataDir
from indexer.jobs.ledger import JobLedger
from indexer.jobs.records import BULK, INTERACTIVE, JobOptions
from indexer.ledger.database import Database, open_database
from indexer.sources.opening import SourceSpec

__all__ = ["jobs"]

jobs = typer.Typer(help="Index in bulk: jobs that workers share.", no_args_is_help=True)

_PRIORITIES = {"interactive": INTERACTIVE, "bulk": BULK}

JobArgument = Annotated[int, typer.Argument(help="Number of the job.", metavar="JOB")]


@jobs.command()
def submit(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders and files, as workers see them.", metavar="[PATH...]"),
    ] = None,
    source: SourceOption = None,
    tenant: TenantOption = None,
    labels: LabelsOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    modality: ModalityOption = None,
    study: StudyOption = None,
    retry_refused: RetryRefusedOption = False,
    again: AgainOption = False,
    delete_vanished: VanishedOption = False,
    at_most: AtMostOption = "20%",
    priority: Annotated[str, typer.Option(help="'interactive' goes before 'bulk'.")] = "bulk",
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a job; workers start on it at once."""
    if priority not in _PRIORITIES:
        raise QueryError(f"--priority is {priority!r}; use one of {', '.join(_PRIORITIES)}")
    settings = load_settings(data_dir=data_dir)
    spec = SourceSpec.asked(paths, source, labels, since, until, modality, study)
    share = parse_vanished(at_most, spec, wanted=delete_vanished)
    # Opened only so that an invalid source fails now, not when a worker takes the job.
    spec.open(settings)
    if settings.jobs.broker is not None:
        from indexer.jobs.dispatch import check_broker

        check_broker(settings)
    whose = tenant_of(tenant, settings, source)
    options = JobOptions(retry_refused, again, delete_vanished, share)
    with _database(settings) as database:
        mine = JobLedger(database.of(whose))
        job = mine.submit(spec, options, at=_now(), priority=_PRIORITIES[priority])
        _dispatch(settings, database)
    if as_json:
        write_json({"job": job})
    else:
        _print(f"job {job}; `precedent jobs show {job}` says how far it is")


@jobs.command("list")
def list_(
    limit: Annotated[int, typer.Option(help="The latest so many.")] = 20,
    tenant: TenantOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """The latest jobs, and runs of `precedent index`, newest first."""
    from api.cli.job_tables import jobs_table

    with _jobs(data_dir, tenant) as ledger:
        found = ledger.summaries(time.time(), limit)
    if as_json:
        write_json({"jobs": [asdict(one) for one in found]})
    else:
        Console().print(jobs_table(found))


@jobs.command()
def show(
    job: JobArgument,
    tenant: TenantOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """How far a job is: pace, time left, refusals by reason."""
    from api.cli.job_tables import job_table

    with _jobs(data_dir, tenant) as ledger:
        found = ledger.summary(job, time.time())
    if as_json:
        write_json(asdict(found))
    else:
        Console().print(job_table(found))


@jobs.command()
def pause(job: JobArgument, tenant: TenantOption = None, data_dir: DataDirOption = None) -> None:
    """Let workers stop after the instances that they have begun."""
    with _jobs(data_dir, tenant) as ledger:
        ledger.pause(job)
    _print(f"job {job} is paused; `precedent jobs resume {job}` goes on with it")


@jobs.command()
def resume(job: JobArgument, tenant: TenantOption = None, data_dir: DataDirOption = None) -> None:
    """Go on with a paused job. Tasks that wait after a failure are tried again at once."""
    settings = load_settings(data_dir=data_dir)
    with _database(settings) as database:
        JobLedger(database.of(tenant_of(tenant, settings))).resume(job)
        _dispatch(settings, database)
    _print(f"job {job} goes on")


@jobs.command()
def cancel(job: JobArgument, tenant: TenantOption = None, data_dir: DataDirOption = None) -> None:
    """End a job for good. What it has indexed stays in the index."""
    with _jobs(data_dir, tenant) as ledger:
        ledger.cancel(job, _now())
    _print(f"job {job} is cancelled; what it had indexed stays")


@jobs.command()
def retry(
    job: JobArgument,
    refused: Annotated[
        bool, typer.Option("--refused", help="Read its refused instances again as well.")
    ] = False,
    tenant: TenantOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give the failed tasks of a job another chance."""
    settings = load_settings(data_dir=data_dir)
    with _database(settings) as database:
        mine = JobLedger(database.of(tenant_of(tenant, settings)))
        count = mine.retry(job, refused=refused)
        _dispatch(settings, database)
    if as_json:
        write_json({"tasks": count})
    else:
        _print(f"{count:,} tasks of job {job} are tried again")


@jobs.command()
def report(
    job: JobArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file; left out: standard output.")
    ] = None,
    reason: ReasonOption = None,
    tenant: TenantOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every instance of a job and what became of it, as CSV; refusals by reason beside it.

    The refusals stand on standard error, so that the CSV can be piped. With --json they alone are
    told, and with --reason as well which instances they are.
    """
    only = parse_reason(reason)
    if output is not None:
        check_writable(output, "--output", file=True)
    with _jobs(data_dir, tenant) as ledger:
        if as_json and output is None:
            note(job=job)
            write_json(_report_document(ledger, job, only))
            return
        refused = Counter[str]()
        if output is None:
            note(job=job)
            _write_report(ledger, job, sys.stdout, only, refused)
            _show_refused(refused)
            return
        from engine.files import writing_atomically

        record_before(job=job)
        with writing_atomically(output) as raw:
            out = io.TextIOWrapper(raw, "utf-8", newline="")
            count = _write_report(ledger, job, out, only, refused)
            out.flush()
            out.detach()
    if as_json:
        write_json({"job": job, "instances": count, "refused_by_reason": by_reason(refused)})
        return
    _print(f"{count:,} instances: {output}")
    _show_refused(refused)


def _report_document(ledger: JobLedger, job: int, only: RefusalReason | None) -> dict[str, Any]:
    from indexer.files.locators import shown

    refused = Counter[str]()
    named: list[dict[str, str | None]] = []
    for one in ledger.fates(job, only):
        if one.fate == "refused":
            refused[one.reason or ""] += 1
            if only is not None:
                named.append({"instance": shown(one.locator), "detail": one.detail})
    document: dict[str, Any] = {"job": job, "refused_by_reason": by_reason(refused)}
    return document if only is None else {**document, "instances": named}


def _show_refused(refused: Counter[str]) -> None:
    """On standard error, after what could be piped."""
    if refused:
        sys.stdout.flush()
        Console(stderr=True).print(refusals_table(refused), highlight=False)


def _write_report(
    ledger: JobLedger,
    job: int,
    out: TextIO,
    only: RefusalReason | None,
    refused: Counter[str],
) -> int:
    """Writes a row for each instance, counts the refused ones by reason into ``refused``, and
    returns how many rows there are.

    only: rows of what was refused for this reason; None = all.
    """
    from indexer.files.locators import shown

    writer = csv.writer(out)
    writer.writerow(("instance", "fate", "reason", "detail", "missing_frames"))
    count = 0
    for one in ledger.fates(job, only):
        if one.fate == "refused":
            refused[one.reason or ""] += 1
        told = (one.reason, one.detail, one.missing_frames)
        writer.writerow((shown(one.locator), one.fate, *(part or "" for part in told)))
        count += 1
    return count


def _dispatch(settings: Settings, database: Database) -> None:
    """Sends the due tasks to the broker; without one, workers poll the ledger.

    If the broker cannot be reached, the error is printed, and not raised.
    """
    if settings.jobs.broker is None:
        return
    from indexer.jobs.dispatch import Dispatcher, celery_app

    try:
        Dispatcher(settings, database, celery_app(settings)).dispatch()
    except JobError as error:
        print(f"precedent: {error}", file=sys.stderr)  # noqa: T201


@contextmanager
def _jobs(data_dir: Path | None, tenant: str | None) -> Iterator[JobLedger]:
    settings = load_settings(data_dir=data_dir)
    with _database(settings) as database:
        yield JobLedger(database.of(tenant_of(tenant, settings)), settings.jobs.lapse_seconds)


def _database(settings: Settings) -> Database:
    return open_database(settings, DataDir(settings.data_dir).ledger)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _print(words: str) -> None:
    Console().print(words, highlight=False, soft_wrap=True)
