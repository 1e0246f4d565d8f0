"""An archive becomes points: discover → read → encode → write.

Reading runs in other processes, encoding in threads, writing in one more; every queue is
bounded, so memory does not grow with the archive. An instance is done in the
ledger only after its points are flushed to disk: whenever the process is killed, the same
command again finishes the job, and nothing is lost or counted twice.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

import torch

from engine.errors import ImageRefused, RefusalReason
from engine.model.encoder import Encoder
from engine.records import EncodedImages, Point
from engine.settings import Settings
from engine.store.base import Filter, Ids, VectorStore
from indexer.ahead import ahead
from indexer.claims import Claims
from indexer.datadir import DataDir
from indexer.file_reader import FileReader
from indexer.imaging.prepare import Prepared
from indexer.imaging.thumbnails import delete_thumbnail, write_thumbnail
from indexer.ledger import Done, Ledger, Pending, Refused
from indexer.sources.base import Discovered, ImageSource, file_path

__all__ = ["IndexingReport", "Progress", "index_archive"]

_WRITES_WAITING = 4
_GROUP = 256
"""Instances decided on at once, also when few of them have pictures."""


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


@dataclass(slots=True)
class _Batch:
    """Instances whose fate is known, in the order of the archive, until they are written."""

    outcomes: list[Done | Refused] = field(default_factory=list)
    prepared: list[Prepared] = field(default_factory=list)


_Reading = tuple[Pending, Prepared | ImageRefused]


def index_archive(
    source: ImageSource,
    *,
    encoder: Encoder,
    store: VectorStore,
    ledger: Ledger,
    data_dir: DataDir,
    settings: Settings,
    retry_refused: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> IndexingReport:
    """Brings everything that ``source`` has into ``store``, and accounts for it in ``ledger``.

    Args:
        retry_refused: read again what was refused before, also when it did not change.
        progress: called often, from the calling thread.

    Raises:
        StoreError, LedgerError: writing failed; what was recorded as done is done.
        KeyboardInterrupt: after what was under way has been written.
    """
    run = _Run(encoder, store, ledger, data_dir, settings, progress, now)
    return run(source, retry_refused)


class _Run:
    """One pass over a source."""

    def __init__(
        self,
        encoder: Encoder,
        store: VectorStore,
        ledger: Ledger,
        data_dir: DataDir,
        settings: Settings,
        progress: Callable[[Progress], None],
        now: Callable[[], datetime],
    ) -> None:
        self._encoder = encoder
        self._store = store
        self._ledger = ledger
        self._data_dir = data_dir
        self._settings = settings
        self._report_progress = progress
        self._now = now
        self._run = ledger.begin_run()
        self._claims = Claims(ledger)
        self._unrecorded: list[Done | Refused] = []
        self._broken = False
        self._seconds: dict[str, float] = {}
        self._timing = Lock()
        self._total = self._done = self._points = self._refused = self._duplicates = 0

    def __call__(self, source: ImageSource, retry_refused: bool) -> IndexingReport:
        started = time.monotonic()
        with self._timed("discover"):
            self._ledger.discover(self._run, self._counted(source), retry_refused=retry_refused)
        self._total = self._ledger.pending_count(self._run)
        if self._total:
            self._index(source)
        indexed, unchanged, refused = self._ledger.run_counts(self._run)
        return IndexingReport(
            indexed,
            unchanged,
            refused,
            self._points,
            self._duplicates,
            round(time.monotonic() - started, 3),
            {stage: round(seconds, 3) for stage, seconds in self._seconds.items()},
        )

    def _counted(self, source: ImageSource) -> Iterator[Discovered]:
        for found in source.instances():
            self._total += 1
            if self._total % 1000 == 0:
                self._progress("discover")
            yield found

    def _index(self, source: ImageSource) -> None:
        indexing = self._settings.indexing
        # Several batches at once, each on one thread: within one batch, threads would wait
        # for each other, and for the readers, at every layer.
        encoders = ThreadPoolExecutor(
            indexing.encoders, "encoder", initializer=torch.set_num_threads, initargs=(1,)
        )
        writer = ThreadPoolExecutor(1, "writer")
        encoding: deque[tuple[_Batch, Future[EncodedImages]]] = deque()
        writing: deque[Future[None]] = deque()

        def hand_on() -> None:
            batch, encoded = encoding.popleft()
            with self._timed("wait for encoders"):
                writing.append(writer.submit(self._write, batch, encoded.result()))
            if len(writing) > _WRITES_WAITING:
                writing.popleft().result()
            self._progress("index")

        threads = torch.get_num_threads()
        try:
            with (
                FileReader(
                    self._settings,
                    self._encoder.manifest.preprocess,
                    self._data_dir.pseudonym_key(self._settings),
                    frames=indexing.frames_per_instance,
                    processes=indexing.readers,
                ) as files,
                closing(self._reading(files)) as results,
            ):
                for readings in self._groups(results):
                    batch = self._decided(readings, source.name)
                    encoding.append((batch, encoders.submit(self._encoded, batch)))
                    if len(encoding) > indexing.encoders:
                        hand_on()
                while encoding:
                    hand_on()
        finally:
            # Also after Ctrl-C or a failure: what is with the writer is written and recorded.
            encoders.shutdown(cancel_futures=True)
            writer.shutdown()
            torch.set_num_threads(threads)
            for write in writing:
                write.result()
            self._record()
        with self._timed("optimise"):
            self._store.optimise()
        self._progress("index")

    def _reading(self, files: FileReader) -> Generator[_Reading]:
        """What the readers make of the pending instances, in order, some batches ahead."""
        waiting: deque[Pending] = deque()

        def paths() -> Iterator[Path]:
            for pending in self._ledger.pending(self._run):
                waiting.append(pending)
                yield file_path(pending.locator)

        def readings() -> Iterator[_Reading]:
            for result in files.read(paths()):
                yield waiting.popleft(), result

        indexing = self._settings.indexing
        made = ahead(readings(), (1 + indexing.encoders) * indexing.batch_size)
        with closing(made):
            while True:
                with self._timed("wait for readers"):
                    reading = next(made, None)
                if reading is None:
                    return
                yield reading

    def _groups(self, readings: Iterable[_Reading]) -> Iterator[list[_Reading]]:
        """Readings in groups that hold about a batch of pictures."""
        group: list[_Reading] = []
        pictures = 0
        for reading in readings:
            group.append(reading)
            if isinstance(reading[1], Prepared):
                pictures += len(reading[1].pictures)
            if pictures >= self._settings.indexing.batch_size or len(group) >= _GROUP:
                yield group
                group, pictures = [], 0
        if group:
            yield group

    def _decided(self, readings: list[_Reading], source: str) -> _Batch:
        """What becomes of each instance: encoded, already there under another name, refused."""
        batch = _Batch()
        readable = [
            _labelled(pending, result, source)
            for pending, result in readings
            if isinstance(result, Prepared)
        ]
        holders = iter(self._claims.claim([done for done, _ in readable]))
        decided = iter(readable)
        for pending, result in readings:
            self._done += 1
            if isinstance(result, ImageRefused):
                batch.outcomes.append(Refused(pending.locator, result.reason, result.detail))
                continue
            (done, prepared), holder = next(decided), next(holders)
            if holder is None:
                batch.prepared.append(prepared)
                batch.outcomes.append(done)
            elif holder == done.content:
                self._duplicates += 1
                batch.outcomes.append(done)
            else:
                batch.outcomes.append(
                    Refused(
                        done.locator,
                        RefusalReason.CONFLICTING_UID,
                        f"SOP Instance UID {done.sop} is indexed from another file with other "
                        "content; find out which of the two is right and remove the other",
                    )
                )
        self._refused += sum(isinstance(outcome, Refused) for outcome in batch.outcomes)
        return batch

    def _encoded(self, batch: _Batch) -> EncodedImages:
        """In an encoder's thread."""
        canvases = [picture.canvas for one in batch.prepared for picture in one.pictures]
        with self._timed("encode"):
            return self._encoder.encode(canvases)

    def _write(self, batch: _Batch, encoded: EncodedImages) -> None:
        """In the writer's thread: points and thumbnails, then, from time to time, the ledger.

        After a failure nothing more is written: a later batch may hold duplicates of
        pictures that were to be written by the failed one.
        """
        if self._broken:
            return
        self._broken = True
        with self._timed("write"):
            self._forget_replaced(batch.outcomes)
            at = self._now().isoformat(timespec="seconds")
            points = []
            rows = zip(encoded.z, encoded.codes, strict=True)
            for instance in batch.prepared:
                for picture in instance.pictures:
                    z, code = next(rows)
                    record = replace(instance.record, frame=picture.frame)
                    points.append(Point(picture.point_id, record, code, z, indexed_at=at))
                    write_thumbnail(self._data_dir.thumbnails, picture.point_id, picture.thumbnail)
            self._store.upsert(points)
            self._points += len(points)
            self._unrecorded.extend(batch.outcomes)
            if len(self._unrecorded) >= self._settings.indexing.commit_every:
                self._record()
        self._broken = False

    def _forget_replaced(self, outcomes: Iterable[Done | Refused]) -> None:
        """Removes points of earlier contents of these files that no other file has."""
        current = {
            outcome.locator: {point_id for point_id, _ in outcome.points}
            if isinstance(outcome, Done)
            else set()
            for outcome in outcomes
        }
        before = self._ledger.points_of(list(current))
        stale = {i for locator, ids in before.items() for i in ids if i not in current[locator]}
        gone = self._claims.free(sorted(stale))
        if gone:
            self._store.delete(Filter(must=(Ids(tuple(gone)),)))
            for point_id in gone:
                delete_thumbnail(self._data_dir.thumbnails, point_id)

    def _record(self) -> None:
        """Flushes the store, then records the outcomes: never the other way round."""
        if not self._unrecorded:
            return
        with self._timed("flush"):
            self._store.flush()
            at = self._now().isoformat(timespec="seconds")
            self._ledger.finish(self._run, self._unrecorded, at)
        self._claims.release(self._unrecorded)
        self._unrecorded = []

    def _progress(self, stage: str) -> None:
        self._report_progress(Progress(stage, self._total, self._done, self._points, self._refused))

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            elapsed = time.monotonic() - started
            with self._timing:
                self._seconds[stage] = self._seconds.get(stage, 0.0) + elapsed


def _labelled(pending: Pending, prepared: Prepared, source: str) -> tuple[Done, Prepared]:
    labels = () if pending.label is None else (pending.label,)
    record = replace(prepared.record, labels=labels, source=source)
    done = Done(
        pending.locator,
        prepared.content_sha256,
        tuple((picture.point_id, picture.frame) for picture in prepared.pictures),
        record.study,
        record.series,
        record.sop,
        record.patient,
    )
    return done, replace(prepared, record=record)
