"""Thumbnails: small JPEG files of indexed frames, kept beside the index or in an object store."""

import io
import re
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.errors import ImageNotFound
from engine.settings import Settings
from indexer.objects.base import Kept, ObjectStore
from indexer.objects.folder import FolderObjects
from indexer.objects.s3 import BucketObjects

__all__ = ["Thumbnails", "thumbnail", "thumbnail_name", "thumbnails_of"]

_QUALITY = 85
_NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.jpg")
_AT_ONCE = 1000


def thumbnail(pixels: NDArray[np.uint8], side: int, quality: int = _QUALITY) -> bytes:
    """A JPEG file of ``pixels``, without metadata.

    Args:
        pixels: uint8 (H, W) grey or (H, W, 3) RGB.
        side: the longer side in pixels; smaller images are not enlarged.
        quality: of the JPEG, up to 95.
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    # reducing_gap: Pillow first shrinks by a box filter, which is much faster for large images.
    image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=1.0)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def thumbnail_name(point_id: str) -> str:
    """The name of the thumbnail of ``point_id``: ``ab/<id>.jpg``.

    Raises:
        ImageNotFound: ``point_id`` is not a UUID; any other text could name a file elsewhere.
    """
    try:
        name = str(uuid.UUID(point_id))
    except ValueError:
        raise ImageNotFound(
            f"{point_id!r} is not the id of an image; ids are UUIDs, as searches return them"
        ) from None
    return f"{name[:2]}/{name}.jpg"


class Thumbnails:
    """Thumbnails by the ids of their points, which know whose they are. Close it, or use it as a
    context manager.

    All methods raise StorageError and OSError where the place cannot be reached or refuses.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    @property
    def place(self) -> str:
        """Where they lie, for people."""
        return self._objects.place

    def write(self, jpegs: Mapping[str, bytes]) -> None:
        """Stores JPEG files by id, each atomically; all of them are there when this returns."""
        self._objects.put({thumbnail_name(one): jpeg for one, jpeg in jpegs.items()})

    def read(self, point_id: str) -> bytes | None:
        """A JPEG file; None = there is none."""
        return self._objects.get(thumbnail_name(point_id))

    def existing(self, ids: Collection[str]) -> set[str]:
        """Which of these have one."""
        names = {thumbnail_name(one): one for one in ids}
        return {names[name] for name in self._objects.existing(names)}

    def delete(self, ids: Collection[str]) -> None:
        """Removes the thumbnails of these, as far as there are any."""
        self._objects.delete([thumbnail_name(one) for one in ids])

    def clear(self) -> None:
        """Removes all, and nothing that is called otherwise."""
        some: list[str] = []
        for name in self._objects.names():
            if _NAME.fullmatch(name):
                some.append(name)
            if len(some) == _AT_ONCE:
                self._objects.delete(some)
                some = []
        self._objects.delete(some)

    def purge(self, ids: Collection[str]) -> Kept:
        """Removes what is left of deleted ones, as ``ObjectStore.purge`` does."""
        return self._objects.purge([thumbnail_name(one) for one in ids])

    def close(self) -> None:
        self._objects.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def thumbnails_of(settings: Settings, folder: Path) -> Thumbnails:
    """The thumbnails of an archive: where the settings say, else in this folder. Nothing is asked
    or made yet.

    Raises:
        SettingsError: what speaks S3 is not installed.
    """
    if settings.storage.thumbnails is None:
        return Thumbnails(FolderObjects(folder))
    return Thumbnails(BucketObjects(settings.storage))
