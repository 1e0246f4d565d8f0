"""``precedent doctor``: looks for what is wrong with an installation, and says the way out."""

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.options import DataDirOption, JsonOption, ModelOption, write_json
from engine import __version__
from engine.errors import SettingsError
from engine.settings import load_settings

if TYPE_CHECKING:
    from indexer.doctor.finding import Finding

__all__ = ["doctor"]


def doctor(
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are errors too.")] = False,
    destinations: Annotated[
        bool,
        typer.Option("--destinations", help="Ask the destinations of documents as well."),
    ] = False,
    last: Annotated[
        int, typer.Option(min=1, help="Over how many of the latest queries drift is looked for.")
    ] = 1000,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only what is not in order.")] = False,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> int:
    """Look for what is wrong with this installation.

    Nothing is changed, locked or repaired; a running service is asked. The exit code is 1 if there
    are errors, with --strict also if there are warnings.
    """
    found: list[Finding] = []
    try:
        settings = load_settings(data_dir=data_dir, model=model)
    except SettingsError as error:
        found.append(_of_settings(error))
        if not as_json:
            _write(found[0])
    else:
        # Imported here, as they load large libraries.
        from api.audit.checks import CHECKS as OF_AUDIT
        from indexer.doctor.checks import CHECKS
        from indexer.doctor.examined import Examined
        from indexer.doctor.running import findings

        examined = Examined(settings, last=last, destinations=destinations)
        try:
            for one in findings({**CHECKS, **OF_AUDIT}, examined):
                found.append(one)
                if not as_json and not (quiet and one.level == "ok"):
                    _write(one)
        finally:
            examined.close()
    levels = Counter(one.level for one in found)
    if as_json:
        write_json(
            {
                "version": __version__,
                "errors": levels["error"],
                "warnings": levels["warning"],
                "findings": [asdict(one) for one in found],
            }
        )
    else:
        typer.echo(
            f"{_so_many(levels['error'], 'error')}, {_so_many(levels['warning'], 'warning')}, "
            f"{levels['ok']} in order"
        )
    return int(levels["error"] > 0 or (strict and levels["warning"] > 0))


def _of_settings(error: SettingsError) -> "Finding":
    from indexer.doctor.finding import Finding, parted

    correct = "correct the setting, and look again"
    return Finding("settings", "error", "settings", *parted(error, correct))


def _write(found: "Finding") -> None:
    line = f"{found.level:<8} {found.thing}: {found.value}"
    typer.echo(line.encode("utf-8", "replace").decode())
    if found.way_out:
        typer.echo(f"         → {found.way_out}".encode("utf-8", "replace").decode())


def _so_many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
