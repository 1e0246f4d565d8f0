"""Encodes an archive with another model into a new index, which then replaces the one in force.

Searches use the index in force meanwhile. When the new one is complete, it is compared with the
ledger once more under the exclusive lock, and replaces the old one in one step. The old one is
kept, so that the exchange can be undone.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from engine.errors import QueryError, StoreLocked
from engine.model.encoder import resolved
from engine.model.manifest import read_manifest
from engine.settings import Settings
from engine.store.base import Collection
from indexer.datadir.indexes import indexes_of
from indexer.datadir.layout import DataDir, InForce
from indexer.datadir.models import keep_model, model_directory, remove_models
from indexer.datadir.write_lock import exchanging
from indexer.imaging.rendering import rendering_of
from indexer.ledger.database import open_database
from indexer.ledger.instances import Ledger
from indexer.ledger.tenancy import all_tenants
from indexer.pipeline.run import Progress
from indexer.reencoding.catch_up import CatchUp

__all__ = ["ReencodingReport", "drop_previous", "go_back", "reencode"]


@dataclass(frozen=True, slots=True)
class ReencodingReport:
    """The result of :func:`reencode`.

    model: fingerprint of the model in force now. index: name of the index in force, in the data
    folder or on the server. previous: name of the index that it replaced, which is kept; None =
    none was replaced. encoded: pictures read and encoded by this call. removed: points removed
    because their instances were deleted after they were encoded. left_out: instances that could
    not be read as they were indexed. reasons: how many of them, by reason.
    """

    model: str
    index: str
    previous: str | None
    encoded: int
    removed: int
    left_out: int
    reasons: dict[str, int]
    seconds: float


def reencode(
    settings: Settings,
    model: Path,
    *,
    leave_out: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> ReencodingReport:
    """Encodes the archive with the model in the folder ``model``, and puts the result in force.

    If the index in force already belongs to this model, and its pictures are of this version of
    the reader, nothing is read: only other parts of the checkpoint, such as the calibration, are
    taken over. A call that was cut short continues.

    Args:
        settings: ``settings.model`` names the model in force, if the data folder does not.
        leave_out: replace the index even if some instances cannot be encoded; these are recorded
            as refused in the ledger, and stay in the previous index.
        progress: called often, from the calling thread.

    Raises:
        SourceError: some instances cannot be encoded, and ``leave_out`` is False.
        StoreLocked: another process is re-encoding this archive.
        ModelError, StoreError, LedgerError, SettingsError: no usable model, store, ledger or
            source; points already encoded are kept.
        KeyboardInterrupt: raised after the batches already with the writer are written.
    """
    started = time.monotonic()
    data_dir = DataDir(settings.data_dir)
    indexes = indexes_of(settings, data_dir)
    manifest = read_manifest(model)
    precision = resolved(settings.device, settings.precision)
    wanted = Collection(
        manifest.fingerprint, manifest.dim, manifest.bits, precision, manifest.words_dim
    )
    with _alone(data_dir), ExitStack() as opened:
        old = indexes.in_force()
        collection, profile = indexes.described(old.index)
        kept = keep_model(data_dir, model)
        renewing = collection.model == wanted.model
        if renewing and not _rendered_otherwise(settings, data_dir):
            indexes.note(replace(old, model=kept, since=_stamp(now)))
            return ReencodingReport(wanted.model, old.index, None, 0, 0, 0, {}, 0.0)
        left = replace(old, model=_model_of(old, collection, settings, data_dir), previous=None)
        name, store = indexes.make(wanted, profile)
        opened.enter_context(store)
        before = old.previous
        until = before.until if before is not None and before.index == name else None
        if renewing:
            until = None  # its pictures are wanted anew, however complete it was
        work = opened.enter_context(CatchUp(settings, data_dir, model, store, until, progress))
        work.encode()
        # Again, for what was indexed during the hours that took: writers then wait only briefly.
        work.encode()
        work.check(leave_out=leave_out, of_tried=True)
        store.optimise()
        with exchanging(data_dir.root):
            work.encode()
            work.check(leave_out=leave_out)
            work.reconcile()
            at = _stamp(now)
            indexes.put_in_force(InForce(name, kept, since=at, previous=replace(left, until=at)))
    return ReencodingReport(
        wanted.model,
        name,
        old.index,
        work.encoded,
        work.removed,
        work.left_out,
        work.reasons() if work.left_out else {},
        round(time.monotonic() - started, 3),
    )


def go_back(
    settings: Settings,
    *,
    leave_out: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> ReencodingReport:
    """Puts the previous index back in force, after bringing it up to date with the ledger.

    Raises:
        QueryError: no previous index is kept with its model. Others as for :func:`reencode`.
    """
    data_dir = DataDir(settings.data_dir)
    before = indexes_of(settings, data_dir).in_force().previous
    if before is None or before.model is None:
        raise QueryError(
            "no earlier index is kept with its model; `precedent reencode --model DIR` makes one "
            "of any model"
        )
    model = data_dir.root / before.model
    return reencode(settings, model, leave_out=leave_out, progress=progress, now=now)


def drop_previous(settings: Settings) -> list[str]:
    """Removes all indexes beside the one in force, incomplete ones too; returns their names.

    Raises:
        StoreLocked: one of them is in use, or another process is re-encoding the archive.
    """
    data_dir = DataDir(settings.data_dir)
    indexes = indexes_of(settings, data_dir)
    with _alone(data_dir):
        names = indexes.beside()
        for name in names:
            indexes.drop(name)
        found = indexes.in_force()
        if found.previous is not None:
            indexes.note(replace(found, previous=None))
        remove_models(data_dir)
    return names


@contextmanager
def _alone(data_dir: DataDir) -> Iterator[None]:
    """Holds the lock that lets one process at a time re-encode an archive. Raises StoreLocked."""
    data_dir.make()
    lock = FileLock(data_dir.root / "reencode.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StoreLocked(
            f"the archive in {data_dir.root} is being encoded anew by another process; wait for "
            "its end, or stop it: the same command again goes on"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _rendered_otherwise(settings: Settings, data_dir: DataDir) -> int:
    with open_database(settings, data_dir.ledger) as database:
        return sum(
            Ledger(database.of(tenant), rendering_of(settings)).count_rendered_otherwise()
            for tenant in all_tenants(database)
        )


def _model_of(
    old: InForce, collection: Collection, settings: Settings, data_dir: DataDir
) -> str | None:
    """The path, from the data folder, of the model of the index in force, which is copied there if
    necessary; None = the model cannot be found."""
    if old.model is not None:
        return old.model
    directory = model_directory(settings)
    if read_manifest(directory).fingerprint != collection.model:
        return None
    return keep_model(data_dir, directory)


def _stamp(now: Callable[[], datetime]) -> str:
    return now().isoformat(timespec="seconds")
