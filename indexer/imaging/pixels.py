"""Checks what a DICOM header says of its pixels, and renders stored values as it says."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from engine.errors import ImageRefused, RefusalReason
from indexer.files.dicom_structure import Encoding
from indexer.files.limits import declared_bytes
from indexer.imaging.display import Padding, render_color, render_grey
from indexer.imaging.header import integer, items, number as real, text
from indexer.imaging.lookup import render_palette

__all__ = ["PIXEL_KEYWORDS", "Layout", "PixelData", "layout_of"]

PIXEL_KEYWORDS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT")
# Defined terms that cannot be converted here. An error quotes these and no other value, which
# might be a patient's name.
_OTHER_PHOTOMETRIC = ("ARGB", "CMYK", "HSV", "XYB", "YBR_PARTIAL_420")


@dataclass(frozen=True, slots=True)
class Layout:
    """The Image Pixel module (PS3.3 C.7.6.3), checked.

    shift: how many unused bits lie below the stored value in its allocated bits.
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

    def declared(self) -> tuple[int, int, int, int, int]:
        """Rows, columns, frames, samples per pixel and bits allocated."""
        return self.rows, self.columns, self.frames, self.samples, self.bits_allocated

    def bytes_declared(self) -> int:
        """Bytes that all frames take uncompressed."""
        whole = declared_bytes(*self.declared())
        return whole // 3 * 2 if self.photometric.endswith("_422") else whole


def layout_of(header: Dataset, keyword: str) -> Layout:
    """The layout that ``header`` declares for the pixel data element ``keyword``.

    Raises:
        ImageRefused: DAMAGED: Rows or Columns is missing. UNSUPPORTED_PIXELS: the photometric
            interpretation, samples per pixel or bits allocated cannot be converted.
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
    if allocated not in (1, 8, 12, 16, 32, 64):
        raise ImageRefused(
            RefusalReason.UNSUPPORTED_PIXELS,
            f"Bits Allocated is {allocated}; 1, 8, 12, 16, 32 and 64 can be read",
        )
    stored = integer(header, "BitsStored") or allocated
    stored = stored if 1 <= stored <= allocated else allocated
    high_bit = integer(header, "HighBit")
    # Values may occupy the high bits of the allocated ones; the decoder reads the low bits.
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
    """The pixel data of one file, rendered frame by frame.

    stored: the stored values of a frame, by its number from 0; see ``decoding.StoredFrames``.
    """

    def __init__(
        self,
        header: Dataset,
        layout: Layout,
        encoding: Encoding,
        stored: Callable[[int], NDArray[Any]],
    ) -> None:
        self._header = header
        self._layout = layout
        self._little_endian = encoding.little_endian
        self._stored = stored
        self._shared = items(header, "SharedFunctionalGroupsSequence")[:1]
        self._per_frame = items(header, "PerFrameFunctionalGroupsSequence")

    def render(self, number: int) -> NDArray[np.uint8]:
        """Display values of frame ``number`` (from 0): uint8 (H, W) or (H, W, 3) RGB, 0 = black.

        Raises:
            ImageRefused: TRUNCATED or DAMAGED: the frame cannot be decoded.
        """
        layout = self._layout
        stored = self._decode(number)
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
        stored = self._stored(number)
        return stored >> self._layout.shift if self._layout.shift else stored

    def _scopes(self, number: int) -> list[Dataset]:
        """Datasets that may hold LUT and window of frame ``number``, the most specific first."""
        scopes = []
        for group in (*self._per_frame[number : number + 1], *self._shared):
            scopes += items(group, "PixelValueTransformationSequence")[:1]
            scopes += items(group, "FrameVOILUTSequence")[:1]
        return [*scopes, self._header]

    def _padding(self, dtype: np.dtype[Any]) -> Padding | None:
        form = {"f4": "Float", "f8": "DoubleFloat"}.get(dtype.str[1:], "")
        low = real(self._header, f"{form}PixelPaddingValue")
        if low is None:
            return None
        limit = real(self._header, f"{form}PixelPaddingRangeLimit")
        ends = [low, low if limit is None else limit]
        if dtype.kind in "iu":
            ends = [_wrap(int(end), dtype) for end in ends]
        return Padding(min(ends), max(ends))


def _wrap(number: int, dtype: np.dtype[Any]) -> int:
    """``number`` as 16 bits read in the signedness of the pixels, which writers confuse."""
    if dtype.kind == "i" and number > 0x7FFF:
        return number - 0x10000
    return number + 0x10000 if dtype.kind == "u" and number < 0 else number
