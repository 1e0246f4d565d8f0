"""Decodes the pixel data of a DICOM file frame by frame into stored values."""

import io
import zlib
from dataclasses import replace
from typing import Any, BinaryIO

from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from engine.errors import ImageRefused, RefusalReason
from engine.settings import ImageLimits
from indexer.files.dicom_structure import (
    UNDEFINED,
    Encoding,
    Fragments,
    Head,
    Structure,
    first_fragments,
)
from indexer.files.limits import check_declared, check_held
from indexer.imaging.codestream import CodeStream, code_stream
from indexer.imaging.color import partial_range_to_rgb
from indexer.imaging.decoders import NOT_OF_THE_FRAME, decoder_of, decompress, is_jpeg
from indexer.imaging.header import value
from indexer.imaging.instance import UnreadableFrames
from indexer.imaging.native import low_bits, packed_frame
from indexer.imaging.pixels import PIXEL_KEYWORDS, Layout

__all__ = ["StoredFrames"]

_NATIVE = "native"
# Frames in fragments that are no code streams: as they are (PS3.5 A.4.11), and deflated (A.4.13).
_ENCAPSULATED = UID("1.2.840.10008.1.2.1.98")
_DEFLATED = UID("1.2.840.10008.1.2.8.1")
_SUBSAMPLED = ("YBR_FULL_422", "YBR_PARTIAL_422")
# Bits Allocated of samples that share bytes with each other.
_PACKED = (1, 12)


