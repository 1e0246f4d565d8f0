"""Brings an archive up to this release: one stored thing after another, each of them whole."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import text

from engine.errors import LedgerError, StoreError, StoreLocked
from engine.locks import is_held
from engine.settings import Settings
from indexer.datadir.layout import DataDir
from indexer.datadir.write_lock import exchanging
from indexer.ledger.database import Database
from indexer.ledger.migrations import LEDGER, Tables
from indexer.upgrade.inventory import Stored, index_folders, inventory, ledger_place

__all__ = ["bring_up"]

_PATIENCE_SECONDS = 2.0


def bring_up(
    settings: Settings,
    audit: tuple[Tables, Path | None],
    done: Callable[[Stored], None] = lambda _: None,
) -> list[Stored]:
    """Brings up what an earlier release stored; returns what that was.

    Each step is whole or was not begun, and leaves nothing that the next call does not find: after
    a kill at any moment it goes on. The version of the data folder is noted last.

    Args:
        audit: as for ``inventory``.
        done: called after each step.

    Raises:
        StoreError: something is refused, and then nothing was changed; or a step failed.
        StoreLocked: a process uses the archive. LedgerError: a database cannot be migrated.
    """
    data_dir = DataDir(settings.data_dir)
    found = inventory(settings, audit)
    _refuse_later(found)
    wanted = [one for one in found if one.outcome in ("migrated", "rebuilt")]
    if not wanted:
        return []
    with _alone(settings, data_dir):
        # The folder is what says that the archive is of this release, so it comes last.
        for one in sorted(wanted, key=lambda one: one.thing == "data folder"):
            _bring(one, settings, data_dir, audit)
            done(one)
    return wanted


def _refuse_later(found: list[Stored]) -> None:
    refused = [one for one in found if one.outcome == "refused"]
    if refused:
        told = "; ".join(
            f"{one.thing} {one.place} has version {one.found or 'unknown'}, this release writes "
            f"{one.known}: {one.how}"
            for one in refused
        )
        raise StoreError(f"nothing was changed: {told}")


def _bring(
    one: Stored, settings: Settings, data_dir: DataDir, audit: tuple[Tables, Path | None]
) -> None:
    ledger = ledger_place(settings, data_dir)
    tables, file = audit
    if one.thing == LEDGER.name:
        Database(ledger).close()
    elif one.thing == tables.name:
        Database(ledger if file is None else f"sqlite:///{file}", tables).close()
    elif one.thing in ("index", "columns"):
        from engine.store.edge import EdgeStore

        for folder in index_folders(data_dir):
            if Path(one.place) == folder or folder in Path(one.place).parents:
                EdgeStore.open(folder).close()
    elif one.thing == "data folder":
        data_dir.make()


@contextmanager
def _alone(settings: Settings, data_dir: DataDir) -> Iterator[None]:
    """A block during which nobody else writes.

    Raises:
        StoreLocked: somebody is at the archive.
    """
    if settings.store.url is None:
        from engine.store.holder import Holder

        for folder in index_folders(data_dir):
            if is_held(folder.with_name(f"{folder.name}.lock")):
                holder = Holder.noted(folder.with_name(f"{folder.name}.pid"))
                raise StoreLocked(
                    f"{folder} is open in another process ({holder}); stop it, and run the command "
                    "again"
                )
    if others := _others(settings):
        raise StoreLocked(
            f"the ledger is open in other processes of Precedent ({', '.join(others)}); stop "
            "services and workers on all machines, and run the command again"
        )
    if not data_dir.root.is_dir():
        yield
        return
    entered = False
    try:
        with exchanging(data_dir.root, _PATIENCE_SECONDS):
            entered = True
            yield
    except TimeoutError:
        if entered:
            raise
        raise StoreLocked(
            f"a process writes into {data_dir.root}; wait for its end or stop it, and run the "
            "command again"
        ) from None


def _others(settings: Settings) -> list[str]:
    """The other processes of Precedent that have a ledger in PostgreSQL open, as it says."""
    url = settings.ledger.url
    if url is None or url.get_secret_value().startswith("sqlite"):
        return []
    asked = text(
        "SELECT coalesce(host(client_addr), 'this machine'), to_char(backend_start, "
        "'YYYY-MM-DD HH24:MI:SS') FROM pg_stat_activity WHERE application_name = 'precedent' "
        "AND datname = current_database() AND pid <> pg_backend_pid() ORDER BY backend_start"
    )
    with (
        suppress(LedgerError),
        Database(url.get_secret_value(), reads_only=True) as database,
        database.begin(read=True) as connection,
    ):
        return [f"from {host} since {since}" for host, since in connection.execute(asked)]
    return []
