"""An archive, opened: its model, its index, its ledger, and the engine that searches them."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.errors import ImageRefused
from engine.model.checkpoint import SHIPPED, Manifest
from engine.model.encoder import Encoder
from engine.ood.calibration import OodGate
from engine.search.engine import SearchEngine
from engine.settings import Settings
from engine.store.base import Collection, Filter, Ids
from engine.store.edge import EdgeStore
from indexer.datadir import DataDir
from indexer.file_reader import FileReader
from indexer.imaging.thumbnails import delete_thumbnail
from indexer.ledger import Ledger
from indexer.pipeline import IndexingReport, Progress, index_archive
from indexer.sources.base import ImageSource, file_path

__all__ = ["Archive", "model_directory"]


# Smaller is faster for one query; below four, bfloat16 kernels round in another order, and an
# indexed image would not find itself with exactly its own code.
_QUERY_BATCH = 4


def model_directory(settings: Settings) -> Path:
    """The checkpoint folder in force: the one named, or the shipped one."""
    return SHIPPED if settings.model is None else settings.model


class Archive:
    """A data folder in use. Close it, or use it as a context manager.

    Args:
        settings: which folder, which model, which limits.
        create: make the index when there is none.

    Raises:
        ModelError: no usable model. StoreNotFound, StoreLocked, FingerprintMismatch: as
            ``EdgeStore`` says. LedgerError: the ledger cannot be opened.
    """

    def __init__(self, settings: Settings, *, create: bool = False) -> None:
        self.settings = settings
        self.data_dir = DataDir(settings.data_dir)
        directory = model_directory(settings)
        with ExitStack() as opened:
            if create:
                self.data_dir.make()
            self.encoder = Encoder.load(
                directory,
                device=settings.device,
                precision=settings.precision,
                batch_size=settings.indexing.batch_size,
            )
            manifest = self.encoder.manifest
            collection = Collection(manifest.fingerprint, manifest.dim, manifest.bits)
            open_store = EdgeStore.create if create else EdgeStore.open
            self.store = opened.enter_context(open_store(self.data_dir.index, collection))
            self.ledger = opened.enter_context(Ledger(self.data_dir.ledger))
            if create and self.store.count(Filter()) == 0:
                # The index was deleted, or never flushed: what the ledger says is not true,
                # and thumbnails are of nothing.
                self.ledger.clear()
                shutil.rmtree(self.data_dir.thumbnails, ignore_errors=True)
            gate = OodGate.load(directory, manifest.fingerprint, self.encoder.decoder_fingerprint)
            self.engine = SearchEngine(
                self.encoder.with_batch_size(_QUERY_BATCH), self.store, settings.search, gate
            )
            self._opened = opened.pop_all()

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
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> IndexingReport:
        """Brings everything that ``source`` has into the index; see ``index_archive``."""
        return index_archive(
            source,
            encoder=self.encoder,
            store=self.store,
            ledger=self.ledger,
            data_dir=self.data_dir,
            settings=self.settings,
            retry_refused=retry_refused,
            progress=progress,
        )

    def query_reader(self, processes: int = 1) -> "QueryReader":
        """Reads query images in processes that may die without taking this one along."""
        return QueryReader(self, processes)

    def paths(self, ids: Sequence[str]) -> dict[str, Path]:
        """Where the images with these point ids lie; for local use only."""
        owners = self.ledger.owners(ids)
        return {point_id: file_path(found[0].locator) for point_id, found in owners.items()}

    def delete(self, locators: Sequence[str]) -> int:
        """Removes instances from index, thumbnails and ledger; returns the points removed.

        A point that another file has too stays. The ledger comes last, so that a deletion
        that was cut short can be repeated.
        """
        ids = {i for found in self.ledger.points_of(locators).values() for i in found}
        leaving = set(locators)
        gone = [
            point_id
            for point_id, owners in self.ledger.owners(sorted(ids)).items()
            if all(owner.locator in leaving for owner in owners)
        ]
        if gone:
            self.store.delete(Filter(must=(Ids(tuple(gone)),)))
            self.store.flush()
        for point_id in gone:
            delete_thumbnail(self.data_dir.thumbnails, point_id)
        self.ledger.forget(locators)
        return len(gone)


class QueryReader:
    """Query images → canvases, under the archive's limits."""

    def __init__(self, archive: Archive, processes: int) -> None:
        self._files = FileReader(
            archive.settings,
            archive.manifest.preprocess,
            archive.data_dir.pseudonym_key(archive.settings),
            frames=1,
            processes=processes,
        )

    def read(self, images: Sequence[Path | bytes]) -> list[NDArray[np.uint8] | ImageRefused]:
        """One canvas for each path or upload, of its middle frame, or why there is none."""
        return [
            result if isinstance(result, ImageRefused) else result.pictures[0].canvas
            for result in self._files.read(images)
        ]

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> "QueryReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
