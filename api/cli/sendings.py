"""``precedent send``, ``precedent sendings …``: sends documents, and says what became of them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from api.cli.accesses import note, record_before
from api.cli.documents import (
    ExactOption,
    ExcludeOption,
    FormatOption,
    GroupOption,
    ImageOption,
    Making,
    ReportOptions,
    TeachingOption,
    making,
    seen_of,
)
from api.cli.options import (
    DataDirOption,
    JsonOption,
    ModelOption,
    TenantOption,
    WhereOption,
    tenant_of,
    write_json,
)
from api.cli.terminal import printable
from engine.errors import DestinationUnknown, QueryError
from engine.settings import Settings, load_settings

if TYPE_CHECKING:
    from api.security.seen import Seen
    from indexer.documents.making import Document
    from indexer.documents.outbox import Outbox
    from indexer.documents.plans import Plan
    from indexer.documents.sendings import Sending

__all__ = ["send", "sendings"]

sendings = typer.Typer(help="List, show, retry and cancel what is sent.", no_args_is_help=True)

SendingArgument = Annotated[str, typer.Argument(help="Id of the sending.", metavar="SENDING")]


def send(
    destination: Annotated[
        str, typer.Argument(help="Its name in the settings.", metavar="DESTINATION")
    ],
    report: Annotated[
        str | None, typer.Option("--report", help="The report of this study.", metavar="STUDY")
    ] = None,
    earlier: Annotated[
        str | None,
        typer.Option(
            "--earlier",
            help="Key objects of the same patient's earlier images, similar to this study.",
            metavar="STUDY",
        ),
    ] = None,
    teaching: TeachingOption = None,
    form: FormatOption = "sr",
    image: ImageOption = None,
    k: Annotated[int | None, typer.Option("-k", help="Cases, or images, at most.")] = None,
    where: WhereOption = None,
    exact: ExactOption = False,
    group_by: GroupOption = "study",
    exclude_own: ExcludeOption = "patient",
    tenant: TenantOption = None,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> int:
    """Send a report or key objects to a PACS that the settings name.

    What cannot be sent because the PACS is away is tried again by `precedent serve`, or by
    `precedent sendings retry`. Exits with 1 unless all of it is stored there.
    """
    given = [name for name, one in _named(report, earlier, teaching).items() if one]
    if len(given) != 1:
        came = " and ".join(given) or "none of them"
        raise QueryError(f"give one of --report, --earlier and --teaching; {came} came")
    settings = load_settings(data_dir=data_dir, model=model)
    whose = tenant_of(tenant, settings)
    _check_destination(destination, settings, whose)
    with making(settings, whose) as made:
        if report is not None:
            asked = ReportOptions(report, form, image, k, where or [], exact, group_by, exclude_own)
            asked.check()
            plans = [made.report(asked)]
        elif earlier is not None:
            plans = made.earlier(earlier, 20 if k is None else k)
        else:
            plans = made.teaching(teaching or [])
        documents = made.documents(plans)
        record_before(seen_of(plans, documents), destination=destination, tenant=whose)
        done = _sent(settings, made, destination, plans, documents)
    return _tell(done, as_json=as_json)


def _named(
    report: str | None, earlier: str | None, teaching: list[str] | None
) -> dict[str, object]:
    return {"--report": report, "--earlier": earlier, "--teaching": teaching}


def _sent(
    settings: Settings,
    made: Making,
    destination: str,
    plans: Sequence["Plan"],
    documents: Sequence["Document"],
) -> "Sending":
    from api.audit.log import system_user
    from indexer.documents.outbox import Outbox

    outbox, tenant = Outbox(settings), made.archive.tenant
    noted = outbox.add(destination, plans, tenant, asdict(system_user()))
    return outbox.attempt(noted, made.archive, made.headers, documents)


@sendings.command("list")
def list_(
    limit: Annotated[int, typer.Option(help="The latest so many.", min=1)] = 20,
    tenant: TenantOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """What was sent, and what became of it, the newest first."""
    from indexer.documents.sendings import document_of, moment

    outbox, whose = _outbox(data_dir, tenant)
    found = outbox.newest(whose, limit)
    note(tenant=whose)
    if as_json:
        write_json({"sendings": [document_of(one) for one in found]})
        return
    table = Table()
    for name in ("sending", "destination", "documents", "state", "commitment", "made", "why"):
        table.add_column(name)
    for one in found:
        kinds = ", ".join(dict.fromkeys(plan.kind for plan in one.plans))
        table.add_row(
            one.id,
            printable(one.destination),
            f"{len(one.plans)} {kinds}",
            one.state,
            one.commitment,
            moment(one.made_at) or "",
            printable(one.why or ""),
        )
    Console().print(table)


@sendings.command()
def show(
    sending: SendingArgument,
    tenant: TenantOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """What became of each document of a sending."""
    outbox, whose = _outbox(data_dir, tenant)
    _tell(outbox.of(sending, whose), as_json=as_json)


@sendings.command()
def retry(
    sending: SendingArgument,
    tenant: TenantOption = None,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> int:
    """Try again, now, what is not stored, or what the destination does not commit itself to.

    Exits with 1 unless all of it is stored there.
    """
    from indexer.documents.outbox import Outbox

    settings = load_settings(data_dir=data_dir, model=model)
    whose = tenant_of(tenant, settings)
    outbox = Outbox(settings)
    found = outbox.of(sending, whose)
    record_before(_seen_of(found), **_about(found))
    with making(settings, whose) as made:
        waiting = outbox.retry(sending, whose)
        done = outbox.attempt(waiting, made.archive, made.headers)
    return _tell(done, as_json=as_json)


@sendings.command()
def cancel(
    sending: SendingArgument,
    tenant: TenantOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a sending; what is stored at the destination stays there."""
    outbox, whose = _outbox(data_dir, tenant)
    found = outbox.of(sending, whose)
    record_before(_seen_of(found), **_about(found))
    _tell(outbox.cancel(sending, whose), as_json=as_json)


