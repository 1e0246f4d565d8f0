"""Reads a DICOM file: display pixels of the chosen frames, and the header for de-identification."""

import io
import warnings
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from engine.errors import ImageRefused, RefusalReason
from engine.settings import ImageLimits
from indexer.files.dicom_structure import (
    Encoding,
    find_dataset,
    has_preamble,
    starts_like_dicom,
)
from indexer.files.limits import check_declared
from indexer.imaging.aspect import ASPECT_KEYWORDS
from indexer.imaging.dataset import parse_dataset
from indexer.imaging.decoding import StoredFrames
from indexer.imaging.deidentify import HEADER_KEYWORDS
from indexer.imaging.formats import no_image
from indexer.imaging.frames import FRAME_KEYWORDS, FramePolicy, frames_of_interest
from indexer.imaging.header import integer, text
from indexer.imaging.instance import Frame, UnreadableFrames
from indexer.imaging.modality import MODALITY_KEYWORDS
from indexer.imaging.not_pictures import NOT_PICTURES
from indexer.imaging.orientation import ORIENTATION_KEYWORDS
from indexer.imaging.padding import PADDING_KEYWORDS
from indexer.imaging.palette import PALETTE_KEYWORDS
from indexer.imaging.partial import readable_frames
from indexer.imaging.pixels import PIXEL_KEYWORDS, PixelData, layout_of
from indexer.imaging.quiet import hushed
from indexer.imaging.voi import VOI_KEYWORDS, View, check_view

__all__ = ["DicomImage", "inflated", "is_dicom", "read_dicom"]

