"""Decides which of several files with the same point id may write the point."""

from collections.abc import Iterable
from threading import Lock

from indexer.ledger.instances import Done, Ledger, Owner, Refused

__all__ = ["Claims"]


class Claims:
    """Claims on point ids by instances that are decided on, but not yet recorded in the ledger.

    A claim says that a point belongs to the first instance that had its id: that instance writes
    the point. Later ones with the same content are duplicates; with other content they conflict.
    A claim is held from the decision until the ledger has recorded the instance as the point's
    owner. Threads may share an object.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._unrecorded: dict[str, Owner] = {}
        self._lock = Lock()

    def claim(self, instances: list[Done]) -> list[str | None]:
        """Claims the points of these instances, in this order.

        Returns:
            For each instance None if it now owns all its points, else the content (sha256 hex) of
            the instance that owns one of them already.
        """
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
        """Drops the claims of these instances, which the ledger has now recorded."""
        with self._lock:
            for outcome in outcomes:
                for point_id, _ in outcome.points if isinstance(outcome, Done) else ():
                    held = self._unrecorded.get(point_id)
                    if held is not None and held.locator == outcome.locator:
                        del self._unrecorded[point_id]
