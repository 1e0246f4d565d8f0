"""Files → what the index needs of them, read in processes that may die."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from engine.errors import ImageRefused
from engine.model.preprocess import Preprocess
from engine.settings import Settings
from indexer.imaging.prepare import Prepared, ReadTask, prepare
from indexer.reading import ReaderPool

__all__ = ["FileReader"]


class FileReader:
    """Reads images under the limits of the settings. Close it, or use it as a context manager.

    Args:
        settings: limits, time and memory for a file, size of thumbnails.
        preprocess: of the model that will see the canvases.
        pseudonym_key: of the patient HMAC.
        frames: at most so many of a multi-frame instance.
        processes: how many files are read at once.
    """

    def __init__(
        self,
        settings: Settings,
        preprocess: Preprocess,
        pseudonym_key: bytes,
        *,
        frames: int,
        processes: int,
    ) -> None:
        self._settings = settings
        self._preprocess = preprocess
        self._key = pseudonym_key
        self._frames = frames
        self._pool = ReaderPool(
            prepare,
            processes=processes,
            seconds=settings.indexing.reader_seconds,
            memory_bytes=settings.indexing.reader_memory_bytes,
        )

    def read(self, images: Iterable[Path | bytes]) -> Iterator[Prepared | ImageRefused]:
        """Each file or upload, read or refused, in order; a bounded number is taken ahead."""
        for _, result in self._pool.map(self._task(image) for image in images):
            yield result

    def _task(self, image: Path | bytes) -> ReadTask:
        return ReadTask(
            image=image,
            limits=self._settings.limits,
            frames=self._frames,
            thumbnail_side=self._settings.indexing.thumbnail_side,
            preprocess=self._preprocess,
            pseudonym_key=self._key,
        )

    def close(self) -> None:
        self._pool.close()

    def __enter__(self) -> "FileReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
