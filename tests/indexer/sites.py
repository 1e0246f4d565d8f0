"""Folders of files that tests index for real, and pictures to put into them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.records import Point
from engine.settings import IndexingSettings, Settings
from engine.store.base import Filter
from engine.store.edge import EdgeStore
from indexer.archive import Archive
from indexer.datadir.layout import DataDir
from indexer.files.locators import file_path
from indexer.ledger.database import Database, open_database
from indexer.ledger.instances import Ledger, Refused
from indexer.pipeline.run import IndexingReport, index_archive
from indexer.sources.folder import FolderSource

__all__ = ["Site", "drawn", "png_of"]


def drawn(seed: int, side: int = 64) -> NDArray[np.uint8]:
    """uint8 (side, side): waves over noise, another picture for each seed."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    centre, bend = rng.uniform(0, side, 2), rng.uniform(-1, 1)
    distance = np.hypot(x - centre[0], y - centre[1]) + bend * x
    wave = np.sin(distance * rng.uniform(0.05, 0.6) + rng.uniform(0, 6))
    return (127 + 90 * wave + rng.normal(0, 8, (side, side))).clip(0, 255).astype(np.uint8)


def png_of(pixels: NDArray[np.uint8], level: int = 6) -> bytes:
    """Another ``level`` gives other bytes of the same picture."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=level)
    return out.getvalue()


class Site:
    """A folder of files, and a data folder to index them into."""

    def __init__(self, root: Path, model: Path | None, **indexing: Any) -> None:
        self.root = root
        self.files = root / "files"
        self.files.mkdir(parents=True)
        # A batch is filled up whatever is in it, and most tests have an image or two.
        chosen = {"readers": 1, "batch_size": 4, **indexing}
        self.settings = Settings(
            data_dir=root / "data", model=model, indexing=IndexingSettings(**chosen)
        )

    def write(self, name: str, content: bytes) -> Path:
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def open(self, *, create: bool = False) -> Archive:
        return Archive(self.settings, create=create)

    def index(
        self, *, labels: bool = False, paths: list[Path] | None = None, **options: Any
    ) -> IndexingReport:
        with self.open(create=True) as archive:
            return index_archive(
                FolderSource(
                    paths or [self.files],
                    leave_out=self.settings.data_dir,
                    label_from_folder=labels,
                ),
                encoder=archive.encoder,
                store=archive.store,
                ledger=archive.ledger,
                data_dir=archive.data_dir,
                settings=self.settings,
                **options,
            )

    def points(self) -> dict[str, Point]:
        with EdgeStore.open(DataDir(self.settings.data_dir).index) as store:
            return {point.id: point for point in store.scroll(Filter())}

    def contents(self) -> dict[str, tuple[object, ...]]:
        """All that the index says of each point, vectors included."""
        with EdgeStore.open(DataDir(self.settings.data_dir).index) as store:
            ids = [point.id for point in store.scroll(Filter())]
            return {
                point.id: (point.record, point.indexed_at, point.code.tobytes(), point.z.tobytes())
                for point in store.get(ids, with_z=True)
                if point.z is not None
            }

    def ids_of(self, *paths: Path) -> list[str]:
        """The point ids of these files, by the ledger."""
        with self.database() as database:
            found = Ledger(database.of("default")).points_of([path.as_uri() for path in paths])
            return [point_id for path in paths for point_id in found.get(path.as_uri(), [])]

    def database(self) -> Database:
        return open_database(self.settings, DataDir(self.settings.data_dir).ledger)

    def refusals(self) -> dict[Path, Refused]:
        with self.database() as database:
            refused = Ledger(database.of("default")).refusals(10_000)
        return {file_path(one.locator): one for one in refused}

    def reasons(self) -> dict[Path, str]:
        return {path: one.reason.value for path, one in self.refusals().items()}

    def thumbnails(self) -> dict[str, bytes]:
        folder = self.root / "data" / "thumbnails"
        return {path.stem: path.read_bytes() for path in folder.rglob("*.jpg")}
