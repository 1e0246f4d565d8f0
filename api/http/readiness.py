"""Whether the service should be sent requests: what it needs answers, and it is not being ended."""

import threading
from collections.abc import Callable, Mapping

from engine.errors import PrecedentError

__all__ = ["Readiness"]


class Readiness:
    """What the service needs, by name.

    Args:
        checks: each raises a PrecedentError while what it checks is missing.
    """

    def __init__(self, checks: Mapping[str, Callable[[], None]]) -> None:
        self._checks = dict(checks)
        self._ending = threading.Event()

    @property
    def is_draining(self) -> bool:
        """Whether the service is about to end: requests are finished, no others should come."""
        return self._ending.is_set()

    def drain(self) -> None:
        """Says that the service is about to end."""
        self._ending.set()

    def missing(self) -> dict[str, PrecedentError]:
        """Why what is missing is missing, by name; empty = nothing is."""
        found: dict[str, PrecedentError] = {}
        for name, check in self._checks.items():
            try:
                check()
            except PrecedentError as error:
                found[name] = error
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """What is checked."""
        return tuple(self._checks)
