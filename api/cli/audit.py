"""``precedent audit …``: checks, exports, searches and shortens the audit log."""

import json
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from api.audit.export import audit_event
from api.audit.log import AuditLog, audit_file, open_log, system_user
from api.audit.rows import Entry, Row
from api.audit.search import Wanted, found, time_of
from api.audit.verify import heads_document, read_heads, verify as verified
from api.cli.accesses import note, record_before
from api.cli.options import DataDirOption, JsonOption, check_writable, write_json
from api.cli.terminal import printable
from api.security.seen import Seen
from engine.errors import AuditError, QueryError
from engine.files import write_atomically
from engine.settings import load_settings

__all__ = ["audit"]

audit = typer.Typer(help="Check, export and search the record of accesses.", no_args_is_help=True)

SinceOption = Annotated[
    str | None, typer.Option(help="From this time on, as in 2031-12-31 or 2031-12-31T08:00 (UTC).")
]
UntilOption = Annotated[str | None, typer.Option(help="Before this time.")]
HeadsOption = Annotated[
    Path | None, typer.Option(help="File with the last row of each chain, as they were once.")
]


@audit.command()
def verify(
    heads: HeadsOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> int:
    """Check that no row was changed, removed or added. Exits with 1 if one was.

    Rows that were cut off at the end show only where --heads has them: keep that file elsewhere.
    """
    known = None if heads is None else read_heads(heads)
    with _log(data_dir) as log:
        result = verified(log, known)
    note(Seen(results=result.rows))
    if as_json:
        write_json(
            {
                "whole": not result.flaws,
                "rows": result.rows,
                "chains": len(result.heads),
                "flaws": [
                    {"chain": one.chain, "row": one.seq, "what": one.what} for one in result.flaws
                ],
                "forgotten": [
                    {"at": one.at, "before": one.before, "who": one.who} for one in result.forgotten
                ],
            }
        )
        return 1 if result.flaws else 0
    console = Console()
    for flaw in result.flaws:
        console.print(printable(str(flaw)), soft_wrap=True)
    for time in result.forgotten:
        console.print(
            printable(f"rows of before {time.before} were forgotten on {time.at} by {time.who}"),
            soft_wrap=True,
        )
    held = f"{result.rows:,} rows in {len(result.heads):,} chains"
    if result.flaws:
        console.print(f"{held}: the log is not whole", highlight=False)
        return 1
    against = "" if heads is None else f", and all that {heads} names is there"
    console.print(printable(f"{held}: the log is whole{against}"), soft_wrap=True)
    return 0


@audit.command()
def export(
    file: Annotated[
        Path | None, typer.Argument(help="The file to write; standard output if left out.")
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    heads: HeadsOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Write the rows as FHIR AuditEvents, one a line, and the last row of each chain to --heads."""
    begin, end = _time("--since", since), _time("--until", until)
    for path, option in ((file, "FILE"), (heads, "--heads")):
        if path is not None:
            check_writable(path, option, file=True)
    if file is not None or heads is not None:
        record_before()
    count = 0
    with _log(data_dir) as log:
        last = log.heads()
        out = sys.stdout if file is None else file.open("w", encoding="ascii", newline="\n")
        try:
            for row in log.between(begin, end):
                out.write(json.dumps(audit_event(row)) + "\n")
                count += 1
        finally:
            if file is not None:
                out.close()
    if heads is not None:
        document = heads_document(last, datetime.now(UTC))
        write_atomically(heads, (json.dumps(document, indent=1) + "\n").encode())
    note(Seen(results=count))
    if file is not None:
        Console(stderr=True).print(f"{count:,} rows written: {file}", highlight=False)


@audit.command()
def search(
    who: Annotated[
        str | None, typer.Option(help="Id or name of a key or of a user, as the rows have it.")
    ] = None,
    route: Annotated[
        str | None, typer.Option(help="Part of a route or command, as in 'POST /v1/search'.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="Study Instance UID that was shown.")] = None,
    image: Annotated[str | None, typer.Option(help="Id of an image that was shown.")] = None,
    outcome: Annotated[str | None, typer.Option(help="'ok', 'refused' or 'failed'.")] = None,
    verdict: Annotated[str | None, typer.Option(help="'known', 'unfamiliar' or 'foreign'.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Tenant of whoever asked.")] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rows, the latest ones.")] = 100,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Who had access to what: the rows that match all that is given, the latest last.

    With --json, prints one row a line.
    """
    wanted = Wanted(
        who=who,
        route=route,
        study=study,
        image=image,
        outcome=outcome,
        tenant=tenant,
        since=_time("--since", since),
        until=_time("--until", until),
        verdict=verdict,
    )
    with _log(data_dir) as log:
        rows, more = found(log, wanted, limit)
    note(Seen(results=len(rows)))
    if as_json:
        for row in rows:
            write_json({**row.document, "hash": row.hash})
        return
    Console().print(_table(rows))
    if more:
        Console(stderr=True).print(
            f"there are earlier ones than these {limit:,}; --limit or --until shows them"
        )


@audit.command()
def forget(
    before: Annotated[
        str, typer.Option(help="'400d', or a time, as in 2031-12-31 (UTC): what is older goes.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove old rows, for good. A row stays behind that says up to where, and who did it."""
    limit = _end_of_keeping(before)
    with _log(data_dir) as log:
        if not yes and not as_json:
            typer.confirm(f"Forget all accesses before {limit:%Y-%m-%d %H:%M} UTC?", abort=True)
        earlier = log.forgotten()
        who = system_user()
        entry = Entry(who, "precedent audit forget", 0, "ok", address=socket.gethostname())
        gone = {
            chain: last
            for chain, last in log.forget(limit, entry).items()
            if earlier.get(chain) != last
        }
    if as_json:
        write_json(
            {"before": limit.isoformat(), "chains": {one.chain: one.seq for one in gone.values()}}
        )
    else:
        Console().print(
            f"forgot accesses before {limit:%Y-%m-%d %H:%M} UTC, in {len(gone):,} chains",
            highlight=False,
        )


@contextmanager
def _log(data_dir: Path | None) -> Iterator[AuditLog]:
    """Raises AuditError: there is none."""
    settings = load_settings(data_dir=data_dir)
    file = audit_file(settings)
    if file is not None and not file.is_file():
        raise AuditError(
            f"there is no audit log {file} yet: nothing was recorded; name another --data-dir, or "
            "use the archive first"
        )
    with open_log(settings) as log:
        yield log


def _time(option: str, written: str | None) -> datetime | None:
    return None if written is None else time_of(written, option)


def _end_of_keeping(written: str) -> datetime:
    """The time before which rows are forgotten.

    Raises:
        QueryError: it is neither a number of days nor a time, or has not passed.
    """
    now = datetime.now(UTC)
    number = written.removesuffix("d")
    if number != written and number.isascii() and number.isdigit() and len(number) <= 5:
        return now - timedelta(days=int(number))
    limit = _time("--before", written)
    if limit is None or limit > now:
        raise QueryError(
            f"--before is {written[:80]!r}, which has not passed; name an earlier time"
        )
    return limit


def _table(rows: list[Row]) -> Table:
    table = Table("time (UTC)", "who", "tenant", "from", "what", "outcome", "studies", "images")
    for row in rows:
        document = row.document
        table.add_row(
            document["at"][:19].replace("T", " "),
            printable(_named(document["who"])),
            printable(document["who"]["tenant"] or ""),
            printable(document["address"] or ""),
            printable(document["action"]),
            f"{document['outcome']} {document['status']}",
            _first(document["studies"], document["studies_in_all"]),
            _first(document["images"], document["images_in_all"]),
        )
    return table


def _named(who: Mapping[str, Any]) -> str:
    words = [who["kind"], who["id"] or "", who["name"] or ""]
    return " ".join(word for word in words if word)


def _first(named: list[str], count: int) -> str:
    if not named:
        return ""
    more = f" and {count - 1:,} more" if count > 1 else ""
    return printable(named[0]).plain + more
