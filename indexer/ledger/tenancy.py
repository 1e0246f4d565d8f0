"""The ledger as one tenant sees it: no statement without the tenant as its condition is executed.

Who has a :class:`TenantDatabase` names the tenant once. Each statement then states it for every
table that holds what belongs to tenants, ``own(table)``; one that does not is refused before it
reaches the database.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, Table, select

from engine.tenants import DEFAULT_TENANT
from indexer.ledger.schema import jobs

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

    from indexer.ledger.database import Database

__all__ = ["TenantDatabase", "all_tenants", "refuse_untenanted"]

_OWNED = ("instances", "points", "stale", "deleted", "jobs")
"""Tables whose rows belong to a tenant. Those of tasks and manifests belong to a job."""
_READ = re.compile(
    r"\bFROM\b(.*?)(?=\b(?:WHERE|GROUP BY|ORDER BY|LIMIT|FROM|RETURNING)\b|\Z)", re.DOTALL
)
"""What a statement reads or deletes from: tables, joined or with commas between them."""
_TABLE = re.compile(rf"(?<![.\w])({'|'.join(_OWNED)})(?:\s+AS\s+(\w+))?(?![.\w])")
_WRITTEN = re.compile(rf"\b(INTO|UPDATE)\s+({'|'.join(_OWNED)})\b")
_BOUND = ("tenant", "whose")
"""What the parameters begin with that hold a tenant."""


class TenantDatabase:
    """A tenant's share of the ledger's database.

    Args:
        database: is left open.
        tenant: whose rows there are, as far as anybody can tell from here.
    """

    def __init__(self, database: "Database", tenant: str) -> None:
        self._database = database
        self.tenant = tenant
        self.dialect = database.dialect

    def key(self) -> bytes:
        """The key of hashes that nobody is to find by trying; see ``Database``."""
        return self._database.key()

    @contextmanager
    def begin(self, *, read: bool = False) -> Iterator[Connection]:
        """As of a ``Database``, but a statement that leaves out the tenant raises ValueError."""
        with self._database.begin(read=read, tenant=self.tenant) as connection:
            yield connection

    def insert(self, table: Table) -> "sqlite.Insert | postgresql.Insert":
        """An INSERT that can say what to do on a conflict."""
        return self._database.insert(table)

    def own(self, *tables: Any) -> ColumnElement[bool]:
        """Condition: the rows of these tables, or aliases of tables, are the tenant's."""
        first, *others = (table.c.tenant == self.tenant for table in tables)
        for one in others:
            first &= one
        return first  # type: ignore[no-any-return]


def all_tenants(database: "Database") -> list[str]:
    """The tenants that ever had something indexed, ordered; as long as none had, the default one.

    Each instance was seen by a run or a job of its tenant, and there are few of these.
    """
    with database.begin(read=True) as connection:
        found = set(connection.execute(select(jobs.c.tenant).distinct()).scalars())
    return sorted(found or {DEFAULT_TENANT})


def refuse_untenanted(statement: str, parameters: Any, tenant: str) -> None:
    """Checks a statement that is about to be executed for a tenant.

    Args:
        statement: SQL. parameters: by name, of its first execution.

    Raises:
        ValueError: it does not state the tenant for one of the tables, or states another one.
    """
    if (table := _left_out(statement)) is not None:
        raise ValueError(f"a statement on {table} leaves out the tenant: {statement}")
    for name, value in parameters.items():
        if name.startswith(_BOUND) and value != tenant:
            raise ValueError(f"a statement of another tenant than {tenant!r}: {statement}")


@lru_cache(maxsize=1024)
def _left_out(statement: str) -> str | None:
    """The first table for which the statement states no tenant; None = it does for all of them."""
    for clause in _READ.findall(statement):
        for table, alias in _TABLE.findall(clause):
            if not _states(alias or table, statement):
                return str(table)
    for verb, table in _WRITTEN.findall(statement):
        inserts = verb == "INTO" and re.search(r"\([^)]*\btenant\b", statement) is not None
        if not inserts and not _states(table, statement):
            return str(table)
    return None


def _states(table: str, statement: str) -> bool:
    """Whether a condition compares the tenant of the table, or of the alias of one."""
    return re.search(rf"\b{table}\.tenant =", statement) is not None
