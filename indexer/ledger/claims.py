"""Decides which of several files with the same point id may write the point."""

from collections.abc import Iterable
from threading import Lock

from engine.errors import RefusalReason
from indexer.files.locators import shown
from indexer.ledger.instances import Done, Ledger, Owner, Refused

__all__ = ["Claims", "conflict", "is_same_picture"]


def is_same_picture(done: Done, owner: Owner) -> bool:
    """Whether both have the same content, or the same pixels encoded in another way."""
    return done.content == owner.content or (
        done.pixels is not None and done.pixels == owner.pixels
    )


def conflict(done: Done, owner: Owner) -> Refused:
    """The refusal of an instance whose SOP Instance UID another one has, with another picture."""
    # On one line, whatever the name of the file.
    other = "".join(one if one.isprintable() else "\ufffd" for one in shown(owner.locator))
    lacking = "" if owner.partial is None else f" and lacks some ({owner.partial})"
    return Refused(
        done.locator,
        RefusalReason.CONFLICTING_UID,
        f"SOP Instance UID {done.sop} is indexed from {other}, which shows another picture"
        f"{lacking}; find out which of the two is right and remove the other",
        done.sop,
    )


class Claims:
    """Claims on point ids by instances that are decided on, but not yet recorded in the ledger.

    A claim says that a point belongs to the first instance that had its id: that instance writes
    the point. Later ones with the same content, or the same pixels in another encoding, are
    duplicates; others conflict.
    A claim is held from the decision until the ledger has recorded the instance as the point's
    owner. Threads may share an object.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._unrecorded: dict[str, Owner] = {}
        self._lock = Lock()

    def claim(self, instances: list[Done]) -> list[Owner | None]:
        """Claims the points of these instances, in this order.

        Returns:
            For each instance None if it now owns all its points, else the instance that owns one
            of them already.
        """
        with self._lock:
            ids = [point_id for done in instances for point_id, _ in done.points]
            recorded = self._ledger.owners(ids, done_only=True)
            return [self._claim(done, recorded) for done in instances]

    def _claim(self, done: Done, recorded: dict[str, list[Owner]]) -> Owner | None:
        for point_id, _ in done.points:
            unrecorded = self._unrecorded.get(point_id)
            for owner in (*([unrecorded] if unrecorded else []), *recorded.get(point_id, [])):
                if owner.locator != done.locator:
                    return owner
        for point_id, _ in done.points:
            self._unrecorded[point_id] = Owner(
                done.locator, done.content, pixels=done.pixels, partial=done.partial
            )
        return None

    def release(self, outcomes: Iterable[Done | Refused]) -> None:
        """Drops the claims of these instances, which the ledger has now recorded."""
        with self._lock:
            for outcome in outcomes:
                for point_id, _ in outcome.points if isinstance(outcome, Done) else ():
                    held = self._unrecorded.get(point_id)
                    if held is not None and held.locator == outcome.locator:
                        del self._unrecorded[point_id]
