"""Checks the pixel data of a DICOM file against its header, and decodes it frame by frame."""

import math
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
)

from engine.errors import ImageRefused, RefusalReason
from engine.extras import install_command
from indexer.files.dicom_structure import (
    UNDEFINED,
    Encoding,
    Fragments,
    Head,
    Structure,
    first_fragments,
)
from indexer.files.limits import check_held, declared_bytes
from indexer.imaging import twelve_bit
from indexer.imaging.aspect import pixel_aspect, squared
from indexer.imaging.codestream import declared_size
from indexer.imaging.display import is_inverted, render_color, render_grey, stored_range
from indexer.imaging.header import integer, text, value
from indexer.imaging.lossy import is_lossy, keeps_values, within_bits_stored
from indexer.imaging.padding import Padding, padding_of
from indexer.imaging.palette import read_palette, supplemental_palette
from indexer.imaging.quiet import silenced
from indexer.imaging.scopes import Scopes
from indexer.imaging.voi import View

__all__ = ["PIXEL_KEYWORDS", "Layout", "PixelData", "layout_of"]

PIXEL_KEYWORDS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
# Listed, so that results do not depend on which other decoders are installed.
_PLUGINS = ("pylibjpeg", "pyjpegls", "pillow", "pydicom")
_GDCM_12_BIT = "gdcm, asked directly"
_NOT_OF_THE_FRAME = (MemoryError, RecursionError, KeyboardInterrupt, SystemExit)
_END_OF_IMAGE = b"\xff\xd9"
_BY_GDCM = (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
# Defined terms that cannot be converted here. An error quotes these and no other value, which
# might be a patient's name.
_OTHER_PHOTOMETRIC = ("ARGB", "CMYK", "HSV", "XYB", "YBR_PARTIAL_420", "YBR_PARTIAL_422")


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
        return whole // 3 * 2 if self.photometric == "YBR_FULL_422" else whole


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
    if allocated not in (1, 8, 16, 32, 64):
        raise ImageRefused(
            RefusalReason.UNSUPPORTED_PIXELS,
            f"Bits Allocated is {allocated}; 1, 8, 16, 32 and 64 can be read",
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
    """The pixel data of one file, decoded frame by frame.

    Raises:
        ImageRefused: before anything is decoded. UNSUPPORTED_SYNTAX: there is no decoder.
            TRUNCATED: the file holds less than the header declares. DAMAGED: pixel data and
            transfer syntax do not fit, or frames cannot be told apart.
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
        self._little_endian = encoding.little_endian
        compressed = head.length == UNDEFINED
        self._syntax = _syntax(encoding, compressed)
        self._decoder = _decoder(self._syntax)
        self._plugins = _plugins(self._decoder, layout)
        self._photometric = layout.photometric
        self._scopes = Scopes(header)
        self._fragments = Fragments((), (), ())
        self._first: list[int] = []
        if compressed != (not self._decoder.is_native):
            raise ImageRefused(
                RefusalReason.DAMAGED,
                f"{'compressed' if compressed else 'uncompressed'} pixel data under the "
                f"transfer syntax {self._syntax.name}",
            )
        if compressed:
            self._find_frames(structure)
        else:
            held = min(head.length, size - head.value)
            whole = layout.rows * layout.columns * layout.frames * 3
            if layout.photometric == "YBR_FULL_422" and held >= whole:
                # Declared as subsampled, but long enough for full chroma.
                self._photometric = "YBR_FULL"
            check_held(layout.bytes_declared(), held)
        self._options = self._decoding_options(PIXEL_KEYWORDS[head.tag], head)

    def _find_frames(self, structure: Structure) -> None:
        frames = self._layout.frames
        self._fragments = structure.fragments or self._fragments
        found = len(self._fragments)
        if found < frames:
            raise ImageRefused(
                RefusalReason.TRUNCATED,
                f"{frames} frames are declared and the file holds {found} fragments",
            )
        table = value(self._header, "ExtendedOffsetTable")
        first = first_fragments(
            self._fp, self._fragments, frames, table if isinstance(table, bytes) else None
        )
        if first is None:
            raise ImageRefused(
                RefusalReason.DAMAGED,
                f"nothing tells which of {found} fragments belong to which of {frames} frames",
            )
        self._first = [*first, found]

    def _decoding_options(self, keyword: str, head: Head) -> dict[str, Any]:
        layout = self._layout
        return {
            "rows": layout.rows,
            "columns": layout.columns,
            # Compressed frames are handed over one by one.
            "number_of_frames": layout.frames if self._decoder.is_native else 1,
            "samples_per_pixel": layout.samples,
            "bits_allocated": layout.bits_allocated,
            "bits_stored": layout.bits_stored + layout.shift,
            "photometric_interpretation": self._photometric,
            "pixel_representation": int(layout.signed),
            # How the samples of compressed frames lie, their codestream says (PS3.5 8.2).
            "planar_configuration": layout.planar if self._decoder.is_native else 0,
            "pixel_keyword": keyword,
            "pixel_vr": (head.vr or b"OW").decode("ascii"),
        }

    def render(self, number: int, view: View, max_pixels: int) -> NDArray[np.uint8]:
        """Display values of frame ``number`` (from 0) with square pixels: uint8 (H, W) or (H, W, 3)
        RGB, 0 = black.

        Args:
            view: the window to show values in Hounsfield units through.
            max_pixels: to how many pixels the frame may grow when its own are not square.

        Raises:
            ImageRefused: TRUNCATED or DAMAGED: the frame cannot be decoded.
        """
        try:
            stored = self._decode(number)
        except (ImageRefused, *_NOT_OF_THE_FRAME):
            raise
        except BaseException as error:
            # A panic in a decoder written in Rust is a BaseException, but no Exception.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            # Decoders raise any type of error; only the message tells truncated from damaged.
            cut = "truncated" in str(error).lower()
            raise ImageRefused(
                RefusalReason.TRUNCATED if cut else RefusalReason.DAMAGED,
                f"frame {number} cannot be decoded as {self._syntax.name} ({type(error).__name__})",
            ) from None
        scopes = self._scopes.of(number)
        return squared(self._shown(stored, scopes, view), pixel_aspect(scopes), max_pixels)

    def _shown(self, stored: NDArray[Any], scopes: list[Dataset], view: View) -> NDArray[np.uint8]:
        layout, header, order = self._layout, self._header, self._little_endian
        if layout.photometric in _COLOR:
            return render_color(stored, min(layout.bits_stored, 8 * stored.dtype.itemsize))
        possible = stored_range(stored, layout.bits_stored, signed=layout.signed)
        if layout.photometric == "PALETTE COLOR":
            return read_palette(header, possible, little_endian=order).colors(stored)
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
        if self._decoder.is_native:
            self._fp.seek(self._start)
            stored, _ = self._decoder.as_array(self._fp, index=number, **self._options)
        else:
            stored = self._decompress(self._compressed(number), number)
        stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        stored = stored >> self._layout.shift if self._layout.shift else stored
        return self._meant(stored)

    def _compressed(self, number: int) -> bytes:
        parts = []
        for index in range(self._first[number], self._first[number + 1]):
            self._fp.seek(self._fragments.heads[index] + 8)
            parts.append(self._fp.read(self._fragments.lengths[index]))
        return b"".join(parts)

    def _decompress(self, frame: bytes, number: int) -> NDArray[Any]:
        """The stored values of a frame, from the first decoder that succeeds."""
        size = declared_size(frame)
        declared = (self._layout.rows, self._layout.columns, self._layout.samples)
        if size is not None and (size.rows, size.columns, size.samples) != declared:
            # It would decode to another size than the limits were checked for.
            raise ImageRefused(
                RefusalReason.DAMAGED,
                f"frame {number} is compressed as {size.rows} × {size.columns} × {size.samples} "
                "and the header declares {} × {} × {}".format(*declared),
            )
        if self._syntax in JPEGLSTransferSyntaxes:
            # Without an end marker CharLS keeps searching truncated data for many seconds.
            frame += _END_OF_IMAGE
        source = encapsulate([frame], has_bot=False)
        for plugin in self._plugins[:-1]:
            try:
                return self._by(plugin, source, frame)
            except _NOT_OF_THE_FRAME:
                raise
            except BaseException:  # noqa: S112 - the last decoder's error is reported
                continue
        return self._by(self._plugins[-1], source, frame)

    def _by(self, plugin: str, source: bytes, frame: bytes) -> NDArray[Any]:
        layout = self._layout
        with silenced():
            if plugin == _GDCM_12_BIT:
                size = (layout.rows, layout.columns, layout.samples)
                return twelve_bit.decode(frame, *size, layout.photometric)
            stored, _ = self._decoder.as_array(
                source, index=0, decoding_plugin=plugin, **self._options
            )
        return stored

    def _meant(self, stored: NDArray[Any]) -> NDArray[Any]:
        layout = self._layout
        # Uncompressed values are read within their bits.
        exact = not self._decoder.is_native and keeps_values(self._syntax, self._header)
        if layout.samples > 1 or not exact:
            return stored
        return within_bits_stored(stored, layout.bits_stored, signed=layout.signed)


def _syntax(encoding: Encoding, compressed: bool) -> UID:
    if encoding.syntax is not None:
        return encoding.syntax
    if compressed:
        raise ImageRefused(
            RefusalReason.UNSUPPORTED_SYNTAX,
            "the pixel data is compressed and the file does not say how; "
            "write it with its Transfer Syntax UID (0002,0010)",
        )
    if encoding.implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if encoding.little_endian else ExplicitVRBigEndian


def _decoder(syntax: UID) -> Decoder:
    try:
        return get_decoder(syntax)
    except NotImplementedError:
        # The value may be no valid UID, and is then not quoted.
        named = syntax.name if syntax.is_valid else "what is named as its transfer syntax"
        raise _undecodable(named) from None


def _plugins(decoder: Decoder, layout: Layout) -> tuple[str, ...]:
    """The decoders to try, in order of preference; none for uncompressed pixels."""
    if decoder.is_native:
        return ()
    syntax = decoder.UID
    usable = [plugin for plugin in _PLUGINS if plugin in decoder.available_plugins]
    if syntax == JPEGExtended12Bit and layout.bits_stored > 8:
        # Pillow's JPEG library decodes 8 bits only, and pydicom uses GDCM for 8 bits only.
        usable = [plugin for plugin in usable if plugin != "pillow"]
        if twelve_bit.gdcm_installed():
            usable.append(_GDCM_12_BIT)
    elif not usable and "gdcm" in decoder.available_plugins:
        # Only if no other decoder can: a damaged frame may make GDCM crash the process.
        usable = ["gdcm"]
    if not usable:
        raise _undecodable(syntax.name, extra=syntax in _BY_GDCM)
    return tuple(usable)


def _undecodable(named: str, *, extra: bool = False) -> ImageRefused:
    way_out = "convert the file to an uncompressed or JPEG 2000 transfer syntax"
    if extra:
        way_out = f"install one with `{install_command('gdcm')}`, or {way_out}"
    return ImageRefused(
        RefusalReason.UNSUPPORTED_SYNTAX, f"there is no decoder for {named}; {way_out}"
    )
