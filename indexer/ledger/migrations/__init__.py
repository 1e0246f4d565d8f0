"""Migrates the ledger's tables from any earlier version to the current one, with Alembic.

To change the tables: change ``indexer/ledger/schema.py``, write the migration as the next file in
``versions``, and set HEAD to its revision. A migration that was released is never edited.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

from sqlalchemy import Connection, MetaData, inspect, text

from engine.errors import LedgerError
from indexer.ledger.schema import metadata

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["HEAD", "LEDGER", "Tables", "migrate", "revision_of", "revisions"]

HEAD = "0009"
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


@dataclass(frozen=True, slots=True)
class Tables:
    """Tables that have a version of their own, whatever else is in the database.

    name: as error messages have it. location: package of the migrations, as Alembic writes it.
    head: the newest revision. version_table: the table that records the revision.
    early: tables, with their columns, of databases that record none.
    """

    name: str
    location: str
    head: str
    version_table: str
    metadata: MetaData
    early: Mapping[str, str] = field(default_factory=dict)


LEDGER = Tables(
    "ledger", "indexer.ledger:migrations", HEAD, "alembic_version", metadata, early=_FIRST
)

_one_at_a_time = Lock()
"""Alembic keeps its state in module variables, so threads migrate one at a time."""


def revision_of(connection: Connection, tables: Tables = LEDGER) -> str | None:
    """The revision that the database records; None = it records none.

    Raises:
        DBAPIError: the table of revisions is missing.
    """
    revision: str | None = connection.execute(
        text(f"SELECT version_num FROM {tables.version_table}")  # noqa: S608 - a name of ours
    ).scalar()
    return revision


def migrate(connection: Connection, place: str, tables: Tables = LEDGER) -> None:
    """Migrates the tables to their newest revision, within the open transaction of ``connection``.

    Args:
        place: how error messages name the database.

    Raises:
        LedgerError: it was made by a later version, or has tables of these names that are others.
    """
    # Imported here: nearly every start finds nothing to migrate.
    from alembic.command import upgrade

    config = _config(tables)
    config.attributes["connection"] = connection
    revision = _checked_revision(connection, place, tables)
    if revision is not None and revision not in revisions(tables):
        raise LedgerError(
            f"the {tables.name} {place} was made by a later version of Precedent (its revision is "
            f"{revision}, this version knows up to {tables.head}); install that version or a "
            "later one"
        )
    with _one_at_a_time:
        upgrade(config, tables.head)


def revisions(tables: Tables = LEDGER) -> frozenset[str]:
    """All revisions that this version knows."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_config(tables)).walk_revisions()
    return frozenset(script.revision for script in scripts)


def _config(tables: Tables) -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", tables.location)
    return config


def _checked_revision(connection: Connection, place: str, tables: Tables) -> str | None:
    """The database's revision; None if it has none, having no such tables or early ones."""
    if connection.dialect.name == "postgresql":
        encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
        if encoding != "UTF8":
            raise LedgerError(
                f"the database {place} has the encoding {encoding}, in which not every label "
                "can be written; create one with ENCODING 'UTF8'"
            )
    inspector = inspect(connection)
    found = set(inspector.get_table_names())
    if tables.version_table in found:
        return revision_of(connection, tables)
    foreign = found & (set(tables.metadata.tables) - set(tables.early))
    for name in found & set(tables.early):
        columns = {column["name"] for column in inspector.get_columns(name)}
        if columns != set(tables.early[name].split()):
            foreign.add(name)
    if foreign:
        raise LedgerError(
            f"the database {place} has tables of that name that are no {tables.name}'s: "
            f"{', '.join(sorted(foreign))}; name an empty database"
        )
    return None
