"""Which instance a point belongs to when several files have it."""

from collections.abc import Iterable
from threading import Lock

from indexer.ledger.instances import Done, Ledger, Owner, Refused

__all__ = ["Claims"]


class Claims:
    """Which instance each point belongs to, by the ledger or on the way there."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._unrecorded: dict[str, Owner] = {}
        self._lock = Lock()

    def claim(self, instances: list[Done]) -> list[str | None]:
        """For each instance, in order: None when its points are its own to write now, else
        the content (sha256) of the instance that has them. Who comes first has them."""
        with self._lock:
            ids = [point_id for done in instances for point_id, _ in done.points]
            recorded = self._ledger.owners(ids, done_only=True)
            return [self._claim(done, recorded) for done in instances]

    def _claim(self, done: Done, recorded: dict[str, list[Owner]]) -> str | None:
        for point_id, _ in done.points:
            unrecorded = self._unrecorded.get(point_id)
            for owner in (*([unrecorded] if unrecorded else []), *recorded.get(point_id, [])):
                if owner.locator != done.locator:
                    return owner.content
        for point_id, _ in done.points:
            self._unrecorded[point_id] = Owner(done.locator, done.content)
        return None

    def release(self, outcomes: Iterable[Done | Refused]) -> None:
        """Forgets the claims that the ledger now knows."""
        with self._lock:
            for outcome in outcomes:
                for point_id, _ in outcome.points if isinstance(outcome, Done) else ():
                    held = self._unrecorded.get(point_id)
                    if held is not None and held.locator == outcome.locator:
                        del self._unrecorded[point_id]
