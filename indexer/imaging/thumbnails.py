"""Thumbnails: small JPEG files of indexed frames, kept beside the index."""

import io
import uuid
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.errors import ImageNotFound
from engine.files import write_atomically

__all__ = ["delete_thumbnail", "thumbnail", "thumbnail_path", "write_thumbnail"]

_QUALITY = 85


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


def thumbnail_path(root: Path, point_id: str) -> Path:
    """The path of the thumbnail of ``point_id``: ``root/ab/<id>.jpg``.

    Raises:
        ImageNotFound: ``point_id`` is not a UUID; any other text could name a file elsewhere.
    """
    try:
        name = str(uuid.UUID(point_id))
    except ValueError:
        raise ImageNotFound(
            f"{point_id!r} is not the id of an image; ids are UUIDs, as searches return them"
        ) from None
    return root / name[:2] / f"{name}.jpg"


def write_thumbnail(root: Path, point_id: str, jpeg: bytes) -> Path:
    """Stores the JPEG file ``jpeg`` for ``point_id``, atomically; returns its path."""
    path = thumbnail_path(root, point_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, jpeg, durable=False)
    return path


def delete_thumbnail(root: Path, point_id: str) -> bool:
    """Removes the thumbnail of ``point_id``; returns whether there was one."""
    try:
        thumbnail_path(root, point_id).unlink()
    except FileNotFoundError:
        return False
    return True
