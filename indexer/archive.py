"""An archive, opened: its model, its index, its ledger, and the engine that searches them."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from engine.errors import ImageRefused, StoreError, StoreLocked, StoreNotFound
from engine.model.manifest import Manifest
from engine.ood.calibration import OodGate
from engine.records import ImageRecord
from engine.search.engine import SearchEngine
from engine.settings import Settings
from engine.store.base import Collection, Filter, Ids, Match
from engine.store.opening import open_store
from indexer.datadir.indexes import indexes_of
from indexer.datadir.layout import FIRST_INDEX, DataDir, InForce
from indexer.datadir.models import model_directory
from indexer.datadir.write_lock import writing
from indexer.encoders import following, load_encoder
from indexer.files.locators import file_locator, file_path, is_file
from indexer.imaging.prepare import Prepared
from indexer.jobs.ledger import JobLedger
from indexer.ledger.database import Database, open_database
from indexer.ledger.instances import Ledger, State
from indexer.pipeline.file_reader import FileReader
from indexer.pipeline.indexing import Indexer
from indexer.pipeline.removal import points_only_of, remove, remove_points
from indexer.pipeline.run import IndexingReport, Progress, index_archive
from indexer.sources.base import ImageSource

__all__ = ["Archive", "QueryImage", "QueryReader"]


_DELETED_AT_ONCE = 5000


class Archive:
    """A data folder in use. Close it, or use it as a context manager.

    Args:
        settings: which folder, which model, which limits.
        create: make the index when there is none.
        database: of the ledger, where the caller has it open and closes it.

    Raises:
        ModelError: no usable model. StoreNotFound, StoreLocked, FingerprintMismatch: as
            ``open_store`` says. LedgerError: the ledger cannot be opened.
    """

    def __init__(
        self, settings: Settings, *, create: bool = False, database: Database | None = None
    ) -> None:
        self.settings = settings
        self.data_dir = DataDir(settings.data_dir)
        # Before anything is opened: what comes into force meanwhile shows later.
        self._in_force = self._noted()
        self._writers = 0
        self._writing = Lock()
        self._floor = ExitStack()
        directory = model_directory(settings)
        with ExitStack() as opened:
            if create:
                self.data_dir.make()
            self.encoder = load_encoder(directory, settings)
            manifest = self.encoder.manifest
            collection = Collection(
                manifest.fingerprint, manifest.dim, manifest.bits, self.encoder.precision
            )
            self.store = opened.enter_context(
                open_store(settings, self.data_dir.index, collection, create=create)
            )
            self.encoder = following(self.encoder, self.store.collection, settings)
            if database is None:
                database = opened.enter_context(open_database(settings, self.data_dir.ledger))
            self._database = database
            self.ledger = Ledger(database)
            # In this order: another worker writes points first, and then says that they are done.
            if create and self.ledger.counts().get(State.DONE) and self.store.count(Filter()) == 0:
                # The index was deleted: what the ledger says is not true, and thumbnails are
                # of nothing.
                self.ledger.clear()
                shutil.rmtree(self.data_dir.thumbnails, ignore_errors=True)
            gate = OodGate.load(directory, manifest.fingerprint, self.encoder.decoder_fingerprint)
            self.engine = SearchEngine(self.encoder, self.store, settings.search, gate)
            self._opened = opened.pop_all()

    def _noted(self) -> InForce | None:
        return self.data_dir.in_force(served=self.settings.store.url is not None)

    def _index(self, noted: InForce | None) -> str | None:
        """The name of an index; None = the one on a server that was never replaced."""
        if noted is not None:
            return noted.index
        return FIRST_INDEX if self.settings.store.url is None else None

    @property
    def is_replaced(self) -> bool:
        """Whether another index, or another calibration, has come into force since."""
        return self._noted() != self._in_force

    @contextmanager
    def writing(self) -> Iterator[None]:
        """For all that writes: nothing takes the place of the index meanwhile. May be nested.

        Raises:
            StoreError: another one has taken its place already.
        """
        with self._writing:
            if self._writers == 0:
                self._floor.enter_context(writing(self.data_dir.root))
            self._writers += 1
        try:
            if self._index(self._noted()) != self._index(self._in_force):
                raise StoreError(
                    f"another index has come into force in {self.data_dir.root}; nothing was "
                    "lost, and the same command again uses that"
                )
            yield
        finally:
            with self._writing:
                self._writers -= 1
                if self._writers == 0:
                    self._floor.close()

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
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> IndexingReport:
        """Brings everything that ``source`` has into the index; see ``index_archive``."""
        with self.writing():
            return index_archive(
                source,
                encoder=self.encoder,
                store=self.store,
                ledger=self.ledger,
                data_dir=self.data_dir,
                settings=self.settings,
                retry_refused=retry_refused,
                again=again,
                vanished_from=vanished_from,
                progress=progress,
            )

    def indexer(self) -> Indexer:
        """What indexes chunks into this archive; see ``indexer.jobs``."""
        return Indexer(self.encoder, self.store, self.ledger, self.data_dir, self.settings)

    def query_reader(self, processes: int = 1) -> "QueryReader":
        """Reads query images in processes that may die without taking this one along."""
        return QueryReader(self, processes)

    def paths(self, ids: Sequence[str]) -> dict[str, Path]:
        """Where the images with these point ids lie that are files; for local use only."""
        owners = self.ledger.owners(ids)
        return {
            point_id: file_path(found[0].locator)
            for point_id, found in owners.items()
            if is_file(found[0].locator)
        }

    def delete(self, locators: Sequence[str]) -> int:
        """Removes instances from index, thumbnails and ledger, and received ones from the data
        folder; returns the points removed."""
        with self.writing():
            self._remove_beside(points_only_of(locators, self.ledger))
            removed = remove(locators, self.ledger, self.store, self.data_dir)
        received = file_locator(self.data_dir.received.absolute()) + "/"
        for locator in locators:
            # Nobody else has a use for it, and `precedent receive` would index it again.
            if locator.startswith(received):
                file_path(locator).unlink(missing_ok=True)
        return removed

    def _remove_beside(self, ids: Sequence[str]) -> None:
        """Removes points from the indexes that are kept. One that is being filled has someone
        who will see what was deleted."""
        if not ids:
            return
        indexes = indexes_of(self.settings, self.data_dir)
        for name in indexes.beside():
            with suppress(StoreLocked, StoreNotFound), indexes.open(name) as store:
                store.delete(Filter(must=(Ids(tuple(ids)),)))
                store.flush()

    def delete_all(self, wanted: dict[str, str]) -> tuple[int, int]:
        """Removes everything with these identifiers; returns how many instances and points.

        Args:
            wanted: values by field: study, patient, sop, source, tenant.

        Raises:
            JobError: a job is still indexing what is to be removed.
        """
        if "source" in wanted:
            JobLedger(self._database).forget_source(wanted["source"])
        instances = points = 0
        while locators := self.ledger.find(limit=_DELETED_AT_ONCE, **wanted):
            points += self.delete(locators)
            instances += len(locators)
        where = Filter(tuple(Match(name, (value,)) for name, value in wanted.items()))
        return instances, points + self.delete_unowned(where)

    def delete_unowned(self, where: Filter) -> int:
        """Removes those points, of the ones ``where`` lets pass, that are of no file in the
        ledger; returns how many.

        There are such after the ledger was lost, or a snapshot restored without it.
        """
        with self.writing():
            ids = [point.id for point in self.store.scroll(where)]
            owned = self.ledger.owners(ids)
            gone = [point_id for point_id in ids if point_id not in owned]
            remove_points(gone, self.store, self.data_dir)
        return len(gone)


@dataclass(frozen=True, slots=True, eq=False)
class QueryImage:
    """What is searched for.

    id: the point id of its middle frame, if it is indexed. record: what its file says, in the
    index's own terms, so that its study and patient can be left out. canvas: uint8 (S, S) or
    (S, S, 3), as the model takes it.
    """

    id: str
    record: ImageRecord
    canvas: NDArray[np.uint8]


class QueryReader:
    """Files and uploads → query images, under the archive's limits."""

    def __init__(self, archive: Archive, processes: int) -> None:
        self._files = FileReader(
            archive.settings,
            archive.manifest.preprocess,
            archive.data_dir.pseudonym_key(archive.settings),
            frames=1,
            processes=processes,
        )

    def read(self, images: Sequence[Path | bytes]) -> list[QueryImage | ImageRefused]:
        """Of each path or upload its middle frame, or why there is none."""
        return [
            result if isinstance(result, ImageRefused) else _query_image(result)
            for result in self._files.read(images)
        ]

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> "QueryReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _query_image(prepared: Prepared) -> QueryImage:
    picture = prepared.pictures[0]
    record = replace(prepared.record, frame=picture.frame)
    return QueryImage(picture.point_id, record, picture.canvas)
