"""Removes instances from index, thumbnails and ledger."""

from collections.abc import Sequence

from engine.store.base import Filter, Ids, VectorStore
from indexer.datadir.layout import DataDir
from indexer.imaging.thumbnails import delete_thumbnail
from indexer.ledger.instances import Ledger

__all__ = ["delete_stale_points", "points_only_of", "remove", "remove_points"]

_DELETED_AT_ONCE = 1000


def remove(locators: Sequence[str], ledger: Ledger, store: VectorStore, data_dir: DataDir) -> int:
    """Removes instances from index, thumbnails and ledger; returns how many points were removed.

    A point that another instance also has stays. The ledger is changed last, so that a removal
    that was cut short can be repeated.
    """
    gone = points_only_of(locators, ledger)
    remove_points(gone, store, data_dir)
    ledger.forget(locators)
    return len(gone)


def points_only_of(locators: Sequence[str], ledger: Ledger) -> list[str]:
    """The ids of the points that only these instances have."""
    ids = {i for found in ledger.points_of(locators).values() for i in found}
    leaving = set(locators)
    return [
        point_id
        for point_id, owners in ledger.owners(sorted(ids)).items()
        if all(owner.locator in leaving for owner in owners)
    ]


def remove_points(ids: Sequence[str], store: VectorStore, data_dir: DataDir) -> None:
    """Removes points and their thumbnails for good."""
    if ids:
        store.delete(Filter(must=(Ids(tuple(ids)),)))
        store.flush()
    for point_id in ids:
        delete_thumbnail(data_dir.thumbnails, point_id)


def delete_stale_points(ledger: Ledger, store: VectorStore, data_dir: DataDir) -> int:
    """Deletes stale points, those of earlier file contents that no instance has any more, from
    index and thumbnails; returns how many. Nothing else may write to the archive meanwhile."""
    deleted = 0
    while gone := ledger.stale(_DELETED_AT_ONCE):
        remove_points(gone, store, data_dir)
        ledger.forget_stale(gone)
        deleted += len(gone)
    return deleted
