"""One run over a source in this process: discover, index what is new or changed, tidy up."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from engine.model.encoder import Encoder
from engine.settings import Settings
from engine.store.base import VectorStore
from indexer.datadir.layout import DataDir
from indexer.ledger.instances import Ledger
from indexer.pipeline.indexing import Indexer, Tally, delete_stale_points
from indexer.pipeline.removal import remove
from indexer.sources.base import Discovered, ImageSource

__all__ = ["IndexingReport", "Progress", "index_archive"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. total and done count instances; stage is "discover" or "index"."""

    stage: str
    total: int
    done: int
    points: int
    refused: int


@dataclass(frozen=True, slots=True)
class IndexingReport:
    """What became of every instance a run saw.

    indexed: are in the index since this run. unchanged: were in it before.
    refused: by reason. points: pictures written. duplicates: of the indexed, those whose
    pictures were already there under another name.
    stage_seconds: time by stage, added up over its threads; stages overlap.
    """

    indexed: int
    unchanged: int
    refused: dict[str, int]
    points: int
    duplicates: int
    seconds: float
    stage_seconds: dict[str, float]


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
    """Brings everything that ``source`` has into ``store``, and accounts for it in ``ledger``.

    Args:
        retry_refused: read again what was refused before, also when it did not change.
        again: read everything again, also what did not change.
        vanished_from: instances of this source whose locators begin with one of these, and that
            it no longer has, are removed; none of these = all of it, None = nothing is.
        progress: called often, from the calling thread.

    Raises:
        SourceError, StoreError, LedgerError, DiskFull: reading or writing failed; what was
            recorded as done is done.
        KeyboardInterrupt: after what was under way has been written.
    """
    started = time.monotonic()
    stages: dict[str, float] = {}
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
    if total:

        def shown(so_far: Tally) -> None:
            refused = so_far.refused.total()
            progress(Progress("index", total, so_far.seen, so_far.points, refused))

        with Indexer(encoder, store, ledger, data_dir, settings, now) as indexer:
            tally = indexer.index(run, source, ledger.pending(run), progress=shown)
        optimising = time.monotonic()
        delete_stale_points(ledger, store, data_dir)
        store.optimise()
        stages["optimise"] = time.monotonic() - optimising
    if vanished_from is not None:
        for locators in ledger.vanished(run, source.name, vanished_from):
            remove(locators, ledger, store, data_dir)
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
    )


def _counted(source: ImageSource, progress: Callable[[Progress], None]) -> Iterator[Discovered]:
    for number, found in enumerate(source.instances(), 1):
        if number % 1000 == 0:
            progress(Progress("discover", number, 0, 0, 0))
        yield found


def _stamp(now: Callable[[], datetime]) -> str:
    return now().isoformat(timespec="seconds")
