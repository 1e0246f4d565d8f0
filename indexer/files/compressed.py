"""Files packed as a whole by gzip (RFC 1952) or Zstandard (RFC 8878), unpacked within limits.

The declared size is not trusted, and neither is a checksum before the end: a stream is valid only
if it ends without an error. Memory is bounded whatever the stream says: output comes in pieces,
and a Zstandard frame may ask for a window of at most 128 MiB, as the zstd command allows.
"""

import sys
import zlib
from typing import BinaryIO

from engine.errors import ImageRefused, RefusalReason
from engine.settings import ZipLimits

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["UnpackedStream", "is_compressed"]

_GZIP, _ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
# Frames that hold no data, which may stand before the first (RFC 8878, 3.1.2).
_SKIPPABLE = tuple(bytes([0x50 + number, 0x2A, 0x4D, 0x18]) for number in range(16))
_WINDOW: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 27}
_CHUNK = 256 * 1024


def is_compressed(fp: BinaryIO) -> bool:
    """Whether the content starts as gzip or Zstandard data does."""
    fp.seek(0)
    return fp.read(4).startswith((_GZIP, _ZSTD, *_SKIPPABLE))


class _Gzip:
    """zlib's object, of which input has to be handed over until it is consumed."""

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._inflater.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflater.unused_data

    def decompress(self, data: bytes, max_length: int = 0, /) -> bytes:
        return self._inflater.decompress(self._inflater.unconsumed_tail + data, max_length)

    @property
    def needs_input(self) -> bool:
        return not self._inflater.unconsumed_tail


class UnpackedStream:
    """What a packed file unpacks to, from its start to its end.

    Args:
        fp: the packed file, of ``size`` bytes.

    Raises:
        ImageRefused: while it is read. TOO_LARGE: it unpacks to more than ``limits`` allow.
            TRUNCATED or DAMAGED: it does not unpack.
    """

    def __init__(self, fp: BinaryIO, size: int, limits: ZipLimits) -> None:
        self._fp = fp
        self._size = size
        self._limits = limits
        self._at = 0
        self._unpacker: _Gzip | zstd.ZstdDecompressor | None = None
        self._input = b""
        self._piece = b""
        self._from = 0
        self.position = 0
        """Bytes read so far."""
        self._total = 0

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer at the end; at most a piece of some 100 KB at once."""
        if self._from >= len(self._piece):
            self._piece, self._from = self._next(), 0
        found = self._piece[self._from : self._from + size]
        self._from += len(found)
        self.position += len(found)
        return found

    def exactly(self, size: int) -> bytes:
        """The next ``size`` bytes, which should be few; fewer at the end."""
        parts = []
        while size and (part := self.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def skip(self, size: int) -> bool:
        """Goes on by ``size`` bytes; False when it ends before."""
        while size and (part := self.read(min(size, _CHUNK))):
            size -= len(part)
        return size == 0

    def _next(self) -> bytes:
        """The next piece; empty at the end of the stream."""
        while True:
            if self._unpacker is None and not self._begin():
                return b""
            assert self._unpacker is not None  # noqa: S101 - for the type checker
            if not self._input and self._unpacker.needs_input:
                self._input = self._packed()
                if not self._input:
                    raise ImageRefused(
                        RefusalReason.TRUNCATED, "its packed content has no end; it is cut off"
                    )
            given, self._input = self._input, b""
            try:
                piece = self._unpacker.decompress(given, _CHUNK)
            except (zlib.error, zstd.ZstdError, EOFError):
                raise ImageRefused(RefusalReason.DAMAGED, "its packed content is corrupt") from None
            if self._unpacker.eof:
                # Another member, or frame, may follow.
                self._input, self._unpacker = self._unpacker.unused_data, None
            if piece:
                self._count(len(piece))
                return piece

    def _begin(self) -> bool:
        """Starts with a member of the file; False when there is none any more."""
        while len(self._input) < 4 and (more := self._packed()):
            self._input += more
        start = self._input[:4]
        if start.startswith(_GZIP):
            self._unpacker = _Gzip()
        elif start == _ZSTD or start in _SKIPPABLE:
            self._unpacker = zstd.ZstdDecompressor(options=_WINDOW)
        else:
            # Some writers pad with zeros; gzip ignores what follows the last member.
            return False
        return True

    def _packed(self) -> bytes:
        self._fp.seek(self._at)
        data = self._fp.read(_CHUNK)
        self._at += len(data)
        return data

    def _count(self, size: int) -> None:
        self._total += size
        if self._total > self._limits.max_total_bytes:
            raise ImageRefused(
                RefusalReason.TOO_LARGE,
                f"it unpacks to more than the {self._limits.max_total_bytes} bytes that "
                "zip.max_total_bytes allows",
            )
        if self._total > self._limits.max_ratio * self._size:
            raise ImageRefused(
                RefusalReason.TOO_LARGE,
                f"{self._size} bytes unpack to {self._total} and more; zip.max_ratio allows "
                f"{self._limits.max_ratio:g} times as many",
            )
