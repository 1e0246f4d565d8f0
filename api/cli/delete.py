"""``precedent delete``: removes studies, patients, instances, sources or tenants."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from api.cli.accesses import note, record_before
from api.cli.options import (
    DataDirOption,
    JsonOption,
    ModelOption,
    TenantOption,
    tenant_of,
    write_json,
)
from engine.errors import QueryError
from engine.settings import load_settings

if TYPE_CHECKING:
    from indexer.archive import Archive

__all__ = ["delete"]

_MOST_NAMED = 20


def delete(
    study: Annotated[str | None, typer.Option(help="Study Instance UID.")] = None,
    patient: Annotated[str | None, typer.Option(help="Patient ID, as in the files.")] = None,
    issuer: Annotated[str, typer.Option(help="Issuer of the Patient ID, if any.")] = "",
    sop: Annotated[str | None, typer.Option(help="SOP Instance UID.")] = None,
    source: Annotated[
        str | None,
        typer.Option(help="All that came from it: its name, or 'folder', or 'storescp'."),
    ] = None,
    tenant: TenantOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> int:
    """Remove a study, patient, instance, source or tenant from index, thumbnails and ledger.

    With several options, only what matches all of them is removed. `--tenant` alone removes all
    that the tenant has; without it only what is of the tenant 'default' goes. Image files stay, but
    later runs of `precedent index` leave them out; `--again` brings them back. Only files that
    `precedent receive` keeps in the data folder are deleted too. Exits with 1 if there is nothing
    to remove.
    """
    from api.security.seen import Seen
    from engine.store.base import Filter, Match
    from indexer.archive import Archive
    from indexer.imaging.deidentify import pseudonym

    asked = {"study": study, "patient": patient, "sop": sop, "source": source}
    if tenant is None and all(value is None for value in asked.values()):
        raise QueryError(
            "say what to delete: --study UID, --patient ID, --sop UID, --source NAME or "
            "--tenant NAME"
        )
    given = {name: value for name, value in asked.items() if value is not None}
    settings = load_settings(data_dir=data_dir, model=model)
    whose = tenant_of(tenant, settings, source)
    if tenant is not None:
        given["tenant"] = tenant
    with Archive(settings, tenant=whose) as archive:
        if tenant is not None:
            _check_tenant(archive)
        if source is not None:
            _check_source(archive, source)
        if patient is not None:
            key = archive.data_dir.pseudonym_key(settings)
            asked["patient"] = pseudonym(issuer, patient, key)
        wanted = {name: value for name, value in asked.items() if value is not None}
        where = Filter(tuple(Match(name, (value,)) for name, value in wanted.items()))
        ledger = archive.ledger
        count, images = ledger.count(**wanted), archive.store.count(where)
        if not count and not images:
            if as_json:
                write_json({"instances": 0, "points": 0})
            what = ", ".join(
                # A Patient ID belongs in no log.
                "that patient" if name == "patient" else f"{name} {value!r}"
                for name, value in given.items()
            )
            raise QueryError(
                f"nothing in the index or the ledger is of {what}; nothing was removed"
            )
        studies, series = (ledger.count_distinct(name, **wanted) for name in ("study", "series"))
        if dry_run:
            found = {"studies": studies, "series": series, "instances": count, "points": images}
            if as_json:
                write_json({"dry_run": True, **found})
            else:
                what = ", ".join(f"{value:,} {name}" for name, value in found.items())
                Console().print(f"would remove {what}", highlight=False, soft_wrap=True)
            return 0
        named = tuple(dict.fromkeys([*((study,) if study else ()), *ledger.studies(**wanted)]))
        record_before(Seen(named), tenant=whose)
        if not yes and not as_json:
            typer.confirm(
                f"Remove {count:,} instances of {studies:,} studies from the index?", abort=True
            )
        instances, points = archive.delete_all({**wanted, "tenant": whose})
        note(Seen(named, results=points))
    if as_json:
        write_json({"instances": instances, "points": points})
    else:
        Console().print(f"removed {instances:,} instances, {points:,} points")
    return 0


def _check_tenant(archive: "Archive") -> None:
    """Checks that ledger or index have something of the tenant.

    Raises:
        QueryError: they have nothing of it.
    """
    from engine.store.base import Filter

    if archive.ledger.count() or archive.store.count(Filter()):
        return
    raise QueryError(
        f"nothing in the index is of tenant {archive.tenant!r}; there are: "
        + _listed(archive.tenants())
    )


def _check_source(archive: "Archive", name: str) -> None:
    """Checks that ledger or index have something of this source.

    Raises:
        QueryError: they have nothing of it.
    """
    from engine.store.base import Filter, Match

    if archive.ledger.count(source=name) or archive.store.count(
        Filter((Match("source", (name,)),))
    ):
        return
    found = archive.store.facets(["source"], Filter(), _MOST_NAMED)["source"]
    known = sorted({*archive.ledger.sources(), *found})
    raise QueryError(f"nothing in the index is of source {name!r}; there are: {_listed(known)}")


def _listed(known: list[str]) -> str:
    shown = ", ".join(known[:_MOST_NAMED]) or "none"
    return shown + (" and others" if len(known) > _MOST_NAMED else "")
