"""API keys: random secrets behind public ids, kept as hashes in the ledger's database.

A key is written ``prc_ID_SECRET``. The secret has 256 random bits, so a plain SHA-256 of it gives
nothing away, and is quick enough to be checked with every request.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import Row, insert, select, update

from api.security.policy import Scope
from engine.errors import AccessError, KeyNotFound, NotAuthenticated
from engine.tenants import DEFAULT_TENANT, is_tenant
from indexer.ledger.database import Database
from indexer.ledger.schema import keys

__all__ = ["REMEMBERED_SECONDS", "ApiKey", "Keys", "end_of", "public_id"]

REMEMBERED_SECONDS = 0.25
"""A service does not look a key up again for so long after it was found to hold."""
_WRITTEN = re.compile(r"prc_([0-9a-f]{16})_([A-Za-z0-9_-]{43})", re.ASCII)
_NOBODY = "0" * 64


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret. created_at, expires_at, revoked_at: UTC; None = never."""

    id: str
    name: str
    tenant: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def holds(self, at: datetime) -> bool:
        """Whether the key is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


def _now() -> datetime:
    return datetime.now(UTC)


class Keys:
    """The keys in a database. Every process that has it open sees a change at once: nothing is
    remembered here.

    Args:
        database: the ledger's.
        clock: the time, UTC.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime] = _now) -> None:
        self._database = database
        self._clock = clock

    def create(
        self,
        name: str,
        scopes: Sequence[Scope],
        *,
        tenant: str = DEFAULT_TENANT,
        expires_at: datetime | None = None,
        announce: Callable[[ApiKey], object] = lambda _: None,
    ) -> tuple[ApiKey, str]:
        """A new key, and the text that is its only copy.

        Args:
            announce: is told of the key before there is one; if it raises, there is none.

        Raises:
            AccessError: no scope, no name, an ill-formed tenant, or an end that has passed.
        """
        now = self._clock()
        if not name.strip() or len(name) > 200 or not name.isprintable():
            raise AccessError("a key needs a name of 1 to 200 characters, to be told by")
        if not scopes:
            raise AccessError(f"a key needs a scope; use one or more of {', '.join(Scope)}")
        if not is_tenant(tenant):
            raise AccessError(
                f"{tenant[:80]!r} is no tenant; use up to 64 letters, digits, '.', '_' and '-'"
            )
        if expires_at is not None and expires_at <= now:
            raise AccessError(f"{expires_at.isoformat()} has passed; name a time to come")
        key = ApiKey(secrets.token_hex(8), name, tenant, frozenset(scopes), now, expires_at)
        announce(key)
        secret = secrets.token_urlsafe(32)
        row = {
            "id": key.id,
            "name": name,
            "digest": _digest(secret),
            "scopes": " ".join(sorted(key.scopes)),
            "tenant": tenant,
            "created_at": now.isoformat(),
            "expires_at": None if expires_at is None else expires_at.isoformat(),
        }
        with self._database.begin() as connection:
            connection.execute(insert(keys).values(row))
        return key, f"prc_{key.id}_{secret}"

    def all(self) -> list[ApiKey]:
        """All keys ever made, oldest first."""
        with self._database.begin(read=True) as connection:
            rows = connection.execute(select(keys).order_by(keys.c.created_at, keys.c.id)).all()
        return [_key(row) for row in rows]

    def exist(self) -> bool:
        """Whether a key was ever made. Revoked and expired ones count: a service whose last key
        has ended must not open itself to everybody."""
        with self._database.begin(read=True) as connection:
            return connection.execute(select(keys.c.id).limit(1)).first() is not None

    def named(self, key_id: str) -> ApiKey:
        """The key with this id, whether or not it holds. Raises KeyNotFound if there is none."""
        key = self.find(key_id)
        if key is None:
            raise _no_key(key_id)
        return key

    def revoke(self, key_id: str) -> ApiKey:
        """Ends a key; one that was revoked before keeps its time. Raises KeyNotFound if there is
        no such key."""
        now = self._clock()
        with self._database.begin() as connection:
            row = connection.execute(select(keys).where(keys.c.id == key_id)).first()
            if row is None:
                raise _no_key(key_id)
            if row.revoked_at is not None:
                return _key(row)
            connection.execute(
                update(keys).where(keys.c.id == key_id).values(revoked_at=now.isoformat())
            )
        return replace(_key(row), revoked_at=now)

    def find(self, key_id: str) -> ApiKey | None:
        """The key with this id, whether or not it holds; None = there is none."""
        with self._database.begin(read=True) as connection:
            row = connection.execute(select(keys).where(keys.c.id == key_id)).first()
        return None if row is None else _key(row)

    def holding(self, key_id: str) -> ApiKey | None:
        """The key with this id, if it is neither revoked nor expired."""
        key = self.find(key_id)
        return key if key is not None and key.holds(self._clock()) else None

    def authenticated(self, written: str) -> ApiKey:
        """The key that this text is.

        Raises:
            NotAuthenticated: it is malformed, unknown, expired or revoked; the message is the same
                for all of these.
        """
        match = _WRITTEN.fullmatch(written)
        row = None
        if match is not None:
            with self._database.begin(read=True) as connection:
                row = connection.execute(select(keys).where(keys.c.id == match[1])).first()
        digest = _digest("" if match is None else match[2])
        same = hmac.compare_digest(digest, _NOBODY if row is None else row.digest)
        if row is None or not same or not (key := _key(row)).holds(self._clock()):
            raise NotAuthenticated(
                "this key is not valid: it is unknown, expired or revoked; `precedent keys create` "
                "makes one"
            )
        return key


def end_of(written: str, option: str = "expires", now: datetime | None = None) -> datetime:
    """When a key ends that is to end then, UTC.

    Args:
        written: days from now, as in "90d", or a date or time, as in "2031-12-31"; UTC, unless it
            says otherwise.
        option: what the text was given as, for the message.
        now: None = the time it is.

    Raises:
        AccessError: the text is neither of them.
    """
    now = _now() if now is None else now
    try:
        if match := re.fullmatch(r"([0-9]{1,5})d", written):
            return now + timedelta(days=int(match[1]))
        found = datetime.fromisoformat(written)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise AccessError(
            f"{option} is {written[:80]!r}; write it as in 90d or 2031-12-31"
        ) from None


def _no_key(key_id: str) -> KeyNotFound:
    return KeyNotFound(f"there is no key {key_id[:80]!r}; `precedent keys list` has their ids")


def public_id(written: str) -> str | None:
    """The public id of the key that this text claims to be; None = it is no key's form."""
    match = _WRITTEN.fullmatch(written)
    return None if match is None else match[1]


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _time(written: str | None) -> datetime | None:
    return None if written is None else datetime.fromisoformat(written)


def _key(row: Row[*tuple[object, ...]]) -> ApiKey:
    return ApiKey(
        row.id,
        row.name,
        row.tenant,
        # A scope of a later version allows nothing here.
        frozenset(Scope(one) for one in row.scopes.split() if one in set(Scope)),
        datetime.fromisoformat(row.created_at),
        _time(row.expires_at),
        _time(row.revoked_at),
    )
