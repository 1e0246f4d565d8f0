"""Small JPEG pictures of indexed frames, kept as files beside the index."""

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


def thumbnail(pixels: NDArray[np.uint8], side: int) -> bytes:
    """A JPEG of ``pixels`` whose longer side has at most ``side`` pixels; no metadata.

    Args:
        pixels: uint8 (H, W) grey or (H, W, 3) RGB.
        side: pixels of the longer side; smaller images stay as they are.
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    # reducing_gap: a box reduction first, so that a 100-megapixel slide costs little, and one of
    # 512 pixels half.
    image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=1.0)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def thumbnail_path(root: Path, point_id: str) -> Path:
    """Where the thumbnail of ``point_id`` lies: ``root/ab/<id>.jpg``.

    Raises:
        ImageNotFound: ``point_id`` is not a UUID, and so could name any file.
    """
    try:
        name = str(uuid.UUID(point_id))
    except ValueError:
        raise ImageNotFound(
            f"{point_id!r} is not the id of an image; ids are UUIDs, as searches return them"
        ) from None
    return root / name[:2] / f"{name}.jpg"


def write_thumbnail(root: Path, point_id: str, jpeg: bytes) -> Path:
    """Store ``jpeg`` for ``point_id``, replacing an older one at once; its path."""
    path = thumbnail_path(root, point_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, jpeg, durable=False)
    return path


def delete_thumbnail(root: Path, point_id: str) -> bool:
    """Remove the thumbnail of ``point_id``; whether there was one."""
    try:
        thumbnail_path(root, point_id).unlink()
    except FileNotFoundError:
        return False
    return True
