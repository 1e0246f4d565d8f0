"""Migrates the ledger's tables from any earlier version to the current one, with Alembic.

To change the tables: change ``indexer/ledger/schema.py``, write the migration as the next file in
``versions``, and set HEAD to its revision. A migration that was released is never edited.
"""

from threading import Lock

from sqlalchemy import Connection, inspect, text

from engine.errors import LedgerError
from indexer.ledger.schema import metadata

__all__ = ["HEAD", "migrate", "revision_of"]

HEAD = "0008"
"""The newest revision."""

_FIRST = {
    "instances": (
        "locator size modified label state reason detail content study series sop patient "
        "seen_in finished_in finished_at"
    ),
    "points": "locator id frame",
    "runs": "run",
}
"""Tables, with their columns, of ledgers without a recorded revision."""

_one_at_a_time = Lock()
"""Alembic keeps its state in module variables, so threads migrate one at a time."""


def revision_of(connection: Connection) -> str | None:
    """The revision that the database records; None = it records none.

    Raises:
        DBAPIError: the table of revisions is missing.
    """
    revision: str | None = connection.execute(
        text("SELECT version_num FROM alembic_version")
    ).scalar()
    return revision


def migrate(connection: Connection, place: str) -> None:
    """Migrates the database to HEAD, within the open transaction of ``connection``.

    Args:
        place: how error messages name the database.

    Raises:
        LedgerError: it was made by a later version, or has tables that are no ledger's.
    """
    # Imported here: nearly every start finds nothing to migrate.
    from alembic.command import upgrade
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "indexer.ledger:migrations")
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    revision = _checked_revision(connection, place)
    if revision is not None and revision not in known:
        raise LedgerError(
            f"the ledger {place} was made by a later version of Precedent (its revision is "
            f"{revision}, this version knows up to {HEAD}); install that version or a later one"
        )
    with _one_at_a_time:
        upgrade(config, HEAD)


def _checked_revision(connection: Connection, place: str) -> str | None:
    """The database's revision; None if it has none, being empty or an early ledger."""
    if connection.dialect.name == "postgresql":
        encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
        if encoding != "UTF8":
            raise LedgerError(
                f"the database {place} has the encoding {encoding}, in which not every label "
                "can be written; create one with ENCODING 'UTF8'"
            )
    inspector = inspect(connection)
    tables = set(inspector.get_table_names())
    if "alembic_version" in tables:
        return revision_of(connection)
    foreign = tables & (set(metadata.tables) - set(_FIRST))
    for name in tables & set(_FIRST):
        if {column["name"] for column in inspector.get_columns(name)} != set(_FIRST[name].split()):
            foreign.add(name)
    if foreign:
        raise LedgerError(
            f"the database {place} has tables of that name that are no ledger's: "
            f"{', '.join(sorted(foreign))}; name an empty database"
        )
    return None
