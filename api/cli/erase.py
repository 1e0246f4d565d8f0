"""``precedent erase``: deletes for good, in every file, and writes a signed report of it."""

import sys
from collections.abc import Mapping
from pathlib import Path
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
from engine.settings import Settings, load_settings

if TYPE_CHECKING:
    from indexer.erasure.erasing import Erased, Found, Progress

__all__ = ["erase", "print_erased", "told_on_the_way"]


def erase(
    patient: Annotated[str | None, typer.Option(help="Patient ID, as in the files.")] = None,
    issuer: Annotated[str, typer.Option(help="Issuer of the Patient ID, if any.")] = "",
    study: Annotated[str | None, typer.Option(help="Study Instance UID.")] = None,
    series: Annotated[str | None, typer.Option(help="Series Instance UID.")] = None,
    instance: Annotated[str | None, typer.Option(help="SOP Instance UID.")] = None,
    tenant: TenantOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="End erasures that were cut short.")
    ] = False,
    verify: Annotated[
        Path | None, typer.Option(help="Only check this report, and its signature.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="With --verify: the public key to trust; that of the data folder."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be erased.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> int:
    """Erase a patient, study, series or instance: no file of the data folder has it any more.

    What `precedent delete` removes is removed, and the files that held it are written anew; then
    every byte of the data folder is searched for it, and a signed report says what was found. With
    several options, only what matches all of them goes. It may run beside `precedent serve`, which
    goes on answering. Exits with 1 if there is nothing to erase, or something is left; the report
    says what. `--verify REPORT` exits with 1 if the report cannot be believed, or with --patient or
    --study, … is not about that.
    """
    asked = {"patient": patient, "study": study, "series": series, "sop": instance}
    given = {name: value for name, value in asked.items() if value is not None}
    settings = load_settings(data_dir=data_dir, model=model)
    if verify is not None:
        return _verify(verify, key, settings, given, issuer, as_json=as_json)
    if bool(given) == resume:
        raise QueryError(
            "say what to erase: --patient ID, --study UID, --series UID or --instance UID; or "
            "--resume alone, to end what was cut short"
        )
    from api.security.seen import Seen
    from indexer.archive import Archive
    from indexer.erasure.erasing import Erasing
    from indexer.erasure.proof import asked_hash

    whose = tenant_of(tenant, settings)
    with Archive(settings, tenant=whose) as archive:
        erasing = Erasing(archive, progress=told_on_the_way())
        if resume:
            record_before(erased="what was cut short")
            done = erasing.resume()
            note(Seen(results=sum(int(one.told["images"]) for one in done)))
            for one in done:
                print_erased(one, as_json=as_json)
            if not done and not as_json:
                Console().print("no erasure was cut short")
            return int(not all(one.is_complete for one in done))
        wanted = _wanted(given, issuer, archive.data_dir.pseudonym_key(settings))
        found = erasing.found(wanted)
        if not (found.instances or found.points or found.cut_short):
            if as_json:
                write_json({"instances": 0, "points": 0})
            # A Patient ID belongs in no log, and what is to be forgotten in none either.
            raise QueryError("nothing in the index or the ledger is of it; nothing was erased")
        if dry_run:
            _print_found(found, as_json=as_json)
            return 0
        if not yes and not sys.stdin.isatty():
            raise QueryError("nobody can be asked here; give --yes to erase it for good")
        secret = archive.data_dir.pseudonym_key(settings)
        hashes = {name: asked_hash(secret, whose, name, one) for name, one in wanted.items()}
        record_before(erased=hashes)
        if not yes:
            typer.confirm(
                f"Erase {found.instances:,} instances of {found.studies:,} studies for good?",
                abort=True,
            )
        erased = erasing.erase(wanted)
        note(Seen(results=int(erased.told["images"])), report=erased.told["id"])
    print_erased(erased, as_json=as_json)
    return int(not erased.is_complete)


def _wanted(given: Mapping[str, str], issuer: str, key: bytes) -> dict[str, str]:
    from indexer.imaging.deidentify import pseudonym

    wanted = dict(given)
    if "patient" in wanted:
        found = pseudonym(issuer, wanted["patient"], key)
        if found is None:
            raise QueryError("--patient is empty; give the Patient ID as the files have it")
        wanted["patient"] = found
    return wanted


def _print_found(found: "Found", *, as_json: bool) -> None:
    counts = {
        "studies": found.studies,
        "series": found.series,
        "instances": found.instances,
        "points": found.points,
    }
    if as_json:
        write_json({"dry_run": True, **counts, "cut_short": found.cut_short})
        return
    what = ", ".join(f"{value:,} {name}" for name, value in counts.items())
    Console().print(f"would erase {what}", highlight=False, soft_wrap=True)
    if found.cut_short:
        Console().print(
            "an erasure of it was cut short; the same command without --dry-run ends it"
        )


def print_erased(erased: "Erased", *, as_json: bool) -> None:
    """Prints what an erasure did, and where its report lies."""
    if as_json:
        write_json({"report": str(erased.report), **erased.told})
        return
    told, console = erased.told, Console(highlight=False, soft_wrap=True)
    console.print(f"erased {told['images']:,} instances of tenant {told['tenant']}")
    for place, counts in told["places"].items():
        console.print(f"  {place}: {counts['before']:,} before, {counts['after']:,} after")
    searched = told["searched"]
    console.print(
        f"  {searched['files']:,} files with {searched['bytes']:,} bytes searched for "
        f"{searched['strings']:,} byte strings"
    )
    for one in searched["found"]:
        console.print(
            f"  still there: {one['kind']} ({one['form']}), {one['times']:,} times in {one['file']}"
        )
    for name in told["rewritten"]["indexes_left"]:
        console.print(f"  still there: {name} is open in another process; run it again after that")
    shared = {one["kind"] for one in searched["shared_with_what_stays"]}
    if shared:
        console.print(f"  not unique to it, so it stays: {', '.join(sorted(shared))}")
    if searched["in_the_audit_log"]:
        console.print("  the audit log still names studies and images; the report says why")
    if told["last_backup"] is not None:
        console.print(f"  backups up to {told['last_backup']} still have it")
    console.print("everything is gone" if erased.is_complete else "NOT everything is gone")
    console.print(f"report: {erased.report}")
    console.print(f"signed by: {told['public_key']}")


def told_on_the_way() -> "Progress":
    """Says what is being done, where standard error is a terminal."""
    errors = Console(stderr=True, highlight=False)
    return lambda words: errors.print(f"{words} …") if errors.is_terminal else None


def _verify(
    report: Path,
    key: str | None,
    settings: Settings,
    given: Mapping[str, str],
    issuer: str,
    *,
    as_json: bool,
) -> int:
    from engine.errors import ErasureError
    from indexer.datadir.layout import DataDir
    from indexer.erasure.proof import asked_hash, public_key, verified

    place = DataDir(settings.data_dir)
    if key is None:
        if not (place.root / "erasure.key").is_file():
            raise ErasureError(
                f"{place.root} has no key of erasures; name the data folder of the installation "
                "that wrote the report, or its public key with --key"
            )
        key = public_key(place)
    found = verified(report, key)
    if given:
        secret = place.pseudonym_key(settings)
        wanted = _wanted(given, issuer, secret)
        hashes = {
            name: asked_hash(secret, found["tenant"], name, one) for name, one in wanted.items()
        }
        if hashes != found["asked"]:
            raise ErasureError(f"{report} is signed, and about something else than was named")
    if as_json:
        write_json({"valid": True, **found})
    else:
        what = "everything was gone" if found["complete"] else "NOT everything was gone"
        Console(highlight=False, soft_wrap=True).print(
            f"valid: signed by {key}, {found['ended_at']}, {found['images']:,} instances, {what}"
        )
    return 0
