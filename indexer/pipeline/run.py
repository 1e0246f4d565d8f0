"""Runs the pipeline over a source: discover, index what is new or changed, delete stale points."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from engine.errors import LedgerError, PrecedentError
from engine.model.encoder import Encoder
from engine.settings import Settings
from engine.store.base import VectorStore
from indexer.datadir.layout import DataDir
from indexer.datadir.run_locks import RunLocks
from indexer.imaging.thumbnails import thumbnails_of
from indexer.ledger.instances import Ledger, Pending
from indexer.pipeline.indexing import Indexer, Tally
from indexer.pipeline.removal import Vanished, delete_stale_points, remove, remove_vanished
from indexer.sources.base import Discovered, ImageSource

__all__ = ["IndexingReport", "Progress", "index_archive"]

_NOTED_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run. stage: "discover" or "index". total, done, refused: instances. points:
    pictures written."""

    stage: str
    total: int
    done: int
    points: int
    refused: int


@dataclass(frozen=True, slots=True)
class IndexingReport:
    """Counts of the instances that a run saw, by outcome.

    indexed: added to the index by this run. unchanged: in the index before it. refused: by
    reason. points: pictures written. duplicates: of the indexed, those whose content was already
    indexed from another file. seconds: of the whole run. retried: of all, those that another
    version of the reader had refused and that were read again because this one may not.
    deleted: found, but left out, because `precedent delete` had removed them.
    removed: instances that the source no longer has, if they were to be removed; removed_first: the
    first of them.
    partial: of those in the index, how many have frames that are missing or broken.
    stage_seconds: time by stage, summed over its threads; stages overlap.
    """

    indexed: int
    unchanged: int
    refused: dict[str, int]
    points: int
    duplicates: int
    seconds: float
    stage_seconds: dict[str, float]
    retried: int = 0
    partial: int = 0
    deleted: int = 0
    removed: int = 0
    removed_first: tuple[str, ...] = ()


