"""``precedent keys …``: makes, lists and revokes the API keys of the service."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from api.cli.accesses import note, record_before
from api.cli.options import DataDirOption, JsonOption, write_json
from api.security.keys import REMEMBERED_SECONDS, ApiKey, Keys, end_of
from api.security.policy import Scope
from engine.settings import load_settings
from indexer.datadir.layout import DataDir
from indexer.ledger.database import open_database

__all__ = ["keys"]

keys = typer.Typer(help="Make, list and revoke the API keys of the service.", no_args_is_help=True)


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose it is, or what for.")],
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it allows; repeatable. 'search' unless given.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Whose images it sees.")] = "default",
    expires: Annotated[
        str | None, typer.Option(help="'90d' from now, or a date, as in 2031-12-31 (UTC).")
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and show it, this once: it is kept nowhere."""
    until = None if expires is None else end_of(expires, "--expires")
    with _keys(data_dir) as known:
        key, written = known.create(
            name,
            scope or [Scope.SEARCH],
            tenant=tenant,
            expires_at=until,
            announce=lambda key: record_before(**_named(key)),
        )
        note(**_named(key))
    if as_json:
        write_json({**_document(key), "key": written})
        return
    sys.stdout.write(f"{written}\n")
    Console(stderr=True).print(
        f"This is the only time that key {key.id} is shown. `precedent keys revoke {key.id}` "
        "ends it.",
        soft_wrap=True,
        highlight=False,
    )


@keys.command("list")
def list_(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """All keys, without their secrets, oldest first."""
    with _keys(data_dir) as known:
        found = known.all()
    if as_json:
        write_json({"keys": [_document(key) for key in found]})
        return
    table = Table("key", "name", "tenant", "scopes", "made", "state")
    for key in found:
        row = (key.id, key.name, key.tenant, " ".join(sorted(key.scopes)))
        table.add_row(*row, f"{key.created_at:%Y-%m-%d}", _state(key))
    Console().print(table)


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Its id, as `precedent keys list` has it.")],
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a key; from when this returns, every service refuses it."""
    with _keys(data_dir) as known:
        record_before(key=known.named(key).id)
        ended = known.revoke(key)
        note(key=ended.id)
    # Until no service remembers it.
    time.sleep(REMEMBERED_SECONDS)
    if as_json:
        write_json(_document(ended))
    else:
        Console().print(f"key {ended.id} is revoked", highlight=False)


@contextmanager
def _keys(data_dir: Path | None) -> Iterator[Keys]:
    settings = load_settings(data_dir=data_dir)
    with open_database(settings, DataDir(settings.data_dir).ledger) as database:
        yield Keys(database)


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d %H:%M}"
    if key.expires_at is None:
        return "valid"
    word = "valid until" if key.holds(datetime.now(UTC)) else "expired"
    return f"{word} {key.expires_at:%Y-%m-%d %H:%M}"


def _named(key: ApiKey) -> dict[str, Any]:
    return {"key": key.id, "scopes": sorted(key.scopes), "tenant": key.tenant}


def _document(key: ApiKey) -> dict[str, Any]:
    times = {name: getattr(key, name) for name in ("created_at", "expires_at", "revoked_at")}
    return {
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        **{name: None if at is None else at.isoformat() for name, at in times.items()},
    }
