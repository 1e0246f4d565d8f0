"""Prepares one file for the index: canvases, thumbnails and the de-identified record.

Runs in the reading processes, so that only small results are sent back to the main process.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from engine.errors import ImageRefused, RefusalReason
from engine.model.preprocess import Preprocess
from engine.records import ImageRecord
from engine.settings import ImageLimits, ZipLimits
from indexer.files.dicom_structure import has_preamble
from indexer.files.dicomdir import file_ids, is_dicomdir
from indexer.files.locators import Image, ZipMember
from indexer.files.open_file import open_file
from indexer.files.zip_archive import is_zip, read_directory
from indexer.imaging.frames import FramePolicy
from indexer.imaging.instance import Instance, UnreadableFrames
from indexer.imaging.read import read_image, read_image_bytes, read_zip_member
from indexer.imaging.thumbnails import thumbnail
from indexer.imaging.voi import View

__all__ = ["Picture", "Prepared", "ReadTask", "prepare"]


@dataclass(frozen=True, slots=True)
class ReadTask:
    """What to read, and how. image: a file, a file in a zip archive, or the bytes of an upload.

    frames: which frames of a multi-frame instance to read; a number n = at most n, evenly spaced.
    thumbnail_side: the longest side of thumbnails in pixels.
    view: the window to show CT images in Hounsfield units through.
    """

    image: Image
    limits: ImageLimits
    zip_limits: ZipLimits
    frames: FramePolicy | int
    thumbnail_side: int
    preprocess: Preprocess
    pseudonym_key: bytes
    view: View = "header"


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame, ready to be encoded. canvas: uint8 (S, S) or (S, S, 3), the model's input.
    thumbnail: a JPEG file."""

    point_id: str
    frame: int
    canvas: NDArray[np.uint8]
    thumbnail: bytes


@dataclass(frozen=True, slots=True)
class Prepared:
    """An instance, ready to be encoded. content_sha256: hex digest of the whole file.
    partial: what is not among the pictures because it is missing or broken."""

    record: ImageRecord
    content_sha256: str
    pictures: tuple[Picture, ...]
    partial: tuple[UnreadableFrames, ...] = ()


class _How(TypedDict):
    frames_per_instance: FramePolicy | int
    pseudonym_key: bytes
    view: View


def prepare(task: ReadTask) -> Prepared:
    """Reads one file and prepares its chosen frames.

    Raises:
        ImageRefused: with the reason, for whatever is wrong with the file.
    """
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
    return Prepared(instance.record, instance.content_sha256, pictures, instance.partial)


def _read(task: ReadTask) -> Instance:
    limits, image = task.limits, task.image
    how: _How = {
        "frames_per_instance": task.frames,
        "pseudonym_key": task.pseudonym_key,
        "view": task.view,
    }
    if isinstance(image, bytes):
        return read_image_bytes(image, limits, **how)
    if isinstance(image, ZipMember):
        return read_zip_member(image, limits, task.zip_limits, **how)
    try:
        return read_image(image, limits, **how)
    except ImageRefused as refused:
        raise _explained(refused, image, task) from None


def _explained(refused: ImageRefused, path: Path, task: ReadTask) -> ImageRefused:
    """A better reason if the file is a zip archive or DICOMDIR that the source did not open."""
    try:
        with open_file(path) as fp:
            if is_zip(fp) and not has_preamble(fp):
                read_directory(fp, fp.size, task.zip_limits)
                return ImageRefused(
                    RefusalReason.NOT_AN_IMAGE,
                    "a zip archive; what is in it is indexed when the archive itself is named, or "
                    "when its name ends in .zip",
                )
            if refused.reason is RefusalReason.NO_PIXELS and is_dicomdir(fp):
                file_ids(fp, fp.size, task.limits)
    except ImageRefused as better:
        return better
    except OSError:
        pass
    return refused
