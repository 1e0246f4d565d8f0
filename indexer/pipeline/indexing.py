"""Indexes instances in three stages: read → encode → write.

Files are read in other processes, encoded in threads, and written in one more thread. Every queue
is bounded, so memory does not grow with the archive. The ledger records an instance as done only
after its points are flushed to disk. So if the process is killed, the same command continues, and
nothing is lost or counted twice.
"""

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import Lock
from typing import Self

import torch

from engine.errors import ImageRefused
from engine.model.encoder import Encoder
from engine.records import EncodedImages, Point
from engine.settings import Settings
from engine.store.base import VectorStore
from indexer.datadir.disk_space import check_room, naming_a_full_disk
from indexer.datadir.layout import DataDir
from indexer.datadir.write_lock import recording
from indexer.imaging.frames import FramePolicy
from indexer.imaging.partial import described
from indexer.imaging.prepare import Prepared
from indexer.imaging.thumbnails import thumbnails_of
from indexer.ledger.claims import Claims, conflict, is_same_picture
from indexer.ledger.instances import Done, Ledger, Pending, Refused
from indexer.pipeline.file_reader import FileReader
from indexer.pipeline.read_ahead import read_ahead
from indexer.sources.base import ImageSource

__all__ = [
    "Batch",
    "Indexer",
    "IndexingPass",
    "Reading",
    "Tally",
    "ledger_and_index_entry",
]

_WRITES_WAITING = 4
_GROUP = 256
"""Most instances of a batch, even if they have fewer pictures than a batch of the encoder."""


