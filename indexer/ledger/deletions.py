"""Which instances were deleted on purpose, so that indexing their source leaves them out.

A place may name a patient, and a hash of it can be found by trying places. So the hash is keyed:
who has only the database learns nothing from it. Earlier versions noted it without a key.
"""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from itertools import islice

from sqlalchemy import Connection, delete, select

from indexer.ledger.schema import deleted
from indexer.ledger.tenancy import TenantDatabase
from indexer.sources.base import Discovered

__all__ = ["note_deleted", "without_deleted"]

_AT_ONCE = 400


def note_deleted(database: TenantDatabase, locators: Iterable[str]) -> None:
    """Records that these instances were deleted.

    Raises:
        LedgerError: the database cannot be written.
    """
    key = database.key()
    hashes = iter(sorted({_keyed(locator, key) for locator in locators}))
    with database.begin() as connection:
        while some := list(islice(hashes, _AT_ONCE)):
            connection.execute(
                database.insert(deleted).on_conflict_do_nothing(),
                [{"tenant": database.tenant, "locator_sha256": one} for one in some],
            )


def without_deleted(
    database: TenantDatabase, connection: Connection, items: Sequence[Discovered], *, again: bool
) -> list[Discovered]:
    """Those of ``items`` that the tenant has not deleted, in order.

    connection: of a transaction of ``database``.
    again: they are wanted again: all are returned, and their deletions forgotten.
    """
    key = database.key()
    hashes = {item.locator: {_hash(item.locator), _keyed(item.locator, key)} for item in items}
    gone: set[str] = set()
    for start in range(0, len(items), _AT_ONCE):
        some = [one for item in items[start : start + _AT_ONCE] for one in hashes[item.locator]]
        column, own = deleted.c.locator_sha256, database.own(deleted)
        if again:
            connection.execute(delete(deleted).where(own, column.in_(some)))
        else:
            gone |= set(connection.execute(select(column).where(own, column.in_(some))).scalars())
    return [item for item in items if not hashes[item.locator] & gone]


def _hash(locator: str) -> str:
    return hashlib.sha256(_bytes(locator)).hexdigest()


def _keyed(locator: str, key: bytes) -> str:
    if not key:
        return _hash(locator)
    return hmac.new(key, b"deleted\0" + _bytes(locator), hashlib.sha256).hexdigest()


def _bytes(locator: str) -> bytes:
    return locator.encode("utf-8", "surrogateescape")
