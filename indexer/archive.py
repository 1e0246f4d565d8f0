"""An open archive: model, index and ledger of one data folder, and the search engine over them."""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from engine.errors import (
    DiskFull,
    ImageNotFound,
    ImageRefused,
    QueryError,
    RefusalReason,
    SourceGone,
    StoreError,
    StoreLocked,
    StoreNotFound,
)
from engine.model.manifest import Manifest, read_manifest
from engine.ood.calibration import OodGate
from engine.records import Hit, ImageRecord, Point, point_id
from engine.search.engine import SearchEngine
from engine.settings import Settings
from engine.store.base import Collection, Filter, Ids, Match, VectorStore
from engine.store.opening import check_access, holder_of, open_store
from engine.store.tenant import TenantStore
from engine.tenants import DEFAULT_TENANT
from indexer.datadir.deletions import Deletions
from indexer.datadir.indexes import indexes_of
from indexer.datadir.layout import FIRST_INDEX, DataDir, InForce
from indexer.datadir.models import model_directory
from indexer.datadir.write_lock import removing, writing
from indexer.encoders import following, load_encoder
from indexer.files.locators import file_locator, file_path, is_file
from indexer.imaging.frames import FramePolicy
from indexer.imaging.prepare import Prepared
from indexer.imaging.region import Region, WholePicture
from indexer.imaging.rendering import rendering_of
from indexer.imaging.thumbnails import thumbnails_of
from indexer.jobs.ledger import JobLedger
from indexer.ledger.database import Database, open_database
from indexer.ledger.deletions import note_deleted
from indexer.ledger.instances import Ledger, State
from indexer.ledger.outcomes import Outcome, outcome_of
from indexer.ledger.tallies import RefusedFor, images_by_day, refused_by_reason
from indexer.ledger.tenancy import all_tenants
from indexer.pipeline.file_reader import FileReader
from indexer.pipeline.indexing import Indexer
from indexer.pipeline.previews import check_same, gone, image_of
from indexer.pipeline.removal import points_only_of, remove, remove_points
from indexer.pipeline.run import IndexingReport, Progress, index_archive
from indexer.sources.base import ImageSource
from indexer.sources.opening import name_in_source

__all__ = ["Archive", "Original", "QueryImage", "QueryReader", "TenantArchive"]


_log = logging.getLogger(__name__)

_DELETED_AT_ONCE = 5000
_MOST_TENANTS = 1000


class _Writers:
    """Those who write into one open archive. The first of them takes the lock of its folder, and
    the last one lets it go."""

    def __init__(self) -> None:
        self._count = 0
        self._changing = Lock()
        self._held = ExitStack()

    @contextmanager
    def one(self, folder: Path) -> Iterator[None]:
        with self._changing:
            if self._count == 0:
                self._held.enter_context(writing(folder))
            self._count += 1
        try:
            yield
        finally:
            with self._changing:
                self._count -= 1
                if self._count == 0:
                    self._held.close()


