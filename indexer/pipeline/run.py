"""Runs the pipeline over a source: discover, index what is new or changed, delete stale points."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from engine.model.encoder import Encoder
from engine.settings import Settings
from engine.store.base import VectorStore
from indexer.datadir.layout import DataDir
from indexer.ledger.instances import Ledger, Pending
from indexer.pipeline.indexing import Indexer, Tally
from indexer.pipeline.removal import delete_stale_points, remove
from indexer.sources.base import Discovered, ImageSource

__all__ = ["IndexingReport", "Progress", "index_archive"]


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
    progress: Callable[[Progress], None] = lambda _: None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> IndexingReport:
    """Indexes all instances of ``source`` that are new or changed; records each in ``ledger``.

    Args:
        retry_refused: read refused instances again, even if they did not change.
        again: read all instances again, even if they did not change.
        vanished_from: remove the instances of this source that it no longer has and whose
            locators begin with one of these prefixes. Empty = any locator; None = remove none.
        progress: called often, from the calling thread.

    Raises:
        SourceError, StoreError, LedgerError, DiskFull: reading or writing failed; instances
            recorded as done stay done.
        KeyboardInterrupt: raised after the batches already with the writer are written.
    """
    started = time.monotonic()
    stages: dict[str, float] = {}
    retried = 0 if retry_refused or again else ledger.count_curable(source.name)
    run = ledger.begin_run(source.name, _stamp(now))
    ledger.discover(
        run,
        source.name,
        _counted(source, progress),
        retry_refused=retry_refused,
        again=again,
    )
    stages["discover"] = time.monotonic() - started
    total = ledger.pending_count(run)
    tally = Tally()

    def shown(so_far: Tally) -> None:
        refused = so_far.refused.total()
        progress(Progress("index", total, so_far.seen, so_far.points, refused))

    def indexed_now(pending: Iterable[Pending]) -> Tally:
        with Indexer(encoder, store, ledger, data_dir, settings, now) as indexer:
            made = indexer.index(run, source, pending, progress=shown)
        optimising = time.monotonic()
        delete_stale_points(ledger, store, data_dir)
        store.optimise()
        made.seconds["optimise"] = time.monotonic() - optimising
        return made

    if total:
        tally = indexed_now(ledger.pending(run))
    if vanished_from is not None:
        for locators in ledger.vanished(run, source.name, vanished_from):
            remove(locators, ledger, store, data_dir)
        # Two files disputed a SOP Instance UID, and the one that had it is gone.
        if freed := ledger.freed(run):
            tally.add(indexed_now(freed))
    ledger.end_run(run, _stamp(now))
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
    )


def _counted(source: ImageSource, progress: Callable[[Progress], None]) -> Iterator[Discovered]:
    for number, found in enumerate(source.instances(), 1):
        if number % 1000 == 0:
            progress(Progress("discover", number, 0, 0, 0))
        yield found


def _stamp(now: Callable[[], datetime]) -> str:
    return now().isoformat(timespec="seconds")
