"""Brings an index up to date with the ledger, by reading and encoding the instances that it lacks.

The ledger lists the instances. Progress is recorded in the index itself: each point holds the time
at which its instance was indexed, and is current as long as the ledger has the same time. So the
work may be stopped at any moment, and continues from the comparison of the two.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.errors import ImageRefused, SourceError
from engine.records import EncodedImages
from engine.settings import DicomWebSettings, Settings
from engine.store.base import Filter, Ids, VectorStore
from indexer.datadir.layout import DataDir
from indexer.encoders import following, load_encoder
from indexer.imaging.rendering import rendering_of
from indexer.ledger.database import open_database
from indexer.ledger.indexed import IndexedInstance, IndexedInstances
from indexer.ledger.instances import Done, Ledger
from indexer.pipeline.indexing import (
    Batch,
    Indexer,
    IndexingPass,
    Reading,
    Tally,
    ledger_and_index_entry,
)
from indexer.pipeline.run import Progress
from indexer.sources.base import ImageSource
from indexer.sources.folder import FolderSource
from indexer.sources.opening import SourceSpec

__all__ = ["CatchUp"]

_AT_ONCE = 1000
_CHANGED = "changed"
"""Reason for not encoding an instance: its content, or the choice of frames, has changed."""


@dataclass(slots=True)
class _Currency:
    """Tells which points of the index being filled are current.

    until: the index was in force and complete until this time, so points of instances that were
    indexed before it are current; None = it never was.
    rendering: version of the reader that has to have made the picture; None = any.
    """

    store: VectorStore
    ledger: Ledger
    until: str | None
    rendering: str | None

    def compared(self, page: list[IndexedInstance]) -> "_Comparison":
        """What of these instances the index has."""
        ids = sorted({point_id for instance in page for point_id in instance.ids})
        points = self.store.get(ids)
        there = {
            point.id: point.indexed_at
            for point in points
            if self.rendering in (None, point.rendering)
        }
        owners = self.ledger.owners(ids)
        lacking = {
            point_id: min(owner.locator for owner in owners[point_id])
            for point_id in ids
            if point_id in owners
            and not (
                point_id in there
                and any(self._is_current(there[point_id], one.at) for one in owners[point_id])
            )
        }
        made_by = {point.id: point.rendering for point in points}
        renderings = {
            instance.locator: made_by[point_id]
            for instance in page
            for point_id in instance.ids
            if point_id in made_by
        }
        return _Comparison(lacking, renderings)

    def _is_current(self, encoded: str | None, at: str) -> bool:
        return (encoded or "") == at or (self.until is not None and at < self.until)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Instances beside the index.

    lacking: ids of their points that are missing or not current; for each, the locator of the
    first instance that has it. renderings: locator → version of the reader that made its pictures.
    """

    lacking: dict[str, str]
    renderings: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class _Failed:
    """An instance that could not be encoded. at: when it was indexed, UTC, ISO 8601."""

    at: str
    reason: str