class Archive:
    """A data folder in use, for one tenant. Close it, or use it as a context manager.

    ``store``, ``ledger`` and ``engine`` hold what is the tenant's; another one sees the same
    folder through :meth:`of`.

    Args:
        settings: which folder, which model, which limits.
        tenant: whose images are searched, indexed and removed.
        create: make the index when there is none.
        database: the ledger's database, if the caller has opened it; the caller then closes it.
            None = opened and closed here.

    Raises:
        SettingsError: the settings need a library that is not installed.
        ModelError: no usable model. StoreNotFound, StoreLocked, FingerprintMismatch: as
            ``open_store`` says. LedgerError: the ledger cannot be opened.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        tenant: str = DEFAULT_TENANT,
        create: bool = False,
        database: Database | None = None,
    ) -> None:
        self.settings = settings
        self.data_dir = DataDir(settings.data_dir)
        # Read before anything is opened, so that an index that replaces this one in the meantime
        # is noticed by ``is_replaced``.
        self._in_force = self._noted()
        self._writers = _Writers()
        directory = model_directory(settings)
        with ExitStack() as opened:
            self.thumbnails = opened.enter_context(
                thumbnails_of(settings, self.data_dir.thumbnails)
            )
            if create:
                self.data_dir.make()
            if database is None and settings.ledger.url is not None:
                # Before the model is loaded: the server may be away, or the password wrong.
                database = opened.enter_context(open_database(settings, self.data_dir.ledger))
            manifest = read_manifest(directory)
            collection = Collection(
                manifest.fingerprint, manifest.dim, manifest.bits, words=manifest.words_dim
            )
            # So are they of the store, and of an index that is there already.
            check_access(settings.store)
            store = self._existing(collection, needed=not create)
            if store is not None:
                opened.enter_context(store)
            self.encoder = load_encoder(directory, settings)
            if store is None:
                collection = replace(collection, precision=self.encoder.precision)
                store = opened.enter_context(
                    open_store(settings, self.data_dir.index, collection, create=create)
                )
            self._whole = store
            self.encoder = following(self.encoder, self._whole.collection, settings)
            if database is None:
                database = opened.enter_context(open_database(settings, self.data_dir.ledger))
            self._database = database
            # Another process that has the index open would know better what was deleted.
            if create and holder_of(self._whole) is None:
                self._clear_without_index()
            self._gate = OodGate.load(
                directory, manifest.fingerprint, self.encoder.decoder_fingerprint
            )
            self._serve(tenant)
            self.finish_deletions()
            self._opened = opened.pop_all()

    def _existing(self, collection: Collection, *, needed: bool) -> VectorStore | None:
        """The embedded index that is there; None = there is none, or it is on a server.

        needed: raise StoreNotFound if there is none.
        """
        if self.settings.store.url is not None:
            return None
        try:
            return open_store(self.settings, self.data_dir.index, collection, create=False)
        except StoreNotFound:
            if needed:
                raise
            return None

    def _clear_without_index(self) -> None:
        """Clears the ledger if the index was deleted: its records are wrong then, and thumbnails
        belong to no point."""
        ledgers = [Ledger(self._database.of(one)) for one in all_tenants(self._database)]
        # Ledger first, then store: another worker writes points before it records them as done.
        if not any(ledger.counts().get(State.DONE) for ledger in ledgers):
            return
        if self._whole.count(Filter()) == 0:
            # Whoever fails here finds the ledger as it was, and comes here again.
            self.thumbnails.clear()
            shutil.rmtree(self.data_dir.thumbnails, ignore_errors=True)
            for ledger in ledgers:
                ledger.clear()

    def _serve(self, tenant: str) -> None:
        self.tenant = tenant
        self.store: VectorStore = TenantStore(self._whole, tenant)
        self.ledger = Ledger(self._database.of(tenant), rendering_of(self.settings))
        self.engine = SearchEngine(
            self.encoder, self.store, self.settings.search, self._gate, self.ledger.rendering
        )

    def tenants(self) -> list[str]:
        """All that have something in the ledger or the index, ordered. For local use only."""
        of_points = self._whole.facets(["tenant"], Filter(), _MOST_TENANTS)["tenant"]
        return sorted({*all_tenants(self._database), *of_points})

    def count_all(self) -> int:
        """How many points the index has, of all tenants together."""
        return self._whole.count(Filter())

    @property
    def whole(self) -> VectorStore:
        """The index with the points of all tenants: for what concerns its files, never for an
        answer."""
        return self._whole

    @property
    def database(self) -> Database:
        """The ledger's database, of all tenants."""
        return self._database

    def rewrite(self, *, new_cells: bool = False) -> list[str] | None:
        """Writes the embedded index in force anew, and those kept beside it, so that no file has
        anything of deleted points; searches go on meanwhile.

        Args:
            new_cells: with cells made anew.

        Returns:
            The names of the indexes beside it that were left, as another process has them open;
            None = the index is on a server, which cannot be asked for it.

        Raises:
            DiskFull: there is no room for another one.
            StoreError: an index cannot be written anew; each is as it was, or done.
        """
        rewrite = getattr(self._whole, "rewrite", None)
        if rewrite is None:
            return None
        left = []
        with self.writing():
            _check_room_for_another(self.data_dir.index, self.settings.indexing.min_free_bytes)
            rewrite(new_cells=new_cells)
            indexes = indexes_of(self.settings, self.data_dir)
            for name in indexes.beside():
                try:
                    with indexes.open(name) as store:
                        getattr(store, "rewrite")(new_cells=new_cells)  # noqa: B009
                except StoreLocked:
                    left.append(name)
        return left

    def of(self, tenant: str) -> "Archive":
        """The same data folder for another tenant. Closing it leaves this one open, without which
        it cannot be used."""
        other = copy(self)
        other._opened = ExitStack()
        other._serve(tenant)
        return other

    def _noted(self) -> InForce | None:
        return self.data_dir.in_force(served=self.settings.store.url is not None)

    def _index(self, noted: InForce | None) -> str | None:
        """The name of the index in force; None = on a server, where none was ever replaced."""
        if noted is not None:
            return noted.index
        return FIRST_INDEX if self.settings.store.url is None else None

    @property
    def is_replaced(self) -> bool:
        """Whether another index or calibration has come into force since this one was opened."""
        return self._noted() != self._in_force

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A lock to hold while writing: no other index can replace this one. May be nested.

        Raises:
            StoreError: another index has replaced this one already.
        """
        with self._writers.one(self.data_dir.root):
            if self._index(self._noted()) != self._index(self._in_force):
                raise StoreError(
                    f"another index has come into force in {self.data_dir.root}; nothing was "
                    "lost, and the same command again uses that"
                )
            yield

    @property
    def gate(self) -> OodGate | None:
        """What judges queries; None = the model has no calibration."""
        return self._gate

    @property
    def manifest(self) -> Manifest:
        return self.encoder.manifest

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def index(
        self,
        source: ImageSource,
        *,
        retry_refused: bool = False,
        again: bool = False,
        vanished_from: Sequence[str] | None = None,
        at_most: float = 1.0,
        progress: Callable[[Progress], None] = lambda _: None,
        stop: Callable[[], bool] = lambda: False,
        indexer: Indexer | None = None,
    ) -> IndexingReport:
        """Brings everything that ``source`` has into the tenant's index; see ``index_archive``."""
        with self.writing():
            return index_archive(
                source,
                encoder=self.encoder,
                store=self._whole,
                ledger=self.ledger,
                data_dir=self.data_dir,
                settings=self.settings,
                retry_refused=retry_refused,
                again=again,
                vanished_from=vanished_from,
                at_most=at_most,
                progress=progress,
                stop=stop,
                indexer=indexer,
            )

    def outcome(self, locator: str) -> Outcome | None:
        """What became of an instance; see ``outcome_of``."""
        return outcome_of(self._database.of(self.tenant), locator)

    def indexer(self) -> Indexer:
        """A new indexer that writes into this archive; whoever asks for it closes it."""
        return Indexer(self.encoder, self._whole, self.ledger, self.data_dir, self.settings)

    def query_reader(self, processes: int = 1) -> "QueryReader":
        """A reader of query images, whose decoders run, and may crash, in separate processes."""
        return QueryReader(self, processes)

    def paths(self, ids: Sequence[str]) -> dict[str, Path]:
        """The file paths of these point ids, by id; without those whose image is not a plain file.

        They may identify patients: for local use only.
        """
        owners = self.ledger.owners(ids)
        return {
            point_id: file_path(found[0].locator)
            for point_id, found in owners.items()
            if is_file(found[0].locator)
        }

    def delete(self, locators: Sequence[str]) -> int:
        """Removes instances from index, thumbnails and ledger, and received ones from the data
        folder; returns how many points were removed."""
        with self.writing(), removing(self.data_dir.root):
            received = self._received()
            for locator in locators:
                # The file exists only for this archive, and `precedent receive` would index it
                # again. It goes while the ledger still knows of it, so that a removal that is cut
                # short can be repeated.
                if locator.startswith(received):
                    file_path(locator).unlink(missing_ok=True)
            self._remove_beside(points_only_of(locators, self.ledger))
            return remove(locators, self.ledger, self.store, self.thumbnails)

    def _received(self) -> str:
        """What the locators of received instances begin with."""
        return file_locator(self.data_dir.received_for(self.tenant).absolute()) + "/"

    def _remove_beside(self, ids: Sequence[str]) -> None:
        """Removes points from the indexes kept beside the one in force.

        One that is locked is passed over: the re-encoding that fills it removes them at its end.
        """
        if not ids:
            return
        indexes = indexes_of(self.settings, self.data_dir)
        for name in indexes.beside():
            with suppress(StoreLocked, StoreNotFound), indexes.open(name) as store:
                store.delete(Filter(must=(Ids(tuple(ids)),)))
                store.flush()

    def delete_for_good(self, locators: Sequence[str]) -> int:
        """As :meth:`delete`; and later runs leave these instances out, but for received ones, which
        come back when they are sent again."""
        received = self._received()
        # Noted first: a run that begins between the two would take them in again.
        note_deleted(
            self._database.of(self.tenant),
            [one for one in locators if not one.startswith(received)],
        )
        return self.delete(locators)

    def delete_all(self, wanted: dict[str, str]) -> tuple[int, int]:
        """Removes all instances and points with these identifiers; returns how many of each.

        Args:
            wanted: values by field: study, series, patient, sop, source; or the tenant's own name
                as "tenant": all that it has.

        Raises:
            JobError: a job is still indexing what is to be removed.
            QueryError: nothing is named, or another tenant.

        Later runs leave these instances out; received ones come back when they are sent again.
        """
        if wanted.get("tenant", self.tenant) != self.tenant or not wanted:
            raise QueryError(f"name what of the tenant {self.tenant!r} is to be removed")
        wanted = {name: value for name, value in wanted.items() if name != "tenant"}
        sources = [wanted["source"]] if "source" in wanted else []
        for source in sources if wanted else self.ledger.sources():
            JobLedger(self._database.of(self.tenant)).forget_source(source)
        with Deletions(self.data_dir.root).under_way({**wanted, "tenant": self.tenant}):
            return self._delete_all(wanted)

    def finish_deletions(self) -> None:
        """Brings deletions to their end whose processes were killed; asks little where none was."""
        for wanted in Deletions(self.data_dir.root).left():
            # Whoever opens the archive now may be another tenant.
            whose = wanted.pop("tenant", DEFAULT_TENANT)
            instances, points = self.of(whose)._delete_all(wanted)
            _log.warning(
                "a deletion that was cut short is done: %d instances, %d points", instances, points
            )

    def _delete_all(self, wanted: dict[str, str]) -> tuple[int, int]:
        instances = points = 0
        while locators := self.ledger.find(limit=_DELETED_AT_ONCE, **wanted):
            points += self.delete_for_good(locators)
            instances += len(locators)
        where = Filter(tuple(Match(name, (value,)) for name, value in wanted.items()))
        return instances, points + self.delete_unowned(where)

    def delete_unowned(self, where: Filter) -> int:
        """Removes the points that match ``where`` and belong to no instance in the ledger; returns
        how many.

        Such points exist after the ledger was lost, or a snapshot was restored without it.
        """
        with self.writing():
            ids = [point.id for point in self.store.scroll(where)]
            owned = self.ledger.owners(ids)
            gone = [point_id for point_id in ids if point_id not in owned]
            remove_points(gone, self.store, self.thumbnails)
        return len(gone)


