"""Reads a file, a file in a zip archive, or an upload as an :class:`Instance`, or refuses it."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from engine.errors import ImageRefused, PrecedentError, RefusalReason
from engine.records import ImageRecord
from engine.settings import ImageLimits, ZipLimits
from indexer.files.dicom_structure import has_preamble
from indexer.files.limits import check_file_size
from indexer.files.locators import ZipMember
from indexer.files.open_file import BoundedReader, open_file
from indexer.files.zip_archive import Entry, is_zip, read_directory, unpacked
from indexer.imaging.deidentify import record_of
from indexer.imaging.dicom import is_dicom, read_dicom
from indexer.imaging.frames import FramePolicy
from indexer.imaging.instance import Frame, Instance
from indexer.imaging.raster import is_raster, read_raster
from indexer.imaging.voi import View

__all__ = [
    "Frame",
    "Instance",
    "read_image",
    "read_image_bytes",
    "read_zip_member",
]

_CHUNK = 1024**2
_IN_MEMORY = 64 * 1024**2
"""Bytes. Larger members of zip archives are unpacked to an unnamed temporary file."""


def read_image(
    path: Path,
    limits: ImageLimits,
    *,
    frames_per_instance: FramePolicy | int,
    pseudonym_key: bytes,
    view: View = "header",
) -> Instance:
    """Reads the DICOM, PNG or JPEG file at ``path``; its format is detected from its content.

    Args:
        view: the window to show CT images in Hounsfield units through.

    Raises:
        ImageRefused: with the reason, for whatever is wrong with the file.
        SettingsError: ``pseudonym_key`` is empty, or there is no such view.
    """
    with _refusing(), open_file(path) as fp:
        check_file_size(fp.size, limits)
        return _read(fp, fp.size, limits, frames_per_instance, pseudonym_key, view)


def read_image_bytes(
    data: bytes,
    limits: ImageLimits,
    *,
    frames_per_instance: FramePolicy | int,
    pseudonym_key: bytes,
    view: View = "header",
) -> Instance:
    """Like :func:`read_image`, for content in memory.

    Raises:
        ImageRefused: with the reason, for whatever is wrong with the content.
        SettingsError: ``pseudonym_key`` is empty, or there is no such view.
    """
    with _refusing():
        check_file_size(len(data), limits)
        return _read(io.BytesIO(data), len(data), limits, frames_per_instance, pseudonym_key, view)


def read_zip_member(
    member: ZipMember,
    limits: ImageLimits,
    zip_limits: ZipLimits,
    *,
    frames_per_instance: FramePolicy | int,
    pseudonym_key: bytes,
    view: View = "header",
) -> Instance:
    """Like :func:`read_image`, for a file in a zip archive.

    Raises:
        ImageRefused: with the reason, for whatever is wrong with the archive or the member.
        SettingsError: ``pseudonym_key`` is empty, or there is no such view.
    """
    with _refusing(), open_file(member.archive) as archive:
        entry = _entry(archive, member, zip_limits)
        with _room(entry.size) as fp:
            for piece in unpacked(archive, entry, limits, zip_limits):
                fp.write(piece)
            check_file_size(entry.size, limits)
            if is_zip(fp) and not has_preamble(fp):
                raise ImageRefused(
                    RefusalReason.NOT_AN_IMAGE,
                    "an archive inside an archive is not opened; unpack the outer one",
                )
            fp.flush()
            bounded = fp if isinstance(fp, io.BytesIO) else BoundedReader(_again(fp))
            return _read(bounded, entry.size, limits, frames_per_instance, pseudonym_key, view)


def _room(size: int) -> BinaryIO:
    return io.BytesIO() if size <= _IN_MEMORY else TemporaryFile()


def _again(fp: BinaryIO) -> io.FileIO:
    return io.FileIO(fp.fileno(), closefd=False)


def _entry(archive: BoundedReader, member: ZipMember, limits: ZipLimits) -> Entry:
    members = _members(member.archive, _stamp(archive), limits)
    if isinstance(members, ImageRefused):
        # A new exception: one that is raised again keeps growing its traceback.
        raise ImageRefused(members.reason, members.detail)
    if member.name not in members:
        raise ImageRefused(
            RefusalReason.UNREADABLE,
            "the archive no longer has it; index the archive again",
        )
    return members[member.name]


# Cached: members are read one by one, and the directory takes longer to read than a member.
@lru_cache(maxsize=1)
def _members(
    path: Path, stamp: tuple[int, ...], limits: ZipLimits
) -> dict[str, Entry] | ImageRefused:
    """The archive's members by name, or why it is refused. ``stamp`` makes a changed file miss the
    cache."""
    with open_file(path) as fp:
        if _stamp(fp) != stamp:
            return ImageRefused(
                RefusalReason.UNREADABLE, "the archive changed while it was read; index it again"
            )
        try:
            return read_directory(fp, fp.size, limits)
        except ImageRefused as refused:
            return refused


def _stamp(fp: BoundedReader) -> tuple[int, ...]:
    status = os.fstat(fp.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextmanager
def _refusing() -> Iterator[None]:
    """Turns any error that a file causes into a refusal that quotes nothing of its content."""
    try:
        yield
    except PrecedentError:
        raise
    except MemoryError:
        raise ImageRefused(
            RefusalReason.TOO_LARGE, "there is not enough memory to read it"
        ) from None
    except RecursionError:
        raise ImageRefused(
            RefusalReason.NESTED_TOO_DEEP, "its structure nests deeper than can be read"
        ) from None
    except OSError as error:
        if error.errno is None:
            raise _damaged(error) from None
        raise ImageRefused(RefusalReason.UNREADABLE, os.strerror(error.errno)) from None
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        # A panic in a decoder written in Rust is a BaseException, but no Exception.
        raise _damaged(error) from None


def _damaged(error: BaseException) -> ImageRefused:
    return ImageRefused(
        RefusalReason.DAMAGED, f"the content makes no sense ({type(error).__name__})"
    )


def _read(
    fp: BinaryIO,
    size: int,
    limits: ImageLimits,
    frames_per_instance: FramePolicy | int,
    pseudonym_key: bytes,
    view: View,
) -> Instance:
    digest = _sha256(fp, size)
    fp.seek(0)
    start = fp.read(16)
    if is_raster(start) and not has_preamble(fp):
        pixels = read_raster(fp, limits)
        return Instance(ImageRecord(), digest, (Frame(0, pixels),), 1)
    if not is_dicom(fp, size):
        raise ImageRefused(
            RefusalReason.NOT_AN_IMAGE, "the content is neither DICOM nor PNG nor JPEG"
        )
    image = read_dicom(fp, size, limits, frames_per_instance, view)
    record = record_of(image.header, pseudonym_key)
    return Instance(record, digest, image.frames, image.frames_declared, image.partial)


def _sha256(fp: BinaryIO, size: int) -> str:
    fp.seek(0)
    digest = hashlib.sha256()
    hashed = 0
    while chunk := fp.read(_CHUNK):
        digest.update(chunk)
        hashed += len(chunk)
    if hashed != size:
        raise ImageRefused(
            RefusalReason.UNREADABLE,
            f"the file shrank from {size} to {hashed} bytes while it was read",
        )
    return digest.hexdigest()
