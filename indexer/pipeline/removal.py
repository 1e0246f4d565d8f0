"""Removes instances from index, thumbnails and ledger."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.errors import SourceError
from engine.store.base import Filter, Ids, VectorStore
from indexer.datadir.layout import DataDir
from indexer.datadir.write_lock import removing, sweeping
from indexer.files.locators import shown
from indexer.imaging.thumbnails import Thumbnails
from indexer.ledger.instances import Ledger

__all__ = [
    "TooManyVanished",
    "Vanished",
    "delete_stale_points",
    "points_only_of",
    "remove",
    "remove_points",
    "remove_vanished",
]

_DELETED_AT_ONCE = 1000
_NAMED = 10
_SWEEP_PATIENCE_S = 30.0


class TooManyVanished(SourceError):
    """So many instances vanished from a source that it may not be there as a whole."""


@dataclass(frozen=True, slots=True)
class Vanished:
    """Instances that were removed because their source no longer has them.

    first: the first of them, as paths or addresses for people.
    """

    count: int = 0
    first: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.count:
            return "nothing had vanished"
        more = f" and {self.count - len(self.first):,} more" if self.count > len(self.first) else ""
        return (
            f"{self.count:,} removed that the source no longer has: {', '.join(self.first)}{more}"
        )


def remove_vanished(
    run: int,
    source: str,
    prefixes: Sequence[str],
    ledger: Ledger,
    delete: Callable[[list[str]], object],
    *,
    at_most: float,
) -> Vanished:
    """Removes the instances that ``run``, which has seen all of the source, did not see.

    Args:
        prefixes: only instances whose locators start with one of these; empty = all.
        delete: removes the instances with these locators.
        at_most: the share of the instances of that part of the source that may vanish, in [0, 1].

    Raises:
        TooManyVanished: more of them vanished; nothing was removed.
    """
    count, first = 0, list[str]()
    for page in ledger.vanished(run, source, prefixes):
        first += [shown(locator) for locator in page[: _NAMED - len(first)]]
        count += len(page)
    known = count + ledger.count_seen(run)
    if count > at_most * known:
        raise TooManyVanished(
            f"{count:,} of {known:,} instances of source {source!r} have vanished, {first[0]} for "
            f"one; that is more than {at_most:.0%}, so none was removed. If the source is not "
            "there, mount it and try again; if they are gone for good, give --delete-vanished with "
            "--at-most 100%"
        )
    for page in ledger.vanished(run, source, prefixes):
        delete(page)
    return Vanished(count, tuple(first))


def remove(
    locators: Sequence[str], ledger: Ledger, store: VectorStore, thumbnails: Thumbnails
) -> int:
    """Removes instances from index, thumbnails and ledger; returns how many points were removed.

    A point that another instance also has stays. The ledger is changed last, so that a removal
    that was cut short can be repeated.
    """
    gone = points_only_of(locators, ledger)
    remove_points(gone, store, thumbnails)
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


def remove_points(ids: Sequence[str], store: VectorStore, thumbnails: Thumbnails) -> None:
    """Removes points and their thumbnails for good.

    Thumbnails go first: where they cannot be removed, the points by which they are found again are
    still there.
    """
    if ids:
        thumbnails.delete(ids)
        store.delete(Filter(must=(Ids(tuple(ids)),)))
        store.flush()


def delete_stale_points(
    ledger: Ledger, store: VectorStore, data_dir: DataDir, thumbnails: Thumbnails
) -> int:
    """Deletes stale points, those of earlier file contents that no instance has any more, from
    index and thumbnails; returns how many.

    While others write without a pause, none is: the next run does it.
    """
    deleted = 0
    with sweeping(data_dir.root, _SWEEP_PATIENCE_S) as may:
        while may and (gone := ledger.stale(_DELETED_AT_ONCE)):
            with removing(data_dir.root):
                remove_points(gone, store, thumbnails)
                ledger.forget_stale(gone)
            deleted += len(gone)
    return deleted