def _outbox(data_dir: Path | None, tenant: str | None) -> tuple["Outbox", str]:
    from indexer.documents.outbox import Outbox

    settings = load_settings(data_dir=data_dir)
    return Outbox(settings), tenant_of(tenant, settings)


def _check_destination(name: str, settings: Settings, tenant: str) -> None:
    """Before documents are made, which takes longer. Raises DestinationUnknown: there is none."""
    from indexer.documents.outbox import destinations_of

    found = destinations_of(settings, tenant)
    if name not in found:
        known = ", ".join(found) or "none"
        raise DestinationUnknown(
            f"there is no destination {name[:80]!r} in the settings of tenant {tenant!r}; there "
            f"are: {known}; add it as [destinations.{name[:80]}] to precedent.toml"
        )


def _seen_of(sending: "Sending") -> "Seen":
    from api.security.seen import Seen

    images = [
        image for one in sending.plans for image in (one.image, *(hit.image for hit in one.hits))
    ]
    return Seen((), tuple(dict.fromkeys(images)))


def _about(sending: "Sending") -> dict[str, str]:
    return {"sending": sending.id, "destination": sending.destination, "tenant": sending.tenant}


def _tell(sending: "Sending", *, as_json: bool) -> int:
    """Prints what became of a sending; the exit code of a command that has sent it."""
    from indexer.documents.sendings import document_of, moment

    note(_seen_of(sending), **_about(sending))
    code = 0 if sending.state == "sent" else 1
    if as_json:
        write_json(document_of(sending))
        return code
    table = Table(title=f"Sending {sending.id}: {sending.state}", title_justify="left")
    for name in ("document", "SOP Instance UID", "state", "status", "committed", "detail"):
        table.add_column(name)
    for plan, fate in zip(sending.plans, sending.fates, strict=True):
        committed = {True: "yes", False: f"no {fate.failure or ''}", None: ""}[fate.committed]
        table.add_row(
            plan.kind,
            fate.sop,
            fate.state,
            fate.status or "",
            committed,
            printable(fate.detail or ""),
        )
    console = Console()
    console.print(table)
    said = [f"to {sending.destination}, storage commitment: {sending.commitment}"]
    if sending.why is not None:
        said.append(sending.why)
    if sending.state == "waiting":
        said.append(
            f"`precedent serve` tries again at {moment(sending.next_at)}, or now "
            f"`precedent sendings retry {sending.id}`"
        )
    for line in said:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return code
