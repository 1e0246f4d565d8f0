"""The pixel data of a DICOM file, checked against its header and decoded frame by frame."""

from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
)

from engine.errors import ImageRefused, RefusalReason
from indexer.imaging.codestream import declared_size
from indexer.imaging.display import Padding, render_color, render_grey
from indexer.imaging.header import integer, items, text, value
from indexer.imaging.limits import check_held, declared_bytes
from indexer.imaging.lookup import render_palette
from indexer.imaging.structure import UNDEFINED, Encoding, Head, Structure

__all__ = ["PIXEL_KEYWORDS", "Layout", "PixelData", "layout_of"]

PIXEL_KEYWORDS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
# Terms of the standard without a conversion here. Others are not quoted: the value may be
# anything, also a name.
_OTHER_PHOTOMETRIC = ("ARGB", "CMYK", "HSV", "XYB", "YBR_PARTIAL_420", "YBR_PARTIAL_422")


@dataclass(frozen=True, slots=True)
class Layout:
    """The Image Pixel module (PS3.3 C.7.6.3), checked.

    shift: by so many bits stored values sit above the bottom of their cells.
    """

    rows: int
    columns: int
    frames: int
    samples: int
    bits_allocated: int
    bits_stored: int
    shift: int
    signed: bool
    photometric: str
    planar: int

    def bytes_declared(self) -> int:
        """Bytes of all frames together, uncompressed."""
        whole = declared_bytes(
            self.rows, self.columns, self.frames, self.samples, self.bits_allocated
        )
        return whole // 3 * 2 if self.photometric == "YBR_FULL_422" else whole


def layout_of(header: Dataset, keyword: str) -> Layout:
    """The layout that ``header`` declares for the pixel data element ``keyword``.

    Raises:
        ImageRefused: DAMAGED without a size; UNSUPPORTED_PIXELS for what cannot be shown.
    """
    rows, columns = integer(header, "Rows"), integer(header, "Columns")
    if rows is None or columns is None:
        raise ImageRefused(
            RefusalReason.DAMAGED, "there is pixel data, but Rows or Columns is missing"
        )
    samples = integer(header, "SamplesPerPixel") or 1
    photometric = text(header, "PhotometricInterpretation").upper()
    if not photometric:
        photometric = "MONOCHROME2" if samples == 1 else "RGB"
    if samples != _samples_of(photometric):
        raise ImageRefused(
            RefusalReason.UNSUPPORTED_PIXELS,
            f"{samples} sample(s) per pixel and {photometric} do not fit together",
        )
    floats = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
    allocated = floats.get(keyword) or integer(header, "BitsAllocated")
    if allocated not in (1, 8, 16, 32, 64):
        raise ImageRefused(
            RefusalReason.UNSUPPORTED_PIXELS,
            f"Bits Allocated is {allocated}; 1, 8, 16, 32 and 64 can be read",
        )
    stored = integer(header, "BitsStored") or allocated
    stored = stored if 1 <= stored <= allocated else allocated
    high_bit = integer(header, "HighBit")
    # Values may sit at the top of their cells; the decoder takes them from the bottom.
    shift = high_bit + 1 - stored if high_bit is not None and stored <= high_bit < allocated else 0
    return Layout(
        rows=rows,
        columns=columns,
        frames=max(1, integer(header, "NumberOfFrames") or 1),
        samples=samples,
        bits_allocated=allocated,
        bits_stored=stored,
        shift=shift,
        signed=integer(header, "PixelRepresentation") == 1,
        photometric=photometric,
        planar=1 if integer(header, "PlanarConfiguration") == 1 else 0,
    )


def _samples_of(photometric: str) -> int:
    if photometric in _GREY or photometric == "PALETTE COLOR":
        return 1
    if photometric in _COLOR:
        return 3
    named = photometric if photometric in _OTHER_PHOTOMETRIC else "none of the standard's"
    raise ImageRefused(
        RefusalReason.UNSUPPORTED_PIXELS,
        f"Photometric Interpretation is {named}; readable are "
        + ", ".join((*_GREY, "PALETTE COLOR", *_COLOR)),
    )