def _check_room_for_another(index: Path, least: int) -> None:
    """Raises DiskFull: the disk has no room for a second index of the size of this one."""
    needed, free = 0, shutil.disk_usage(index).free
    for path in index.rglob("*"):
        with suppress(FileNotFoundError):
            needed += path.stat().st_blocks * 512
    if free < needed + least:
        mib = 1024**2
        raise DiskFull(
            f"the disk of {index} has {free // mib:,} MiB free, and to write the index anew takes "
            f"{needed // mib:,} MiB beside the {least // mib:,} of indexing.min_free_bytes; make "
            "room, and the same command goes on"
        )


@dataclass(frozen=True, slots=True)
class Original:
    """The file of an indexed image. content: SHA-256 of it when it was indexed, hex."""

    id: str
    record: ImageRecord
    locator: str
    content: str | None


class TenantArchive:
    """What one tenant may read of an open archive.

    The images of others do not exist here, in no answer, count or picture. Whoever has only this
    cannot ask a question without the tenant as its condition.
    """

    def __init__(self, archive: Archive, tenant: str) -> None:
        self.settings = archive.settings
        self.manifest = archive.manifest
        own = archive.of(tenant)
        self.store = own.store
        # The number of cells would tell how many images all tenants have together.
        self.engine = own.engine.over(own.store, tells_cells=False)
        self.rendering = own.ledger.rendering
        self.tenant = tenant
        self._ledger = own.ledger
        self._records = archive._database.of(tenant)
        self._thumbnails = archive.thumbnails

    def id_of(self, image: "QueryImage") -> str:
        """The id that a query image has if it is indexed."""
        return image.id_in(self.tenant)

    def thumbnail(self, image_id: str) -> bytes:
        """The thumbnail of an image, a JPEG; errors as for :meth:`pictured`."""
        return self.pictured(image_id)[1]

    def pictured(self, image_id: str) -> tuple[Point, bytes]:
        """An image, and its thumbnail, a JPEG.

        Raises:
            ImageNotFound: there is no such image, or it has no thumbnail.
            StorageError: where thumbnails lie cannot be reached, or refuses.
        """
        # The index is asked first: it knows whose the image is; and if a deletion was interrupted,
        # the thumbnail of a deleted image may still exist, and must not be shown.
        found = self.engine.image(image_id)
        jpeg = self._thumbnails.read(found.id)
        if jpeg is None:
            raise ImageNotFound(
                f"image {found.id} has no thumbnail; index its file again to make one"
            )
        return found, jpeg

    def original(self, image_id: str) -> Original:
        """Where an image comes from.

        Raises:
            ImageNotFound: there is no such image.
            SourceGone: the ledger does not know its file.
        """
        point = self.engine.image(image_id)
        owners = self._ledger.owners([point.id], done_only=True).get(point.id)
        if not owners:
            raise SourceGone(
                f"the ledger does not know the file of image {point.id}; index its source again"
            )
        return Original(point.id, point.record, owners[0].locator, owners[0].content)

    def first_of_study(self, study: str) -> ImageRecord | None:
        """Of a study, the record of some image of it; None = it is not indexed."""
        found = self.store.scroll(Filter((Match("study", (study,)),)), page=1)
        return next((point.record for point in found), None)

    def study_of_series(self, series: str) -> str | None:
        """The study of an indexed series; None = it is not indexed, or names no study."""
        found = self.store.scroll(Filter((Match("series", (series,)),)), page=1)
        return next((point.record.study for point in found), None)

    def locators(self, ids: Sequence[str]) -> dict[str, str]:
        """Where images of this tenant come from, by id; without those whose file the ledger does
        not know. For local use only."""
        owners = self._ledger.owners(ids, done_only=True)
        return {image_id: found[0].locator for image_id, found in owners.items() if found}

    def instances(self) -> dict[str, int]:
        """How many instances there are, by state: pending, done, refused."""
        return {one.value: self._ledger.count(state=one) for one in State}

    def refusals(self, examples: int) -> list[RefusedFor]:
        """The refused instances by reason, see ``refused_by_reason``. Their locators are for local
        use only."""
        return refused_by_reason(self._records, examples)

    def images_by_day(self) -> dict[str | None, int]:
        """How many images were indexed on each day, see ``images_by_day``."""
        return images_by_day(self._records)

    def names(self, hits: Sequence[Hit]) -> dict[str, str]:
        """Where the files of hits without DICOM UIDs lie in their sources' folders, by id; none
        unless the setting ``server.show_names`` allows it."""
        ids = [hit.id for hit in hits if hit.record.sop is None]
        if not ids or not self.settings.server.show_names:
            return {}
        owners = self._ledger.owners(ids)
        return {
            one: name_in_source(found[0].locator, self.settings) for one, found in owners.items()
        }


