"""An archive encoded anew by another model, beside the index in force, which it then replaces.

Searches go on in the index in force. When the new one is complete, it is compared with the
ledger once more, while nobody writes, and then takes its place in one step. The one before is
kept for the way back.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from engine.errors import QueryError, StoreLocked
from engine.model.checkpoint import read_manifest
from engine.model.encoder import resolved
from engine.settings import Settings
from engine.store.base import Collection
from indexer.datadir.indexes import indexes_of, keep_model, remove_models
from indexer.datadir.layout import DataDir, InForce
from indexer.datadir.write_lock import exchanging
from indexer.pipeline.run import Progress
from indexer.reencoding.catch_up import CatchUp

__all__ = ["ReencodingReport", "drop_previous", "go_back", "reencode"]


@dataclass(frozen=True, slots=True)
class ReencodingReport:
    """What came of it.

    model: fingerprint of the one in force now. index: its name, in the data folder or on the
    server. previous: name of the index that it replaced, and that is kept. encoded: pictures
    that were read and encoded this time. removed: points that were deleted from the archive
    since they were encoded. left_out: instances that could not be read as they were indexed.
    reasons: why, by reason, of the last try.
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
    """Encodes the archive with the model in the folder ``model``, and puts that in force.

    Nothing is read again when the index in force is of this model: then only its other parts,
    such as the calibration, are taken over.

    Args:
        settings: ``settings.model`` names the one in force, if the data folder does not.
        leave_out: exchange also when some instances cannot be encoded; they are refused in the
            ledger, and stay in the index that is kept.
        progress: called often, from the calling thread.

    Raises:
        SourceError: some instances cannot be encoded, and ``leave_out`` was not asked for.
        StoreLocked: it is being done already.
        ModelError, StoreError, LedgerError, SettingsError: no usable model, store, ledger or
            source; what is encoded is kept.
        KeyboardInterrupt: after what was under way has been written.
    """
    started = time.monotonic()
    data_dir = DataDir(settings.data_dir)
    indexes = indexes_of(settings, data_dir)
    manifest = read_manifest(model)
    precision = resolved(settings.device, settings.precision)
    wanted = Collection(manifest.fingerprint, manifest.dim, manifest.bits, precision)
    with _alone(data_dir), ExitStack() as opened:
        old = indexes.in_force()
        collection, profile = indexes.described(old.index)
        kept = keep_model(data_dir, model)
        if collection.model == wanted.model:
            indexes.note(replace(old, model=kept, since=_stamp(now)))
            return ReencodingReport(wanted.model, old.index, None, 0, 0, 0, {}, 0.0)
        left = replace(old, model=_model_of(old, collection, settings, data_dir), previous=None)
        name, store = indexes.make(wanted, profile)
        opened.enter_context(store)
        before = old.previous
        until = before.until if before is not None and before.index == name else None
        work = opened.enter_context(CatchUp(settings, data_dir, model, store, until, progress))
        work.encode()
        # What came in the hours this took, so that writers need not wait long.
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
    """Puts the index in force that was so before; first, what was indexed since then is encoded
    for it, and what was deleted is removed. See :func:`reencode`.

    Raises:
        QueryError: none is kept.
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
    """Removes all that is kept beside the index in force, half-made ones too; returns names.

    Raises:
        StoreLocked: it is in use, or being made.
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
    """One exchange at a time. Raises StoreLocked."""
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


def _model_of(
    old: InForce, collection: Collection, settings: Settings, data_dir: DataDir
) -> str | None:
    """The model of the index in force, kept for the way back; None = it is nowhere."""
    from indexer.encoders import model_directory

    if old.model is not None:
        return old.model
    directory = model_directory(settings)
    if read_manifest(directory).fingerprint != collection.model:
        return None
    return keep_model(data_dir, directory)


def _stamp(now: Callable[[], datetime]) -> str:
    return now().isoformat(timespec="seconds")
