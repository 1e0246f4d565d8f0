"""Decodes the pixel data of a DICOM file frame by frame into stored values."""

from typing import Any, BinaryIO

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
from indexer.files.limits import check_held
from indexer.imaging import twelve_bit
from indexer.imaging.codestream import declared_size
from indexer.imaging.header import value
from indexer.imaging.pixels import PIXEL_KEYWORDS, Layout
from indexer.imaging.quiet import silenced

__all__ = ["StoredFrames"]

# Listed, so that results do not depend on which other decoders are installed.
_PLUGINS = ("pylibjpeg", "pyjpegls", "pillow", "pydicom")
_GDCM_12_BIT = "gdcm, asked directly"
_NOT_OF_THE_FRAME = (MemoryError, RecursionError, KeyboardInterrupt, SystemExit)
_END_OF_IMAGE = b"\xff\xd9"
_BY_GDCM = (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)


class StoredFrames:
    """The stored values of one file's frames, decoded one by one.

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
        compressed = head.length == UNDEFINED
        self._syntax = _syntax(encoding, compressed)
        self._decoder = _decoder(self._syntax)
        self._plugins = _plugins(self._decoder, layout)
        self._photometric = layout.photometric
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
            "planar_configuration": layout.planar,
            "pixel_keyword": keyword,
            "pixel_vr": (head.vr or b"OW").decode("ascii"),
        }

    def decode(self, number: int) -> NDArray[Any]:
        """The stored values of frame ``number`` (from 0): (H, W) or (H, W, 3), native byte order.

        Raises:
            ImageRefused: TRUNCATED or DAMAGED: the frame cannot be decoded.
        """
        try:
            return self._decode(number)
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

    def _decode(self, number: int) -> NDArray[Any]:
        if self._decoder.is_native:
            self._fp.seek(self._start)
            stored, _ = self._decoder.as_array(self._fp, index=number, **self._options)
        else:
            stored = self._decompress(self._compressed(number), number)
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)

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
