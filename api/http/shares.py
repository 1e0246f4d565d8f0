"""Places of which no tenant may have more than a share, so that one cannot keep the others out."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Shares"]


class Shares:
    """So many places, of which a tenant has a part at most.

    Args:
        places: how many there are for all tenants together.
        of_one: how many of them a tenant may have at a time.
        full: makes the error for whoever gets none. own: whether it is the tenant's own part that
            is used up.
    """

    def __init__(self, places: int, of_one: int, full: Callable[[bool], Exception]) -> None:
        self._places = places
        self._of_one = of_one
        self._full = full
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def check(self, tenant: str) -> None:
        """Raises the error that there is no place, if there is none now."""
        with self._lock:
            self._check(tenant)

    def take(self, tenant: str, *, anyway: bool = False) -> None:
        """Takes a place, or raises the error that there is none.

        Args:
            anyway: take one even so: it was checked a moment ago.
        """
        with self._lock:
            if not anyway:
                self._check(tenant)
            self._taken[tenant] += 1

    def _check(self, tenant: str) -> None:
        own = self._taken[tenant] >= self._of_one
        if own or self._taken.total() >= self._places:
            raise self._full(own)

    def give_back(self, tenant: str) -> None:
        """Gives a place back that was taken."""
        with self._lock:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]

    @contextmanager
    def held(self, tenant: str) -> Iterator[None]:
        """A place for the block; see :meth:`take`."""
        self.take(tenant)
        try:
            yield
        finally:
            self.give_back(tenant)