def index_archive(
    source: ImageSource,
    *,
    encoder: Encoder,
    store: VectorStore,
    ledger: Ledger,
    data_dir: DataDir,
    settings: Settings,
    retry_refused: bool = False,
    again: bool = False,
    vanished_from: Sequence[str] | None = None,
    at_most: float = 1.0,
    progress: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    indexer: Indexer | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> IndexingReport:
    """Indexes all instances of ``source`` that are new or changed; records each in ``ledger``.

    Args:
        retry_refused: read refused instances again, even if they did not change.
        again: read all instances again, even if they did not change.
        vanished_from: remove the instances of this source that it no longer has and whose
            locators begin with one of these prefixes. Empty = any locator; None = remove none.
        at_most: the share of the source's instances that may have vanished, in [0, 1].
        progress: called often, from the calling thread.
        stop: called before each instance; once it returns True, those that are not begun stay
            pending, and nothing is removed.
        indexer: of this archive, which is left open; None = one is made for this run.

    Raises:
        TooManyVanished: more than that share vanished: none was removed, all else is done.
        SourceError, StoreError, StorageError, LedgerError, DiskFull: reading or writing failed;
            instances recorded as done stay done.
        KeyboardInterrupt: raised after the batches already with the writer are written.
    """
    started = time.monotonic()
    stages: dict[str, float] = {}
    retried = 0 if retry_refused or again else ledger.count_curable(source.name)
    run, alive = _begun(ledger, source.name, _stamp(now), settings, data_dir)
    record = _Record(ledger, run, now)

    def shown(so_far: Tally) -> None:
        record.note(so_far)
        refused = so_far.refused.total()
        progress(Progress("index", record.total, so_far.seen, so_far.points, refused))

    def indexed_now(pending: Iterable[Pending]) -> Tally:
        with ExitStack() as opened:
            mine = indexer or opened.enter_context(
                Indexer(encoder, store, ledger, data_dir, settings, now)
            )
            made = mine.index(run, source, pending, stop=stop, progress=shown)
        optimising = time.monotonic()
        delete_stale_points(ledger, store, data_dir, thumbnails)
        store.optimise()
        made.seconds["optimise"] = time.monotonic() - optimising
        return made

    tally, vanished = Tally(), Vanished()
    with alive, record, thumbnails_of(settings, data_dir.thumbnails) as thumbnails:
        found = _Counted(source, progress)
        seen = ledger.discover(
            run,
            source.name,
            found,
            retry_refused=retry_refused,
            again=again,
        )
        stages["discover"] = time.monotonic() - started
        record.discovered(seen)
        if record.total:
            tally = indexed_now(ledger.pending(run))
        if vanished_from is not None and not stop():
            vanished = remove_vanished(
                run,
                source.name,
                vanished_from,
                ledger,
                lambda locators: remove(locators, ledger, store, thumbnails),
                at_most=at_most,
            )
            # Two files disputed a SOP Instance UID, and the one that had it is gone.
            if freed := ledger.freed(run):
                tally.add(indexed_now(freed))
    indexed, unchanged, refused = ledger.run_counts(run)
    stages |= tally.seconds
    return IndexingReport(
        indexed,
        unchanged,
        refused,
        tally.points,
        tally.duplicates,
        round(time.monotonic() - started, 3),
        {stage: round(seconds, 3) for stage, seconds in stages.items()},
        retried,
        ledger.count_partial(run),
        found.count - seen,
        vanished.count,
        vanished.first,
    )


def _begun(
    ledger: Ledger, source: str, at: str, settings: Settings, data_dir: DataDir
) -> tuple[int, ExitStack]:
    """The number of a new run, and what says that it is alive until it is closed."""
    alive = ExitStack()
    if settings.store.url is not None:
        # Its workers may be on other machines, whose locks are not always seen here.
        return ledger.begin_run(source, at), alive
    locks = RunLocks(data_dir.root)
    with locks.beginning():
        run = ledger.begin_run(source, at, is_alive=locks.is_alive)
        alive.enter_context(locks.alive(run))
    return run, alive


class _Record:
    """What the ledger notes of a run while it goes on, and how it ended. A context manager around
    the run's work."""

    def __init__(self, ledger: Ledger, run: int, now: Callable[[], datetime]) -> None:
        self._ledger = ledger
        self._run = run
        self._now = now
        self._tally = Tally()
        self._began = self._noted = time.monotonic()
        self._unchanged = 0
        self.total = 0
        """Instances to be read."""

    def discovered(self, seen: int) -> None:
        """Notes how many instances the source has, all of them recorded by now."""
        self.total = self._ledger.pending_count(self._run)
        self._unchanged = seen - self.total
        self._began = time.monotonic()
        self._note()

    def note(self, tally: Tally) -> None:
        """Notes how far the run is, every few seconds."""
        self._tally = tally
        if time.monotonic() - self._noted > _NOTED_EVERY_S:
            self._note()

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            self._note()
            self._ledger.end_run(self._run, _stamp(self._now))
            return
        state, note = "cancelled", "it was stopped; the same command goes on"
        if isinstance(error, Exception):
            # Only our own messages hold no content of a file.
            said = str(error) if isinstance(error, PrecedentError) else type(error).__name__
            state, note = "failed", said
        # The error itself is what has to be told, also where the ledger cannot be written.
        with suppress(LedgerError):
            self._note()
            self._ledger.end_run(self._run, _stamp(self._now), state, note)

    def _note(self) -> None:
        tally = self._tally
        self._noted = time.monotonic()
        self._ledger.note_run(
            self._run,
            self._now().timestamp(),
            refused=tally.refused,
            seconds=self._noted - self._began,
            total=self.total,
            done=tally.done,
            unchanged=self._unchanged,
            indexed=tally.indexed,
            duplicates=tally.duplicates,
            points=tally.points,
        )


class _Counted:
    """The instances of a source. count: how many it has given."""

    def __init__(self, source: ImageSource, progress: Callable[[Progress], None]) -> None:
        self._source = source
        self._progress = progress
        self.count = 0

    def __iter__(self) -> Iterator[Discovered]:
        for found in self._source.instances():
            self.count += 1
            if self.count % 1000 == 0:
                self._progress(Progress("discover", self.count, 0, 0, 0))
            yield found


def _stamp(now: Callable[[], datetime]) -> str:
    return now().isoformat(timespec="seconds")