@dataclass(slots=True)
class Tally:
    """Counts of instances that an indexing pass has handled so far.

    seen: read or refused. done: of these, recorded in the ledger. indexed: of the done, in the
    index. duplicates: of the indexed, those whose content was already indexed from another file.
    refused: of the done, by reason. points: pictures written. seconds: time by stage, summed over
    its threads; stages overlap.
    """

    seen: int = 0
    done: int = 0
    indexed: int = 0
    duplicates: int = 0
    points: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, other: "Tally") -> None:
        """Adds the counts of another pass."""
        for name in ("seen", "done", "indexed", "duplicates", "points"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.refused.update(other.refused)
        for stage, seconds in other.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


@dataclass(slots=True)
class Batch:
    """Instances whose outcome is decided, in the order of the archive, on their way to the writer.

    prepared: those of them that are to be encoded and written.
    """

    outcomes: list[Done | Refused] = field(default_factory=list)
    prepared: list[Prepared] = field(default_factory=list)


Reading = tuple[Pending, Prepared | ImageRefused]
"""A pending instance, and what was read of it or why it was refused."""


class Indexer:
    """Indexes instances into one archive, for the tenant of its ledger. Close it, or use it as a
    context manager.

    The reading processes are started once and stay, so that one indexer serves many calls of
    :meth:`index`.

    Args:
        now: returns the time, for ``indexed_at`` and the ledger.
    """

    def __init__(
        self,
        encoder: Encoder,
        store: VectorStore,
        ledger: Ledger,
        data_dir: DataDir,
        settings: Settings,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._encoder = encoder
        self._store = store
        self._ledger = ledger
        self._data_dir = data_dir
        self._settings = settings
        self._now = now
        self._thumbnails = thumbnails_of(settings, data_dir.thumbnails)
        self._files = FileReader(
            settings,
            encoder.manifest.preprocess,
            data_dir.pseudonym_key(settings),
            frames=FramePolicy(
                settings.indexing.frames,
                settings.indexing.frames_per_instance,
                settings.indexing.every_nth_frame,
                settings.indexing.take_derived,
            ),
            processes=settings.indexing.readers,
        )

    def close(self) -> None:
        self._files.close()
        self._thumbnails.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def over(self, ledger: Ledger) -> "Indexer":
        """The same indexer, with the same reading processes, for the tenant of another ledger.
        Not to be closed."""
        other = copy(self)
        other._ledger = ledger
        return other

    def index(
        self,
        run: int,
        source: ImageSource,
        pending: Iterable[Pending],
        *,
        manifest: bool = False,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[Tally], None] = lambda _: None,
    ) -> Tally:
        """Makes one indexing pass: indexes pending instances of ``source`` and records each outcome
        in the ledger.

        Args:
            run: number of the run or job that the outcomes are recorded under.
            manifest: the run is a job: record the outcomes in its manifest as well.
            stop: called before each instance; once it returns True, the instances being processed
                are finished and recorded, and the others stay pending.
            progress: called often, from the calling thread.

        Raises:
            SourceError, StoreError, StorageError, LedgerError, DiskFull, OSError: reading or
                writing failed; instances recorded as done stay done.
            KeyboardInterrupt: raised after the batches already with the writer are written.
        """
        indexing = IndexingPass(self, run, source, manifest, progress)
        indexing.run(pending, stop)
        return indexing.tally


class IndexingPass:
    """One indexing pass over pending instances of a source; ``tally`` counts them.

    A subclass may override ``_decided``, ``_write`` and ``_record``: which instances are encoded,
    and where points and outcomes go.
    """

    def __init__(
        self,
        indexer: Indexer,
        run: int,
        source: ImageSource,
        manifest: bool,
        progress: Callable[[Tally], None],
    ) -> None:
        self._encoder = indexer._encoder
        self._store = indexer._store
        self._ledger = indexer._ledger
        self._data_dir = indexer._data_dir
        self._thumbnails = indexer._thumbnails
        self._settings = indexer._settings
        self._now = indexer._now
        self._files = indexer._files
        self._run = run
        self._source = source
        self._manifest = manifest
        self._progress = progress
        self._claims = Claims(self._ledger)
        self._unrecorded: list[Done | Refused] = []
        self._recording = ExitStack()
        self._broken = False
        self._timing = Lock()
        self.tally = Tally()

    def run(self, instances: Iterable[Pending], stop: Callable[[], bool]) -> None:
        """Reads, encodes and writes these instances; see :meth:`Indexer.index`."""
        indexing = self._settings.indexing
        # Several batches in parallel, each on one thread: several threads on one batch would wait
        # for each other, and for the readers, at every layer.
        encoders = ThreadPoolExecutor(
            indexing.encoders, "encoder", initializer=torch.set_num_threads, initargs=(1,)
        )
        writer = ThreadPoolExecutor(1, "writer")
        encoding: deque[tuple[Batch, Future[EncodedImages]]] = deque()
        writing: deque[Future[None]] = deque()

        def hand_on() -> None:
            batch, encoded = encoding.popleft()
            with self._timed("wait for encoders"):
                writing.append(writer.submit(self._write, batch, encoded.result()))
            if len(writing) > _WRITES_WAITING:
                writing.popleft().result()
            self._progress(self.tally)

        threads = torch.get_num_threads()
        try:
            with closing(self._reading(instances, stop)) as results:
                for readings in self._groups(results):
                    batch = self._decided(readings)
                    encoding.append((batch, encoders.submit(self._encoded, batch)))
                    if len(encoding) > indexing.encoders:
                        hand_on()
                while encoding:
                    hand_on()
        finally:
            # Also after Ctrl-C or a failure: batches with the writer are written and recorded.
            encoders.shutdown(cancel_futures=True)
            writer.shutdown()
            torch.set_num_threads(threads)
            with self._recording:
                for write in writing:
                    write.result()
                self._record()
        self._progress(self.tally)

    def _reading(
        self, instances: Iterable[Pending], stop: Callable[[], bool]
    ) -> Generator[Reading]:
        """The pending instances, read in order, some batches ahead of the encoders."""
        waiting: deque[Pending] = deque()

        def locators() -> Iterator[str]:
            for pending in instances:
                if stop():
                    return
                waiting.append(pending)
                yield pending.locator

        def readings() -> Iterator[Reading]:
            for result in self._files.read(self._source.images(locators())):
                yield waiting.popleft(), result

        indexing = self._settings.indexing
        made = read_ahead(readings(), (1 + indexing.encoders) * indexing.batch_size)
        with closing(made):
            while True:
                with self._timed("wait for readers"):
                    reading = next(made, None)
                if reading is None:
                    return
                yield reading

    def _groups(self, readings: Iterable[Reading]) -> Iterator[list[Reading]]:
        """Readings in groups of about one encoder batch of pictures."""
        group: list[Reading] = []
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

    def _decided(self, readings: list[Reading]) -> Batch:
        """Decides the outcome of each instance: to be encoded, duplicate, or refused."""
        batch = Batch()
        readable = [
            ledger_and_index_entry(pending, result, self._source.name, self._ledger.tenant)
            for pending, result in readings
            if isinstance(result, Prepared)
        ]
        holders = iter(self._claims.claim([done for done, _ in readable]))
        decided = iter(readable)
        for pending, result in readings:
            if isinstance(result, ImageRefused):
                batch.outcomes.append(Refused(pending.locator, result.reason, result.detail))
                continue
            (done, prepared), holder = next(decided), next(holders)
            if holder is None:
                batch.prepared.append(prepared)
                batch.outcomes.append(done)
            elif is_same_picture(done, holder):
                batch.outcomes.append(replace(done, duplicate=True))
            else:
                batch.outcomes.append(conflict(done, holder))
        self.tally.seen += len(readings)
        return batch

    def _encoded(self, batch: Batch) -> EncodedImages:
        """Encodes a batch; runs in an encoder thread."""
        canvases = [picture.canvas for one in batch.prepared for picture in one.pictures]
        with self._timed("encode"):
            return self._encoder.encode(canvases, words=True)

    def _write(self, batch: Batch, encoded: EncodedImages) -> None:
        """Writes a batch's points and thumbnails and, every ``commit_every`` instances, the ledger.
        Runs in the writer thread.

        After a failure nothing more is written: a later batch may hold duplicates of pictures
        that the failed one should have written.
        """
        if self._broken:
            return
        self._broken = True
        with self._timed("write"), naming_a_full_disk(self._data_dir.root):
            check_room(self._data_dir.root, self._settings.indexing.min_free_bytes)
            at = self._now().isoformat(timespec="seconds")
            points = self._points(batch.prepared, encoded, itertools.repeat(at))
            self._thumbnails.write(
                {
                    picture.id_in(self._ledger.tenant): picture.thumbnail
                    for instance in batch.prepared
                    for picture in instance.pictures
                }
            )
            if not self._unrecorded:
                self._recording.enter_context(recording(self._data_dir.root))
            self._store.upsert(points)
            self.tally.points += len(points)
            self._unrecorded.extend(batch.outcomes)
            if len(self._unrecorded) >= self._settings.indexing.commit_every:
                self._record()
        self._broken = False

    def _points(
        self, prepared: Sequence[Prepared], encoded: EncodedImages, at: Iterable[str]
    ) -> list[Point]:
        """The points of instances. encoded: of their pictures, in order. at: when each instance
        was indexed."""
        words = itertools.repeat(None) if encoded.words is None else iter(encoded.words)
        rows = zip(encoded.z, encoded.codes, words, strict=False)
        return [
            Point(
                picture.id_in(self._ledger.tenant),
                picture.record_of(instance.record),
                code,
                z,
                indexed_at=indexed_at,
                rendering=self._ledger.rendering,
                missing_frames=described(instance.partial),
                words=said,
            )
            for instance, indexed_at in zip(prepared, at, strict=False)
            for picture in instance.pictures
            for z, code, said in [next(rows)]
        ]

    def _record(self) -> None:
        """Flushes the store, then records the outcomes in the ledger: never the other way round,
        or the ledger might record points that the store loses."""
        if not self._unrecorded:
            return
        with self._timed("flush"):
            self._store.flush()
            at = self._now().isoformat(timespec="seconds")
            self._ledger.finish(self._run, self._unrecorded, at, manifest=self._manifest)
        self._recording.close()
        self._claims.release(self._unrecorded)
        for outcome in self._unrecorded:
            self.tally.done += 1
            if isinstance(outcome, Done):
                self.tally.indexed += 1
                self.tally.duplicates += outcome.duplicate
            else:
                self.tally.refused[outcome.reason.value] += 1
        self._unrecorded = []

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            elapsed = time.monotonic() - started
            with self._timing:
                self.tally.seconds[stage] = self.tally.seconds.get(stage, 0.0) + elapsed


def ledger_and_index_entry(
    pending: Pending, prepared: Prepared, source: str, tenant: str
) -> tuple[Done, Prepared]:
    """What the ledger records of an instance that was read, and what the index is to hold of it:
    the same ``Prepared`` with label, source and tenant in its record."""
    labels = () if pending.label is None else (pending.label,)
    record = replace(prepared.record, labels=labels, source=source, tenant=tenant)
    done = Done(
        pending.locator,
        prepared.content_sha256,
        tuple((picture.id_in(tenant), picture.frame) for picture in prepared.pictures),
        record.study,
        record.series,
        record.sop,
        record.patient,
        pixels=prepared.pixels_sha256,
        decoder=", ".join(prepared.decoders) or None,
        partial=described(prepared.partial),
    )
    return done, replace(prepared, record=record)