class StoredFrames:
    """The stored values of one file's frames, decoded one by one.

    Args:
        at_once: how many frames will be in memory at the same time.

    Attributes:
        held: how many of the declared frames the file holds, from the first on.
        missing: the others.
        decoders: which decoder answered, by the number of the frame.
        syntax: the transfer syntax by which they are decoded.

    Raises:
        ImageRefused: before anything is decoded. UNSUPPORTED_SYNTAX: there is no decoder.
            TRUNCATED: the file does not hold one whole frame. DAMAGED: pixel data and transfer
            syntax do not fit, or frames cannot be told apart.
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
        limits: ImageLimits,
        at_once: int,
    ) -> None:
        self._fp = fp
        self._size = size
        self._start = head.value
        self._layout = layout
        self._limits = limits
        self._at_once = at_once
        self._photometric = layout.photometric
        self._allocated = layout.bits_allocated
        self._fragments = Fragments((), (), ())
        self._first: list[int] = []
        self.missing: tuple[UnreadableFrames, ...] = ()
        self.decoders: dict[int, str] = {}
        compressed = head.length == UNDEFINED
        self.syntax = _syntax(encoding, compressed)
        self._native = decoder_of(ExplicitVRLittleEndian)
        self._decoder: Decoder | None = self._native
        if self.syntax not in (_ENCAPSULATED, _DEFLATED):
            self._decoder = None if is_jpeg(self.syntax) else decoder_of(self.syntax)
        if layout.photometric == "YBR_PARTIAL_422" and (
            layout.bits_allocated != 8
            or (compressed and self._decoder is not None and not self._decoder.is_native)
        ):
            raise ImageRefused(
                RefusalReason.UNSUPPORTED_PIXELS,
                f"YBR_PARTIAL_422 of {layout.bits_allocated} bits as {self.syntax.name}; it can "
                "be read of 8 bits, uncompressed or as JPEG",
            )
        if compressed:
            # Samples of 12 bits are packed in uncompressed pixels only (PS3.5 8.1.1).
            self._allocated = 16 if layout.bits_allocated == 12 else layout.bits_allocated
            self.held = self._find_frames(header, structure)
        else:
            self.held = self._measure(head)
        if self.held < layout.frames:
            self.missing = (
                UnreadableFrames(
                    self.held,
                    layout.frames - 1,
                    RefusalReason.TRUNCATED,
                    f"{layout.frames} frames are declared and the file holds {self.held}",
                ),
            )
        self._keyword = PIXEL_KEYWORDS[head.tag]
        self._vr = (head.vr or b"OW").decode("ascii")
        self._swapped = not encoding.little_endian and self._vr == "OW"

    def _measure(self, head: Head) -> int:
        """How many whole frames uncompressed pixel data holds."""
        layout = self._layout
        declared = layout.bytes_declared()
        whole = layout.rows * layout.columns * layout.frames * 3
        held = min(head.length, self._size - head.value)
        if layout.photometric in _SUBSAMPLED and held >= whole:
            # Declared as subsampled, but long enough for full chroma.
            self._photometric = layout.photometric.removesuffix("_422")
            declared = whole
        words = layout.rows * layout.columns * layout.frames * layout.samples * 2
        if layout.bits_allocated == 12 and held >= words:
            # Bits Stored written twice: each sample has a word of its own.
            self._allocated, declared = 16, words
        if self._decoder is not None and self._decoder.is_native:
            self._native = self._decoder
        elif head.length not in (declared, declared + declared % 2):
            # What fits was decompressed by a program that left the name, and is little endian.
            raise ImageRefused(
                RefusalReason.DAMAGED,
                f"uncompressed pixel data under the transfer syntax {self.syntax.name}, of "
                f"{head.length} bytes where the header declares {declared}",
            )
        if held >= declared:
            return layout.frames
        frames = held * layout.frames // declared
        if layout.frames == 1 or frames == 0:
            check_held(declared, held)
        return frames

    def _find_frames(self, header: Dataset, structure: Structure) -> int:
        """How many frames encapsulated pixel data holds; notes where they begin."""
        frames = self._layout.frames
        self._fragments = structure.fragments or self._fragments
        found = len(self._fragments)
        if structure.missing and found:
            # What the file breaks off in is no whole fragment.
            whole = self._fragments.heads[-1] + 8 + self._fragments.lengths[-1] <= self._size
            found -= not whole
        if found == 0 or (structure.missing and frames == 1):
            raise ImageRefused(
                RefusalReason.TRUNCATED,
                f"{frames} frames are declared and the file holds {found} fragments"
                if not structure.missing
                else f"the file ends at least {structure.missing} bytes before what it declares",
            )
        table = value(header, "ExtendedOffsetTable")
        first = first_fragments(
            self._fp, self._fragments, frames, table if isinstance(table, bytes) else None
        )
        if first is None:
            raise ImageRefused(
                RefusalReason.DAMAGED,
                f"nothing tells which of {found} fragments belong to which of {frames} frames",
            )
        self._first = [*first, len(self._fragments)]
        # The last frame may reach into the fragment that breaks off.
        whole_frames = sum(end <= found for end in self._first[1:])
        if whole_frames == 0:
            raise ImageRefused(
                RefusalReason.TRUNCATED,
                f"the file ends at least {structure.missing} bytes before what it declares",
            )
        return whole_frames

    def decode(self, number: int) -> NDArray[Any]:
        """The stored values of frame ``number`` (from 0): (H, W) or (H, W, 3), native byte order.

        H and W are the code stream's where it has them the other way round than the header.

        Raises:
            ImageRefused: TRUNCATED or DAMAGED: the frame cannot be decoded. TOO_LARGE: its
                samples have more bits than the header says, and exceed the limits.
        """
        try:
            return self._decode(number)
        except (ImageRefused, *NOT_OF_THE_FRAME):
            raise
        except BaseException as error:
            # A panic in a decoder written in Rust is a BaseException, but no Exception.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            # Decoders raise any type of error; only the message tells truncated from damaged.
            cut = "truncated" in str(error).lower()
            raise ImageRefused(
                RefusalReason.TRUNCATED if cut else RefusalReason.DAMAGED,
                f"frame {number} cannot be decoded as {self.syntax.name} ({type(error).__name__})",
            ) from None

    def _decode(self, number: int) -> NDArray[Any]:
        if self._first:
            stored = self._decompress(self._compressed(number), number)
        else:
            self.decoders[number] = _NATIVE
            stored = self._uncompressed(self._fp, self._start, number, self._layout.frames)
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)

    def _uncompressed(self, fp: BinaryIO, start: int, number: int, frames: int) -> NDArray[Any]:
        """Frame ``number`` of the ``frames`` that lie from byte ``start`` on."""
        layout = self._layout
        if self._allocated in _PACKED:
            shape = (layout.rows, layout.columns, layout.samples)[: 2 + (layout.samples > 1)]
            cells = layout.rows * layout.columns * layout.samples
            packed = packed_frame(fp, start, number, cells, self._allocated, swapped=self._swapped)
            if self._allocated == 1:
                return packed.reshape(shape)
            bits = layout.bits_stored + layout.shift
            return low_bits(packed, bits, signed=layout.signed).reshape(shape)
        fp.seek(start)
        options = self._options(layout.rows, layout.columns, frames)
        partial = self._photometric.startswith("YBR_PARTIAL")
        if partial:
            # They lie as those of YBR_FULL do, and differ in what they mean.
            options["photometric_interpretation"] = self._photometric.replace("PARTIAL", "FULL")
        stored, _ = self._native.as_array(fp, index=number, raw=partial, **options)
        return partial_range_to_rgb(stored) if partial else stored

    def _options(
        self, rows: int, columns: int, frames: int = 1, *, compressed: bool = False
    ) -> dict[str, Any]:
        """For pydicom. Compressed frames are handed over one by one."""
        layout = self._layout
        return {
            "rows": rows,
            "columns": columns,
            "number_of_frames": frames,
            "samples_per_pixel": layout.samples,
            "bits_allocated": self._allocated,
            "bits_stored": layout.bits_stored + layout.shift,
            "photometric_interpretation": self._photometric,
            "pixel_representation": int(layout.signed),
            # How compressed samples lie the code stream says (PS3.5 8.2).
            "planar_configuration": 0 if compressed else layout.planar,
            "pixel_keyword": self._keyword,
            "pixel_vr": self._vr,
        }

    def _compressed(self, number: int) -> bytes:
        parts = []
        for index in range(self._first[number], self._first[number + 1]):
            self._fp.seek(self._fragments.heads[index] + 8)
            parts.append(self._fp.read(self._fragments.lengths[index]))
        return b"".join(parts)

    def _decompress(self, frame: bytes, number: int) -> NDArray[Any]:
        stream = None if self.syntax in (_ENCAPSULATED, _DEFLATED) else code_stream(frame)
        if stream is None and self._decoder is not None and self._decoder.is_native:
            return self._as_it_is(frame, number)
        rows, columns = self._layout.rows, self._layout.columns
        if stream is not None:
            self._check(stream, number)
            rows, columns = stream.rows, stream.columns
        stored, self.decoders[number] = decompress(
            frame, stream, self._decoder, self._options(rows, columns, compressed=True)
        )
        return stored

    def _as_it_is(self, frame: bytes, number: int) -> NDArray[Any]:
        """A frame that lies in fragments without a codec, or deflated."""
        declared = replace(self._layout, frames=1).bytes_declared()
        self.decoders[number] = _NATIVE
        if self.syntax == _DEFLATED:
            self.decoders[number] = "zlib"
            frame = zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame, declared)
        elif self.syntax != _ENCAPSULATED and len(frame) not in (declared, declared + declared % 2):
            # The transfer syntax knows no fragments; what they hold it cannot tell.
            raise ValueError("the frame is no code stream of a known kind")
        check_held(declared, len(frame))
        return self._uncompressed(io.BytesIO(frame), 0, 0, 1)

    def _check(self, stream: CodeStream, number: int) -> None:
        """Checks what will be decoded: the header's limits were checked for what that declares."""
        layout = self._layout
        sizes = ((layout.rows, layout.columns), (layout.columns, layout.rows))
        if (stream.rows, stream.columns) not in sizes or stream.samples != layout.samples:
            raise ImageRefused(
                RefusalReason.DAMAGED,
                f"frame {number} is compressed as {stream.rows} × {stream.columns} × "
                f"{stream.samples} and the header declares {layout.rows} × {layout.columns} × "
                f"{layout.samples}",
            )
        bits = 8 * stream.bytes_per_sample
        if bits > layout.bits_allocated:
            size = (stream.rows, stream.columns, layout.frames, stream.samples, bits)
            check_declared(*size, self._limits, self._at_once)


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
