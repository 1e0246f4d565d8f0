"""One file → what the index needs of it: canvases, thumbnails and the record.

Runs in the reading processes, so what crosses back to the main process is small.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.model.preprocess import Preprocess
from engine.records import ImageRecord
from engine.settings import ImageLimits
from indexer.imaging.instance import Instance
from indexer.imaging.read import read_image, read_image_bytes
from indexer.imaging.thumbnails import thumbnail

__all__ = ["Picture", "Prepared", "ReadTask", "prepare"]


@dataclass(frozen=True, slots=True)
class ReadTask:
    """What to read, and how. image: a file, or the bytes of an upload.

    frames: at most so many frames of a multi-frame instance. thumbnail_side: in pixels.
    """

    image: Path | bytes
    limits: ImageLimits
    frames: int
    thumbnail_side: int
    preprocess: Preprocess
    pseudonym_key: bytes


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame, ready to be encoded. canvas: uint8 (S, S) or (S, S, 3). thumbnail: JPEG."""

    point_id: str
    frame: int
    canvas: NDArray[np.uint8]
    thumbnail: bytes


@dataclass(frozen=True, slots=True)
class Prepared:
    """An instance, ready to be encoded. content_sha256: hex, of the whole file."""

    record: ImageRecord
    content_sha256: str
    pictures: tuple[Picture, ...]


def prepare(task: ReadTask) -> Prepared:
    """Reads one file. Raises ImageRefused."""
    instance = _read(task)
    pictures = tuple(
        Picture(
            instance.point_id(frame),
            frame.number,
            task.preprocess.canvas(frame.pixels),
            thumbnail(frame.pixels, task.thumbnail_side),
        )
        for frame in instance.frames
    )
    return Prepared(instance.record, instance.content_sha256, pictures)


def _read(task: ReadTask) -> Instance:
    read = read_image_bytes if isinstance(task.image, bytes) else read_image
    return read(
        task.image,  # type: ignore[arg-type]  # chosen by its type just above
        task.limits,
        frames_per_instance=task.frames,
        pseudonym_key=task.pseudonym_key,
    )
