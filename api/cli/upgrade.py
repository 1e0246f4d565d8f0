"""``precedent upgrade``: the versions of all that is stored, brought up to this release."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.options import DataDirOption, JsonOption, ModelOption, write_json
from engine import __version__
from engine.settings import load_settings

if TYPE_CHECKING:
    from indexer.upgrade import Stored

__all__ = ["upgrade"]


def upgrade(
    apply: Annotated[
        bool, typer.Option("--apply/--dry-run", help="Do it; else only say what would be done.")
    ] = False,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> int:
    """Say which version all that is stored has, and bring it up to this release.

    Without --apply nothing is changed, opened for writing or locked. With it, services and workers
    have to be stopped, and there has to be a backup. A command that was killed goes on when it is
    run again. The exit code is 1 if a later version wrote something: that is refused.
    """
    from api.audit.log import audit_file
    from api.audit.schema import AUDIT
    from indexer.upgrade import bring_up, inventory

    settings = load_settings(data_dir=data_dir, model=model)
    audit = (AUDIT, audit_file(settings))
    if apply:
        done = bring_up(settings, audit, lambda one: None if as_json else _tell_done(one))
        if as_json:
            write_json({"version": __version__, "done": [asdict(one) for one in done]})
        elif not done:
            typer.echo(f"everything is as Precedent {__version__} writes it")
        return 0
    found = inventory(settings, audit)
    if as_json:
        write_json({"version": __version__, "stored": [asdict(one) for one in found]})
    else:
        _list(found)
    return int(any(one.outcome == "refused" for one in found))


def _list(found: "list[Stored]") -> None:
    for one in found:
        typer.echo(f"{one.outcome:<9} {_of(one)}".encode("utf-8", "replace").decode())
        if one.how:
            typer.echo(f"          → {one.how}".encode("utf-8", "replace").decode())
    if any(one.outcome == "refused" for one in found):
        typer.echo("what a later version wrote is not opened by this one")
    elif any(one.outcome != "nothing" for one in found):
        typer.echo("back it up, stop services and workers, then: precedent upgrade --apply")
    elif found:
        typer.echo(f"everything is as Precedent {__version__} reads it")
    else:
        typer.echo("nothing is stored here yet")


def _of(one: "Stored") -> str:
    return (
        f"{one.thing} {one.place}: version {one.found or 'unknown'}, this release writes "
        f"{one.known}"
    )


def _tell_done(one: "Stored") -> None:
    typer.echo(f"{one.outcome:<9} {_of(one)}".encode("utf-8", "replace").decode())
