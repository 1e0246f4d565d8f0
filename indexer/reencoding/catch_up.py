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
from engine.tenants import DEFAULT_TENANT
from indexer.datadir.layout import DataDir
from indexer.encoders import following, load_encoder
from indexer.imaging.rendering import rendering_of
from indexer.ledger.database import open_database
from indexer.ledger.indexed import IndexedInstance, IndexedInstances
from indexer.ledger.instances import Done, Ledger
from indexer.ledger.tenancy import all_tenants
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


@dataclass(slots=True)
class _Share:
    """What one tenant has in the ledger, and how its instances are read again.

    sources: by the names that the ledger has for them. failed: by locator, the instances that could
    not be encoded.
    """

    indexed: IndexedInstances
    ledger: Ledger
    currency: _Currency
    indexer: Indexer
    sources: dict[str | None, ImageSource] = field(default_factory=dict)
    failed: dict[str, _Failed] = field(default_factory=dict)

    def has_failed(self, instance: IndexedInstance) -> bool:
        failed = self.failed.get(instance.locator)
        return failed is not None and failed.at == instance.at

    def parted(
        self,
    ) -> Iterator[tuple[_Comparison, list[IndexedInstance], list[IndexedInstance]]]:
        """Page by page, what the index has, the instances that it lacks, and those that it has
        although an earlier exchange left them out."""
        for name in self.indexed.sources():
            for page in self.indexed.pages(name):
                found = self.currency.compared(page)
                out = [one for one in page if not found.lacking.keys().isdisjoint(one.ids)]
                missing = {instance.locator for instance in out}
                back = [
                    instance
                    for instance in page
                    if instance.state == "refused" and instance.locator not in missing
                ]
                yield found, out, back


class CatchUp:
    """Brings one index up to date with the ledgers of all tenants. Use it as a context manager.

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
            self._database = opened.enter_context(open_database(settings, data_dir.ledger))
            for tenant in all_tenants(self._database):
                indexed = IndexedInstances(self._database.of(tenant))
                for name in indexed.sources():
                    self._source(name, indexed)
            encoder = following(load_encoder(model, settings), store.collection, settings)
            ledger = self._ledger_of(DEFAULT_TENANT)
            self._indexer = opened.enter_context(
                Indexer(encoder, store, ledger, data_dir, settings)
            )
            self._opened = opened.pop_all()
        self._until = until
        self._shares: dict[str, _Share] = {}
        self.encoded = self.removed = self.left_out = 0
        self._walked = 0

    def __enter__(self) -> "CatchUp":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _ledger_of(self, tenant: str) -> Ledger:
        return Ledger(self._database.of(tenant), rendering_of(self._settings))

    def _by_tenant(self) -> Iterator[_Share]:
        """The shares of all tenants, also of those that were added meanwhile."""
        for tenant in all_tenants(self._database):
            if tenant not in self._shares:
                ledger = self._ledger_of(tenant)
                rendering = None if self._until is not None else ledger.rendering
                self._shares[tenant] = _Share(
                    IndexedInstances(self._database.of(tenant)),
                    ledger,
                    _Currency(self._store, ledger, self._until, rendering),
                    self._indexer.over(ledger),
                )
            yield self._shares[tenant]

    def _source(self, name: str | None, indexed: IndexedInstances) -> ImageSource:
        """The source from which instances of this name are read again. Files, whichever source they
        came from, are read by their paths."""
        if name is not None and isinstance(self._settings.sources.get(name), DicomWebSettings):
            return SourceSpec(name=name).open(self._settings)
        if indexed.has_addresses(name):
            # Raises the error that says that the settings lack it, and how to add it.
            SourceSpec(name=name).settings(self._settings)
        return FolderSource([], name=name or "folder", zip_limits=self._settings.zip)

    def encode(self) -> None:
        """Reads and encodes the instances that the index lacks. Those that failed before, and were
        not indexed again since, are not tried again."""
        self._walked, total = 0, sum(share.indexed.count() for share in self._by_tenant())

        def shown(tally: Tally) -> None:
            points = self.encoded + tally.points
            failed = sum(len(share.failed) for share in self._shares.values())
            self._progress(Progress("index", total, self._walked, points, failed))

        for share in self._by_tenant():
            # Of several files with the same content the first one gives label and record; another
            # one is read only if the first cannot be.
            for firsts in (True, False):
                for name in share.indexed.sources():
                    if name not in share.sources:
                        share.sources[name] = self._source(name, share.indexed)
                    source = share.sources[name]
                    reencoding = _ReencodingPass(share.indexer, source, share.failed, shown)
                    try:
                        reencoding.run(self._lacking(share, name, firsts=firsts), lambda: False)
                    finally:
                        self.encoded += reencoding.tally.points

    def _lacking(
        self, share: _Share, source: str | None, *, firsts: bool
    ) -> Iterator[IndexedInstance]:
        for page in share.indexed.pages(source):
            lacking = share.currency.compared(page).lacking
            for instance in page:
                heads = {lacking[point_id] for point_id in instance.ids if point_id in lacking}
                wanted = heads and (instance.locator in heads) == firsts
                if wanted and not share.has_failed(instance):
                    yield instance
            if firsts:
                self._walked += len(page)

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
            not of_tried or share.has_failed(instance)
            for share in self._by_tenant()
            for _, out, _ in share.parted()
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
        for share in self._by_tenant():
            for found, out, back in share.parted():
                share.indexed.leave_out([instance.locator for instance in out])
                share.indexed.take_back([instance.locator for instance in back])
                share.indexed.note_renderings(found.renderings)

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
        owned = {one for share in self._by_tenant() for one in share.ledger.owners(ids)}
        return [point_id for point_id in ids if point_id not in owned]

    def reasons(self) -> dict[str, int]:
        """How many instances could not be encoded, by reason."""
        failed = (one for share in self._shares.values() for one in share.failed.values())
        return dict(sorted(Counter(one.reason for one in failed).items()))


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
            done, prepared = ledger_and_index_entry(
                instance, result, self._source.name, self._ledger.tenant
            )
            if not _is_as_indexed(instance, done):
                self._failed[instance.locator] = _Failed(instance.at, _CHANGED)
                continue
            tenant = self._ledger.tenant
            pictures = tuple(one for one in prepared.pictures if one.id_in(tenant) in instance.ids)
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