_KEYWORDS = (
    *HEADER_KEYWORDS,
    *FRAME_KEYWORDS,
    *ASPECT_KEYWORDS,
    *MODALITY_KEYWORDS,
    *ORIENTATION_KEYWORDS,
    *PADDING_KEYWORDS,
    *PALETTE_KEYWORDS,
    *VOI_KEYWORDS,
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PresentationLUTShape", "LossyImageCompression"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
_TAGS = frozenset(tag for keyword in _KEYWORDS if (tag := tag_for_keyword(keyword)))
_CHUNK = 1024**2


@dataclass(frozen=True, slots=True, eq=False)
class DicomImage:
    """A DICOM instance: the chosen frames, and its header, which may identify the patient."""

    header: Dataset
    frames: tuple[Frame, ...]
    frames_declared: int
    partial: tuple[UnreadableFrames, ...] = ()


def is_dicom(fp: BinaryIO, size: int) -> bool:
    """Whether the content is DICOM, with the preamble of PS3.10 or without."""
    return has_preamble(fp) or starts_like_dicom(fp, size)


def read_dicom(
    fp: BinaryIO,
    size: int,
    limits: ImageLimits,
    frames: FramePolicy | int,
    view: View = "header",
) -> DicomImage:
    """The frames that ``frames`` chooses of the DICOM file ``fp`` of ``size`` bytes, with square
    pixels.

    Args:
        frames: a policy; a number n = at most n frames, evenly spaced.
        view: the window to show CT images in Hounsfield units through.

    Raises:
        ImageRefused: the file holds no pixels, or none that can be decoded within ``limits``.
        SettingsError: there is no such view.
    """
    check_view(view)
    policy = FramePolicy(limit=frames) if isinstance(frames, int) else frames
    # pydicom's warnings and log lines quote values, which may identify patients.
    hushed("pydicom")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _read(fp, size, limits, policy, view)


def _read(
    fp: BinaryIO, size: int, limits: ImageLimits, policy: FramePolicy, view: View
) -> DicomImage:
    fp, size, encoding = inflated(fp, size, limits)
    parsed = parse_dataset(fp, size, encoding, _TAGS, PIXEL_KEYWORDS, limits.max_nesting)
    header, head, structure = parsed.header, parsed.head, parsed.structure
    if not has_preamble(fp) and not _is_plausible(header):
        raise no_image()
    if structure.missing and structure.fragments is None:
        raise ImageRefused(
            RefusalReason.TRUNCATED,
            f"the file ends at least {structure.missing} bytes before what it declares",
        )
    if head is None or head.length == 0:
        raise ImageRefused(
            RefusalReason.NO_PIXELS, f"{_sop_class(header, encoding)} without pixel data"
        )
    named = NOT_PICTURES.get(_class_uid(header, encoding))
    if named is not None and not policy.derived:
        raise ImageRefused(
            RefusalReason.NOT_A_PICTURE,
            f"{named} holds labels, doses or measurements and no picture; set "
            "indexing.take_derived to index it all the same",
        )

    layout = layout_of(header, PIXEL_KEYWORDS[head.tag])
    numbers = policy.choose(layout.frames, frames_of_interest(header))
    check_declared(*layout.declared(), limits, len(numbers))
    stored = StoredFrames(fp, size, header, head, layout, encoding, structure, limits, len(numbers))
    pixels = PixelData(header, layout, encoding, stored.syntax, stored.decode)
    # Frames that are resampled, of three bytes a pixel at most, keep within the limits, too.
    room = min(limits.max_pixels, limits.max_decoded_bytes // (3 * len(numbers)))

    def shown(number: int) -> Frame:
        picture = pixels.render(number, view, room)
        return Frame(number, picture, stored.decoders[number], pixels.turn(number))

    found, unreadable = readable_frames(numbers, stored.held, stored.missing, shown)
    return DicomImage(header, found, layout.frames, unreadable)


def inflated(fp: BinaryIO, size: int, limits: ImageLimits) -> tuple[BinaryIO, int, Encoding]:
    """The file, or a copy with its dataset inflated if that is deflated; its size, and where the
    dataset starts.

    Raises:
        ImageRefused: the dataset cannot be inflated within ``limits``.
    """
    encoding = find_dataset(fp)
    if encoding.syntax != DeflatedExplicitVRLittleEndian:
        return fp, size, encoding
    copy = _inflate(fp, encoding, limits)
    return copy, copy.seek(0, io.SEEK_END), find_dataset(copy)


def _inflate(fp: BinaryIO, encoding: Encoding, limits: ImageLimits) -> BinaryIO:
    """A copy of the file with its deflated dataset (PS3.5 A.5) inflated, within the limits."""
    fp.seek(0)
    meta = fp.read(encoding.start)
    plain = ExplicitVRLittleEndian.encode().ljust(len(DeflatedExplicitVRLittleEndian), b"\0")
    out = io.BytesIO()
    out.write(meta.replace(DeflatedExplicitVRLittleEndian.encode(), plain))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        while not inflater.eof:
            chunk = inflater.unconsumed_tail or fp.read(_CHUNK)
            piece = inflater.decompress(chunk, _CHUNK)
            # Without more input the inflater may still return buffered output.
            if not chunk and not piece:
                raise ImageRefused(RefusalReason.TRUNCATED, "the deflated dataset has no end")
            out.write(piece)
            if out.tell() > limits.max_decoded_bytes:
                raise ImageRefused(
                    RefusalReason.TOO_LARGE,
                    "the deflated dataset is longer than the "
                    f"{limits.max_decoded_bytes} bytes of limits.max_decoded_bytes",
                )
    except zlib.error:
        raise ImageRefused(RefusalReason.DAMAGED, "the deflated dataset is corrupt") from None
    return out


def _is_plausible(header: Dataset) -> bool:
    return _is_registered(text(header, "SOPClassUID")) or all(
        integer(header, keyword) for keyword in ("Rows", "Columns")
    )


def _is_registered(uid: str) -> bool:
    """Whether the standard has a name for ``uid``."""
    return UID(uid).name != uid


def _class_uid(header: Dataset, encoding: Encoding) -> str:
    return text(header, "SOPClassUID") or encoding.sop_class


def _sop_class(header: Dataset, encoding: Encoding) -> str:
    """The name of the SOP class for error messages; an unregistered UID is not quoted."""
    found = _class_uid(header, encoding)
    if not found:
        return "a dataset without SOP class and"
    return UID(found).name if _is_registered(found) else "an unknown SOP class"
