"""Sessions of the page of people whom an identity provider, or an EHR, knows.

They are kept as those of keys are, and end as they do, except that no key ends them. What somebody
may do is settled when they sign in.
"""

import hashlib
import secrets
from collections.abc import Callable, Collection
from datetime import UTC, datetime

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from api.security.oidc.identity import Identity
from api.security.policy import Scope
from api.security.sessions import ABSOLUTE, IDLE, NOTED_EVERY
from engine.errors import NotAuthenticated
from indexer.ledger.database import Database
from indexer.ledger.schema import oidc_sessions

__all__ = ["OidcSessions"]

_PREFIX = "oidc-"


def _now() -> datetime:
    return datetime.now(UTC)


class OidcSessions:
    """The sessions in a database.

    Args:
        database: the ledger's.
        believed: the providers, or the one; sessions by others are over.
        clock: the time, UTC.
    """

    def __init__(
        self,
        database: Database,
        believed: str | Collection[str],
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._database = database
        self._believed = {believed} if isinstance(believed, str) else set(believed)
        self._clock = clock

    @staticmethod
    def has(secret: str) -> bool:
        """Whether this is the secret of such a session, running or over."""
        return secret.startswith(_PREFIX)

    def begin(self, identity: Identity, sign_in: str, issuer: str | None = None) -> str:
        """The secret of a new session.

        Args:
            sign_in: the secret of the sign-in, which begins one session alone.
            issuer: the provider who knows them; None = there is but one.

        Raises:
            NotAuthenticated: it has begun one before.
        """
        if issuer is None:
            (issuer,) = self._believed
        secret, now = _PREFIX + secrets.token_urlsafe(32), self._clock()
        row = {
            "digest": _digest(secret),
            "sign_in": _digest(sign_in),
            "issuer": issuer,
            "subject": identity.id,
            "name": identity.name,
            "tenant": identity.tenant,
            "scopes": " ".join(sorted(identity.scopes)),
            "created_at": now.isoformat(),
            "seen_at": now.isoformat(),
        }
        over = oidc_sessions.c.created_at <= (now - ABSOLUTE).isoformat()
        with self._database.begin() as connection:
            connection.execute(delete(oidc_sessions).where(over))
            used = select(oidc_sessions.c.digest).where(oidc_sessions.c.sign_in == row["sign_in"])
            if connection.execute(used).first() is not None:
                raise NotAuthenticated("this sign-in is over; begin it again")
            try:
                connection.execute(insert(oidc_sessions).values(row))
            except IntegrityError:
                raise NotAuthenticated("this sign-in is over; begin it again") from None
        return secret

    def identity_of(self, secret: str) -> Identity | None:
        """Whose session it is; None = there is none, or it is over."""
        now, own = self._clock(), oidc_sessions.c.digest == _digest(secret)
        with self._database.begin(read=True) as connection:
            row = connection.execute(select(oidc_sessions).where(own)).first()
        if row is None or row.ended_at is not None or row.issuer not in self._believed:
            return None
        seen = datetime.fromisoformat(row.seen_at)
        if now >= seen + IDLE or now >= datetime.fromisoformat(row.created_at) + ABSOLUTE:
            return None
        if now >= seen + NOTED_EVERY:
            with self._database.begin() as connection:
                connection.execute(update(oidc_sessions).where(own).values(seen_at=now.isoformat()))
        scopes = frozenset(Scope(one) for one in row.scopes.split() if one in set(Scope))
        return Identity(row.subject, row.name, row.tenant, scopes)

    def end(self, secret: str) -> None:
        # The row stays for its time, so that the sign-in that began it cannot be used again.
        with self._database.begin() as connection:
            connection.execute(
                update(oidc_sessions)
                .where(oidc_sessions.c.digest == _digest(secret))
                .values(ended_at=self._clock().isoformat())
            )


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
