"""Checks what a DICOM header says of its pixels, and renders stored values as it says."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID

from engine.errors import ImageRefused, RefusalReason
from indexer.files.dicom_structure import Encoding
from indexer.files.limits import declared_bytes
from indexer.imaging.aspect import pixel_aspect, squared
from indexer.imaging.display import is_inverted, render_color, render_grey, stored_range
from indexer.imaging.header import integer, text
from indexer.imaging.lossy import (
    is_encapsulated,
    is_lossy,
    keeps_values,
    within_bits_stored,
)
from indexer.imaging.orientation import Turn, turn_of
from indexer.imaging.padding import Padding, padding_of
from indexer.imaging.palette import data_path, read_palette, supplemental_palette
from indexer.imaging.scopes import Scopes
from indexer.imaging.voi import View

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

    syntax: the transfer syntax that the file names. stored: the stored values of a frame, by its
    number from 0; see ``decoding.StoredFrames``.
    """

    def __init__(
        self,
        header: Dataset,
        layout: Layout,
        encoding: Encoding,
        syntax: UID,
        stored: Callable[[int], NDArray[Any]],
    ) -> None:
        self._header = header
        self._layout = layout
        self._little_endian = encoding.little_endian
        self._syntax = syntax
        self._stored = stored
        self._scopes = Scopes(header)

    def render(self, number: int, view: View, max_pixels: int) -> NDArray[np.uint8]:
        """Display values of frame ``number`` (from 0) with square pixels: uint8 (H, W) or (H, W, 3)
        RGB, 0 = black.

        Args:
            view: the window to show values in Hounsfield units through.
            max_pixels: to how many pixels the frame may grow when its own are not square.

        Raises:
            ImageRefused: TRUNCATED or DAMAGED: the frame cannot be decoded.
        """
        stored = self._decode(number)
        scopes = self._scopes.of(number)
        return squared(self._shown(stored, scopes, view), pixel_aspect(scopes), max_pixels)

    def turn(self, number: int) -> Turn:
        """What brings frame ``number`` into the usual view of its plane."""
        return turn_of(self._scopes.of(number))

    def _shown(self, stored: NDArray[Any], scopes: list[Dataset], view: View) -> NDArray[np.uint8]:
        layout, header, order = self._layout, self._header, self._little_endian
        if layout.photometric in _COLOR:
            return render_color(stored, min(layout.bits_stored, 8 * stored.dtype.itemsize))
        possible = stored_range(stored, layout.bits_stored, signed=layout.signed)
        if layout.photometric == "PALETTE COLOR":
            return read_palette(header, possible, little_endian=order).colors(stored)
        if stored.dtype.kind == "u":
            path, scopes = data_path(scopes, possible, layout.bits_stored, little_endian=order)
            if path is not None:
                return path.shown(stored)
        palette = supplemental_palette(scopes, possible, little_endian=order)
        grey = render_grey(
            stored,
            scopes,
            possible,
            little_endian=order,
            inverted=is_inverted(layout.photometric, header),
            padding=padding_of(header, stored.dtype, lossy=is_lossy(self._syntax, header)),
            colored=None if palette is None else Padding(palette.first, math.inf),
            view=view,
        )
        return grey if palette is None else palette.paint(grey, stored)

    def _decode(self, number: int) -> NDArray[Any]:
        layout = self._layout
        stored = self._stored(number)
        stored = stored >> layout.shift if layout.shift else stored
        # Uncompressed values are read within their bits.
        exact = is_encapsulated(self._syntax) and keeps_values(self._syntax, self._header)
        # Of values with more bits than the header allocates, it knows nothing.
        wider = 8 * stored.dtype.itemsize > layout.bits_allocated
        if layout.samples > 1 or wider or not exact:
            return stored
        return within_bits_stored(stored, layout.bits_stored, signed=layout.signed)