@dataclass(frozen=True, slots=True, eq=False)
class QueryImage:
    """A query image: its middle frame, ready to be encoded.

    identity: what this frame is known by, whichever tenant asks. record: the allow-listed fields of
    its header, pseudonymised as in the index, so that its own study and patient can be excluded.
    canvas: uint8 (S, S) or (S, S, 3), the model's input. colour: share of the frame's pixels that
    have a colour, in [0, 1]. Of a region both are of that alone. whole: the picture, if asked for.
    """

    identity: str
    record: ImageRecord
    canvas: NDArray[np.uint8]
    colour: float
    whole: WholePicture | None = None

    def id_in(self, tenant: str) -> str:
        """The point id that this frame has if it is indexed for the tenant."""
        return point_id(self.identity, tenant)


class QueryReader:
    """Reads files and uploads as query images, under the limits of the archive's settings."""

    def __init__(self, archive: Archive, processes: int) -> None:
        self._settings = archive.settings
        self._files = FileReader(
            archive.settings,
            archive.manifest.preprocess,
            archive.data_dir.pseudonym_key(archive.settings),
            frames=FramePolicy(limit=1, derived=archive.settings.indexing.take_derived),
            processes=processes,
        )

    def read(
        self,
        images: Sequence[Path | bytes],
        region: Region | None = None,
        whole_side: int | None = None,
    ) -> list[QueryImage | ImageRefused]:
        """The middle frame of each path or upload, or the reason why there is none, in order.

        Args:
            region: what of each picture is searched for; None = all of it.
            whole_side: the longest side of the pictures as a whole; None = they are not wanted.
        """
        return [
            result if isinstance(result, ImageRefused) else _query_image(result)
            for result in self._files.read(images, region=region, whole_side=whole_side)
        ]

    def read_region(self, original: Original, region: Region) -> QueryImage:
        """A region of an indexed image, cut from its original, with the record of the index.

        Raises:
            SourceGone, SourceChanged, SourceError: its original cannot be read any more.
            ImageRefused: nor can the file be used, or the region has too few pixels.
        """
        record = original.record
        image = image_of(record, original.locator, self._settings)
        frames = FramePolicy("given", limit=1, derived=True, number=record.frame)
        (found,) = self._files.read([image], frames=frames, region=region)
        if isinstance(found, ImageRefused):
            if found.reason is RefusalReason.UNREADABLE:
                raise gone(record, original.locator, self._settings)
            raise found
        check_same(record, image, original.content, found.record.sop, found.content_sha256)
        return replace(_query_image(found), record=record)

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> "QueryReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _query_image(prepared: Prepared) -> QueryImage:
    picture = prepared.pictures[0]
    record = picture.record_of(prepared.record)
    return QueryImage(picture.identity, record, picture.canvas, picture.colour, picture.whole)
