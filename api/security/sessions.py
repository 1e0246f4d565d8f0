"""Sessions of the page: begun with an API key, and over when the key is.

The browser has a random secret in a cookie, and the ledger's database the SHA-256 of it: a session
holds in every process, and whoever reads the database cannot take it over.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, insert, select, update

from api.security.keys import ApiKey, Keys
from indexer.ledger.database import Database
from indexer.ledger.schema import sessions

__all__ = ["ABSOLUTE", "IDLE", "NOTED_EVERY", "Sessions", "csrf_token"]

IDLE = timedelta(minutes=30)
"""A session that was not used for so long is over …"""
ABSOLUTE = timedelta(hours=12)
"""… and so is one that is so old."""
NOTED_EVERY = timedelta(minutes=1)
"""How exactly it is noted when a session was last used."""


def csrf_token(secret: str) -> str:
    """What the forms of a session carry: other sites cannot know it, nor get the secret by it."""
    return hmac.new(secret.encode(), b"form", hashlib.sha256).hexdigest()


def _now() -> datetime:
    return datetime.now(UTC)


class Sessions:
    """The sessions in a database.

    Args:
        database: the ledger's.
        clock: the time, UTC.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime] = _now) -> None:
        self._database = database
        self._keys = Keys(database, clock)
        self._clock = clock

    def begin(self, written: str) -> tuple[str, ApiKey]:
        """The secret of a new session of this key, and the key.

        Raises:
            NotAuthenticated: it is none, or does not hold.
        """
        key = self._keys.authenticated(written)
        secret, now = secrets.token_urlsafe(32), self._clock()
        c = sessions.c
        row = {
            "digest": _digest(secret),
            "key": key.id,
            "created_at": now.isoformat(),
            "seen_at": now.isoformat(),
        }
        with self._database.begin() as connection:
            over = (c.seen_at <= (now - IDLE).isoformat()) | (
                c.created_at <= (now - ABSOLUTE).isoformat()
            )
            connection.execute(delete(sessions).where(over))
            connection.execute(insert(sessions).values(row))
        return secret, key

    def key_of(self, secret: str) -> ApiKey | None:
        """The key of a session; None = there is none, it is over, or its key does not hold."""
        now, digest = self._clock(), _digest(secret)
        with self._database.begin(read=True) as connection:
            row = connection.execute(select(sessions).where(sessions.c.digest == digest)).first()
        if row is None:
            return None
        seen = datetime.fromisoformat(row.seen_at)
        if now >= seen + IDLE or now >= datetime.fromisoformat(row.created_at) + ABSOLUTE:
            return None
        key = self._keys.find(row.key)
        if key is None or not key.holds(now):
            return None
        if now >= seen + NOTED_EVERY:
            with self._database.begin() as connection:
                noted = update(sessions).where(sessions.c.digest == digest)
                connection.execute(noted.values(seen_at=now.isoformat()))
        return key

    def end(self, secret: str) -> None:
        with self._database.begin() as connection:
            connection.execute(delete(sessions).where(sessions.c.digest == _digest(secret)))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