class CatchUp:
    """Brings one index up to date with the ledger. Use it as a context manager.

    encoded: pictures read and encoded so far. removed: points removed because their instances
    were deleted from the archive after they were encoded. left_out: instances that the index
    lacked at the last :meth:`check`.

    Args:
        model: folder of the model that the index belongs to.
        store: the index.
        until: the index was in force, and complete, until this time, UTC, ISO 8601; None = never.
        progress: called often, from the calling thread.

    Raises:
        SettingsError: the settings lack a server that instances came from.
        ModelError, LedgerError: no usable model or ledger.
    """

    def __init__(
        self,
        settings: Settings,
        data_dir: DataDir,
        model: Path,
        store: VectorStore,
        until: str | None,
        progress: Callable[[Progress], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._progress = progress
        self._opened = ExitStack()
        with ExitStack() as opened:
            database = opened.enter_context(open_database(settings, data_dir.ledger))
            self._indexed = IndexedInstances(database)
            self._ledger = Ledger(database, rendering_of(settings))
            self._sources = {name: self._source(name) for name in self._indexed.sources()}
            encoder = following(load_encoder(model, settings), store.collection, settings)
            self._indexer = opened.enter_context(
                Indexer(encoder, store, self._ledger, data_dir, settings)
            )
            self._opened = opened.pop_all()
        rendering = None if until is not None else self._ledger.rendering
        self._currency = _Currency(store, self._ledger, until, rendering)
        self.encoded = self.removed = self.left_out = 0
        self._walked = 0
        self._failed: dict[str, _Failed] = {}

    def __enter__(self) -> "CatchUp":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _source(self, name: str | None) -> ImageSource:
        """The source from which instances of this name are read again. Files, whichever source they
        came from, are read by their paths."""
        if name is not None and isinstance(self._settings.sources.get(name), DicomWebSettings):
            return SourceSpec(name=name).open(self._settings)
        if self._indexed.has_addresses(name):
            # Raises the error that says that the settings lack it, and how to add it.
            SourceSpec(name=name).settings(self._settings)
        return FolderSource([], name=name or "folder", zip_limits=self._settings.zip)

    def encode(self) -> None:
        """Reads and encodes the instances that the index lacks. Those that failed before, and were
        not indexed again since, are not tried again."""
        self._walked, total = 0, self._indexed.count()

        def shown(tally: Tally) -> None:
            points = self.encoded + tally.points
            self._progress(Progress("index", total, self._walked, points, len(self._failed)))

        # Of several files with the same content the first one gives label and record; another
        # one is read only if the first cannot be.
        for firsts in (True, False):
            for name in self._indexed.sources():
                if name not in self._sources:  # it was added meanwhile
                    self._sources[name] = self._source(name)
                reencoding = _ReencodingPass(
                    self._indexer, self._sources[name], self._failed, shown
                )
                try:
                    reencoding.run(self._lacking(name, firsts=firsts), lambda: False)
                finally:
                    self.encoded += reencoding.tally.points

    def _lacking(self, source: str | None, *, firsts: bool) -> Iterator[IndexedInstance]:
        for page in self._indexed.pages(source):
            lacking = self._currency.compared(page).lacking
            for instance in page:
                heads = {lacking[point_id] for point_id in instance.ids if point_id in lacking}
                wanted = heads and (instance.locator in heads) == firsts
                if wanted and not self._has_failed(instance):
                    yield instance
            if firsts:
                self._walked += len(page)

    def _has_failed(self, instance: IndexedInstance) -> bool:
        failed = self._failed.get(instance.locator)
        return failed is not None and failed.at == instance.at

    def check(self, *, leave_out: bool, of_tried: bool = False) -> None:
        """Counts the instances that the index still lacks, in ``left_out``.

        Args:
            leave_out: the index may lack some.
            of_tried: count only instances that could not be encoded, not those that were indexed
                since the last :meth:`encode`.

        Raises:
            SourceError: it lacks some, and ``leave_out`` is False.
        """
        self.left_out = sum(
            not of_tried or self._has_failed(instance)
            for _, out, _ in self._parted()
            for instance in out
        )
        if self.left_out and not leave_out:
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in self.reasons().items())
            raise SourceError(
                f"{self.left_out:,} instances cannot be read as they were indexed ({reasons}), "
                "and so the index in force stays; make them readable or index their source "
                "again, and repeat the command, which goes on; or exchange without them: "
                "--leave-out"
            )

    def reconcile(self) -> None:
        """Makes index and ledger agree: deletes points that no instance has, records instances that
        the index lacks as refused, and those that it has again as done. Nothing else may write
        to the archive meanwhile."""
        for gone in self._unowned():
            self.removed += self._store.delete(Filter(must=(Ids(gone),)))
        self._store.flush()
        for found, out, back in self._parted():
            self._indexed.leave_out([instance.locator for instance in out])
            self._indexed.take_back([instance.locator for instance in back])
            self._indexed.note_renderings(found.renderings)

    def _parted(
        self,
    ) -> Iterator[tuple[_Comparison, list[IndexedInstance], list[IndexedInstance]]]:
        """Page by page, what the index has, the instances that it lacks, and those that it has
        although an earlier exchange left them out."""
        for name in self._indexed.sources():
            for page in self._indexed.pages(name):
                found = self._currency.compared(page)
                out = [one for one in page if not found.lacking.keys().isdisjoint(one.ids)]
                missing = {instance.locator for instance in out}
                back = [
                    instance
                    for instance in page
                    if instance.state == "refused" and instance.locator not in missing
                ]
                yield found, out, back

    def _unowned(self) -> Iterator[tuple[str, ...]]:
        """Ids of points that no instance has any more, in groups."""
        found: list[str] = []
        page: list[str] = []
        for point in self._store.scroll(Filter(), page=_AT_ONCE):
            page.append(point.id)
            if len(page) == _AT_ONCE:
                found += self._without_owner(page)
                page = []
        found += self._without_owner(page)
        for start in range(0, len(found), _AT_ONCE):
            yield tuple(found[start : start + _AT_ONCE])

    def _without_owner(self, ids: list[str]) -> list[str]:
        owners = self._ledger.owners(ids)
        return [point_id for point_id in ids if point_id not in owners]

    def reasons(self) -> dict[str, int]:
        """How many instances could not be encoded, by reason."""
        return dict(sorted(Counter(one.reason for one in self._failed.values()).items()))


@dataclass(slots=True)
class _Batch(Batch):
    """at: when each of ``prepared`` was indexed, UTC, ISO 8601."""

    at: list[str] = field(default_factory=list)


class _ReencodingPass(IndexingPass):
    """An indexing pass over indexed instances, whose points go into another index. Ledger and
    thumbnails stay unchanged."""

    def __init__(
        self,
        indexer: Indexer,
        source: ImageSource,
        failed: dict[str, _Failed],
        progress: Callable[[Tally], None],
    ) -> None:
        super().__init__(indexer, 0, source, False, progress)
        self._failed = failed

    def _decided(self, readings: list[Reading]) -> Batch:
        batch = _Batch()
        for instance, result in readings:
            if not isinstance(instance, IndexedInstance):
                raise TypeError("only what is known can be encoded anew")
            if isinstance(result, ImageRefused):
                self._failed[instance.locator] = _Failed(instance.at, result.reason.value)
                continue
            done, prepared = ledger_and_index_entry(instance, result, self._source.name)
            if not _is_as_indexed(instance, done):
                self._failed[instance.locator] = _Failed(instance.at, _CHANGED)
                continue
            pictures = tuple(one for one in prepared.pictures if one.point_id in instance.ids)
            batch.outcomes.append(done)
            batch.prepared.append(replace(prepared, pictures=pictures))
            batch.at.append(instance.at)
        self.tally.seen += len(readings)
        return batch

    def _write(self, batch: Batch, encoded: EncodedImages) -> None:
        if not isinstance(batch, _Batch):
            raise TypeError("a batch of known instances says when they were indexed")
        points = self._points(batch.prepared, encoded, batch.at)
        with self._timed("write"):
            self._store.upsert(points)
        self.tally.points += len(points)

    def _record(self) -> None:
        self._store.flush()


def _is_as_indexed(instance: IndexedInstance, done: Done) -> bool:
    """Whether what was read is the instance as it was indexed: same content, all its points.

    For an instance from a DICOMweb server its UID is enough: servers may encode the same instance
    to other bytes for each request.
    """
    same = done.content == instance.content or instance.locator.startswith("http")
    return same and {*instance.ids} <= {one for one, _ in done.points}
