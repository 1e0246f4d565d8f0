"""The keys of one tenant, as the tenant's administrators list, make and revoke them."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime

from api.security.keys import REMEMBERED_SECONDS, ApiKey, Keys
from api.security.policy import Scope
from engine.errors import KeyNotFound, NotAllowed

__all__ = ["TenantKeys"]


class TenantKeys:
    """The keys of a tenant. To whoever has this, those of others are not there.

    Args:
        keys: of all tenants.
    """

    def __init__(self, keys: Keys, tenant: str) -> None:
        self._keys = keys
        self._tenant = tenant

    def all(self) -> list[ApiKey]:
        """The tenant's keys, oldest first."""
        return [key for key in self._keys.all() if key.tenant == self._tenant]

    def named(self, key_id: str) -> ApiKey:
        """The key with this id, whether or not it holds. Raises KeyNotFound: there is none."""
        key = self._keys.find(key_id)
        if key is None or key.tenant != self._tenant:
            raise KeyNotFound(f"there is no key {key_id[:80]!r}; the list of keys has their ids")
        return key

    def create(
        self,
        name: str,
        scopes: Sequence[Scope],
        giver: frozenset[Scope],
        *,
        expires_at: datetime | None = None,
        announce: Callable[[ApiKey], object],
    ) -> tuple[ApiKey, str]:
        """A new key of the tenant, and the text that is its only copy.

        Args:
            giver: the scopes of whoever makes it, who gives no others.
            announce: see :meth:`Keys.create`.

        Raises:
            NotAllowed: it would have a scope that its giver lacks. Else as :meth:`Keys.create`.
        """
        lacking = sorted({*scopes} - giver)
        if lacking:
            raise NotAllowed(
                f"this credential lacks {', '.join(lacking)}, and makes no key that may do more "
                "than itself; `precedent keys create` makes one"
            )
        return self._keys.create(
            name, scopes, tenant=self._tenant, expires_at=expires_at, announce=announce
        )

    def revoke(self, key_id: str, announce: Callable[[ApiKey], object]) -> ApiKey:
        """Ends a key, and returns when every process refuses it. One that was revoked before keeps
        its time.

        Args:
            announce: is told of the key before it ends; if it raises, it does not.

        Raises:
            KeyNotFound: the tenant has none of this id.
        """
        announce(self.named(key_id))
        ended = self._keys.revoke(key_id)
        time.sleep(REMEMBERED_SECONDS)
        return ended
