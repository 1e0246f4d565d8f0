"""Large tables: rows that the code under test has written, copied many times by the database."""

from collections.abc import Mapping

from sqlalchemy import Table, text

from indexer.ledger.database import Database

__all__ = ["analyse", "multiply"]


def multiply(
    database: Database, table: Table, times: int, changed: Mapping[str, str], only: str = "true"
) -> None:
    """Adds each row of a table so often that there are ``times`` of it.

    Args:
        changed: column → SQL of what a copy has there; ``x`` is its number, from 1.
        only: SQL condition of the rows to copy.
    """
    names = [column.name for column in table.columns]
    values = [changed.get(name, f"{table.name}.{name}") for name in names]
    with database.begin() as connection:
        # Filled at once, which is quicker.
        for index in table.indexes:
            index.drop(connection)
        connection.execute(
            text(
                f"INSERT INTO {table.name} ({', '.join(names)}) "
                "WITH RECURSIVE copies(x) AS "
                "(SELECT 1 UNION ALL SELECT x + 1 FROM copies WHERE x < :last) "
                f"SELECT {', '.join(values)} FROM {table.name} CROSS JOIN copies WHERE {only}"
            ),
            {"last": times - 1},
        )
        for index in table.indexes:
            index.create(connection)


def analyse(database: Database) -> None:
    """As the database does by itself, some time after many rows were written."""
    with database.begin() as connection:
        connection.execute(text("ANALYZE"))
