"""Prepares one file for the index: canvases, thumbnails and the de-identified record.

Runs in the reading processes, so that only small results are sent back to the main process.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from engine.errors import ImageRefused, RefusalReason
from engine.model.colour import coloured_share
from engine.model.preprocess import Preprocess
from engine.records import ImageRecord, point_id
from engine.settings import ImageLimits, ZipLimits
from indexer.files.dicom_structure import has_preamble
from indexer.files.dicomdir import file_ids, is_dicomdir
from indexer.files.locators import Image, TarMember, ZipMember
from indexer.files.open_file import open_file
from indexer.files.tar_archive import is_tar, list_tar
from indexer.files.zip_archive import is_zip, read_directory
from indexer.imaging.fingerprint import pixels_digest
from indexer.imaging.frames import FramePolicy
from indexer.imaging.instance import Frame, Instance, UnreadableFrames
from indexer.imaging.orientation import AS_STORED
from indexer.imaging.read import read_image, read_image_bytes, read_tar_member, read_zip_member
from indexer.imaging.region import Region, WholePicture
from indexer.imaging.thumbnails import thumbnail
from indexer.imaging.voi import View

__all__ = ["Picture", "Prepared", "ReadTask", "prepare", "read_instance"]


@dataclass(frozen=True, slots=True)
class ReadTask:
    """What to read, and how. image: a file, a file in an archive, or the bytes of an upload.

    frames: which frames of a multi-frame instance to read; a number n = at most n, evenly spaced.
    thumbnail_side: the longest side of thumbnails in pixels.
    view: the window to show CT images in Hounsfield units through.
    orient: whether canvases are turned into the usual view of their plane; thumbnails are not.
    region: what of the picture the canvas is made of; None = all of it.
    whole_side: the longest side of the whole picture, which is given back too; None = it is not.
    """

    image: Image
    limits: ImageLimits
    zip_limits: ZipLimits
    frames: FramePolicy | int
    thumbnail_side: int
    preprocess: Preprocess
    pseudonym_key: bytes
    view: View = "header"
    orient: bool = True
    region: Region | None = None
    whole_side: int | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame, ready to be encoded. identity: what it is known by, whichever tenant's it is.
    canvas: uint8 (S, S) or (S, S, 3), the model's input.
    thumbnail: a JPEG file. colour: share of the frame's pixels, or of the region's, that have a
    colour, in [0, 1]. fields: those of the record that differ for this frame. whole: the picture,
    where the task asks for it."""

    identity: str
    frame: int
    canvas: NDArray[np.uint8]
    thumbnail: bytes
    colour: float
    fields: Mapping[str, str | None] = field(default_factory=dict)
    whole: WholePicture | None = None

    def id_in(self, tenant: str) -> str:
        """Id of this frame in the index of a tenant."""
        return point_id(self.identity, tenant)

    def record_of(self, record: ImageRecord) -> ImageRecord:
        """The record of this frame. record: that of its instance."""
        return replace(record, frame=self.frame, **self.fields)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Prepared:
    """An instance, ready to be encoded.

    content_sha256: hex digest of the whole file. pixels_sha256: that of the display pixels of its
    pictures (fingerprint.py), the same for the same pixels in another lossless encoding; None
    without a SOP Instance UID, which alone could be claimed by a second encoding.
    decoders: what decoded the frames of compressed pixel data, in alphabetical order.
    partial: frames that are not among the pictures because they are missing or broken.
    """

    record: ImageRecord
    content_sha256: str
    pictures: tuple[Picture, ...]
    pixels_sha256: str | None
    decoders: tuple[str, ...] = ()
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
    instance = read_instance(task)
    pictures = tuple(_picture(task, instance, frame) for frame in instance.frames)
    return Prepared(
        instance.record,
        instance.content_sha256,
        pictures,
        pixels_digest(instance.frames) if instance.record.sop else None,
        tuple(sorted({frame.decoder for frame in instance.frames if frame.decoder})),
        instance.partial,
    )


def _picture(task: ReadTask, instance: Instance, frame: Frame) -> Picture:
    pixels = frame.pixels if task.region is None else task.region.cut(frame.pixels)
    turn = frame.turn if task.orient else AS_STORED
    whole = None
    if task.whole_side is not None:
        whole = WholePicture.of(frame.pixels, turn, task.whole_side)
    return Picture(
        instance.identity(frame),
        frame.number,
        task.preprocess.canvas(turn.applied(pixels)),
        thumbnail(frame.pixels, task.thumbnail_side),
        coloured_share(pixels),
        instance.frame_fields.get(frame.number, {}),
        whole,
    )


def read_instance(task: ReadTask) -> Instance:
    """The instance of a task, as its file is read. Raises ImageRefused."""
    image, limits, zip_limits = task.image, task.limits, task.zip_limits
    how = _How(frames_per_instance=task.frames, pseudonym_key=task.pseudonym_key, view=task.view)
    if isinstance(image, bytes):
        return read_image_bytes(image, limits, zip_limits=zip_limits, **how)
    if isinstance(image, ZipMember):
        return read_zip_member(image, limits, zip_limits, **how)
    if isinstance(image, TarMember):
        return read_tar_member(image, limits, zip_limits, **how)
    try:
        return read_image(image, limits, zip_limits=zip_limits, **how)
    except ImageRefused as refused:
        raise _explained(refused, image, task) from None


def _explained(refused: ImageRefused, path: Path, task: ReadTask) -> ImageRefused:
    """A better reason if the file is an archive or DICOMDIR that the source did not open."""
    try:
        with open_file(path) as fp:
            if is_zip(fp) and not has_preamble(fp):
                read_directory(fp, fp.size, task.zip_limits)
                return ImageRefused(
                    RefusalReason.NOT_AN_IMAGE,
                    "a zip archive; what is in it is indexed when the archive itself is named, or "
                    "when its name ends in .zip",
                )
            if not has_preamble(fp) and is_tar(fp, fp.size, task.zip_limits):
                list_tar(fp, fp.size, task.zip_limits)
                return ImageRefused(
                    RefusalReason.NOT_AN_IMAGE,
                    "a tar archive; what is in it is indexed when the archive itself is named, or "
                    "when its name ends in .tar, .tar.gz, .tgz, .tar.zst or .tzst",
                )
            if refused.reason is RefusalReason.NO_PIXELS and is_dicomdir(fp):
                file_ids(fp, fp.size, task.limits)
    except ImageRefused as better:
        return better
    except OSError:
        pass
    return refused
