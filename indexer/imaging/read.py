"""Reads a file, a file in an archive, or an upload as an :class:`Instance`, or refuses it."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from engine.errors import ImageRefused, PrecedentError, RefusalReason
from engine.records import ImageRecord
from engine.settings import ImageLimits, ZipLimits
from indexer.files.compressed import UnpackedStream, is_compressed
from indexer.files.dicom_structure import has_preamble
from indexer.files.limits import check_file_size
from indexer.files.locators import Image, TarMember, ZipMember
from indexer.files.open_file import BoundedReader, open_file
from indexer.files.tar_archive import is_tar, tar_content
from indexer.files.zip_archive import Entry, is_zip, read_directory, unpacked
from indexer.imaging.deidentify import frame_fields, record_of
from indexer.imaging.dicom import is_dicom, read_dicom
from indexer.imaging.formats import no_image
from indexer.imaging.frames import FramePolicy
from indexer.imaging.instance import Frame, Instance
from indexer.imaging.nifti import is_nifti, read_nifti
from indexer.imaging.raster import is_raster, read_raster
from indexer.imaging.voi import View

__all__ = [
    "Frame",
    "Instance",
    "content_of",
    "digest_of",
    "read_image",
    "read_image_bytes",
    "read_tar_member",
    "read_zip_member",
]

_CHUNK = 1024**2
_IN_MEMORY = 64 * 1024**2
"""Bytes. What unpacks to more is unpacked to an unnamed temporary file."""


@dataclass(frozen=True, slots=True)
class _How:
    limits: ImageLimits
    zip_limits: ZipLimits
    frames_per_instance: FramePolicy | int
    pseudonym_key: bytes
    view: View

    @property
    def policy(self) -> FramePolicy:
        frames = self.frames_per_instance
        return FramePolicy(limit=frames) if isinstance(frames, int) else frames


def read_image(
    path: Path,
    limits: ImageLimits,
    *,
    frames_per_instance: FramePolicy | int,
    pseudonym_key: bytes,
    view: View = "header",
    zip_limits: ZipLimits = ZipLimits(),  # noqa: B008 - frozen
) -> Instance:
    """Reads the image file at ``path``; its format is detected from its content.

    A file that gzip or Zstandard packed is read as what it unpacks to, within ``zip_limits``.

    Args:
        view: the window to show CT images in Hounsfield units through.

    Raises:
        ImageRefused: with the reason, for whatever is wrong with the file.
        SettingsError: ``pseudonym_key`` is empty, or there is no such view.
    """
    with _refusing(), open_file(path) as fp:
        check_file_size(fp.size, limits)
        how = _How(limits, zip_limits, frames_per_instance, pseudonym_key, view)
        return _read(fp, fp.size, how)


def read_image_bytes(
    data: bytes,
    limits: ImageLimits,
    *,
    frames_per_instance: FramePolicy | int,
    pseudonym_key: bytes,
    view: View = "header",
    zip_limits: ZipLimits = ZipLimits(),  # noqa: B008 - frozen
) -> Instance:
    """Like :func:`read_image`, for content in memory.

    Raises:
        ImageRefused: with the reason, for whatever is wrong with the content.
        SettingsError: ``pseudonym_key`` is empty, or there is no such view.
    """
    with _refusing():
        check_file_size(len(data), limits)
        how = _How(limits, zip_limits, frames_per_instance, pseudonym_key, view)
        return _read(io.BytesIO(data), len(data), how)


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
    how = _How(limits, zip_limits, frames_per_instance, pseudonym_key, view)
    with _refusing(), open_file(member.archive) as archive:
        entry = _entry(archive, member, zip_limits)
        with _copy(unpacked(archive, entry, limits, zip_limits), limits) as copy:
            return _read_member(*copy, how)


def read_tar_member(
    member: TarMember,
    limits: ImageLimits,
    zip_limits: ZipLimits,
    *,
    frames_per_instance: FramePolicy | int,
    pseudonym_key: bytes,
    view: View = "header",
) -> Instance:
    """Like :func:`read_image`, for a file in a tar archive.

    Raises:
        ImageRefused: with the reason, for whatever is wrong with the archive or the member.
        SettingsError: ``pseudonym_key`` is empty, or there is no such view.
    """
    how = _How(limits, zip_limits, frames_per_instance, pseudonym_key, view)
    pieces = tar_content(member, limits, zip_limits)
    with _refusing(), _copy(pieces, limits) as copy:
        return _read_member(*copy, how)


@contextmanager
def content_of(
    image: Image, limits: ImageLimits, zip_limits: ZipLimits
) -> Iterator[tuple[BinaryIO, int]]:
    """The content of an image for the block, unpacked where it is packed, and its size in bytes.

    Whatever goes wrong in the block because of the content is a refusal as well.

    Raises:
        ImageRefused: with the reason, for whatever is wrong with the file or its archive.
    """
    how = _How(limits, zip_limits, 1, b"", "header")
    with _refusing(), ExitStack() as opened:
        fp, size = _opened(image, limits, zip_limits, opened)
        check_file_size(size, limits)
        if is_compressed(fp) and not has_preamble(fp):
            fp, size = opened.enter_context(_copy(_unpacked(fp, size, how), limits))
        yield fp, size


def _opened(
    image: Image, limits: ImageLimits, zip_limits: ZipLimits, opened: ExitStack
) -> tuple[BinaryIO, int]:
    if isinstance(image, bytes):
        return io.BytesIO(image), len(image)
    if isinstance(image, ZipMember):
        archive = opened.enter_context(open_file(image.archive))
        entry = _entry(archive, image, zip_limits)
        return opened.enter_context(_copy(unpacked(archive, entry, limits, zip_limits), limits))
    if isinstance(image, TarMember):
        return opened.enter_context(_copy(tar_content(image, limits, zip_limits), limits))
    fp = opened.enter_context(open_file(image))
    return fp, fp.size


def _read_member(fp: BinaryIO, size: int, how: _How) -> Instance:
    if not has_preamble(fp) and (is_zip(fp) or is_tar(fp, size, how.zip_limits)):
        raise ImageRefused(
            RefusalReason.NOT_AN_IMAGE,
            "an archive inside an archive is not opened; unpack the outer one",
        )
    return _read(fp, size, how)


@contextmanager
def _copy(pieces: Iterator[bytes], limits: ImageLimits) -> Iterator[tuple[BinaryIO, int]]:
    """What ``pieces`` are put together, and its size in bytes."""
    with ExitStack() as stack:
        fp: BinaryIO = io.BytesIO()
        for piece in pieces:
            if isinstance(fp, io.BytesIO) and fp.tell() + len(piece) > _IN_MEMORY:
                small, fp = fp, stack.enter_context(TemporaryFile())
                fp.write(small.getbuffer())
            fp.write(piece)
        size = fp.tell()
        check_file_size(size, limits)
        fp.flush()
        yield fp if isinstance(fp, io.BytesIO) else BoundedReader(_again(fp)), size


def _again(fp: BinaryIO) -> io.FileIO:
    return io.FileIO(fp.fileno(), closefd=False)


def _entry(archive: BoundedReader, member: ZipMember, limits: ZipLimits) -> Entry:
    members = _members(member.archive, archive.stamp(), limits)
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
        if fp.stamp() != stamp:
            return ImageRefused(
                RefusalReason.UNREADABLE, "the archive changed while it was read; index it again"
            )
        try:
            return read_directory(fp, fp.size, limits)
        except ImageRefused as refused:
            return refused


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


def _read(fp: BinaryIO, size: int, how: _How) -> Instance:
    if not is_compressed(fp) or has_preamble(fp):
        return _read_plain(fp, size, how)
    with _copy(_unpacked(fp, size, how), how.limits) as (inner, inner_size):
        if is_compressed(inner) and not has_preamble(inner):
            raise ImageRefused(RefusalReason.NOT_AN_IMAGE, "it is packed more than once; unpack it")
        return _read_plain(inner, inner_size, how)


def _unpacked(fp: BinaryIO, size: int, how: _How) -> Iterator[bytes]:
    stream = UnpackedStream(fp, size, how.zip_limits)
    while piece := stream.read(_CHUNK):
        if stream.position > how.limits.max_file_bytes:
            raise ImageRefused(
                RefusalReason.TOO_LARGE,
                f"it unpacks to more than the {how.limits.max_file_bytes} bytes that "
                "limits.max_file_bytes allows",
            )
        yield piece


def _read_plain(fp: BinaryIO, size: int, how: _How) -> Instance:
    digest = digest_of(fp, size)
    policy = how.policy
    if not has_preamble(fp):
        if is_raster(fp):
            raster = read_raster(fp, how.limits, policy)
            return Instance(ImageRecord(), digest, raster.frames, raster.declared)
        if is_nifti(fp):
            volume = read_nifti(fp, size, how.limits, policy)
            return Instance(ImageRecord(), digest, volume.frames, volume.declared)
    if not is_dicom(fp, size):
        raise no_image()
    image = read_dicom(fp, size, how.limits, policy, how.view)
    record = record_of(image.header, how.pseudonym_key)
    differing = frame_fields(image.header, [frame.number for frame in image.frames])
    return Instance(record, digest, image.frames, image.frames_declared, image.partial, differing)


def digest_of(fp: BinaryIO, size: int) -> str:
    """The SHA-256 of the content, hex. Raises ImageRefused if it is not of this size any more."""
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