class PixelData:
    """The pixel data of one file, decoded frame by frame.

    Raises:
        ImageRefused: UNSUPPORTED_SYNTAX, TRUNCATED or DAMAGED, before anything is decoded.
    """

    def __init__(
        self,
        fp: BinaryIO,
        size: int,
        header: Dataset,
        head: Head,
        layout: Layout,
        encoding: Encoding,
        structure: Structure,
    ) -> None:
        self._fp = fp
        self._header = header
        self._start = head.value
        self._layout = layout
        implicit, little_endian = header.original_encoding
        self._little_endian = little_endian is not False
        compressed = head.length == UNDEFINED
        self._syntax = _syntax(encoding, bool(implicit), self._little_endian, compressed)
        self._decoder = _decoder(self._syntax, layout)
        self._photometric = layout.photometric
        self._shared = items(header, "SharedFunctionalGroupsSequence")[:1]
        self._per_frame = items(header, "PerFrameFunctionalGroupsSequence")
        if not self._decoder.is_native:
            found = structure.fragments
            if found is not None and found < layout.frames:
                raise ImageRefused(
                    RefusalReason.TRUNCATED,
                    f"{layout.frames} frames are declared and the file holds {found} fragments",
                )
        elif compressed:
            raise ImageRefused(
                RefusalReason.DAMAGED,
                f"compressed pixel data under the transfer syntax {self._syntax.name}",
            )
        else:
            held = min(head.length, size - head.value)
            whole = layout.rows * layout.columns * layout.frames * 3
            if layout.photometric == "YBR_FULL_422" and held >= whole:
                # Said to be subsampled, and is not.
                self._photometric = "YBR_FULL"
            check_held(layout.bytes_declared(), held)
        self._options = self._decoding_options(PIXEL_KEYWORDS[head.tag], head)

    def _decoding_options(self, keyword: str, head: Head) -> dict[str, Any]:
        layout = self._layout
        options: dict[str, Any] = {
            "rows": layout.rows,
            "columns": layout.columns,
            "number_of_frames": layout.frames,
            "samples_per_pixel": layout.samples,
            "bits_allocated": layout.bits_allocated,
            "bits_stored": layout.bits_stored + layout.shift,
            "photometric_interpretation": self._photometric,
            "pixel_representation": int(layout.signed),
            "planar_configuration": layout.planar,
            "pixel_keyword": keyword,
            "pixel_vr": (head.vr or b"OW").decode("ascii"),
        }
        tables = [
            value(self._header, keyword)
            for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
        ]
        if all(isinstance(table, bytes) and table for table in tables):
            options["extended_offsets"] = tuple(tables)
        return options

    def render(self, number: int) -> NDArray[np.uint8]:
        """Frame ``number`` (from 0) as uint8 (H, W) or (H, W, 3) display pixels."""
        layout = self._layout
        try:
            stored = self._decode(number)
        except (ImageRefused, MemoryError, RecursionError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            # Decoders raise what they like and tell the two apart only in words.
            cut = "truncated" in str(error).lower()
            raise ImageRefused(
                RefusalReason.TRUNCATED if cut else RefusalReason.DAMAGED,
                f"frame {number} cannot be decoded as {self._syntax.name} ({type(error).__name__})",
            ) from None
        if layout.photometric in _COLOR:
            return render_color(stored, min(layout.bits_stored, 8 * stored.dtype.itemsize))
        if layout.photometric == "PALETTE COLOR":
            return render_palette(
                stored, self._header, signed=layout.signed, little_endian=self._little_endian
            )
        return render_grey(
            stored,
            self._scopes(number),
            signed=layout.signed,
            little_endian=self._little_endian,
            inverted=layout.photometric == "MONOCHROME1",
            padding=self._padding(stored.dtype),
        )

    def _decode(self, number: int) -> NDArray[Any]:
        if not self._decoder.is_native:
            self._check_codestream(number)
        self._fp.seek(self._start)
        stored, _ = self._decoder.as_array(self._fp, index=number, **self._options)
        stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        return stored >> self._layout.shift if self._layout.shift else stored

    def _check_codestream(self, number: int) -> None:
        """Refuse a compressed frame that would unfold to more than the header declares."""
        self._fp.seek(self._start)
        frame = get_frame(
            self._fp,
            number,
            number_of_frames=self._layout.frames,
            extended_offsets=self._options.get("extended_offsets"),
        )
        size = declared_size(frame)
        declared = (self._layout.rows, self._layout.columns, self._layout.samples)
        if size is not None and (size.rows, size.columns, size.samples) != declared:
            raise ImageRefused(
                RefusalReason.DAMAGED,
                f"frame {number} is compressed as {size.rows} × {size.columns} × {size.samples} "
                "and the header declares {} × {} × {}".format(*declared),
            )

    def _scopes(self, number: int) -> list[Dataset]:
        """Where display values of frame ``number`` are found, the most specific first."""
        scopes = []
        for group in (*self._per_frame[number : number + 1], *self._shared):
            scopes += items(group, "PixelValueTransformationSequence")[:1]
            scopes += items(group, "FrameVOILUTSequence")[:1]
        return [*scopes, self._header]

    def _padding(self, dtype: np.dtype[Any]) -> Padding | None:
        if dtype.kind not in "iu":
            return None
        low = integer(self._header, "PixelPaddingValue")
        if low is None:
            return None
        limit = integer(self._header, "PixelPaddingRangeLimit")
        ends = sorted(_wrap(end, dtype) for end in (low, low if limit is None else limit))
        return Padding(*ends)


def _wrap(number: int, dtype: np.dtype[Any]) -> int:
    """``number`` as its 16 bits read in the signedness of the pixels; writers confuse the two."""
    if dtype.kind == "i" and number > 0x7FFF:
        return number - 0x10000
    return number + 0x10000 if dtype.kind == "u" and number < 0 else number


def _syntax(encoding: Encoding, implicit: bool, little_endian: bool, compressed: bool) -> UID:
    if encoding.syntax is not None:
        return encoding.syntax
    if compressed:
        raise ImageRefused(
            RefusalReason.UNSUPPORTED_SYNTAX,
            "the pixel data is compressed and the file does not say how; "
            "write it with its Transfer Syntax UID (0002,0010)",
        )
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian


def _decoder(syntax: UID, layout: Layout) -> Decoder:
    try:
        decoder = get_decoder(syntax)
        usable = decoder.is_available
    except NotImplementedError:
        usable = False
    if usable and syntax == JPEGExtended12Bit and layout.bits_stored > 8:
        # Pillow's library is built for 8 bits.
        usable = bool(set(decoder.available_plugins) - {"pillow"})
    if not usable:
        raise ImageRefused(
            RefusalReason.UNSUPPORTED_SYNTAX,
            f"there is no decoder for {syntax.name}; convert the file to an uncompressed or "
            "JPEG 2000 transfer syntax, or install python-gdcm",
        )
    return decoder
