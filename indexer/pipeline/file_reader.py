"""Reads and prepares images in separate processes, so that a crash on one costs only that image."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypedDict, Unpack

from engine.errors import ImageRefused
from engine.model.preprocess import Preprocess
from engine.settings import Settings
from indexer.files.locators import Image
from indexer.imaging.frames import FramePolicy
from indexer.imaging.prepare import Prepared, ReadTask, prepare
from indexer.imaging.region import Region
from indexer.pipeline.reader_pool import ReaderPool

__all__ = ["FileReader"]

_REFUSED_AHEAD = 1000
"""Most refusals that are held back to keep the order while images before them are still read."""


class Otherwise(TypedDict, total=False):
    """What of :class:`~indexer.imaging.prepare.ReadTask` may differ from one call to the next."""

    frames: FramePolicy | int
    region: Region | None
    whole_side: int | None


class FileReader:
    """Reads images under the limits of the settings. Close it, or use it as a context manager.

    Args:
        settings: limits, time and memory for a file, size of thumbnails.
        preprocess: of the model that will encode the canvases.
        pseudonym_key: of the patient HMAC.
        frames: which frames of a multi-frame instance to read; a number n = at most n, evenly
            spaced.
        processes: how many files are read at once.
    """

    def __init__(
        self,
        settings: Settings,
        preprocess: Preprocess,
        pseudonym_key: bytes,
        *,
        frames: FramePolicy | int,
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

    def read(
        self, images: Iterable[Image | ImageRefused], **otherwise: Unpack[Otherwise]
    ) -> Iterator[Prepared | ImageRefused]:
        """Each image, prepared or refused, in order. Reads ahead a bounded number of images.

        An image that the source has already refused keeps its place and is passed through.
        otherwise: fields of the tasks, in place of what this reader has.
        """
        source = iter(images)
        # In order, what was taken but not yielded yet: a refusal, or None for an image being read.
        places: deque[ImageRefused | None] = deque()
        ended = False

        def tasks() -> Iterator[ReadTask]:
            nonlocal ended
            for image in source:
                if not isinstance(image, ImageRefused):
                    places.append(None)
                    yield replace(self._task(image), **otherwise)
                    continue
                places.append(image)
                if len(places) >= _REFUSED_AHEAD:
                    # End this map, so that the images it has are read and yielded first.
                    return
            ended = True

        while not ended:
            for _, result in self._pool.map(tasks()):
                while (refused := places.popleft()) is not None:
                    yield refused
                yield result
            while places and (refused := places.popleft()) is not None:
                yield refused

    def _task(self, image: Image) -> ReadTask:
        return ReadTask(
            image=image,
            limits=self._settings.limits,
            zip_limits=self._settings.zip,
            frames=self._frames,
            thumbnail_side=self._settings.indexing.thumbnail_side,
            orient=self._settings.indexing.orient,
            preprocess=self._preprocess,
            pseudonym_key=self._key,
        )

    def close(self) -> None:
        self._pool.close()

    def __enter__(self) -> "FileReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
